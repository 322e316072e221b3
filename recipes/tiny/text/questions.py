"""Questions about a sound whose sources are known, with their answers in the tables' spelling.

A sound is a list of one or two sources (two when clips were mixed). The question stands alone;
where the audio goes is up to the caller.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from recipes.tiny.text import wordings
from recipes.tiny.text.species import NO_GROUP, Source

NONE = "None"
UNKNOWN = "Unknown"
Question = tuple[str, str]


def joined(sources: Sequence[Source]) -> str:
    """Names in alphabetical order, joined by a comma; "None" if there are none."""
    return ", ".join(sorted(source.name for source in sources)) or NONE


def list_of(names: Sequence[str], rng: random.Random) -> str:
    """The names in random order, joined by a comma."""
    shuffled = list(names)
    rng.shuffle(shuffled)
    return ", ".join(shuffled)


def distractors(
    heard: Sequence[Source], pool: Sequence[Source], count: int, rng: random.Random
) -> list[Source]:
    """Up to `count` sources of the pool that are not heard, nor share a species with one."""
    taken = {source.name for source in heard}
    species = {source.scientific for source in heard if source.scientific}
    rest = [s for s in pool if s.name not in taken and s.scientific not in species]
    return rng.sample(rest, min(count, len(rest)))


def ask(
    family: str,
    heard: Sequence[Source],
    pool: Sequence[Source],
    rng: random.Random,
    *,
    unseen: bool = False,
    longest_list: int = 12,
) -> Question:
    """A question of the family about the sources heard, with its answer.

    pool: what lists and yes/no questions draw other names from
    unseen: use the wordings that no training sample has
    """
    wording = rng.choice((wordings.UNSEEN if unseen else wordings.SEEN)[family])
    if family == wordings.CHOICE:
        return _choice(wording, heard, pool, rng, longest_list)
    if family == wordings.YES_NO:
        present = rng.random() < 0.5
        named = rng.choice(list(heard)) if present else distractors(heard, pool, 1, rng)[0]
        return wording.format(name=named.name), "Yes" if present else "No"
    return wording, answer(family, heard)


def answer(family: str, heard: Sequence[Source]) -> str:
    """The answer to an open question about the sources heard."""
    animals = [source for source in heard if source.is_animal]
    if family == wordings.SCIENTIFIC:
        return ", ".join(sorted(s.scientific or UNKNOWN for s in animals)) or NONE
    if family == wordings.GROUP:
        return ", ".join(sorted({source.group for source in animals})) or NO_GROUP
    if family == wordings.SOUND:
        return joined(heard)
    if family == wordings.CAPTION:
        return " ".join(s.caption for s in sorted(heard, key=lambda s: s.name))
    return joined(animals)


def _choice(
    wording: str, heard: Sequence[Source], pool: Sequence[Source], rng: random.Random, longest: int
) -> Question:
    """A list with what is heard in it, or (one time in eight) without it: then "None"."""
    count = rng.randint(1, max(1, longest - len(heard)))
    others = distractors(heard, pool, count, rng)
    listed = [] if rng.random() < 0.125 and len(others) > 1 else list(heard)
    names = list_of([source.name for source in (*listed, *others)], rng)
    return wording.format(names=names), joined(listed)

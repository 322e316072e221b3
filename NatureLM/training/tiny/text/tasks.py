"""Text-only instructions: lists, choices, formats, knowledge of names, few-shot blocks.

Each task is a function of a random generator and `unseen` (use the wordings kept out of training)
that returns a prompt and its answer. `TASKS` weights them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from NatureLM.training.tiny.text import wordings
from NatureLM.training.tiny.text.instructions import INSTRUCTIONS
from NatureLM.training.tiny.text.questions import ask, distractors, list_of
from NatureLM.training.tiny.text.species import (
    ANIMALS,
    GROUPS,
    HEARD,
    SOURCES,
    SPECIES,
    Source,
)

Sample = tuple[str, str]
Task = Callable[[random.Random, bool], Sample]

# What stands where audio would: {} is a name or a description.
_STANDS_FOR_AUDIO = ("{}", "[{}]", "[sound of {}]", "[{} heard]", "({})", "{} {}")


def _wording(task: str, rng: random.Random, unseen: bool) -> str:
    return rng.choice(INSTRUCTIONS[task][1 if unseen else 0])


def _some(rng: random.Random, most: int, least: int = 2) -> list[Source]:
    return rng.sample(SOURCES, rng.randint(least, most))


def _list(rng: random.Random, most: int, least: int = 2) -> list[str]:
    return [source.name for source in _some(rng, most, least)]


def pick_group(rng: random.Random, unseen: bool) -> Sample:
    group = rng.choice(GROUPS)
    right = rng.choice([a for a in ANIMALS if a.group == group])
    others = rng.sample([s for s in SOURCES if s.group != group], rng.randint(1, 6))
    names = list_of([right.name, *(o.name for o in others)], rng)
    return _wording("pick_group", rng, unseen).format(group=group, names=names), right.name


def is_group(rng: random.Random, unseen: bool) -> Sample:
    group = rng.choice(GROUPS)
    yes = rng.random() < 0.5
    named = rng.choice([s for s in SOURCES if (s.group == group) == yes])
    prompt = _wording("is_group", rng, unseen).format(name=named.name, group=group)
    return prompt, "Yes" if yes else "No"


def in_list(rng: random.Random, unseen: bool) -> Sample:
    names = _list(rng, 9, 1)
    yes = rng.random() < 0.5
    rest = [s.name for s in SOURCES if s.name not in names]
    name = rng.choice(names if yes else rest)
    prompt = _wording("in_list", rng, unseen).format(name=name, names=", ".join(names))
    return prompt, "Yes" if yes else "No"


def copy(rng: random.Random, unseen: bool) -> Sample:
    source = rng.choice(SOURCES)
    texts = [source.name, source.scientific or source.name, rng.choice(source.phrases)]
    texts.append(", ".join(_list(rng, 3)))
    text = rng.choice(texts)
    return _wording("copy", rng, unseen).format(text=text), text


def first(rng: random.Random, unseen: bool) -> Sample:
    names = _list(rng, 8)
    return _wording("first", rng, unseen).format(names=", ".join(names)), names[0]


def last(rng: random.Random, unseen: bool) -> Sample:
    names = _list(rng, 8)
    return _wording("last", rng, unseen).format(names=", ".join(names)), names[-1]


def sort(rng: random.Random, unseen: bool) -> Sample:
    names = _list(rng, 3)
    prompt = _wording("sort", rng, unseen).format(names=", ".join(names))
    return prompt, ", ".join(sorted(names))


def count(rng: random.Random, unseen: bool) -> Sample:
    names = _list(rng, 6, 1)
    return _wording("count", rng, unseen).format(names=", ".join(names)), str(len(names))


def one_more(rng: random.Random, unseen: bool) -> Sample:
    names = _list(rng, 3) if rng.random() < 0.5 else _list(rng, 1, 1)
    prompt = _wording("one_more", rng, unseen).format(names=", ".join(names))
    return prompt, "One" if len(names) == 1 else "More"


def group_of(rng: random.Random, unseen: bool) -> Sample:
    named = rng.choice(SOURCES)
    return _wording("group_of", rng, unseen).format(name=named.name), named.group


def to_scientific(rng: random.Random, unseen: bool) -> Sample:
    named = rng.choice(SPECIES)
    return _wording("to_scientific", rng, unseen).format(name=named.name), named.scientific


def to_common(rng: random.Random, unseen: bool) -> Sample:
    named = rng.choice([s for s in SPECIES if s.name != "Rooster"])
    prompt = _wording("to_common", rng, unseen).format(scientific=named.scientific)
    return prompt, named.name


def both_names(rng: random.Random, unseen: bool) -> Sample:
    named = rng.choice(SPECIES)
    prompt = _wording("both_names", rng, unseen).format(name=named.name)
    return prompt, f"{named.scientific} : {named.name}"


def list_group(rng: random.Random, unseen: bool) -> Sample:
    group = rng.choice(GROUPS)
    sources = _some(rng, 5)
    kept = [s.name for s in sources if s.group == group]
    names = ", ".join(s.name for s in sources)
    prompt = _wording("list_group", rng, unseen).format(group=group, names=names)
    return prompt, ", ".join(kept) or "None"


def stand_in(heard: Sequence[Source], rng: random.Random) -> str:
    """Text that stands where audio would: names or descriptions of what is heard."""
    texts = [s.name if rng.random() < 0.6 else rng.choice(s.phrases) for s in heard]
    text = " and ".join(texts)
    frame = rng.choice(_STANDS_FOR_AUDIO)
    return frame.format(*[text] * frame.count("{}"))


def about_sound(rng: random.Random, unseen: bool) -> Sample:
    """A question as it is asked about audio, with a description between the audio tags."""
    pool = HEARD if rng.random() < 0.7 else SOURCES
    heard = rng.sample(pool, 2 if rng.random() < 0.1 else 1)
    family = rng.choice(list(wordings.SEEN))
    longest = 36 if rng.random() < 0.1 else 10
    prompt, answer = ask(family, heard, pool, rng, unseen=unseen, longest_list=longest)
    audio = f"<Audio>{stand_in(heard, rng)}</Audio>"
    return (f"{audio} {prompt}" if rng.random() < 0.8 else f"{prompt}\n{audio}"), answer


def few_shot(rng: random.Random, unseen: bool) -> Sample:
    """Blocks of a description and its label, the last one to be filled in."""
    del unseen  # a format, not a wording
    pool = HEARD if rng.random() < 0.6 else SOURCES
    right = rng.choice(pool)
    shown = [right, *distractors([right], pool, rng.randint(1, 4), rng)]
    rng.shuffle(shown)
    blocks = [f"Audio: [{rng.choice(s.phrases)}]\nLabel: {s.name}" for s in shown]
    blocks.append(f"Audio: <Audio>{stand_in([right], rng)}</Audio>\nLabel:")
    head = rng.choice(("", "Label the last sound.\n\n", "Examples and a question:\n\n"))
    return head + "\n\n".join(blocks), right.name


TASKS: tuple[tuple[Task, float], ...] = (
    (about_sound, 10.0),
    (few_shot, 1.5),
    (pick_group, 1.0),
    (is_group, 1.0),
    (in_list, 1.0),
    (copy, 2.0),
    (first, 0.7),
    (last, 0.7),
    (sort, 0.7),
    (count, 0.7),
    (one_more, 0.5),
    (group_of, 0.8),
    (to_scientific, 1.5),
    (to_common, 1.5),
    (both_names, 1.5),
    (list_group, 0.7),
)

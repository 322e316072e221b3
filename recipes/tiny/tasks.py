"""Generated instructions: questions about sounds, and text-only tasks about lists and names.

A sound is a list of one or two sources (two when clips were mixed). A question about it stands
alone; where the audio goes is up to the caller. Each task is a function of a random generator and
`unseen` (use the wordings kept out of training) that gives a prompt and its answer; `TASKS` weights
them, and `samples` draws from them without end, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

from recipes.tiny import wordings
from recipes.tiny.species import ANIMALS, GROUPS, HEARD, NO_GROUP, SOURCES, SPECIES, Source
from recipes.tiny.wordings import INSTRUCTIONS

NONE = "None"
UNKNOWN = "Unknown"
Sample = tuple[str, str]  # a prompt and its answer
Wordings = Mapping[str, Sequence[str]]  # of each family


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
    rest = _unlike(heard, pool)
    return rng.sample(rest, min(count, len(rest)))


def _unlike(heard: Sequence[Source], pool: Sequence[Source]) -> list[Source]:
    taken = {source.name for source in heard}
    species = {source.scientific for source in heard if source.scientific}
    return [s for s in pool if s.name not in taken and s.scientific not in species]


def names_with(
    own: Source, pool: Sequence[Source], length: int | None, rng: random.Random
) -> list[str]:
    """So many names in random order, `own` among them, none twice for a species; all if None."""
    others = _unlike([own], pool)
    if length is not None:
        others = rng.sample(others, length - 1)
    names = [source.name for source in (own, *others)]
    rng.shuffle(names)
    return names


def ask(
    family: str,
    heard: Sequence[Source],
    pool: Sequence[Source],
    rng: random.Random,
    *,
    unseen: bool = False,
    longest_list: int = 12,
    among: Wordings = wordings.SEEN,
) -> Sample:
    """A question of the family about the sources heard, with its answer.

    pool: what lists and yes/no questions draw other names from
    unseen: use the wordings that no training sample has
    among: the wordings of each family otherwise
    """
    wording = rng.choice((wordings.UNSEEN if unseen else among)[family])
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
) -> Sample:
    """A list with what is heard in it, or (one time in eight) without it: then "None"."""
    count = rng.randint(1, max(1, longest - len(heard)))
    others = distractors(heard, pool, count, rng)
    listed = [] if rng.random() < 0.125 and len(others) > 1 else list(heard)
    names = list_of([source.name for source in (*listed, *others)], rng)
    return wording.format(names=names), joined(listed)


Task = Callable[[random.Random, bool], Sample]

# How a sound is told in words: {} is a name or a description.
_TOLD = (
    "Sound: {}",
    "[sound of {}]",
    "Recording: {}",
    "[{}]",
    "({} is heard)",
    "In the clip: {}.",
    "I hear this: {}.",
    "A recording of {}.",
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


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


def told(heard: Sequence[Source], rng: random.Random) -> str:
    """A sound in words: names or descriptions of what is heard."""
    texts = [s.name if rng.random() < 0.6 else rng.choice(s.phrases) for s in heard]
    return rng.choice(_TOLD).format(" and ".join(texts))


def _asked(rng: random.Random, unseen: bool) -> tuple[list[Source], str, str]:
    """One source, at times two, with a question about it and the answer."""
    pool = HEARD if rng.random() < 0.7 else SOURCES
    heard = rng.sample(pool, 2 if rng.random() < 0.1 else 1)
    family = rng.choice(list(wordings.SEEN))
    longest = 36 if rng.random() < 0.1 else 12
    return heard, *ask(family, heard, pool, rng, unseen=unseen, longest_list=longest)


def about_sound(rng: random.Random, unseen: bool) -> Sample:
    """A question as it is asked about audio, with the sound told in words."""
    heard, prompt, answer = _asked(rng, unseen)
    return _with_sound(told(heard, rng), prompt, rng), answer


def both_heard(rng: random.Random, unseen: bool) -> Sample:
    """Both names of what is told."""
    named = rng.choice([s for s in HEARD if s.scientific] if rng.random() < 0.6 else SPECIES)
    prompt = _wording("both_heard", rng, unseen)
    return _with_sound(told([named], rng), prompt, rng), f"{named.scientific} : {named.name}"


def _with_sound(sound: str, prompt: str, rng: random.Random) -> str:
    return rng.choice((f"{sound}\n{prompt}", f"{sound} {prompt}", f"{prompt}\n{sound}"))


def few_shot(rng: random.Random, unseen: bool) -> Sample:
    """Blocks of a description and its label, the last one to be filled in."""
    del unseen  # a format, not a wording
    right, blocks = _labelled(rng)
    blocks.append(f"Audio: [{rng.choice(right.phrases)}]\nLabel:")
    return _few_shot_head(rng) + "\n\n".join(blocks), right.name


def _labelled(rng: random.Random) -> tuple[Source, list[str]]:
    """Sources with their descriptions in blocks, and one of the sources."""
    pool = HEARD if rng.random() < 0.6 else SOURCES
    right = rng.choice(pool)
    shown = [right, *distractors([right], pool, rng.randint(1, 4), rng)]
    rng.shuffle(shown)
    return right, [f"Audio: [{rng.choice(s.phrases)}]\nLabel: {s.name}" for s in shown]


def _few_shot_head(rng: random.Random) -> str:
    return rng.choice(("", "Label the last sound.\n\n", "Examples and a question:\n\n"))


def unheard(rng: random.Random, unseen: bool) -> Sample:
    """A question about noise between the audio tags: the answer is a guess in the right form.

    So the language model learns what answers look like and that nothing between the tags helps;
    to listen is what the audio training adds.
    """
    audio = f"<Audio>{_noise(rng)}</Audio>"
    kind = rng.random()
    if kind < 0.15:
        guess, blocks = _labelled(rng)
        blocks.append(f"Audio: {audio}\nLabel:")
        return _few_shot_head(rng) + "\n\n".join(blocks), guess.name
    if kind < 0.3:
        named = rng.choice([s for s in HEARD if s.scientific])
        prompt = _wording("both_heard", rng, unseen)
        return f"{audio} {prompt}", f"{named.scientific} : {named.name}"
    _, prompt, answer = _asked(rng, unseen)
    return f"{audio} {prompt}", answer


def _noise(rng: random.Random) -> str:
    """Syllables without meaning, or a sound that has nothing to do with the answer."""
    if rng.random() < 0.3:
        return told([rng.choice(SOURCES)], rng)
    syllables = ("".join(rng.sample(_LETTERS, rng.randint(1, 4))) for _ in range(rng.randint(0, 9)))
    return " ".join(syllables)


TASKS: tuple[tuple[Task, float], ...] = (
    (about_sound, 8.0),
    (both_heard, 1.0),
    (unheard, 3.0),
    (few_shot, 1.5),
    (pick_group, 1.0),
    (is_group, 1.0),
    (in_list, 1.2),
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
# Tasks without a right answer: learnt from, not measured.
GUESSES = frozenset({unheard.__name__})


def samples(seed: int, *, unseen: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield (task, prompt, answer) without end; `unseen` takes wordings kept out of training."""
    rng = random.Random(f"tiny-text {seed} {unseen}")
    tasks = [task for task, _ in TASKS]
    weights = [weight for _, weight in TASKS]
    while True:
        task = rng.choices(tasks, weights)[0]
        prompt, answer = task(rng, unseen)
        yield task.__name__, prompt, answer

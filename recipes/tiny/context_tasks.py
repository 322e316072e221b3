"""Tasks that only the examples in the prompt can tell: what the stage `context` learns from.

A task shows a few kinds of sound, some clips of each with a label, and asks for the label of one
more clip. Labels are drawn anew for every task, so that they mean nothing outside it. Kinds are
classes of the training data, single recordings, and recordings at another pitch and speed; so there
are thousands of them, and clips of one class may be of several kinds.

Sounds are indices of views (`views.py`); a prompt has `PLACEHOLDER` for each.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from NatureLM.prompts import AUDIO_TAG, example_blocks
from recipes.tiny.data import TRAINING_SPLITS, Clip
from recipes.tiny.species import SOURCES
from recipes.tiny.tasks import NONE
from recipes.tiny.views import Views


@dataclass(frozen=True)
class Prompt:
    """A question, the views at its placeholders, and its answer.

    others, shares: views that are mixed into those, and how much of the first ones is left
    choices: what else the answer might have been
    kept: whether the model is to go on answering as it did before the stage
    """

    query: str
    views: tuple[int, ...]
    answer: str
    others: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    kept: bool = False


@dataclass(frozen=True)
class Shape:
    """How many kinds, how many clips of each, and whether "None" may be the answer."""

    ways: int
    shots: int
    may_be_none: bool = False

    @property
    def sounds(self) -> int:
        return self.ways * self.shots + 1


# What the aims of attention are learnt from: each label that comes again can be told.
DENSE = (Shape(2, 5), Shape(3, 4), Shape(4, 3))
# How often each shape is drawn after that; the prompts of an update have one shape.
SHAPES: tuple[tuple[Shape, float], ...] = (
    (Shape(2, 1), 4.0),
    (Shape(2, 3), 2.0),
    (Shape(3, 1), 1.0),
    (Shape(4, 1), 3.0),
    (Shape(5, 1), 0.3),
    (Shape(2, 1, True), 0.3),
    (Shape(4, 1, True), 0.7),
)

_HEADS = (
    "Identify the common name for the focal species in the audio.\nOutput exactly one of: {names}",
    "Name the species in the last clip.\nChoose exactly one of: {names}",
    "Which of these is in the audio: {names}?",
    "Label the last sound. The labels are {names}.",
    "Examples and a question. Choose from: {names}.",
    "Listen to the examples, then name the last clip: {names}",
)
_BARE_HEADS = ("", "Label the last sound.", "Examples and a question:", "Which is it?")
_LETTERS = "ABCDEFGH"
_SYLLABLES = ("ba", "ke", "li", "mo", "ru", "ta", "ne", "so", "vi", "du", "pa", "ro", "gi", "la")


class Kinds:
    """The kinds of sound that views make up, and tasks about them.

    known: the labels of classes that tasks may be about; all other clips are left out, and those
        that are not of a training split
    """

    def __init__(self, views: Views, clips: Sequence[Clip], known: Sequence[str]) -> None:
        names = set(known)
        self._clips = list(clips)
        self._own: dict[int, list[int]] = defaultdict(list)
        self._voices: dict[tuple[int, int], list[int]] = defaultdict(list)
        for view, (clip, voice) in enumerate(zip(views.clip_N, views.voice_N, strict=True)):
            if clips[clip].label in names and clips[clip].split in TRAINING_SPLITS:
                if voice == 0:
                    self._own[int(clip)].append(view)
                self._voices[int(clip), int(voice)].append(view)
        self._families: dict[str, list[int]] = defaultdict(list)
        self._classes: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for clip in self._own:
            self._families[clips[clip].family].append(clip)
            self._classes[clips[clip].label][clips[clip].family].append(clip)
        self._labels = [name for name, of in self._classes.items() if len(of) > 1]
        self._clip_list = sorted(self._own)
        self._voice_list = sorted(self._voices)

    def task(self, shape: Shape, rng: random.Random) -> Prompt:
        """A task about classes, about recordings, about alike ones, or about mixtures of two.

        A mixture is half of one recording and half of another, more or less, which makes kinds of
        sound without end.
        """
        more = shape.ways + (1 if shape.may_be_none and rng.random() < 0.4 else 0)
        kind = rng.random()
        if kind < 0.2:
            sounds = self._of_classes(more, shape.shots, rng)
        elif kind < 0.75:
            sounds = self._of_recordings(more, shape.shots, rng)
        else:
            sounds = self._alike(more, shape.shots, rng)
        if 0.2 < kind < 0.55:
            mixed = self._of_recordings(more, shape.shots, rng)
            return _asked(sounds, mixed, shape, rng)
        return _asked(sounds, None, shape, rng)

    def _of_classes(self, count: int, shots: int, rng: random.Random) -> list[list[int]]:
        """Views of so many classes: one of a recording to ask about, then others."""
        found = []
        for name in rng.sample(self._labels, count):
            families = self._classes[name]
            asked, *rest = rng.sample(sorted(families), len(families))
            shown = [rng.choice(families[family]) for family in rest[:shots]]
            while len(shown) < shots:
                shown.append(rng.choice(families[rng.choice(rest)]))
            clips = (rng.choice(families[asked]), *shown)
            found.append([rng.choice(self._own[clip]) for clip in clips])
        return found

    def _of_recordings(self, count: int, shots: int, rng: random.Random) -> list[list[int]]:
        """Views of so many recordings, or of recordings at another pitch and speed."""
        found: list[list[int]] = []
        taken: set[str] = set()
        while len(found) < count:
            voice = rng.choice(self._voice_list)
            family = self._clips[voice[0]].family
            if family not in taken:
                taken.add(family)
                found.append(self._of_voice(voice, shots, rng))
        return found

    def _of_voice(self, voice: tuple[int, int], shots: int, rng: random.Random) -> list[int]:
        views = self._voices[voice]
        others = self._families[self._clips[voice[0]].family]
        if voice[1] == 0 and len(others) > 1 and rng.random() < 0.5:
            return [rng.choice(self._own[clip]) for clip in _drawn(others, shots + 1, rng)]
        return _drawn(views, shots + 1, rng)

    def _alike(self, count: int, shots: int, rng: random.Random) -> list[list[int]]:
        """Recordings of one class, or of one group."""
        first = self._clips[rng.choice(self._clip_list)]
        found: list[list[int]] = []
        taken: set[str] = set()
        near = [clip for of in self._classes[first.label].values() for clip in of]
        if len(self._classes[first.label]) < count:
            near = [c for c in self._clip_list if self._clips[c].group == first.group]
        for clip in rng.sample(near, len(near)):
            family = self._clips[clip].family
            if family not in taken and len(found) < count:
                taken.add(family)
                found.append(self._of_voice((clip, 0), shots, rng))
        return found if len(found) == count else self._of_recordings(count, shots, rng)


def _drawn(of: Sequence[int], count: int, rng: random.Random) -> list[int]:
    """So many of them, each once where there are enough."""
    found = rng.sample(list(of), min(count, len(of)))
    while len(found) < count:
        found.append(rng.choice(of))
    return found


def _asked(
    sounds: Sequence[Sequence[int]],
    mixed: Sequence[Sequence[int]] | None,
    shape: Shape,
    rng: random.Random,
) -> Prompt:
    """The task in words.

    sounds: for each kind one view to be asked about and those to be shown; where there is one kind
        more than the shape has, that is asked about, and none is right
    mixed: views that are mixed into those
    """
    right = rng.randrange(shape.ways) if len(sounds) == shape.ways else shape.ways
    labels = invented_labels(shape.ways, rng)
    answer = NONE if right == shape.ways else labels[right]
    choices = (*labels, NONE) if shape.may_be_none else tuple(labels)
    places = [(kind, 1 + shot) for kind in range(shape.ways) for shot in range(shape.shots)]
    if shape.shots > 3 or rng.random() < 0.5:
        rng.shuffle(places)
    query = blocks([labels[kind] for kind, _ in places], choices, shape.may_be_none, rng)
    places.append((right, 0))
    others: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()
    if mixed is not None:
        of_kind = [rng.uniform(0.35, 0.65) for _ in sounds]
        others = tuple(mixed[kind][shot] for kind, shot in places)
        shares = tuple(of_kind[kind] for kind, _ in places)
    views = tuple(sounds[kind][shot] for kind, shot in places)
    return Prompt(query, views, answer, others, shares, choices)


def invented_labels(count: int, rng: random.Random) -> list[str]:
    """Names of species, letters, or made-up words, in an order that means nothing."""
    draw = rng.random()
    if draw < 0.64:
        return [source.name for source in rng.sample(SOURCES, count)]
    if draw < 0.96:
        letters = list(_LETTERS[:count])
        if rng.random() < 0.3:
            rng.shuffle(letters)
        return letters
    words: list[str] = []
    while len(words) < count:
        word = "".join(rng.sample(_SYLLABLES, 2)).capitalize()
        if word not in words:
            words.append(word)
    return words


def blocks(
    labels: Sequence[str], choices: Sequence[str], may_be_none: bool, rng: random.Random
) -> str:
    """The examples as `{audio_examples}` shows them, and the clip to be named."""
    names = list(choices)
    if rng.random() < 0.5:
        rng.shuffle(names)
    bare = not may_be_none and rng.random() < 0.2
    head = rng.choice(_BARE_HEADS if bare else _HEADS).format(names=", ".join(names))
    shown = example_blocks([*((AUDIO_TAG, label) for label in labels), (AUDIO_TAG, "")])
    return f"{head}\n\n{shown}".strip()

"""What the stage `context` learns from: views of clips, and tasks that only examples can tell.

*Views* are the audio vectors of many changed versions of each clip, made once and kept. The stage
learns from thousands of prompts a second, each with several sounds; encoding them anew every time
would take nearly all of its time. So BEATs and the Q-Former, which stay as they are, read every
view once, at all delays of the finished model. A *voice* is a clip at one pitch and speed: clips at
another pitch and speed serve as sounds of another kind. Views of a voice differ by what a
microphone, distance, and the moment of recording change.

A *task* shows a few kinds of sound, some clips of each with a label, and asks for the label of one
more clip. Labels are drawn anew for every task, so that they mean nothing outside it. Kinds are
classes of the training data, single recordings, and recordings at another pitch and speed; so there
are thousands of them, and clips of one class may be of several kinds. Sounds are indices of views;
a prompt has `PLACEHOLDER` for each.

Shapes: N views, T frames, M bins, Q audio positions of a window, W width of the Q-Former.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from NatureLM.audio.fbank import normalised_fbank
from NatureLM.models.audio_side import patch_groups
from NatureLM.prompts import AUDIO_TAG, example_blocks
from NatureLM.util import atomic_write
from recipes.tiny.architecture import fbank_config
from recipes.tiny.data import TRAINING_SPLITS, Clip
from recipes.tiny.species import SOURCES
from recipes.tiny.spectrograms import (
    SAMPLE_RATE,
    WINDOW_SECONDS,
    Spectrograms,
    floor_of,
    frequency_response,
    moved,
)
from recipes.tiny.tasks import NONE

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

Floats = npt.NDArray[np.float32]
_SECOND = 400  # frames
_FRAMES = 62 * 64  # of a window
_BATCH = 24


@dataclass(frozen=True)
class ViewSettings:
    """How many views of which clips, and how much they differ.

    own: views of a clip near its own pitch and speed, beside the clip as it is
    voices: other pitches and speeds of a clip
    each: views of each of those
    per_class, per_sound, per_family: most clips of a kind of animal, of a sound without an animal,
        and of a recording
    """

    own: int = 3
    voices: int = 1
    each: int = 2
    per_class: int = 22
    per_sound: int = 8
    per_family: int = 4
    seed: int = 1

    def chosen(self, clips: Sequence[Clip]) -> list[Clip]:
        """The clips that views are made of."""
        labels: Counter[str] = Counter()
        families: Counter[str] = Counter()
        found = []
        for clip in clips:
            most = self.per_class if clip.source.is_animal else self.per_sound
            if labels[clip.label] < most and families[clip.family] < self.per_family:
                labels[clip.label] += 1
                families[clip.family] += 1
                found.append(clip)
        return found


@dataclass(frozen=True)
class Views:
    """Audio vectors (N, Q, W) in float16, and of which clip and voice they are.

    Voice 0 is the clip's own.
    """

    vectors_NQW: Tensor
    clip_N: npt.NDArray[np.int32]
    voice_N: npt.NDArray[np.int32]

    def save(self, path: Path) -> None:
        vectors = self.vectors_NQW.cpu().numpy()
        with atomic_write(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, vectors=vectors, clip=self.clip_N, voice=self.voice_N)

    @classmethod
    def load(cls, path: Path) -> Views:
        with np.load(path) as kept:
            return cls(torch.from_numpy(kept["vectors"]), kept["clip"], kept["voice"])


def joined(parts: Sequence[Views]) -> Views:
    """Views of several lists of clips, as of one list."""
    before, numbers = 0, []
    for part in parts:
        numbers.append(part.clip_N + before)
        before += int(part.clip_N.max()) + 1
    return Views(
        torch.cat([part.vectors_NQW for part in parts]),
        np.concatenate(numbers).astype(np.int32),
        np.concatenate([part.voice_N for part in parts]),
    )


def make_views(model: NatureLM, clips: Sequence[Clip], settings: ViewSettings) -> Views:
    """All views of all clips, and each clip as it is in front of its views.

    A clip as it is is heard at all delays of the model, which are averaged, and any other view at
    one of them.
    """
    sounds = Spectrograms(clips, sorted({clip.label for clip in clips}), 0.5)
    delays = model.config.delayed_samples
    numbers, voices, windows, found = [], [], [], []
    for number in range(len(clips)):
        for voice, window, delay in _views_of(number, sounds, settings, len(delays)):
            numbers.append(number)
            voices.append(voice)
            windows.append((window, delays if delay is None else [delays[delay]]))
        if len(windows) >= _BATCH or number == len(clips) - 1:
            found.append(encode(model, windows, sounds.floor))
            windows = []
    return Views(torch.cat(found), np.array(numbers, np.int32), np.array(voices, np.int32))


def noise_views(model: NatureLM, count: int, seed: int = 0) -> Tensor:
    """Audio vectors (N, Q, W) of noises in which no animal is: wind, rain, a recorder's own hiss.

    Each has a slope of its spectrum, a level, and more or less of swelling.
    """
    rng = np.random.default_rng([seed, count])
    fbank, delays = fbank_config(), model.config.delayed_samples
    windows: list[tuple[Floats, Sequence[int]]] = []
    size = int(WINDOW_SECONDS * SAMPLE_RATE)
    frequencies = np.arange(1, size // 2 + 2)
    for _ in range(count):
        spectrum = np.fft.rfft(rng.standard_normal(size)) * frequencies ** -rng.uniform(0.0, 1.0)
        wave = np.fft.irfft(spectrum, size)
        knots = rng.normal(0.0, rng.uniform(0.0, 1.0), int(rng.integers(2, 20)))
        swelling = np.interp(np.linspace(0, 1, size), np.linspace(0, 1, len(knots)), knots)
        wave *= np.exp(swelling) * 10 ** (rng.uniform(-50, -8) / 20) / wave.std()
        heard = normalised_fbank(torch.from_numpy(wave).float()[None], SAMPLE_RATE, fbank)[0]
        window = _placed(heard.numpy(), 0, floor_of(fbank))
        windows.append((window, [delays[int(rng.integers(len(delays)))]]))
    found = [
        encode(model, windows[first : first + _BATCH], floor_of(fbank))
        for first in range(0, count, _BATCH)
    ]
    return torch.cat(found)


@torch.no_grad()
def encode(
    model: NatureLM, windows: Sequence[tuple[Floats, Sequence[int]]], floor: float
) -> Tensor:
    """The Q-Former's vectors (N, Q, W) in half precision, the mean over a window's delays.

    windows: each (T, M), and by how many samples it is delayed
    floor: what silence is in them
    """
    late, whose = [], []
    for place, (window_TM, delays) in enumerate(windows):
        for delay in delays:
            frames = delay * _SECOND // model.config.sample_rate
            delayed = np.full_like(window_TM, floor)
            delayed[frames:] = window_TM[: len(window_TM) - frames]
            late.append(delayed)
            whose.append(place)
    patches = model.ln_audio(model.beats(torch.from_numpy(np.stack(late))))
    groups = patch_groups(patches, model.config.group_patches, model.config.group_stride)
    queries = model.audio_query_tokens.expand(groups.shape[0], -1, -1)
    read = model.audio_Qformer(queries, groups).reshape(len(late), -1, queries.shape[-1])
    index = torch.tensor(whose)
    total = torch.zeros(len(windows), *read.shape[1:]).index_add_(0, index, read)
    return (total / index.bincount()[:, None, None]).half()


def _views_of(
    number: int, sounds: Spectrograms, settings: ViewSettings, delays: int
) -> Iterator[tuple[int, Floats, int | None]]:
    """Voice, window and delay of every view of a clip; no delay stands for all of them."""
    rng = np.random.default_rng([settings.seed, number])
    spectrum = sounds.spectrograms[number]
    yield 0, _placed(spectrum.astype(np.float32), 0, sounds.floor), None
    for _ in range(settings.own):
        bins, speed = int(rng.integers(-2, 3)), float(np.exp(rng.uniform(-0.15, 0.15)))
        yield 0, _view(spectrum, bins, speed, sounds, rng), int(rng.integers(delays))
    for voice in range(1, settings.voices + 1):
        bins = int(rng.integers(3, 13)) * int(rng.choice((-1, 1)))
        speed = float(np.exp(rng.uniform(0.0, 0.4) * rng.choice((-1, 1))))
        for _ in range(settings.each):
            alike = speed * float(np.exp(rng.uniform(-0.05, 0.05)))
            yield voice, _view(spectrum, bins, alike, sounds, rng), int(rng.integers(delays))


def _view(
    spectrum: npt.NDArray[np.float16],
    bins: int,
    speed: float,
    sounds: Spectrograms,
    rng: np.random.Generator,
) -> Floats:
    """A part of the clip, moved, stretched, louder or softer, coloured, at times in noise."""
    length = max(1, int((len(spectrum) - 1) / speed))
    part = length
    if length > _SECOND and rng.random() < 0.7:
        part = int(rng.integers(max(_SECOND, int(0.35 * length)), length + 1))
    start = int(rng.integers(0, length - part + 1))
    taken = (np.arange(start, start + part) * speed).astype(np.int64)
    found = spectrum[taken].astype(np.float32)
    silent = found <= sounds.floor + 1e-3
    gain = rng.uniform(-15, 10)
    found = moved(found, bins) + np.float32(gain * sounds.db)
    found += frequency_response(found.shape[1], 6.0, rng) * np.float32(sounds.db)
    found[silent] = sounds.floor
    if rng.random() < 0.25:
        loud = float(np.percentile(found, 98))
        at = int(rng.integers(0, len(sounds.noise_sample) - len(found)))
        tilt = np.linspace(0, rng.uniform(-30, 10), found.shape[1]) * sounds.db
        level = loud - rng.uniform(8, 35) * sounds.db
        noise = sounds.noise_sample[at : at + len(found)]
        np.maximum(found, noise + (tilt + level).astype(np.float32), out=found)
    spare = _FRAMES - len(found)
    at = int(rng.integers(0, spare + 1)) if spare > 0 and rng.random() < 0.4 else 0
    return _placed(found, at, sounds.floor)


def _placed(part: Floats, at: int, floor: float) -> Floats:
    """The part in a window, cut at its end, never under the floor."""
    window = np.full((_FRAMES, part.shape[1]), floor, np.float32)
    kept = part[: _FRAMES - at]
    window[at : at + len(kept)] = np.maximum(kept, floor)
    return window


# Tasks


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

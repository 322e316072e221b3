"""Views of clips: the audio vectors of many changed versions of each, made once and kept.

The stage `context` learns from thousands of prompts a second, each with several sounds; encoding
them anew every time would take nearly all of its time. So BEATs and the Q-Former, which stay as
they are, read every view once, at all delays of the finished model.

A *voice* is a clip at one pitch and speed: clips at another pitch and speed serve as sounds of
another kind. Views of a voice differ by what a microphone, distance, and the moment of recording
change.

Shapes: N views, T frames, M bins, Q audio positions of a window, W width of the Q-Former.
"""

from __future__ import annotations

from collections import Counter
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
from NatureLM.util import atomic_write
from recipes.tiny.architecture import fbank_config
from recipes.tiny.data import Clip
from recipes.tiny.spectrograms import (
    SAMPLE_RATE,
    WINDOW_SECONDS,
    Spectrograms,
    floor_of,
    frequency_response,
    moved,
)

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

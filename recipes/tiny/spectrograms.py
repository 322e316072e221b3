"""Spectrograms of all training clips in memory, and their random changes.

Shapes: T frames, M bins. Values are normalised as the encoder's input is. Working on spectrograms
instead of waveforms makes a batch cost a tenth; what is lost is phase, which log-mel energies do
not hold. Sounds are added by taking the louder one in each bin, which is close for log energies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from NatureLM.audio.fbank import normalised_fbank
from NatureLM.audio.windows import read_clip
from NatureLM.config.model import FbankConfig
from recipes.tiny.architecture import fbank_config
from recipes.tiny.data import Clip

Floats = npt.NDArray[np.float32]
SAMPLE_RATE = 16000
WINDOW_SECONDS = 10.0
_COLOUR_BANDS = 5
_SHORTEST = 800  # samples; shorter clips are padded so that they have frames


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes; the defaults are those of the embedded model.

    speed: clips are played up to exp(speed) times faster or slower
    gain_db: lowest and highest gain
    shift_bins: most bins that the spectrogram moves up or down
    colour_db: largest gain or loss of a band, as microphones, distance and vegetation give it;
        between five bands it is interpolated
    mix: share of samples with a second clip, whose label shares the target
    noise: share of samples with added noise, at `snr_db`
    mask_bins, mask_time: widest band, and part of the window, that two masks each hide
    """

    speed: float = 0.2
    gain_db: tuple[float, float] = (-17.0, 13.0)
    shift_bins: int = 2
    colour_db: float = 0.0
    mix: float = 0.4
    mix_shape: float = 0.6
    noise: float = 0.25
    snr_db: tuple[float, float] = (5.0, 35.0)
    mask_bins: int = 8
    mask_time: float = 1 / 8


class Spectrograms:
    """The clips of a training run: spectrograms, labels, and how often each is drawn."""

    def __init__(self, clips: Sequence[Clip], labels: Sequence[str], balance: float) -> None:
        """`balance`: 0 draws clips evenly, 1 draws classes evenly."""
        self.clips = list(clips)
        self.config = fbank_config()
        self.patch = self.config.num_mel_bins
        self.spectrograms = [spectrogram(clip.path, self.config) for clip in clips]
        self.loudness = [float(np.percentile(s.astype(np.float32), 98)) for s in self.spectrograms]
        self.targets = np.array([labels.index(clip.label) for clip in clips])
        counts = np.bincount(self.targets, minlength=len(labels)).astype(np.float64)
        weights = counts[self.targets] ** -balance
        self.probabilities = weights / weights.sum()
        self.classes = len(labels)

    @property
    def db(self) -> float:
        """One decibel in the units of the normalised spectrogram."""
        return float(np.log(10) / 10 / (2 * self.config.std))

    @property
    def floor(self) -> float:
        """The value of digital silence."""
        return floor_of(self.config)

    @cached_property
    def noise_sample(self) -> Floats:
        """20 s of white noise, its median level at 0."""
        wav = torch.randn(1, 20 * SAMPLE_RATE, generator=torch.Generator().manual_seed(0)) * 0.01
        noise: Floats = normalised_fbank(wav, SAMPLE_RATE, self.config)[0].numpy()
        level: Floats = noise - np.median(noise)
        return level

    def patches(self, per_clip: int, rng: np.random.Generator) -> Floats:
        """A sample of patches that are not silent, (N, frames of a patch, M)."""
        size, found = self.patch, []
        for spectrum in self.spectrograms:
            count = len(spectrum) // size
            cut = spectrum[: count * size].astype(np.float32).reshape(count, size, -1)
            found.append(cut[rng.permutation(count)[:per_clip]])
        patches = np.concatenate(found)
        loud: Floats = patches[patches.mean(axis=(1, 2)) > self.floor + 0.2]
        return loud

    def batch(
        self, size: int, patches: int, changes: Augmentation, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Changed windows (size, T, M) of `patches` patches and their targets (size, classes)."""
        frames = patches * self.patch
        windows = np.empty((size, frames, self.config.num_mel_bins), np.float32)
        targets = np.zeros((size, self.classes), np.float32)
        for row in range(size):
            windows[row] = self._sample(frames, changes, targets[row], rng)
        return torch.from_numpy(windows), torch.from_numpy(targets)

    def _sample(
        self, frames: int, changes: Augmentation, target: Floats, rng: np.random.Generator
    ) -> Floats:
        window, label, loudness = self._clip(frames, changes, rng)
        target[label] = 1.0
        if rng.random() < changes.mix:
            other, other_label, other_loudness = self._clip(frames, changes, rng)
            share = float(np.clip(rng.beta(changes.mix_shape, changes.mix_shape), 1e-4, 1 - 1e-4))
            window += 10 * np.log10(share) * self.db
            other += loudness - other_loudness + 10 * np.log10(1 - share) * self.db
            np.maximum(window, other, out=window)
            target *= share
            target[other_label] += 1 - share
        if rng.random() < changes.noise:
            start = rng.integers(0, len(self.noise_sample) - frames)
            tilt = np.linspace(0, rng.uniform(-30, 10), self.config.num_mel_bins) * self.db
            level = loudness - rng.uniform(*changes.snr_db) * self.db
            noise = self.noise_sample[start : start + frames] + (tilt + level).astype(np.float32)
            np.maximum(window, noise, out=window)
        np.maximum(window, self.floor, out=window)
        _mask(window, changes, rng)
        return window

    def _clip(
        self, frames: int, changes: Augmentation, rng: np.random.Generator
    ) -> tuple[Floats, int, float]:
        """A clip at another speed, gain and pitch, cut or placed in a window; label; loudness."""
        index = int(rng.choice(len(self.clips), p=self.probabilities))
        spectrum = self.spectrograms[index]
        speed = float(np.exp(rng.uniform(-changes.speed, changes.speed)))
        length = max(1, int((len(spectrum) - 1) / speed))
        start = int(rng.integers(0, length - frames)) if length > frames else 0
        taken = (np.arange(start, min(length, start + frames)) * speed).astype(np.int64)
        part = spectrum[taken].astype(np.float32)
        silent = part <= self.floor + 1e-3
        gain = rng.uniform(*changes.gain_db) * self.db
        part = moved(
            part + np.float32(gain), int(rng.integers(-changes.shift_bins, changes.shift_bins + 1))
        )
        if changes.colour_db:
            part += frequency_response(part.shape[1], changes.colour_db, rng) * np.float32(self.db)
        part[silent] = self.floor
        np.maximum(part, self.floor, out=part)
        window = np.full((frames, part.shape[1]), self.floor, np.float32)
        spare = frames - len(part)
        at = int(rng.integers(0, spare + 1)) if spare > 0 and rng.random() < 0.6 else 0
        window[at : at + len(part)] = part
        return window, int(self.targets[index]), self.loudness[index] + gain


def moved(part: Floats, bins: int) -> Floats:
    """Moved up by `bins` (down if negative); the edge bin is repeated."""
    if bins > 0:
        return np.concatenate([np.repeat(part[:, :1], bins, axis=1), part[:, :-bins]], axis=1)
    if bins < 0:
        return np.concatenate([part[:, -bins:], np.repeat(part[:, -1:], -bins, axis=1)], axis=1)
    return part


def frequency_response(bins: int, largest_db: float, rng: np.random.Generator) -> Floats:
    """A smooth random frequency response in dB, of mean 0, one value per bin."""
    bands = rng.uniform(-largest_db, largest_db, _COLOUR_BANDS)
    curve = np.interp(np.linspace(0, _COLOUR_BANDS - 1, bins), np.arange(_COLOUR_BANDS), bands)
    colour: Floats = (curve - curve.mean()).astype(np.float32)
    return colour


def _mask(window: Floats, changes: Augmentation, rng: np.random.Generator) -> None:
    """Two bands and two stretches are set to the mean, as in SpecAugment (arXiv 1904.08779)."""
    frames, bins = window.shape
    mean = window.mean()
    for _ in range(2):
        width = int(rng.integers(0, changes.mask_bins + 1))
        start = int(rng.integers(0, bins - width + 1))
        window[:, start : start + width] = mean
        width = int(rng.integers(0, int(frames * changes.mask_time) + 1))
        start = int(rng.integers(0, frames - width + 1))
        window[start : start + width] = mean


def floor_of(config: FbankConfig) -> float:
    """What digital silence is in the normalised spectrogram."""
    return float((np.log(np.finfo(np.float32).eps) - config.mean) / (2 * config.std))


def spectrogram(path: Path, config: FbankConfig) -> npt.NDArray[np.float16]:
    """The normalised spectrogram (T, M) of a clip's first window."""
    wav = np.clip(read_clip(path, duration=WINDOW_SECONDS, sample_rate=SAMPLE_RATE), -1, 1)
    wav = np.pad(wav, (0, max(0, _SHORTEST - len(wav))))
    fbank = normalised_fbank(torch.from_numpy(wav)[None], SAMPLE_RATE, config)
    return fbank[0].numpy().astype(np.float16)

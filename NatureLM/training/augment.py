"""Changes of training audio: numpy, pure functions of their arguments and a generator.

Waveforms are float32 of shape (samples,) in [-1, 1]; functions return new arrays and may leave that
range (the model's input is clamped). dB values are of power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from NatureLM.config.schema import AugmentationsConfig

Wave = npt.NDArray[np.float32]
_COLOUR_BANDS = 5
_COLOUR_RANGE = 8000 / 700  # highest frequency (8 kHz) over the corner of the mel scale
_SILENCE = 1e-10  # mean power below which a clip has no level to scale against


def _float32(wav: npt.NDArray[Any]) -> Wave:
    out: Wave = wav.astype(np.float32, copy=False)
    return out


def power(wav: Wave) -> float:
    """Mean square."""
    return float(np.mean(np.square(wav, dtype=np.float64))) if len(wav) else 0.0


def gain(wav: Wave, db: float) -> Wave:
    """Louder (positive) or softer."""
    return _float32(wav * np.float32(10 ** (db / 20)))


def add_at_snr(wav: Wave, noise: Wave, snr_db: float) -> Wave:
    """Add noise so that the signal's power is `snr_db` above it; silence stays as it is.

    Padding (exact zeros) does not count towards the signal's power.
    """
    signal_power, noise_power = power(wav[wav != 0]), power(noise[noise != 0])
    if signal_power < _SILENCE or noise_power < _SILENCE:
        return _float32(wav)
    scale = np.sqrt(signal_power / noise_power / 10 ** (snr_db / 10))
    return _float32(wav + np.float32(scale) * noise)


def fit_length(wav: Wave, samples: int, rng: np.random.Generator) -> Wave:
    """Exactly `samples`: a random stretch, of the clip repeated where it is too short."""
    if len(wav) < samples:
        wav = np.tile(wav, -(-samples // max(len(wav), 1)))
    start = int(rng.integers(0, len(wav) - samples + 1))
    return _float32(wav[start : start + samples])


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> Wave:
    """Noise whose power falls as 1 / f ** exponent (0 white, 1 pink, 2 brown), of unit power."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    noise = np.fft.irfft(spectrum * frequency ** (-exponent / 2), n=samples)
    level = np.sqrt(np.mean(np.square(noise)))
    return _float32(noise / max(level, 1e-12))


def random_eq(wav: Wave, largest_db: float, rng: np.random.Generator) -> Wave:
    """Another frequency response: random gains of `_COLOUR_BANDS` frequencies, in between smooth.

    The frequencies are spread evenly over the mel scale; the mean gain is 0 dB.
    """
    if len(wav) == 0:
        return _float32(wav)
    gains_db = rng.uniform(-largest_db, largest_db, _COLOUR_BANDS)
    gains_db -= gains_db.mean()
    spectrum = np.fft.rfft(wav)
    mel = np.log1p(np.linspace(0, _COLOUR_RANGE, len(spectrum))) / np.log1p(_COLOUR_RANGE)
    curve_db = np.interp(mel, np.linspace(0, 1, _COLOUR_BANDS), gains_db)
    return _float32(np.fft.irfft(spectrum * 10 ** (curve_db / 20), n=len(wav)))


def time_scale(wav: Wave, factor: float) -> Wave:
    """Play `factor` times faster: shorter and higher (slower below 1)."""
    if factor == 1.0 or len(wav) == 0:
        return _float32(wav)
    import soxr  # type: ignore[import-untyped, unused-ignore]

    return _float32(soxr.resample(wav, factor * 1000, 1000, quality="MQ"))


def crop(wav: Wave, samples: int, rng: np.random.Generator | None) -> Wave:
    """At most `samples`: a random stretch, or the beginning without a generator."""
    if len(wav) <= samples:
        return wav
    start = int(rng.integers(0, len(wav) - samples + 1)) if rng is not None else 0
    return wav[start : start + samples]


def place(wav: Wave, samples: int, rng: np.random.Generator | None) -> Wave:
    """A window of `samples`; the clip at a random place, or at its start without a generator."""
    window = np.zeros(samples, dtype=np.float32)
    spare = samples - len(wav)
    start = int(rng.integers(0, spare + 1)) if rng is not None and spare > 0 else 0
    window[start : start + len(wav)] = wav
    return window


def mix(base: Wave, others: Sequence[Wave], gains_db: Sequence[float]) -> Wave:
    """Add other windows at a level relative to the base's (0 dB: as loud), peak kept below 1."""
    mixed = base.astype(np.float32).copy()
    for other, db in zip(others, gains_db, strict=True):
        mixed = add_at_snr(mixed, other, -db) if power(mixed) >= _SILENCE else mixed + other
    peak = float(np.abs(mixed).max(initial=0.0))
    return _float32(mixed / max(peak, 1.0))


@dataclass(frozen=True)
class Mask:
    """A masked band or stretch of the spectrogram, as parts of its bins or frames."""

    axis: str  # "time" or "frequency"
    start: float
    width: float


def draw_masks(config: AugmentationsConfig, rng: np.random.Generator) -> tuple[Mask, ...]:
    """Masks as in SpecAugment (arXiv 1904.08779): uniform widths up to the largest, anywhere."""
    masks = []
    for axis, count, widest in (
        ("frequency", config.frequency_masks, config.frequency_mask_share),
        ("time", config.time_masks, config.time_mask_share),
    ):
        for _ in range(count):
            width = float(rng.uniform(0, widest))
            masks.append(Mask(axis, float(rng.uniform(0, 1 - width)), width))
    return tuple(masks)


def change_clip(
    wav: Wave, config: AugmentationsConfig, rng: np.random.Generator
) -> tuple[Wave, list[str]]:
    """Speed and loudness of one clip, before it is put into its window; what was done, in words."""
    done = []
    if rng.random() < config.time_scale_prob:
        factor = float(np.exp(rng.uniform(-1, 1) * np.log(config.time_scale)))
        wav = time_scale(wav, factor)
        done.append(f"speed x{factor:.2f}")
    if rng.random() < config.gain_prob:
        db = float(rng.uniform(-config.gain_db, config.gain_db))
        wav = gain(wav, db)
        done.append(f"gain {db:+.1f} dB")
    if config.colour_prob and rng.random() < config.colour_prob:  # else other draws stay as before
        wav = random_eq(wav, config.colour_db, rng)
        done.append(f"colour {config.colour_db:g} dB")
    return wav, done


def pad_or_crop(
    wav: Wave, samples: int, config: AugmentationsConfig, rng: np.random.Generator
) -> tuple[Wave, list[str]]:
    """Crop a long clip, place a short one."""
    done = []
    if len(wav) > samples and config.random_crop:
        done.append("random crop")
    wav = crop(wav, samples, rng if config.random_crop else None)
    placed = len(wav) < samples and rng.random() < config.placement_prob
    if placed:
        done.append("random placement")
    return place(wav, samples, rng if placed else None), done


def draw_snr(config: AugmentationsConfig, rng: np.random.Generator) -> float:
    """A signal-to-noise ratio in dB."""
    return float(rng.uniform(config.low_snr, config.high_snr))

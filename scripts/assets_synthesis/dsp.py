"""Signal tools of the synthesis: random curves, voices, coloured noise, echoes, mixing.

Signals are float64 arrays of shape (samples,), nominally within -1 to 1; frequencies are in Hz,
times in seconds, levels in dB relative to full scale. Randomness comes from numpy's legacy
``RandomState``, whose streams are frozen: the same seed gives the same clip with any numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]
Rng = np.random.RandomState
Gain = Callable[[Signal], Signal]
"""Amplitude gain as a function of frequency (Hz), elementwise."""


def decibels(level: float) -> float:
    """Amplitude factor of a level in dB."""
    return float(10.0 ** (level / 20.0))


def samples(seconds: float, rate: int) -> int:
    return round(seconds * rate)


def glide(n: int, *points: tuple[float, float], smooth: float = 0.05) -> Signal:
    """A curve of ``n`` samples through (position 0 to 1, value) points, corners rounded.

    ``smooth`` is the width of the rounding as a share of the curve.
    """
    where, values = zip(*points, strict=True)
    curve = np.interp(np.linspace(0.0, 1.0, n), where, values)
    width = int(n * smooth) | 1
    if width < 3:
        return curve
    kernel = np.hanning(width + 2)[1:-1]
    padded = np.pad(curve, width // 2, mode="edge")
    return convolve(padded, kernel / kernel.sum())[width - 1 : width - 1 + n]


def fade(n: int, rate: int, attack: float, release: float) -> Signal:
    """Raised-cosine rise and fall around a plateau of 1."""
    envelope = np.ones(n)
    for seconds, side in ((attack, slice(None)), (release, slice(None, None, -1))):
        length = min(n, max(1, samples(seconds, rate)))
        envelope[side][:length] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(length) / length)
    return envelope


def wobble(rng: Rng, n: int, rate: int, hertz: float) -> Signal:
    """A smooth random curve of unit deviation that changes about ``hertz`` times a second."""
    size = max(n, samples(4.0 / hertz, rate))
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.exp(-0.5 * (np.fft.rfftfreq(size, 1.0 / rate) / hertz) ** 2)
    curve = np.fft.irfft(spectrum, size)
    curve -= curve.mean()
    return (curve / curve.std())[:n]


def resonances(
    peaks: Sequence[tuple[float, float, float]], *, floor: float = -60.0, slope: float = 0.0
) -> Gain:
    """Gain with resonance peaks (centre Hz, width Hz at -6 dB, level dB) over a floor (dB).

    ``slope`` tilts the whole by so many dB per octave, about 1 kHz.
    """

    def gain(frequency: Signal) -> Signal:
        level = np.full_like(frequency, decibels(floor))
        for centre, bandwidth, peak in peaks:
            level += decibels(peak) / (1.0 + (2.0 * (frequency - centre) / bandwidth) ** 2)
        octaves = np.log2(np.maximum(frequency, 20.0) / 1000.0)
        return level * 10.0 ** (slope * octaves / 20.0)

    return gain


def band(low: float, high: float, *, edge: float = 0.15) -> Gain:
    """Gain that is 1 from ``low`` to ``high`` and falls smoothly (``edge`` octaves wide)."""

    def gain(frequency: Signal) -> Signal:
        octave = np.log2(np.maximum(frequency, 1.0))
        rise = 1.0 / (1.0 + np.exp(-(octave - np.log2(low)) / edge * 4.0))
        fall = 1.0 / (1.0 + np.exp((octave - np.log2(high)) / edge * 4.0))
        return rise * fall

    return gain


def both(first: Gain, second: Gain) -> Gain:
    """Two gains one after the other."""
    return lambda frequency: first(frequency) * second(frequency)


def voice(pitch: Signal, rate: int, gain: Gain, *, top: float = 11000.0) -> Signal:
    """A harmonic sound: every multiple of ``pitch`` (Hz per sample) weighted by ``gain``.

    Harmonics fade out towards ``top`` or the Nyquist frequency, so nothing folds back.
    """
    top = min(top, 0.48 * rate)
    phase = 2.0 * np.pi * np.cumsum(pitch) / rate
    sound = np.zeros(len(pitch))
    for number in range(1, int(top / pitch.min()) + 1):
        frequency = number * pitch
        room = np.clip((top - frequency) / 300.0, 0.0, 1.0)
        sound += gain(frequency) * room * np.sin(number * phase)
    return sound


def unsteady(rng: Rng, pitch: Signal, rate: int, *, jitter: float, hertz: float = 35.0) -> Signal:
    """``pitch`` with the small irregularity of a living voice (``jitter`` as a share)."""
    return pitch * (1.0 + jitter * wobble(rng, len(pitch), rate, hertz))


def noise(rng: Rng, n: int, rate: int, gain: Gain) -> Signal:
    """Gaussian noise coloured by ``gain``, of unit deviation."""
    size = max(n, 1024)
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= gain(np.maximum(np.fft.rfftfreq(size, 1.0 / rate), 1.0))
    sound = np.fft.irfft(spectrum, size)
    return (sound / sound.std())[:n]


def convolve(a: Signal, b: Signal) -> Signal:
    """Full convolution by FFT, of length len(a) + len(b) - 1."""
    n = len(a) + len(b) - 1
    return np.fft.irfft(np.fft.rfft(a, n) * np.fft.rfft(b, n), n)


def reverberate(
    rng: Rng, sound: Signal, rate: int, *, seconds: float, level: float, top: float = 4000.0
) -> Signal:
    """Adds a tail of echoes (decay of 60 dB in ``seconds``), ``level`` dB below the sound.

    The tail is darker than the sound, as leaves and air take the high frequencies. The result is
    as long as the input.
    """
    n = samples(seconds, rate)
    tail = noise(rng, n, rate, band(120.0, top, edge=0.8))
    tail *= np.exp(-6.9 * np.arange(n) / n) * glide(n, (0.0, 0.0), (0.04, 1.0), (1.0, 1.0))
    tail /= np.sqrt(np.sum(tail**2))
    return sound + decibels(level) * convolve(sound, tail)[: len(sound)]


def outdoors(
    rng: Rng, n: int, rate: int, level: float, *, slope: float = -5.0, low: float = 60.0
) -> Signal:
    """Soft background: tilted noise (dB per octave) that swells a little, as wind does."""
    colour = both(resonances((), floor=0.0, slope=slope), band(low, 0.45 * rate))
    swell = 1.0 + 0.2 * wobble(rng, n, rate, 0.6)
    return decibels(level) * swell * noise(rng, n, rate, colour)


def place(canvas: Signal, sound: Signal, start: float, rate: int) -> None:
    """Adds ``sound`` to ``canvas`` at ``start`` seconds; what does not fit is cut."""
    first = samples(start, rate)
    room = max(0, len(canvas) - first)
    canvas[first : first + len(sound)] += sound[:room]


def normalise(sound: Signal, peak: float) -> Signal:
    """Scales to a peak level in dB."""
    return sound * (decibels(peak) / float(np.max(np.abs(sound))))

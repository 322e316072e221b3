"""Frog and toad calls, synthesised from published descriptions.

Every call is ``call(rng, rate, seconds) -> (samples,)`` without background. Its docstring is the
text that ``assets/samples.csv`` gives as the way the clip was made: keep it true.
"""

from __future__ import annotations

import numpy as np

from .dsp import (
    Gain,
    Rng,
    Signal,
    band,
    fade,
    glide,
    noise,
    place,
    resonances,
    samples,
    unsteady,
    voice,
    wobble,
)


def american_toad(rng: Rng, rate: int, seconds: float) -> Signal:
    """One long trill: a tone that rises from 1.70 to 1.88 kHz in the first second and stays,
    in pulses 31 to the second (7 ms bursts that leave a little sound between them)."""
    n = samples(seconds - 1.6, rate)
    settle = min(1.0, 1.2 / (seconds - 1.6))
    carrier = glide(n, (0.0, 1700.0), (settle, 1865.0), (1.0, 1880.0), smooth=0.08)
    pulses = np.cumsum(31.0 + 0.3 * wobble(rng, n, rate, 1.0)) / rate
    gate = np.exp(3.0 * (np.cos(2.0 * np.pi * pulses) - 1.0))
    tone = voice(
        unsteady(rng, carrier, rate, jitter=0.004, hertz=45.0),
        rate,
        resonances([(1850.0, 500.0, 0.0)], floor=-66.0),
    )
    trill = tone * (0.06 + gate) * fade(n, rate, 1.2, 0.15)
    canvas = np.zeros(samples(seconds, rate))
    place(canvas, trill, 0.8, rate)
    return canvas


def _pulsed_croak(
    rng: Rng, rate: int, length: float, pulse_hertz: tuple[float, float], gain: Gain, depth: float
) -> Signal:
    """A croak of sound pulses whose rate glides; ``depth`` is the share of voiced sound."""
    n = samples(length, rate)
    pitch = unsteady(rng, glide(n, (0.0, pulse_hertz[0]), (1.0, pulse_hertz[1])), rate, jitter=0.02)
    gate = 0.5 + 0.5 * np.cos(2.0 * np.pi * np.cumsum(pitch) / rate)
    rasp = noise(rng, n, rate, gain) * gate**1.5
    voiced = voice(pitch, rate, gain)
    return depth * voiced / voiced.std() + (1.0 - depth) * rasp


def squirrel_treefrog(rng: Rng, rate: int, seconds: float) -> Signal:
    """Nasal, duck-like rasps of 0.3 s, two every 1.2 s: pulses at 105 to 115 a second,
    energy in two bands, about 1.3 kHz and (stronger, rising) 2.6 to 3.3 kHz."""
    canvas = np.zeros(samples(seconds, rate))
    for start in np.arange(0.3, seconds - 0.4, 0.6):
        shift = 1.0 + 0.015 * rng.standard_normal()
        low, high = (
            resonances(
                [(1250.0, 500.0, -10.0), (peak * shift, 800.0, 0.0)],
                floor=-44.0,
            )
            for peak in (2650.0, 3150.0)
        )
        length = 0.30 + 0.02 * rng.standard_normal()
        n = samples(length, rate)
        turn = glide(n, (0.0, 0.0), (0.6, 1.0), (1.0, 0.9))
        first, second = (
            _pulsed_croak(rng, rate, length, (104.0, 115.0), gain, 0.7) for gain in (low, high)
        )
        envelope = glide(n, (0.0, 0.0), (0.25, 0.7), (0.6, 1.0), (0.85, 0.8), (1.0, 0.0))
        croak = ((1.0 - turn) * first + turn * second) * envelope
        strength = 1.0 + 0.1 * rng.standard_normal()
        place(canvas, strength * croak, start + 0.03 * rng.standard_normal(), rate)
    return canvas


def green_treefrog(rng: Rng, rate: int, seconds: float) -> Signal:
    """Short 'quonk' notes of 0.15 s, 75 to the minute, with two separate bands of energy: one
    near 0.9 kHz and one at 2.7 to 3.2 kHz, on harmonics 300 Hz apart."""
    canvas = np.zeros(samples(seconds, rate))
    nose = resonances(
        [(900.0, 260.0, 0.0), (2750.0, 500.0, -3.0), (3200.0, 400.0, -6.0)], floor=-50.0
    )
    for start in np.arange(0.4, seconds - 0.3, 0.8):
        n = samples(0.15, rate)
        shape = glide(n, (0.0, 285.0), (0.3, 303.0), (1.0, 298.0))
        pitch = unsteady(rng, shape * (1.0 + 0.008 * rng.standard_normal()), rate, jitter=0.004)
        envelope = glide(n, (0.0, 0.0), (0.1, 1.0), (0.5, 0.7), (1.0, 0.0), smooth=0.1)
        sound = voice(pitch, rate, nose)
        sound += 0.1 * noise(rng, n, rate, band(700.0, 3500.0))
        place(canvas, envelope * sound, start + 0.02 * rng.standard_normal(), rate)
    return canvas

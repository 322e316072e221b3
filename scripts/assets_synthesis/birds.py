"""Bird calls, synthesised from published descriptions.

Every call is ``call(rng, rate, seconds) -> (samples,)`` without background. Its docstring is the
text that ``assets/samples.csv`` gives as the way the clip was made: keep it true.
"""

from __future__ import annotations

import numpy as np

from .dsp import (
    Rng,
    Signal,
    band,
    both,
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


def common_cuckoo(rng: Rng, rate: int, seconds: float) -> Signal:
    """Pairs of whistled notes every 1.25 s: 0.15 s arched up to 730 Hz, then 0.24 s at 605 Hz,
    a minor third (3.2 semitones) lower; weak harmonics."""
    canvas = np.zeros(samples(seconds, rate))
    timbre = resonances([(660.0, 550.0, 0.0)], floor=-60.0, slope=-6.0)
    for start in np.arange(0.5, seconds - 0.9, 1.25):
        tuning = 1.0 + 0.006 * rng.standard_normal()
        start += 0.03 * rng.standard_normal()
        for delay, length, shape, strength in (
            (0.0, 0.15, ((0.0, 655.0), (0.35, 722.0), (0.6, 730.0), (1.0, 690.0)), 1.0),
            (0.30, 0.24, ((0.0, 588.0), (0.25, 607.0), (0.75, 605.0), (1.0, 592.0)), 0.85),
        ):
            n = samples(length, rate)
            pitch = unsteady(rng, tuning * glide(n, *shape, smooth=0.2), rate, jitter=0.0015)
            loudness = fade(n, rate, 0.35 * length, 0.4 * length)
            note = voice(pitch, rate, timbre)
            breath = 0.02 * noise(rng, n, rate, band(500.0, 1600.0))
            place(canvas, strength * loudness * (note + breath), start + delay, rate)
    return canvas


def european_nightjar(rng: Rng, rate: int, seconds: float) -> Signal:
    """A churr of short downward sweeps (2.5 to 1.1 kHz): 26.5 pulses a second in the major
    phases, 36 a second, lower and weaker, in the minor phases of half a second."""
    canvas = np.zeros(samples(seconds, rate))
    timbre = resonances([(1750.0, 1800.0, 0.0), (5200.0, 2500.0, -26.0)], floor=-50.0)
    start, end = 0.4, seconds - 0.5
    minor_from = start + 1.6
    while start < end:
        minor = 0.0 <= start - minor_from < 0.55
        if start - minor_from >= 0.55:
            minor_from += 2.7
        period = 1.0 / (36.0 if minor else 26.5)
        shift = 0.86 if minor else 1.0
        n = samples(0.8 * period, rate)
        pitch = shift * glide(n, (0.0, 2450.0), (0.3, 1950.0), (0.7, 1500.0), (1.0, 1080.0))
        loudness = glide(n, (0.0, 0.0), (0.2, 1.0), (0.6, 0.8), (1.0, 0.0), smooth=0.15)
        rough = 1.0 + 0.3 * wobble(rng, n, rate, 400.0)
        strength = (0.6 if minor else 1.0) * (1.0 + 0.05 * rng.standard_normal())
        strength *= np.interp(start, [0.4, 0.9, end - 0.3, end], [0.25, 1.0, 1.0, 0.3])
        place(canvas, strength * loudness * rough * voice(pitch, rate, timbre), start, rate)
        start += period * (1.0 + 0.01 * rng.standard_normal())
    return canvas


def barn_owl(rng: Rng, rate: int, seconds: float) -> Signal:
    """Hoarse screeches of about 1 s: noise in broad bands at 3.4, 4.2 and 5 kHz with a faint
    unstable tone, swelling slowly and ending fast, roughened at about 100 Hz."""
    canvas = np.zeros(samples(seconds, rate))
    hiss = resonances(
        [
            (3350.0, 900.0, -2.0),
            (4200.0, 1000.0, 0.0),
            (5000.0, 1000.0, -2.0),
            (1500.0, 500.0, -20.0),
        ],
        floor=-24.0,
    )
    tone = resonances([(3900.0, 1500.0, 0.0)], floor=-50.0)
    for start, length in ((0.6, 0.95), (3.3, 1.1)):
        if start + length > seconds:
            continue
        n = samples(length, rate)
        sound = noise(rng, n, rate, both(hiss, band(1400.0, 7400.0)))
        pitch = unsteady(
            rng, glide(n, (0.0, 900.0), (0.3, 1080.0), (1.0, 1000.0)), rate, jitter=0.03, hertz=90.0
        )
        sound += 0.35 * voice(pitch, rate, tone)
        rough = 1.0 + 0.3 * wobble(rng, n, rate, 100.0)
        shape = glide(n, (0.0, 0.0), (0.1, 0.35), (0.35, 0.8), (0.75, 1.0), (0.93, 0.7), (1.0, 0.0))
        place(canvas, np.maximum(rough, 0.1) * shape * sound, start, rate)
    return canvas


def rooster(rng: Rng, rate: int, seconds: float) -> Signal:
    """A crow of four syllables (0.2, 0.16, 0.45 and 1.15 s) on a rich harmonic voice: 480 Hz at
    first, up to 940 Hz, then a long falling end; strongest near 2 kHz, a
    little hoarse."""
    canvas = np.zeros(samples(seconds, rate))
    throat = resonances(
        [
            (900.0, 500.0, -8.0),
            (1850.0, 900.0, 0.0),
            (2900.0, 900.0, -14.0),
            (5500.0, 2500.0, -34.0),
        ],
        floor=-46.0,
    )
    hoarse = both(throat, band(900.0, 6500.0, edge=0.5))
    syllables = (
        (0.00, 0.20, ((0.0, 430.0), (0.5, 490.0), (1.0, 450.0)), 0.55),
        (0.33, 0.16, ((0.0, 600.0), (0.5, 690.0), (1.0, 650.0)), 0.8),
        (0.56, 0.45, ((0.0, 680.0), (0.4, 910.0), (1.0, 890.0)), 1.0),
        (1.03, 1.15, ((0.0, 850.0), (0.12, 940.0), (0.5, 920.0), (0.8, 820.0), (1.0, 640.0)), 1.0),
    )
    for crow in (0.5, 4.2):
        if crow + 2.3 > seconds:
            continue
        tuning = 1.0 + 0.015 * rng.standard_normal()
        for delay, length, shape, strength in syllables:
            n = samples(length, rate)
            pitch = unsteady(rng, tuning * glide(n, *shape, smooth=0.1), rate, jitter=0.004)
            sound = voice(pitch, rate, throat)
            sound += 0.15 * noise(rng, n, rate, hoarse)
            shimmer = 1.0 + 0.08 * wobble(rng, n, rate, 30.0)
            envelope = fade(n, rate, 0.03, 0.3 * length) * shimmer
            place(canvas, strength * envelope * sound, crow + delay, rate)
    return canvas

"""Mammal calls, synthesised from published descriptions.

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


def gray_wolf(rng: Rng, rate: int, seconds: float) -> Signal:
    """Howls with weak harmonics: the fundamental of the first breaks from 330 up to 590 Hz, drops
    to 440 Hz with a slow waver and slides down to 300 Hz; a fainter second one, 2.7 s later,
    stays between 400 and 450 Hz."""
    canvas = np.zeros(samples(seconds, rate))
    muzzle = resonances([(480.0, 480.0, 0.0), (1150.0, 500.0, -20.0)], floor=-60.0, slope=-6.0)
    first = (
        (0.0, 290.0),
        (0.07, 330.0),
        (0.1, 560.0),
        (0.3, 590.0),
        (0.33, 440.0),
        (0.8, 420.0),
        (1.0, 300.0),
    )
    second = ((0.0, 280.0), (0.15, 430.0), (0.3, 450.0), (0.6, 400.0), (0.85, 410.0), (1.0, 320.0))
    for start, length, shape, strength in ((0.4, 4.2, first, 1.0), (3.1, 3.2, second, 0.5)):
        n = samples(min(length, seconds - start - 0.6), rate)
        pitch = glide(n, *shape, smooth=0.03) * (1.0 + 0.01 * wobble(rng, n, rate, 3.0))
        sound = voice(unsteady(rng, pitch, rate, jitter=0.002), rate, muzzle)
        sound += 0.01 * noise(rng, n, rate, band(300.0, 2500.0))
        swell = fade(n, rate, 0.5, 0.9) * (1.0 + 0.1 * wobble(rng, n, rate, 4.0))
        place(canvas, strength * swell * sound, start, rate)
    return canvas


def dog(rng: Rng, rate: int, seconds: float) -> Signal:
    """Barks of 0.18 s in groups of two and three: a sharp start, a fundamental that arches from
    380 to 620 and down to 330 Hz, strong resonances at 0.8, 1.4 and 2.6 kHz and added noise."""
    canvas = np.zeros(samples(seconds, rate))
    mouth = resonances(
        [(800.0, 450.0, 0.0), (1450.0, 500.0, -3.0), (2600.0, 800.0, -14.0)],
        floor=-36.0,
        slope=-3.0,
    )
    breath = both(mouth, band(350.0, 7000.0, edge=0.5))
    for start in (0.30, 0.75, 1.70, 2.12, 2.57):
        if start + 0.5 > seconds:
            continue
        length = 0.18 + 0.015 * rng.standard_normal()
        n = samples(length, rate)
        shape = ((0.0, 380.0), (0.25, 600.0), (0.45, 620.0), (1.0, 330.0))
        pitch = glide(n, *shape) * (1.0 + 0.04 * rng.standard_normal())
        sound = voice(unsteady(rng, pitch, rate, jitter=0.015, hertz=120.0), rate, mouth)
        sound /= sound.std()
        sound += 0.45 * noise(rng, n, rate, breath)
        envelope = glide(n, (0.0, 0.0), (0.08, 0.8), (0.3, 1.0), (0.6, 0.5), (1.0, 0.0))
        strength = 1.0 + 0.15 * rng.standard_normal()
        place(canvas, strength * envelope * sound, start, rate)
    return canvas


def cat(rng: Rng, rate: int, seconds: float) -> Signal:
    """Meows of 0.75 s: a fundamental that rises from 610 to 830 Hz and sinks to 560 Hz, while the
    mouth opens and closes: the strongest resonance moves from 1 to 2.3 kHz and back."""
    canvas = np.zeros(samples(seconds, rate))
    for start, length, height in ((0.4, 0.75, 1.0), (2.1, 0.62, 1.07), (3.8, 0.85, 0.95)):
        if start + length > seconds:
            continue
        n = samples(length, rate)
        shape = ((0.0, 610.0), (0.25, 800.0), (0.5, 830.0), (1.0, 560.0))
        pitch = unsteady(rng, height * glide(n, *shape), rate, jitter=0.004)
        closed = resonances([(1000.0, 500.0, 0.0), (3800.0, 900.0, -18.0)], floor=-40.0)
        opened = resonances(
            [(1500.0, 600.0, -3.0), (2300.0, 900.0, 0.0), (4600.0, 1500.0, -13.0)], floor=-36.0
        )
        opening = glide(n, (0.0, 0.0), (0.35, 1.0), (0.65, 0.9), (1.0, 0.0), smooth=0.15)
        sound = (1.0 - opening) * voice(pitch, rate, closed) + opening * voice(pitch, rate, opened)
        sound += 0.12 * opening * noise(rng, n, rate, opened)
        envelope = fade(n, rate, 0.08, 0.25) * (1.0 + 0.05 * wobble(rng, n, rate, 25.0))
        place(canvas, envelope * sound, start, rate)
    return canvas


def cow(rng: Rng, rate: int, seconds: float) -> Signal:
    """Two moos of 1.6 and 1.75 s: first a closed mouth (90 Hz, muffled below 700 Hz), then an
    open one (145 to 165 Hz, resonances at 0.35, 0.9, 1.8 and 2.9 kHz) with some roughness."""
    canvas = np.zeros(samples(seconds, rate))
    closed = resonances([(220.0, 250.0, 0.0), (600.0, 300.0, -10.0)], floor=-46.0, slope=-3.0)
    opened = resonances(
        [
            (350.0, 250.0, -3.0),
            (900.0, 350.0, 0.0),
            (1800.0, 500.0, -5.0),
            (2900.0, 700.0, -12.0),
        ],
        floor=-32.0,
        slope=-2.0,
    )
    for start, length in ((0.4, 1.6), (2.8, 1.75)):
        if start + length > seconds:
            continue
        n = samples(length, rate)
        shape = ((0.0, 88.0), (0.2, 96.0), (0.4, 142.0), (0.65, 165.0), (0.85, 155.0), (1.0, 120.0))
        pitch = unsteady(rng, glide(n, *shape, smooth=0.12), rate, jitter=0.008)
        opening = glide(n, (0.0, 0.0), (0.22, 0.05), (0.42, 1.0), (0.85, 1.0), (1.0, 0.2))
        sound = 0.6 * (1.0 - opening) * voice(pitch, rate, closed)
        sound += opening * voice(pitch, rate, opened)
        sound += 0.25 * opening * noise(rng, n, rate, opened)
        envelope = fade(n, rate, 0.12, 0.2) * (1.0 + 0.08 * wobble(rng, n, rate, 18.0))
        place(canvas, envelope * sound, start, rate)
    return canvas

"""Sounds that a field recorder meets without animals: rain and machines.

Every sound is ``make(rng, rate, seconds) -> (samples,)``. Its docstring is the text that
``assets/samples.csv`` gives as the way the clip was made: keep it true.
"""

from __future__ import annotations

import numpy as np

from .dsp import (
    Rng,
    Signal,
    band,
    both,
    decibels,
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


def rain(rng: Rng, rate: int, seconds: float) -> Signal:
    """Steady broadband noise (0.1 to 7.8 kHz, falling slowly with frequency) as of many distant
    drops, and 60 near drops a second: bursts of a few ms and ringing bubbles of random level."""
    n = samples(seconds, rate)
    tilt = resonances([(2300.0, 2500.0, -8.0)], floor=-6.0, slope=-2.5)
    far = noise(rng, n, rate, both(tilt, band(80.0, 7800.0, edge=0.6))) * (
        1.0 + 0.06 * wobble(rng, n, rate, 0.8)
    )
    near = np.zeros(n)
    for _ in range(rng.poisson(60.0 * seconds)):
        length = samples(0.012, rate)
        ring = np.exp(-np.arange(length) / (rate * rng.uniform(0.0008, 0.003)))
        pitch = np.exp(rng.uniform(np.log(900.0), np.log(5500.0)))
        splash = rng.standard_normal(length) * ring
        bubble = np.sin(2.0 * np.pi * pitch * np.arange(length) / rate) * ring
        drop = rng.lognormal(0.0, 0.8) * (splash + rng.uniform(0.0, 2.0) * bubble)
        place(near, drop, rng.uniform(0.0, seconds), rate)
    return far + 0.9 * near


def helicopter(rng: Rng, rate: int, seconds: float) -> Signal:
    """A two-bladed rotor that passes over: 13 soft slaps a second of low-pass noise (strongest
    below 400 Hz), a tail-rotor hum at 78 Hz, turbine noise and a faint whine near 4.8 kHz."""
    n = samples(seconds, rate)
    blade = np.cumsum(13.0 * glide(n, (0.0, 1.01), (1.0, 0.99))) / rate
    slap = np.exp(5.0 * (np.cos(2.0 * np.pi * blade) - 1.0))
    thump = noise(rng, n, rate, resonances([(90.0, 160.0, 0.0)], floor=-34.0, slope=-2.0))
    wash = noise(rng, n, rate, resonances([(500.0, 1200.0, 0.0)], floor=-14.0, slope=-3.0))
    hum = voice(np.full(n, 78.0), rate, resonances([(150.0, 200.0, 0.0)], floor=-50.0, slope=-4.0))
    pitch = unsteady(rng, np.full(n, 4800.0), rate, jitter=0.002, hertz=8.0)
    whine = voice(pitch, rate, resonances([(4800.0, 200.0, 0.0)]))
    sound = 1.6 * slap * thump + (0.4 + 0.6 * slap) * 0.6 * wash + 0.12 * hum
    nearness = glide(n, (0.0, 0.5), (0.45, 1.0), (1.0, 0.55), smooth=0.3)
    return nearness * (sound + decibels(-30.0) * whine)


def chainsaw(rng: Rng, rate: int, seconds: float) -> Signal:
    """A one-cylinder two-stroke engine: idling at 45 firings a second, revving up to 175 and
    falling under load to 140, with harmonics to 5 kHz, irregular firing and chain noise."""
    n = samples(seconds, rate)
    speed = glide(
        n,
        *((0.0, 45.0), (0.14, 48.0), (0.22, 165.0), (0.30, 175.0), (0.42, 142.0), (0.56, 150.0)),
        *((0.62, 70.0), (0.68, 60.0), (0.76, 172.0), (0.9, 145.0), (1.0, 150.0)),
        smooth=0.03,
    )
    throttle = np.clip((speed - 40.0) / 110.0, 0.08, 1.0)
    firing = unsteady(rng, speed, rate, jitter=0.012, hertz=25.0)
    exhaust = resonances(
        [(280.0, 250.0, 0.0), (800.0, 500.0, -3.0), (1700.0, 900.0, -7.0), (4000.0, 2000.0, -15.0)],
        floor=-32.0,
    )
    engine = voice(firing, rate, exhaust, top=5200.0)
    engine *= 1.0 + 0.15 * wobble(rng, n, rate, 60.0)
    teeth = resonances([(1200.0, 1500.0, 0.0), (3600.0, 2500.0, -2.0)], floor=-16.0)
    chain = noise(rng, n, rate, teeth)
    pulses = 0.6 + 0.4 * np.cos(2.0 * np.pi * np.cumsum(firing) / rate)
    sound = engine / engine.std() + 0.8 * chain * pulses
    return throttle * sound * fade(n, rate, 0.05, 0.05)

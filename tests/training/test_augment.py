"""Changes of audio: levels, lengths and places are what they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled_sound import file_clip

from NatureLM.config.schema import AugmentationsConfig
from NatureLM.training import samples as augment
from NatureLM.training.objectives import apply_masks

RNG = np.random.default_rng
TONE = np.sin(np.arange(16000) * 0.3).astype(np.float32)


def changed(wav: np.ndarray, samples: int, seed: int, **config: Any) -> augment.Augmenter:
    """Changes of a clip with this waveform."""
    settings = AugmentationsConfig(**config)
    return augment.Augmenter(settings, RNG(seed), lambda clip: wav, samples)


CLIP = file_clip("a.wav")


def decibel(ratio: float) -> float:
    return 10 * np.log10(ratio)


@given(st.floats(-20, 30), st.floats(0, 2))
def test_noise_has_the_asked_level(snr: float, exponent: float):
    noise = augment.coloured_noise(16000, exponent, RNG(1))
    mixed = augment.add_at_snr(TONE, noise, snr)
    added = augment.power(mixed - TONE)
    assert decibel(augment.power(TONE) / added) == pytest.approx(snr, abs=0.2)


def test_padding_does_not_count_towards_the_level():
    padded = np.concatenate([TONE, np.zeros(48000, np.float32)])
    noise = augment.coloured_noise(64000, 0, RNG(0))
    added = augment.add_at_snr(padded, noise, 10.0) - padded
    assert decibel(augment.power(TONE) / augment.power(added)) == pytest.approx(10, abs=0.2)


def test_silence_and_silent_noise_change_nothing():
    silence = np.zeros(100, np.float32)
    assert not augment.add_at_snr(silence, TONE[:100], 0).any()
    assert np.array_equal(augment.add_at_snr(TONE[:100], silence, 0), TONE[:100])


def test_brown_noise_falls_by_six_decibels_an_octave():
    spectrum = np.abs(np.fft.rfft(augment.coloured_noise(2**16, 2, RNG(0)))) ** 2
    low, high = spectrum[1000:2000].mean(), spectrum[2000:4000].mean()
    assert decibel(low / high) == pytest.approx(6, abs=0.5)


@given(st.integers(0, 3000), st.integers(1, 2000), st.integers(0, 99))
def test_windows_hold_the_clip(length: int, samples: int, seed: int):
    wav = np.arange(1, length + 1, dtype=np.float32)
    window, held = changed(wav, samples, seed, placement_prob=1.0).window(CLIP)
    assert window.shape == (samples,)
    sound = window[window != 0]
    assert len(sound) == held == min(length, samples)
    assert (np.diff(sound) == 1).all()


def test_without_random_crop_and_placement_the_beginning_stays():
    wav = np.arange(1, 101, dtype=np.float32)
    for samples in (10, 200):
        changes = changed(wav, samples, 0, random_crop=False)
        assert changes.window(CLIP)[0][:100].tolist() == wav[:samples].tolist()
        assert changes.notes == []


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_time_scale_changes_length_and_pitch(factor: float):
    scaled = augment.time_scale(TONE, factor)
    assert len(scaled) == pytest.approx(16000 / factor, abs=2)
    peak = np.abs(np.fft.rfft(scaled)).argmax() / len(scaled)
    assert peak == pytest.approx(0.3 / (2 * np.pi) * factor, rel=0.01)


@given(st.integers(0, 100), st.floats(0, 12))
def test_colour_changes_frequencies_within_its_limits_and_nothing_else(seed: int, db: float):
    noise = RNG(seed).standard_normal(16000).astype(np.float32)
    coloured = augment.random_eq(noise, db, RNG(seed))
    assert coloured.dtype == np.float32
    before, after = np.fft.rfft(noise), np.fft.rfft(coloured)
    gains_db = 20 * np.log10(np.abs(after) / np.abs(before))
    assert np.abs(gains_db).max() <= 2 * db + 0.1
    assert np.ptp(gains_db) >= db / 20
    assert np.abs(np.angle(after / before)).max() < 0.05, "the phase stays"


def test_colour_of_nothing_is_nothing():
    assert len(augment.random_eq(np.zeros(0, np.float32), 8.0, RNG(0))) == 0
    assert not augment.random_eq(np.zeros(100, np.float32), 8.0, RNG(0)).any()


def test_gain():
    changes = changed(TONE, len(TONE), 0, gain_prob=1.0, gain_db=20.0)
    louder, _ = changes.window(CLIP)
    assert changes.notes == ["gain -18.4 dB"]
    assert decibel(augment.power(louder) / augment.power(TONE)) == pytest.approx(-18.4, abs=0.05)


@given(st.lists(st.floats(-6, 6), min_size=1, max_size=3))
def test_a_mix_holds_all_at_their_levels_and_does_not_clip(gains: list[float]):
    others = [np.sin(np.arange(16000) * (0.7 + i)).astype(np.float32) for i in range(len(gains))]
    mixed = augment.mix(TONE, others, gains)
    assert np.abs(mixed).max() <= 1.0
    levels = [np.abs(np.dot(mixed, wave)) for wave in (TONE, *others)]
    assert min(levels) > 100
    assert augment.mix(np.zeros(4, np.float32), [np.ones(4, np.float32)], [0.0]).tolist() == [1] * 4


@given(st.integers(0, 200))
def test_masks_are_within_bounds_and_set_to_the_mean(seed: int):
    shares = {"frequency_mask_share": 0.3, "time_mask_share": 0.2}
    masks = changed(TONE, 0, seed, frequency_masks=2, time_masks=1, **shares).masks()
    assert [mask.axis for mask in masks] == ["frequency", "frequency", "time"]
    fbank = torch.ones(2, 50, 40)
    masked = apply_masks(fbank, [masks, ()])
    assert torch.equal(masked[1], fbank[1])
    assert (masked[0] == 0).all(dim=1).sum() <= 10 + 1
    assert (masked[0] == 0).all(dim=0).sum() <= 24 + 2
    assert (fbank == 1).all()


def test_the_same_generator_gives_the_same_changes():
    one, two, other = (
        changed(TONE, 20000, seed, time_scale_prob=1, gain_prob=1).window(CLIP)
        for seed in (5, 5, 6)
    )
    assert np.array_equal(one[0], two[0])
    assert one[1] != other[1]

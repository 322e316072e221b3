"""Spectrograms as pictures: where a tone is drawn, how loud, and what blocks put together show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.reports.spectrogram import BINS, contrast, levels_of, picture, picture_of

Image = pytest.importorskip("PIL.Image")


def test_a_tone_is_drawn_at_its_frequency_and_level() -> None:
    wave = 0.5 * np.sin(2 * np.pi * 2000 * np.arange(32_000) / 16_000).astype(np.float32)
    levels = levels_of(wave, 16_000, 50)
    assert levels.shape == (BINS, 100)
    row = round(2000 / 8000 * BINS)
    assert set(levels[:, 50].argmax(keepdims=True)) <= {row - 1, row}
    assert levels[:, 50].max() == pytest.approx(255 - 2 * 6.02, abs=2)


@given(st.integers(1, 9), st.integers(1, 9))
def test_stretches_side_by_side_are_the_whole(first: int, second: int) -> None:
    """Away from where they meet: blocks do not see what comes after them."""
    count = 16_000 * (first + second) // 10
    noise = np.random.default_rng(7).uniform(-1, 1, count).astype(np.float32)
    cut = 1600 * first
    parts = [levels_of(noise[:cut], 16_000, 20), levels_of(noise[cut:], 16_000, 20)]
    together = np.concatenate(parts, axis=1)
    whole = levels_of(noise, 16_000, 20)
    assert together.shape == whole.shape
    apart = np.abs(together.astype(int) - whole.astype(int)).max(axis=0)
    assert not apart[np.abs(np.arange(len(apart)) + 0.5 - 2 * first) > 1].any()


def test_pictures_have_low_frequencies_below_and_get_lighter_with_level() -> None:
    levels = np.zeros((BINS, 4), dtype=np.uint8)
    levels[0] = 200
    image = Image.open(io.BytesIO(picture(levels, *contrast([levels]))))
    indices = np.asarray(image)
    assert indices.shape == (BINS, 4)
    assert (indices[-1] == 255).all()
    assert not indices[:-1].any()
    colors = np.array(image.getpalette()).reshape(256, 3)
    light = colors @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -0.6).all()


def test_a_clip_is_drawn_in_one_go_and_the_same_every_time() -> None:
    wave = 0.1 * np.sin(2 * np.pi * 3000 * np.arange(48_000) / 16_000).astype(np.float32)
    image = Image.open(io.BytesIO(picture_of(wave, 16_000)))
    assert image.size == (300, BINS)
    brightest = np.asarray(image).max(axis=1).argmax()
    assert abs(brightest - (BINS - 3000 / 8000 * BINS)) < 2
    assert picture_of(wave, 16_000) == picture_of(wave.copy(), 16_000)
    assert Image.open(io.BytesIO(picture_of(wave[:0], 16_000))).size == (1, BINS)

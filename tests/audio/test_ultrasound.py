"""The warning that a recording is mostly above what the model hears."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from labelled_sound import tone as sine
from numpy.typing import NDArray

from NatureLM.audio.windows import iter_windows


def tone(frequency: float, rate: int, seconds: float = 2.0, level: float = 0.3) -> NDArray[Any]:
    return sine(frequency, seconds, rate, level)


def white(rate: int, seconds: float = 2.0, level: float = 0.1) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    return (level * rng.standard_normal(int(seconds * rate))).astype(np.float32)


def warnings_of(samples: NDArray[Any], rate: int, **options: Any) -> list[str]:
    told: list[str] = []
    for _ in iter_windows(samples, input_sample_rate=rate, warn=told.append, **options):
        pass
    return told


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (tone(40_000, 250_000), 250_000),
        (tone(12_000, 48_000), 48_000),
        # Calls in wind, hum and an offset that are stronger than they.
        (tone(40_000, 250_000) + tone(60, 250_000, level=0.6) + 0.2, 250_000),
        (tone(45_000, 384_000, level=0.1) + tone(2_000, 384_000, level=0.05), 384_000),
        (tone(30_000, 96_000), 96_000),
        (white(250_000), 250_000),  # an ultrasonic recorder that heard nothing but itself
    ],
    ids=["bat", "insect", "bat in wind", "bat and bird", "at 96 kHz", "noise floor"],
)
def test_warns_once(samples: NDArray[Any], rate: int) -> None:
    told = warnings_of(samples, rate, window_seconds=0.5, hop_seconds=0.5)
    (message,) = [one for one in told if "clipped" not in one]
    assert message.startswith("the audio array: ")
    assert "above 8 kHz" in message
    assert "--time-expansion 10" in message


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (tone(3_000, 48_000), 48_000),
        (tone(3_000, 48_000) + tone(15_000, 48_000, level=0.2), 48_000),
        (white(48_000), 48_000),
        (white(44_100), 44_100),
        (tone(4_000, 250_000) + white(250_000, level=0.02), 250_000),  # a bird, well recorded
        (tone(5_000, 16_000), 16_000),
        (tone(3_000, 8_000), 8_000),
        (np.zeros(96_000, np.float32), 96_000),
        (np.full(96_000, 0.5, np.float32), 96_000),
    ],
    ids=["bird", "overtones", "noise48", "noise44", "bird250", "16k", "8k", "zeros", "offset"],
)
def test_does_not_warn(samples: NDArray[Any], rate: int) -> None:
    assert warnings_of(samples, rate) == []


def test_slowed_sound_is_heard() -> None:
    bat = tone(40_000, 250_000)
    assert len(warnings_of(bat, 250_000, time_expansion=2)) == 1
    assert warnings_of(bat, 250_000, time_expansion=10) == []
    (message,) = warnings_of(tone(110_000, 250_000), 250_000, time_expansion=10)
    assert "above 80 kHz" in message
    assert "a --time-expansion above 10" in message


def test_sound_that_is_sped_up_on_purpose() -> None:
    assert warnings_of(tone(1_500, 8_000), 8_000, time_expansion=0.1) == []


def test_a_model_that_hears_higher() -> None:
    insect = tone(12_000, 48_000)
    assert warnings_of(insect, 48_000, sample_rate=32_000) == []


@pytest.mark.parametrize("block", [100, 5_000, 1 << 20])
def test_blocks_do_not_matter(block: int) -> None:
    assert len(warnings_of(tone(40_000, 250_000), 250_000, block_frames=block)) == 1
    assert warnings_of(tone(4_000, 250_000), 250_000, block_frames=block) == []


def test_a_minute_of_bats_in_a_long_recording() -> None:
    rate = 96_000
    day = tone(3_000, rate, seconds=65)
    night = tone(30_000, rate, seconds=62, level=0.2)
    assert len(warnings_of(np.concatenate([day, night, day[: 20 * rate]]), rate)) == 1
    # A few seconds at the end of a long recording are too little to judge by.
    assert warnings_of(np.concatenate([day, night[: 5 * rate]]), rate) == []


def test_the_file_is_named(save: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = save("bat.WAV", tone(40_000, 250_000), 250_000)
    list(iter_windows(path))
    (warning,) = caplog.messages
    assert warning.startswith(f"{path}: ")

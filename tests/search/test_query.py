"""A clip to look for is heard as the windows of an index were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from vector_indexes import SETTINGS

from NatureLM.audio import AudioError, iter_windows
from NatureLM.errors import UsageError
from NatureLM.search.search import query_windows


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=(25 * 16000, 2)), 16000)
    return path


@pytest.mark.parametrize("channel", ["mean", "2"])
def test_a_part_is_the_window_at_its_place(clip: Path, channel: str) -> None:
    settings = replace(SETTINGS, channel=channel)
    (part,) = query_windows(clip, settings, start=5.0, end=15.0)
    window = list(iter_windows(clip, hop_seconds=5.0, channel=channel))[1]
    assert np.abs(part.samples - window.samples).max() < 1e-6
    whole = query_windows(clip, settings)
    assert [one.end - one.start for one in whole] == [10.0, 10.0, 5.0]


def test_slowed_sound_is_slowed(clip: Path) -> None:
    settings = replace(SETTINGS, time_expansion=2.0)
    (part,) = query_windows(clip, settings, start=0.0, end=5.0)
    window = next(iter_windows(clip, time_expansion=2.0))
    assert part.end == 10.0
    middle = slice(1000, -1000)  # at its ends, a resampler hears what is beside a part, or nothing
    assert np.abs(part.samples[middle] - window.samples[middle]).max() < 0.01


def test_what_makes_no_query(clip: Path) -> None:
    with pytest.raises(UsageError, match="--end is 3 and must be after --start, 4"):
        query_windows(clip, SETTINGS, start=4.0, end=3.0)
    with pytest.raises(UsageError, match=r"name a\s+part of it with --start and --end"):
        query_windows(clip, replace(SETTINGS, window_seconds=0.5))
    with pytest.raises(AudioError, match="starts at 40 s"):
        query_windows(clip, SETTINGS, start=40.0, end=41.0)

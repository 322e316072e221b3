"""Real recordings as users have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from NatureLM.audio import find_recordings
from NatureLM.audio.decode import probe
from NatureLM.audio.windows import count_windows, iter_windows, read_clip

pytestmark = pytest.mark.shared

# Name: duration in seconds, windows of 10 s. Durations of mp3 are those of the decoded sound:
# libsndfile's guess from the size counts the tags as sound.
FILES = {
    "Lazuli_Bunting_yell-YELLLAZB20160625SM303143.mp3": (12.936, 2),
    "audiomoth_header.WAV": (1.99998, 1),
    "bat_MYOMYS_20170701_213954.wav": (0.5, 1),
    "bats_audiomoth.WAV": (6.725248, 1),
    "bats_audiomoth_triggered_empty.WAV": (0.105088, 1),
    "birdnet_soundscape_120s.flac": (120.0, 12),
    "great_plains_toad.wav": (44.57134, 5),
    "nri-GreenTreeFrogEvergladesNP.mp3": (9.97878, 1),
    "nri-StreamMUWO.mp3": (5.06776, 1),
    "nri-battlesounds.mp3": (5.32898, 1),
    "one_minute.wav": (60.0, 6),
    "yell-YELLAMRO20160506SM3.mp3": (36.936, 4),
    "yell-YELLWolfvCar20160111T22ms2.mp3": (24.99918, 3),
}


@pytest.fixture(scope="module")
def field(shared_dir: Path) -> Path:
    return shared_dir / "data" / "field"


def test_all_are_found(field: Path) -> None:
    assert [p.name for p in find_recordings([field])] == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_windows_ends_and_warnings(field: Path, name: str, warned: list[str]) -> None:
    duration, count = FILES[name]
    found = list(iter_windows(field / name, warn=warned.append))
    assert [w.start for w in found] == [10.0 * k for k in range(count)]
    assert found[-1].end == pytest.approx(duration, abs=1e-5)
    assert [w.end for w in found[:-1]] == [10.0 * (k + 1) for k in range(count - 1)]
    assert all(w.samples.shape == (160_000,) for w in found)
    assert all(np.abs(w.samples).max() <= 1 for w in found)
    assert probe(field / name).duration == found[-1].end
    assert count_windows(duration, 10, 10) == count
    is_bat = name.startswith("bat")
    assert len(warned) == is_bat
    assert all(name in message and "--time-expansion 10" in message for message in warned)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("bat")])
def test_slowed_bats(field: Path, name: str, warned: list[str]) -> None:
    duration, _ = FILES[name]
    found = list(iter_windows(field / name, time_expansion=10, warn=warned.append))
    assert [w.start for w in found] == [float(k) for k in range(len(found))]
    assert found[-1].end == pytest.approx(duration, abs=1e-5)
    assert warned == []


def test_parts_of_vorbis_clips(shared_dir: Path) -> None:
    """libsndfile seeks to a wrong sample in some of these; parts are right nevertheless."""
    for path in find_recordings([shared_dir / "data" / "esc10" / "clips"])[:20]:
        rate = probe(path).sample_rate
        whole = read_clip(path, sample_rate=rate)
        part = read_clip(path, start=4.5, duration=0.4, sample_rate=rate)
        first = round(4.5 * rate)
        np.testing.assert_array_equal(part, whole[first : first + len(part)])

"""Reading a part of a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_sound import audio_error

from NatureLM.audio.windows import read_clip
from NatureLM.errors import UsageError

RATE = 16_000


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.opus", "a.mp3", "a.aiff"])
@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 6_900), duration=st.integers(25, 5_000))
def test_a_part_is_that_part(
    tmp_path_factory: pytest.TempPathFactory, name: str, start: int, duration: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"clip_{name}"
    if not path.exists():
        # Half loud, half silent: variable bitrates make seeking hard.
        samples = np.random.default_rng(0).uniform(-0.5, 0.5, 7 * RATE).astype(np.float32)
        samples[3 * RATE :] *= 0.01
        options = {"format": "OGG", "subtype": "OPUS"} if name.endswith("opus") else {}
        soundfile.write(path, samples, RATE, **options)
    whole = read_clip(path)
    first, count = start * RATE // 1000, duration * RATE // 1000
    part = read_clip(path, start=start / 1000, duration=duration / 1000)
    np.testing.assert_allclose(part, whole[first : first + count], atol=1e-5)
    assert part.dtype == np.float32
    assert part.flags.writeable


def test_far_into_an_mp3(save: Any, noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There it seeks, and decodes what the frames need of those before them."""
    monkeypatch.setattr("NatureLM.audio.decode._MP3_SEEK_SECONDS", 3)
    samples = noise(8 * RATE)
    samples[3 * RATE :] *= 0.01
    path = save("a.mp3", samples, RATE, compression_level=0.9, bitrate_mode="VARIABLE")
    whole = read_clip(path)
    for first in range(3 * RATE, 7 * RATE, 7_777):
        part = read_clip(path, start=first / RATE, duration=0.5)
        np.testing.assert_allclose(part, whole[first : first + RATE // 2], atol=1e-5)


def test_resampled_and_mixed(save: Any, noise: Any) -> None:
    samples = noise(48_000 * 4, 2)
    path = save("a.wav", samples, 48_000, subtype="FLOAT")
    part = read_clip(path, start=1.5, duration=1.25)
    expected = soxr.resample(samples[72_000:132_000].mean(axis=1), 48_000, RATE, "HQ")
    np.testing.assert_allclose(part, expected, atol=1e-6)
    right = read_clip(path, start=1, channel=2, sample_rate=48_000)
    np.testing.assert_array_equal(right, samples[48_000:, 1])


def test_only_what_is_needed_is_decoded(
    save: Any, noise: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from NatureLM.audio.decode import Recording

    decoded: list[int] = []
    read = Recording._read

    def counting(self: Recording, frames: int) -> Any:
        block = read(self, frames)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(Recording, "_read", counting)
    path = save("a.flac", noise(60 * RATE), RATE)
    assert len(read_clip(path, start=50, duration=0.5)) == RATE // 2
    assert sum(decoded) == RATE // 2


def test_length_is_exact_where_the_file_has_it(save: Any, noise: Any) -> None:
    path = save("a.wav", noise(44_100 * 3), 44_100)
    for duration in (0.1, 0.3333, 1.0, 2.9999):
        assert len(read_clip(path, duration=duration)) == round(duration * RATE)


def test_the_end_of_the_file_is_the_end(save: Any, noise: Any) -> None:
    path = save("a.flac", noise(RATE * 2), RATE)
    assert len(read_clip(path, start=1.5, duration=10)) == RATE // 2
    with audio_error("TooShortAudio", r"a\.flac: the clip starts at 2 s, at or after"):
        read_clip(path, start=2.0)
    with audio_error("TooShortAudio", r"a\.flac: the clip starts at 9 s"):
        read_clip(path, start=9.0, duration=1)
    with audio_error("TooShortAudio", r"0\.0200 s"):
        read_clip(path, start=1.98)


def test_bad_files(save: Any, noise: Any) -> None:
    path = save("a.flac", noise(RATE * 10), RATE)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert len(read_clip(path, start=1, duration=2)) == 2 * RATE  # this part is sound
    for start in (0.0, 4.0, 8.0):
        with audio_error("UnreadableAudio", "damaged or cut off"):
            read_clip(path, start=start, duration=5)
    holed = noise(RATE)
    holed[8000] = np.nan
    nan = save("nan.wav", holed, RATE, subtype="FLOAT")
    with audio_error("NonFiniteAudio", r"nan\.wav: the sample at 0\.500 s"):
        read_clip(nan, start=0.25)
    with audio_error("ChannelError", r"nan\.wav.*has one channel"):
        read_clip(nan, channel=2)


@pytest.mark.parametrize(
    "times",
    [{"start": -1.0}, {"start": float("nan")}, {"duration": 0.0}, {"duration": float("inf")}],
)
def test_impossible_times(times: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="a clip cannot"):
        read_clip("any.wav", **times)  # type: ignore[arg-type]

"""MP3 streams that do not give their length: nothing of them may be lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from NatureLM.audio import AudioError, UnreadableAudio, iter_windows, mp3, probe, read_clip

RATE = 32_000
SECONDS = 12


def ape_tag(size: int) -> bytes:
    picture = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes()
    footer = b"APETAGEX" + (2000).to_bytes(4, "little") + (size + 32).to_bytes(4, "little")
    return picture + footer + (1).to_bytes(4, "little") + bytes(12)


ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x03\0\0" + bytes([0, 1, 0, 0]) + bytes(1 << 14)
LYRICS = b"LYRICSBEGIN" + b"la la la " * 500 + b"004500LYRICS200"


@pytest.fixture(scope="module")
def loud_then_silent() -> NDArray[np.float32]:
    """Half noise, half silence: with variable bitrate the first half has most of the bytes."""
    rng = np.random.default_rng(0)
    samples = rng.uniform(-0.5, 0.5, SECONDS * RATE).astype(np.float32)
    samples[len(samples) // 2 :] *= 1e-3
    return samples


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory, loud_then_silent: Any) -> bytes:
    """The frames of a VBR file without the first one, which holds the length."""
    path = tmp_path_factory.mktemp("mp3") / "a.mp3"
    soundfile.write(path, loud_then_silent, RATE, compression_level=0.3, bitrate_mode="VARIABLE")
    assert mp3.gives_length(path)
    content = path.read_bytes()
    size = mp3._frame_size(content[:4])
    assert size is not None
    return content[size[0] :]


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "stream.mp3"
        path.write_bytes(content)
        return path

    return write


def end_of(path: Path) -> float:
    (window,) = iter_windows(path, window_seconds=100, hop_seconds=100, warn=print)
    return window.end


def test_libsndfile_alone_loses_half(put: Any, stream: bytes) -> None:
    """If this fails, libsndfile has mended it and `OpenEndedFile` may go."""
    assert soundfile.info(put(stream)).duration < 0.6 * SECONDS


def test_all_is_heard(put: Any, stream: bytes, loud_then_silent: Any) -> None:
    path = put(stream)
    assert not mp3.gives_length(path)
    assert end_of(path) == pytest.approx(SECONDS, abs=0.1)
    assert probe(path).duration == end_of(path)
    decoded = read_clip(path, sample_rate=RATE)
    late = decoded[int(9 * RATE) : int(11 * RATE)]
    assert 0 < np.abs(late).max() < 0.01


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", ID3V1),
        (ID3V2, b""),
        (ID3V2 + ID3V2, ID3V1),
        (b"", ape_tag(100_000)),
        (b"", ape_tag(100_000) + ID3V1),
        (b"", LYRICS + ID3V1),
        (b"", bytes(20_000)),
        (b"", b"\xff\xfb"),
    ],
    ids=["id3v1", "id3v2", "both", "ape", "ape and id3v1", "lyrics", "padding", "half a header"],
)
def test_tags_are_no_sound_and_no_error(
    put: Any, stream: bytes, before: bytes, after: bytes
) -> None:
    bare = end_of(put(stream))
    path = put(before + stream + after)
    assert end_of(path) == bare
    assert probe(path).duration == pytest.approx(bare, abs=0.05)


def test_a_stream_may_end_within_a_frame(put: Any, stream: bytes) -> None:
    path = put(stream[:-50])
    assert end_of(path) == pytest.approx(SECONDS, abs=0.1)
    assert probe(path).duration == end_of(path)


def test_a_hole_is_not_passed_over(put: Any, stream: bytes) -> None:
    middle = len(stream) // 2
    path = put(stream[:middle] + bytes(50_000) + stream[middle:])
    ends: list[float] = []
    with pytest.raises(UnreadableAudio, match=r"decoding stops at \d.* where the file goes on"):
        ends.extend(w.end for w in iter_windows(path, window_seconds=1, hop_seconds=1, warn=print))
    with pytest.raises(AudioError):
        read_clip(path)


def test_parts_are_read_in_place(put: Any, stream: bytes) -> None:
    path = put(stream)
    whole = read_clip(path, sample_rate=RATE)
    part = read_clip(path, start=4.0, duration=1.0, sample_rate=RATE)
    np.testing.assert_allclose(part, whole[4 * RATE : 5 * RATE], atol=1e-5)

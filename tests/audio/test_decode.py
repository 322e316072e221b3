"""Decoding: formats, damage, and the MP3 streams that libsndfile needs help with."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from labelled_sound import audio_error
from numpy.typing import NDArray

from NatureLM.audio import AudioError, streams
from NatureLM.audio.decode import probe
from NatureLM.audio.windows import Window, iter_windows, read_clip

RATE = 32_000


def ignore(_: str) -> None:
    """Noise is rich in high frequencies; the warning has its own tests."""


def hear(path: Path, **options: Any) -> tuple[list[Window], AudioError | None]:
    """The windows that come, and the error after them."""
    found: list[Window] = []
    options = {"window_seconds": 1.0, "hop_seconds": 1.0, "warn": ignore, **options}
    try:
        for window in iter_windows(path, **options):
            found.append(window)
    except AudioError as error:
        return found, error
    return found, None


def refused(path: Path, kind: str, match: str) -> None:
    """`iter_windows` and `probe` raise this error, naming the file."""
    found, error = hear(path)
    assert not found
    assert error is not None
    assert error.kind == kind
    assert str(error).startswith(f"{path}: ")
    assert match in str(error)
    assert error.path == path
    with audio_error(kind, "^" + str(path).replace("\\", "\\\\")):
        probe(path)


def cut(path: Path, share: float) -> Path:
    """Keep the first part of the file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def test_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "a.wav", "UnreadableAudio", "there is no such file")


def test_folder(tmp_path: Path) -> None:
    refused(tmp_path, "UnreadableAudio", "is a folder")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(save: Any, noise: Any) -> None:
    path = save("a.wav", noise(RATE), RATE)
    path.chmod(0)
    refused(path, "UnreadableAudio", "may not be read (Permission denied)")


def test_no_permission_as_any_user(save: Any, noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save("a.wav", noise(RATE), RATE)

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    _, error = hear(path)
    monkeypatch.undo()
    assert error.kind == "UnreadableAudio"
    assert "may not be read (Permission denied). Check its permissions" in str(error)


@pytest.mark.parametrize("name", ["a.wav", "a.WAV", "a.flac", "a.mp3", "a"])
def test_zero_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    refused(tmp_path / name, "EmptyAudio", "0 bytes")


def test_header_only(save: Any, noise: Any) -> None:
    refused(save("a.wav", noise(0), RATE), "EmptyAudio", "no samples")


@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.flac", "a.txt", "a.raw"])
@pytest.mark.parametrize("content", [b"field notes, not sound\n" * 500, bytes(9999), b"x"])
def test_not_audio(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "NotAudio", "Convert it to wav or flac")
    assert capfd.readouterr().err == ""  # no library prints complaints of its own


def test_wav_under_the_name_of_mp3(save: Any, noise: Any) -> None:
    path = save("a.wav", noise(RATE), RATE)
    found, error = hear(path.rename(path.with_suffix(".mp3")))
    assert error is None
    assert len(found) == 1


@pytest.mark.parametrize("rate", [8_000, 44_100, 500_000])
def test_shorter_than_a_frame(save: Any, noise: Any, rate: int) -> None:
    enough = -(-rate // 40)
    found, error = hear(save("enough.wav", noise(enough), rate))
    assert error is None
    assert [w.end for w in found] == [enough / rate]
    path = save("short.wav", noise(enough - 1), rate)
    _, error = hear(path)
    assert error.kind == "TooShortAudio"
    assert str(path) in str(error)
    assert "shortest that can be used is 0.025 s" in str(error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(save: Any, noise: Any, value: float) -> None:
    samples = noise(5 * RATE, 2)
    samples[int(2.25 * RATE), 1] = value
    path = save("a.wav", samples, RATE, subtype="FLOAT")
    found, error = hear(path)
    assert error.kind == "NonFiniteAudio"
    assert str(error).startswith(f"{path}: the sample at 2.250 s is NaN or infinite")
    assert [w.start for w in found] == [0.0, 1.0]
    _, error = hear(path, channel=1)  # the other channel is sound
    assert error is None


def test_arrays_with_nan() -> None:
    samples = np.zeros(RATE, np.float32)
    samples[100] = np.nan
    with audio_error("NonFiniteAudio", r"^the audio array: the sample at 0\.003 s"):
        list(iter_windows(samples, input_sample_rate=RATE))


class TestCutOff:
    """A file that promises more than it holds: all whole windows, then the error."""

    @pytest.mark.parametrize("block", [1 << 16, 1000])
    def test_flac(self, save: Any, noise: Any, block: int) -> None:
        samples = noise(10 * RATE)
        path = cut(save("a.flac", samples, RATE), 0.61)
        found, error = hear(path, sample_rate=RATE, block_frames=block)
        assert error.kind == "UnreadableAudio"
        assert str(error).startswith(f"{path}: decoding stops at 6.")
        assert "the header promises 10.00 s" in str(error)
        assert [w.end for w in found] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        np.testing.assert_allclose(
            np.concatenate([w.samples for w in found]), samples[: 6 * RATE, 0], atol=1e-4
        )

    def test_flac_before_the_first_sample(self, save: Any, noise: Any) -> None:
        found, error = hear(cut(save("a.flac", noise(10 * RATE), RATE), 0.01))
        assert not found
        assert error.kind == "UnreadableAudio"

    @pytest.mark.parametrize(
        ("name", "seconds", "hole", "words", "windows"),
        [
            ("a.flac", 10, 50, "", (4, 5)),
            ("a.ogg", 20, 400, "could be decoded, the header promises 20.00 s", (11, 20)),
        ],
    )
    def test_a_hole(
        self,
        save: Any,
        noise: Any,
        name: str,
        seconds: int,
        hole: int,
        words: str,
        windows: tuple[int, int],
    ) -> None:
        path = save(name, noise(seconds * RATE), RATE)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + hole] = bytes(hole)
        path.write_bytes(content)
        found, error = hear(path)
        assert error.kind == "UnreadableAudio"
        assert words in str(error)
        assert windows[0] <= len(found) <= windows[1]

    def test_mp3_with_a_length(self, save: Any, noise: Any) -> None:
        path = cut(save("a.mp3", noise(10 * RATE), RATE), 0.6)
        found, error = hear(path)
        assert error.kind == "UnreadableAudio"
        assert "the header promises 10.00 s" in str(error)
        assert 4 <= len(found) <= 6

    def test_malformed(self, save: Any, noise: Any) -> None:
        path = cut(save("a.caf", noise(RATE), RATE), 0.002)
        refused(path, "UnreadableAudio", "damaged or cut off")

    def test_flac_of_unknown_length(self, save: Any, noise: Any) -> None:
        """As written by an encoder whose output was a pipe."""
        path = save("a.flac", noise(3 * RATE), RATE)
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
        content[22:26] = bytes(4)
        path.write_bytes(content)
        found, error = hear(path)
        assert error is None
        assert [w.end for w in found] == [1.0, 2.0, 3.0]
        assert probe(path).frames == 3 * RATE


def test_errors_survive_pickling(tmp_path: Path) -> None:
    _, error = hear(tmp_path / "a.wav")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.path == error.path


def test_probe(save: Any, noise: Any) -> None:
    path = save("a.flac", noise(44_100, 2), 44_100)
    info = probe(str(path))
    assert (info.path, info.sample_rate, info.channels) == (path, 44_100, 2)
    assert (info.frames, info.duration) == (44_100, 1.0)


def test_names_that_are_not_unicode(save: Any, noise: Any) -> None:
    if os.name != "posix":
        pytest.skip("such names are possible on POSIX only")
    path = save("a.wav", noise(RATE), RATE)
    odd = Path(os.fsdecode(os.fsencode(path.parent) + b"/gr\xfcn.wav"))
    try:
        path.rename(odd)
    except OSError:
        pytest.skip("the file system refuses such names")
    assert probe(odd).frames == RATE


def test_files_are_closed(save: Any, noise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from NatureLM.audio import decode

    closed: list[str] = []
    close: Callable[[Any], None] = decode.Recording.close
    monkeypatch.setattr(
        decode.Recording, "close", lambda self: (closed.append("yes"), close(self))[1]
    )
    windows = iter_windows(save("a.wav", noise(3 * RATE), RATE), window_seconds=1, hop_seconds=1)
    next(windows)
    windows.close()  # type: ignore[attr-defined]
    assert closed == ["yes"]


def test_importing_loads_no_library() -> None:
    code = (
        "import sys, NatureLM.audio; from NatureLM.audio import find_recordings, AudioError;"
        "print([m for m in ('torch', 'soundfile', 'soxr', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    assert streams.length_tag(streams.first_frame(path))
    content = path.read_bytes()
    size = streams._frame_size(content[:4])
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
    """If this fails, libsndfile has fixed it and `StreamFile` need claim nothing."""
    assert soundfile.info(put(stream)).duration < 0.6 * SECONDS


def test_all_is_heard(put: Any, stream: bytes, loud_then_silent: Any) -> None:
    path = put(stream)
    assert not streams.length_tag(streams.first_frame(path))
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
    with audio_error("UnreadableAudio", r"decoding stops at \d.* where the file goes on"):
        ends.extend(w.end for w in iter_windows(path, window_seconds=1, hop_seconds=1, warn=print))
    with pytest.raises(AudioError):
        read_clip(path)


def test_parts_are_read_in_place(put: Any, stream: bytes) -> None:
    path = put(stream)
    whole = read_clip(path, sample_rate=RATE)
    part = read_clip(path, start=4.0, duration=1.0, sample_rate=RATE)
    np.testing.assert_allclose(part, whole[4 * RATE : 5 * RATE], atol=1e-5)

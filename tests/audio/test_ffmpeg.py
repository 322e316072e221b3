"""Sound of phones and videos, and what a folder leaves out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from NatureLM.audio import AudioError, files, find_recordings
from NatureLM.audio.decode import Recording, probe
from NatureLM.audio.windows import read_clip

av = pytest.importorskip("av")

SECONDS = 3


def encode(
    path: Path, codec: str, container: str, rate: int = 48_000, layout: str = "mono"
) -> Path:
    """A tone of 440 Hz; in stereo the right channel is silent."""
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(SECONDS * rate) / rate)).astype(np.float32)
    channels = np.stack([tone, 0 * tone]) if layout == "stereo" else tone[np.newaxis]
    frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return path


def decoded(path: Path) -> tuple[NDArray[np.float32], AudioError | None]:
    with Recording(path) as recording:
        return np.concatenate([b.copy() for b in recording.blocks(5000)]), recording.failure


@pytest.mark.parametrize(
    ("name", "codec", "container", "rate", "layout"),
    [
        ("a.m4a", "aac", "mp4", 44_100, "stereo"),
        ("a.m4a", "aac", "mp4", 16_000, "mono"),
        ("a.aac", "aac", "adts", 16_000, "mono"),
        ("a.webm", "libopus", "webm", 48_000, "mono"),
        ("a.mka", "flac", "matroska", 22_050, "mono"),
        ("no_suffix", "aac", "mp4", 44_100, "mono"),
    ],
)
def test_the_sound_is_that_of_the_file(
    tmp_path: Path, name: str, codec: str, container: str, rate: int, layout: str
) -> None:
    path = encode(tmp_path / name, codec, container, rate, layout)
    samples, failure = decoded(path)
    assert failure is None
    assert samples.shape[1] == (2 if layout == "stereo" else 1)
    assert abs(len(samples) / rate - SECONDS) < 0.1
    assert abs(probe(path).duration - SECONDS) < 0.1
    middle = samples[rate : 2 * rate, 0]
    strongest = np.abs(np.fft.rfft(middle)).argmax()
    assert strongest == 440
    assert 0.25 < np.abs(middle).max() < 0.35
    if layout == "stereo":
        assert np.abs(samples[:, 1]).max() < 0.01
    clip = read_clip(path, start=1.0, duration=1.0, sample_rate=rate, channel=1)
    np.testing.assert_allclose(clip, middle, atol=1e-4)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.m4a", "aac", "mov")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"a\.m4a: cannot be opened .*damaged or cut off"):
        decoded(path)


def test_a_video_without_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w", format="mp4") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 16
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    with pytest.raises(AudioError, match="it holds no sound"):
        decoded(tmp_path / "a.mp4")


def test_without_pyav_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    phone = encode(tmp_path / "phone.m4a", "aac", "mp4")
    (tmp_path / "bird.wav").touch()
    assert find_recordings([tmp_path]) == [tmp_path / "bird.wav", phone]
    assert not caplog.messages
    videos = [
        encode(tmp_path.parent / f"a.{kind}", codec, kind)
        for kind, codec in (("webm", "libopus"), ("mp4", "aac"))
    ]
    opus = encode(tmp_path.parent / "a.opus", "libopus", "ogg")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert find_recordings([tmp_path]) == [tmp_path / "bird.wav"]
    [said] = caplog.messages
    assert "1 file left out that may be sound: phone.m4a; pip install" in said
    assert "'naturelm-audio[media]'" in said
    for path in (phone, *videos):
        with pytest.raises(AudioError, match=r"needs PyAV, .* not installed.*audio\[media\]"):
            Recording(path)
    assert decoded(opus)[1] is None  # libsndfile reads Ogg Opus


def test_sound_under_other_names_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.wav", "notes.txt", "b.ape", "c.wv", "d.DSF"):
        (tmp_path / name).touch()
    (tmp_path / "e.bak").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    (tmp_path / ".hidden.wv").touch()
    assert find_recordings([tmp_path]) == [tmp_path / "a.wav"]
    assert "4 files left out that may be sound: b.ape, c.wv, d.DSF and 1 more" in caplog.text

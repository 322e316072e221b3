"""What headers promise against the bytes that are there, in every format that is read."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from NatureLM.audio import AudioError, decode
from NatureLM.audio.container import _crc
from NatureLM.audio.decode import Recording, SoundLimits, probe
from NatureLM.audio.windows import read_upload

RATE = 16_000
SECONDS = 2
EXACT = {"WAV", "RF64", "W64", "AU", "AIFF", "CAF", "FLAC"}


def tone(seconds: float = SECONDS) -> NDArray[np.float32]:
    """Noise that fades in, so that no two parts of it are equal."""
    samples = np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE))
    return (samples * np.linspace(0.1, 1, len(samples))).astype(np.float32)


def encoded(kind: str, samples: NDArray[np.float32] | None = None, subtype: str = "") -> bytes:
    file = io.BytesIO()
    wanted = subtype or ("PCM_16" if kind in EXACT else None)
    soundfile.write(file, tone() if samples is None else samples, RATE, wanted, format=kind)
    return file.getvalue()


def heard(path: Path, content: bytes) -> tuple[NDArray[np.float32], AudioError | None]:
    """All samples of a file with this content, and why it ended."""
    path.write_bytes(content)
    with Recording(path) as recording:
        blocks = [block[:, 0].copy() for block in recording.blocks()]
        return np.concatenate(blocks or [np.zeros(0, np.float32)]), recording.failure


def put(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


def with_size(kind: str, content: bytes, size: int | None) -> bytes:
    """The file with another size of its data in the header; None is what streams write."""
    if kind in ("WAV", "AIFF"):
        order, name = ("<", b"data") if kind == "WAV" else (">", b"SSND")
        place = content.index(name) + 4
        more = 0 if kind == "WAV" else 8
        value = 0xFFFFFFFF if size is None else size + more
        return put(content, place, struct.pack(f"{order}I", value))
    if kind == "AU":
        return put(content, 8, struct.pack(">I", 0xFFFFFFFF if size is None else size))
    if kind == "CAF":
        value = -1 if size is None else size + 4
        return put(content, content.index(b"data") + 4, struct.pack(">q", value))
    if kind == "W64":
        return put(content, content.index(b"data\xf3\xac") + 16, struct.pack("<Q", size + 24))
    assert kind == "RF64"
    return put(content, content.index(b"ds64") + 16, struct.pack("<Q", size))


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AU", "AIFF", "CAF"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_samples_behind_the_promised_end_are_read(tmp_path: Path, kind: str, share: float) -> None:
    given = int(share * SECONDS * RATE) * 2
    content = with_size(kind, encoded(kind), given)
    samples, failure = heard(tmp_path / "a", content)
    assert failure is None
    np.testing.assert_array_equal(samples, soundfile.read(io.BytesIO(encoded(kind)))[0])
    assert probe(tmp_path / "a").frames == SECONDS * RATE


@pytest.mark.parametrize("kind", ["WAV", "AU", "CAF"])
def test_a_size_that_a_stream_could_not_know(tmp_path: Path, kind: str) -> None:
    samples, failure = heard(tmp_path / "a", with_size(kind, encoded(kind), None))
    assert failure is None
    assert len(samples) == SECONDS * RATE


@pytest.mark.parametrize("kind", ["WAV", "RF64", "W64", "AU", "AIFF", "CAF", "FLAC"])
def test_what_is_missing_is_said_in_seconds(tmp_path: Path, kind: str) -> None:
    content = encoded(kind)
    samples, failure = heard(tmp_path / "a", content[: len(content) // 2])
    assert 0.8 * RATE < len(samples) < 1.2 * RATE
    np.testing.assert_allclose(samples, tone()[: len(samples)], atol=1e-3)
    assert failure is not None
    assert failure.kind == "UnreadableAudio"
    assert f"{len(samples) / RATE:.2f} s" in str(failure)
    assert "the header promises 2.00 s" in str(failure)


BEHIND = {
    "ID3v1": b"TAG" + bytes(125),
    "APE": b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 1 << 31) + bytes(8),
    "zeros": bytes(4096),
    "chunk": b"guan" + struct.pack("<I", 12) + b"GUANO|Versio",
    "cut chunk": b"LIST" + struct.pack("<I", 5000) + b"INFOIART",
    "chunk without pad, then chunk": b"LIST\5\0\0\0INFOx" + b"bext\4\0\0\0abcd",
}


@pytest.mark.parametrize(
    ("kind", "behind"),
    [*(("WAV", name) for name in BEHIND), *(("FLAC", name) for name in ("ID3v1", "APE", "zeros"))],
)
def test_tags_and_padding_are_no_sound(tmp_path: Path, kind: str, behind: str) -> None:
    samples, failure = heard(tmp_path / "a", encoded(kind) + BEHIND[behind])
    assert failure is None
    np.testing.assert_array_equal(samples, soundfile.read(io.BytesIO(encoded(kind)))[0])


@pytest.mark.parametrize("total", [0, 1, RATE, 2 * SECONDS * RATE])
def test_flac_has_the_samples_of_its_last_frame(tmp_path: Path, total: int) -> None:
    content = encoded("FLAC")
    facts = int.from_bytes(content[18:26], "big")
    content = put(content, 18, ((facts >> 36 << 36) | total).to_bytes(8, "big"))
    samples, failure = heard(tmp_path / "a.flac", content)
    np.testing.assert_array_equal(samples, soundfile.read(io.BytesIO(encoded("FLAC")))[0])
    assert (failure is None) == (total <= SECONDS * RATE)


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "")])
def test_joined_files_are_read_to_the_end(tmp_path: Path, kind: str, subtype: str) -> None:
    parts = [tone(2), tone(3)[::-1].copy()]
    content = b"".join(encoded(kind, part, subtype) for part in parts)
    samples, failure = heard(tmp_path / "a", content)
    assert failure is None
    assert abs(len(samples) - 5 * RATE) < 3_000
    first = soundfile.read(io.BytesIO(encoded(kind, parts[0], subtype)), dtype="float32")[0]
    np.testing.assert_allclose(samples[: len(first)], first, atol=1e-4)
    last = soundfile.read(io.BytesIO(encoded(kind, parts[1], subtype)), dtype="float32")[0]
    np.testing.assert_allclose(samples[-len(last) :], last, atol=1e-4)
    assert abs(probe(tmp_path / "a").duration - 5) < 0.2


def test_joined_flac_is_an_error_that_says_so(tmp_path: Path) -> None:
    samples, failure = heard(tmp_path / "a.flac", encoded("FLAC") * 2)
    assert len(samples) == SECONDS * RATE
    assert failure is not None
    assert "another FLAC stream" in str(failure)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_without_its_last_page(tmp_path: Path, subtype: str) -> None:
    content = encoded("OGG", tone(20), subtype)
    samples, failure = heard(tmp_path / "a.ogg", content[: len(content) // 2])
    assert 8 * RATE < len(samples) < 12 * RATE
    assert failure is not None
    assert "ends in the middle of its stream" in str(failure)


def test_skipping_goes_through_joined_streams(tmp_path: Path) -> None:
    content = encoded("OGG", tone(2)) + encoded("OGG", tone(3))
    whole, _ = heard(tmp_path / "a.ogg", content)
    for start in (RATE, 2 * RATE, 3 * RATE + 17):
        with Recording(tmp_path / "a.ogg") as recording:
            recording.skip(start)
            rest = np.concatenate([block[:, 0].copy() for block in recording.blocks()])
        np.testing.assert_allclose(rest, whole[start:], atol=1e-4)


def test_streams_of_different_rates_are_not_joined(tmp_path: Path) -> None:
    other = io.BytesIO()
    soundfile.write(other, tone(1), 2 * RATE, format="OGG")
    samples, failure = heard(tmp_path / "a.ogg", encoded("OGG") + other.getvalue())
    assert len(samples) == SECONDS * RATE
    assert failure is not None
    assert "32000 Hz" in str(failure)


def test_wav_above_4_gib(tmp_path: Path) -> None:
    """The 32-bit size began anew; the file is sparse."""
    content = encoded("WAV")
    held = (1 << 32) + len(content) - 44
    with open(tmp_path / "a.wav", "wb") as file:
        file.write(with_size("WAV", content, held % (1 << 32)))
        file.truncate(44 + held)
    assert probe(tmp_path / "a.wav").frames == held // 2


def test_a_chunk_of_odd_length_without_its_pad_byte(tmp_path: Path) -> None:
    content = encoded("WAV")
    samples, failure = heard(tmp_path / "a", content[:12] + b"LIST\5\0\0\0INFOx" + content[12:])
    assert failure is None
    assert len(samples) == SECONDS * RATE


def test_bw64(tmp_path: Path) -> None:
    samples, failure = heard(tmp_path / "a", b"BW64" + encoded("RF64")[4:])
    assert failure is None
    assert len(samples) == SECONDS * RATE


@given(st.sampled_from(sorted(EXACT)), st.integers(0, 2 * SECONDS * RATE), st.binary(max_size=99))
@settings(max_examples=60, deadline=None)
def test_any_size_and_any_end_give_samples_of_the_file_or_an_error(
    tmp_path_factory: Any, kind: str, frames: int, behind: bytes
) -> None:
    content = encoded(kind)
    if kind != "FLAC":
        content = with_size(kind, content, 2 * frames)
    path = tmp_path_factory.mktemp("sizes") / "a"
    samples, failure = heard(path, content + behind)
    whole = soundfile.read(io.BytesIO(encoded(kind)), dtype="float32")[0]
    both = min(len(samples), len(whole))
    np.testing.assert_array_equal(samples[:both], whole[:both])
    if frames <= len(whole) and kind != "FLAC":
        assert len(samples) >= len(whole) - 50
    if frames > len(samples) and kind != "FLAC":
        assert failure is not None


# What strangers send: containers that are none of ours, work without end, sound without end


ID3 = b"ID3\4\0\0\0\0\0\x0a" + bytes(10)
READ = EXACT | {"OGG", "MP3", "WAVEX"}


def any_kind(kind: str) -> bytes:
    file = io.BytesIO()
    for subtype in soundfile.available_subtypes(kind):
        try:
            soundfile.write(file, tone(1), RATE, subtype, format=kind)
            break
        except (soundfile.LibsndfileError, ValueError):
            continue
    return file.getvalue()


@pytest.mark.parametrize("kind", sorted(soundfile.available_formats().keys() - {"RAW", "SD2"}))
@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a"])
def test_only_the_containers_of_the_documentation_come_to_a_decoder(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded("MP3") if kind == "MP3" else any_kind(kind)
    if kind in READ:
        assert heard(tmp_path / name, content)[1] is None
        return
    monkeypatch.setattr(decode, "_sequential_file", lambda: pytest.fail("libsndfile got the file"))
    for tags in (b"", ID3):
        (tmp_path / name).write_bytes(tags + content)
        with pytest.raises(
            AudioError, match=r"not an audio file.* read are wav, flac, ogg "
        ) as caught:
            probe(tmp_path / name)
        assert caught.value.kind == "NotAudio"


@pytest.mark.parametrize("junk", [ID3, bytes(500), ID3 + bytes(500)])
def test_mp3_may_have_tags_and_padding_in_front(tmp_path: Path, junk: bytes) -> None:
    samples, failure = heard(tmp_path / "a", junk + encoded("MP3"))
    assert failure is None
    assert abs(len(samples) - SECONDS * RATE) < 3_000


@functools.cache
def without_total(seconds: float) -> bytes:
    """Silence as FLAC that does not say how long it is; its last frame is cut off."""
    content = encoded("FLAC", np.zeros(int(seconds * RATE), np.float32))
    facts = int.from_bytes(content[18:26], "big")
    return put(content, 18, (facts >> 36 << 36).to_bytes(8, "big"))[:-7]


def frame_headers() -> bytes:
    head = bytes([0xFF, 0xF8, 0xC9, 0x08, 0x00])
    return encoded("FLAC")[:9000] + (head + bytes([_crc(head, 0x07, 8)])) * 170_000


ENDLESS_WORK = {
    "FLAC whose end is headers of frames": frame_headers,
    "FLAC without a last frame": lambda: without_total(600),
    "chunks before the sound": lambda: put(encoded("WAV"), 12, b"abcd\0\0\0\0" * 10**6),
    "chunks behind it": lambda: encoded("WAV") + b"abcd\0\0\0\0" * 10**6 + b"\1",
    "CAF of chunks": lambda: encoded("CAF")[:8] + b"abcd" * 3 * 10**6,
    "frames that are none": lambda: (encoded("MP3") + b"\xff\xfb\x90\0" * 200_000) * 4,
    "tags before MP3": lambda: b"ID3\4\0\0\0\0\0\0" * 10**5 + encoded("MP3"),
    "streams": lambda: encoded("OGG", tone(0.1)) * 2000,
}


@pytest.mark.parametrize("what", ENDLESS_WORK)
def test_looking_at_a_file_takes_seconds(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(ENDLESS_WORK[what]())
    begun = time.process_time()
    with contextlib.suppress(AudioError):
        probe(path)
    assert time.process_time() - begun < 5


def with_rate(rate: int) -> bytes:
    return put(encoded("WAV"), 24, struct.pack("<I", rate))


def many_channels(count: int, seconds: float = 1) -> bytes:
    return encoded("WAV", np.zeros((int(seconds * RATE), count), np.float32))


@functools.cache
def opus(seconds: int) -> bytes:
    return encoded("OGG", np.zeros(seconds * RATE, np.float32), "OPUS")


LIMITS = SoundLimits(file_bytes=2e7, seconds=60, decoded_bytes=1e7, channels=8, sample_rate=192_000)
REFUSED: dict[str, tuple[Any, str, str]] = {
    # what: (content, kind, what is said)
    "a file": (lambda: encoded("WAV") + bytes(2 * 10**7), "TooLong", "the file has 20.1 MB. At mo"),
    "Opus": (lambda: opus(300), "TooLong", "lasts 5 min 0 s. "),
    "FLAC without a total": (
        lambda: without_total(600),
        "TooLong",
        "lasts more than 1 min 0 s. At",
    ),
    "MP3 without a length": (
        lambda: encoded("MP3", tone(20))[144:] * 4,
        "TooLong",
        "the sound lasts",
    ),
    "a header that lies": (
        lambda: with_size("RF64", encoded("RF64"), 1 << 42),
        "TooLong",
        "At most 1 min 0 s are taken: cut it",
    ),
    "six channels": (lambda: many_channels(6, 50), "TooLong", "has decoded 19.2 MB. At most 10 MB"),
    "nine channels": (lambda: many_channels(9), "Channel", "9 channels, and 1 to 8 are read"),
    "4 GHz": (lambda: with_rate(4_000_000_000), "Unreadable", "cannot be opened"),
    "1 Hz": (lambda: with_rate(1), "SampleRate", "the sample rate is 1 Hz, supported are 8000"),
    "384 kHz": (
        lambda: with_rate(384_000),
        "SampleRate",
        "is 384000 Hz, supported are 8000 to 192",
    ),
    "one sample": (lambda: encoded("WAV", tone(1 / RATE)), "TooShort", "the shortest that can be"),
    "NaN": (
        lambda: encoded("WAV", np.full(RATE, np.nan, "f4"), "FLOAT"),
        "NonFinite",
        "the sample at 0.000 s is NaN or infinite",
    ),
    "no sound": (lambda: b"", "Empty", "the file is empty (0 bytes)"),
    "a page": (lambda: b"<html>" * 100, "Not", "not an audio file"),
}


@pytest.mark.parametrize(
    ("what", "as_file"), [*((what, True) for what in REFUSED), ("Opus", False), ("no sound", False)]
)
def test_a_service_takes_no_more_than_its_limits(tmp_path: Path, what: str, as_file: bool) -> None:
    make, kind, words = REFUSED[what]
    upload = content = make()
    if as_file:
        upload = tmp_path / "secret.mp3"
        upload.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(AudioError) as caught:
            read_upload(upload, LIMITS, name="meadow.wav")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.kind == (f"{kind}Audio" if kind[0] in "TNEU" else f"{kind}Error")
    assert str(caught.value).startswith("meadow.wav: ")
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert peak < 3 * LIMITS.decoded_bytes


def test_a_service_reads_what_is_within_its_limits() -> None:
    samples, note = read_upload(encoded("FLAC"), LIMITS)
    np.testing.assert_array_equal(samples, soundfile.read(io.BytesIO(encoded("FLAC")))[0])
    assert note == ""


def test_a_command_line_has_no_limits_but_of_channels(tmp_path: Path) -> None:
    assert heard(tmp_path / "a.flac", without_total(600))[0].shape[0] > 599 * RATE
    (tmp_path / "b.wav").write_bytes(many_channels(32))
    assert probe(tmp_path / "b.wav").channels == 32
    (tmp_path / "c.wav").write_bytes(many_channels(33))
    with pytest.raises(AudioError, match="there are 33 channels, and 1 to 32 are read"):
        probe(tmp_path / "c.wav")

"""Streams of sound, as decoders read them: bytes of a file, frames of MPEG audio, FFmpeg's sound.

A `Stream` says which bytes of a file are decoded, with which header in front of them; a
`StreamFile` is what libsndfile reads in their place.

MP3 has no length field. Encoders may write one into a first, silent frame ("Xing" or "Info"); where
it is missing, libsndfile 1.2 takes the length from the file's size and the first frame's bitrate
and never reads past it. With tags in the file that is too long (harmless to a reader that stops at
the end of the data), but with variable bitrate it can be far too short, and the rest of the
recording would be lost without a word. Files that were joined have a length in front of each part.

Sound of phones and videos (m4a, aac, mp4, webm, wma, amr) is decoded by FFmpeg through PyAV, which
is optional (`naturelm-audio[media]`). The demuxer is chosen by the first bytes of the file (see
`container`), never by FFmpeg's guess, so only these containers are opened.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from NatureLM.storage import RemotePath, StorageError, file_size, open_file


class Stream(NamedTuple):
    """Bytes of a file that are one stream of sound, and the header to put in front of them."""

    header: bytes
    start: int
    stop: int


class StreamFile(io.RawIOBase):
    """The bytes of a `Stream` as a file that soundfile opens.

    failure: why a remote file could be read no further; soundfile drops exceptions, so a read that
        fails is one at the end of the file
    claimed: how long the file says it is, for decoders that guess a length from it. Between the
        real and the claimed end there is nothing to read, but for 128 zeros where an ID3v1 tag
        would stand.
    """

    def __init__(self, path: str | os.PathLike[str], stream: Stream, claimed: int = 0) -> None:
        super().__init__()
        self._file = open_file(path)
        self.failure: StorageError | None = None
        self._header, self._start, self._stop = stream
        self._size = len(self._header) + self._stop - self._start
        self._claimed = max(claimed, self._size)
        self._position = 0

    @property
    def is_open_ended(self) -> bool:
        """Whether it claims more than it holds."""
        return self._claimed > self._size

    def rest(self, count: int) -> bytes:
        """The next bytes behind the reading position, which stays where it is."""
        self._file.seek(self._start + min(self._position, self._size) - len(self._header))
        return self._file.read(min(count, self._stop - self._file.tell()))

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._claimed}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._position < len(self._header):
            part = self._header[self._position : self._position + len(view)]
            view[: len(part)] = part
            count = len(part)
        elif self._position < self._size:
            wanted = self._start + self._position - len(self._header)
            count = self._read_at(wanted, view[: self._size - self._position])
        elif self.is_open_ended and self._position >= self._claimed - 128:
            count = min(len(view), self._claimed - self._position)
            view[:count] = bytes(count)
        else:
            count = 0
        self._position += count
        return count

    def _read_at(self, place: int, view: memoryview) -> int:
        if self.failure is not None:
            return 0
        try:
            if self._file.tell() != place:
                self._file.seek(place)
            return self._file.readinto(view)  # type: ignore[attr-defined, no-any-return]
        except StorageError as error:
            self.failure = error
            return 0

    def close(self) -> None:
        self._file.close()
        super().close()


# Frames of MPEG audio

MAX_FRAME_SAMPLES = 1152
SEARCH_BYTES = 1 << 20

_HEAD_BYTES = 1 << 16  # the MPEG decoder also gives up after this much that is not audio
_ID3V2_HEADER = 10
_CHAIN = 4  # frames, each where the one before says, are no accident in other data
_LENGTH_TAGS = (b"Xing", b"Info")
_LENGTH_TAG_PLACES = (13, 15, 21, 23, 36, 38)  # behind the header, checksum and side information
_LENGTH_TAG_REACH = 64
_LENGTH_SLACK = 1024  # bytes; how encoders count differs by a frame

# Layer III, by the two version bits of the header: 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5.
_KBITS_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_SYNC = re.compile(
    b"\xff[%s][%s](?=.)"
    % (
        re.escape(bytes(b for b in range(0xE0, 0x100) if b >> 3 & 3 != 1 and b >> 1 & 3)),
        re.escape(bytes(b for b in range(0xF0) if b >> 2 & 3 != 3)),
    ),
    re.DOTALL,
)
_MOST_TRIED, _MOST_HOLES, _MOST_TAGS = 20_000, 32, 100  # no real file comes near
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def first_frame(path: str | os.PathLike[str], start: int = 0) -> bytes:
    """How the first MPEG frame from here on begins; empty where none is near, as in text."""
    with open_file(path) as file:
        return _first_frame(file, start)[1]


def _first_frame(file: BinaryIO, start: int = 0) -> tuple[int, bytes]:
    """Where it begins, and how."""
    at = behind_tags(file, start)
    file.seek(at)
    head = file.read(_HEAD_BYTES)
    first = _find_sync(head)
    return (at, b"") if first is None else (at + first, head[first : first + _LENGTH_TAG_REACH])


def is_frame(data: bytes) -> bool:
    """Whether bytes begin as an MPEG frame of any layer does."""
    return _find_sync(data) == 0


def length_tag(frame: bytes) -> tuple[int | None, int | None] | None:
    """Frames and bytes that the tag in a stream's first frame gives; None if there is none."""
    at = next((at for at in _LENGTH_TAG_PLACES if frame[at : at + 4] in _LENGTH_TAGS), None)
    if at is None:
        return None
    flags, first, second = struct.unpack(">III", frame[at + 4 : at + 16].ljust(12, b"\0"))
    frames = first if flags & 1 else None
    return frames, (second if flags & 1 else first) if flags & 2 else None


def count_frames(path: str | os.PathLike[str], most: float = math.inf) -> int:
    """Samples per channel of a Layer III stream by its frame headers, or more than `most`."""
    count = 0
    with open_file(path) as file:
        for _, _, samples in _frames(file, 0, file_size(file)):
            count += samples
            if count > most:
                break
    return count


def first_chain(file: BinaryIO) -> int | None:
    """Where Layer III frames begin that follow each other, near the start of a file."""
    at = behind_tags(file)
    file.seek(at)
    found = find_chain(file.read(_HEAD_BYTES))
    return None if found is None else at + found


def stream_starts(file: BinaryIO, size: int) -> list[int]:
    """Where the streams of a file begin that holds more than its first length says; else empty."""
    first, frame = _first_frame(file)
    length = length_tag(frame)
    if length is None or (length[1] is not None and abs(size - first - length[1]) <= _LENGTH_SLACK):
        return []
    starts, samples = [0], 0
    for at, _, count in _frames(file, 0, size):
        file.seek(at)
        if at > first and length_tag(file.read(_LENGTH_TAG_REACH)) is not None:
            starts.append(at)
        samples += count
    size_of_first = _frame_size(frame[:4])
    if len(starts) > 1 or size_of_first is None or length[0] is None:
        return starts if len(starts) > 1 else []
    # Frames that were put behind the sound without a length: the first is not believed.
    is_longer = samples > (length[0] + 2) * size_of_first[1]
    return [first + size_of_first[0]] if is_longer else []


def _frames(file: BinaryIO, start: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(place, bytes, samples per channel) of every whole Layer III frame."""
    at, holes = behind_tags(file, start), 0
    while holes <= _MOST_HOLES:
        file.seek(at)
        frame = _frame_size(file.read(4))
        if frame is None:
            holes += 1
            file.seek(at)
            skipped = find_chain(file.read(SEARCH_BYTES))
            if skipped is None:
                return
            at += skipped
        elif at + frame[0] > size:
            return
        else:
            yield at, *frame
            at += frame[0]


def behind_tags(file: BinaryIO, end: int = 0) -> int:
    """Where the ID3v2 tags end that stand at this place."""
    for _ in range(_MOST_TAGS):
        file.seek(end)
        tag = file.read(_ID3V2_HEADER)
        if len(tag) < _ID3V2_HEADER or not tag.startswith(b"ID3"):
            return end
        size = 0
        for byte in tag[6:]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(tag[5] & 0x10)
        end += _ID3V2_HEADER * (1 + has_footer) + size
    return end


def _find_sync(data: bytes, start: int = 0) -> int | None:
    """Offset of the next frame header of any layer (eleven set bits, no reserved value)."""
    found = _SYNC.search(data, start)
    return None if found is None else found.start()


def find_chain(data: bytes) -> int | None:
    """Offset of the first of several Layer III frames that follow each other."""
    at = _find_sync(data)
    for _ in range(_MOST_TRIED):
        if at is None:
            break
        end = at
        for _ in range(_CHAIN):
            frame = _frame_size(data[end : end + 4])
            if frame is None:
                break
            end += frame[0]
        else:
            return at
        at = _find_sync(data, at + 1)
    return None


def _frame_size(header: bytes) -> tuple[int, int] | None:
    """Bytes and samples per channel of the Layer III frame that starts with `header`."""
    if len(header) < 4 or _find_sync(header) != 0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    bitrate = header[2] >> 4
    if layer != 1 or bitrate == 0:
        return None
    mpeg1 = version == 3
    kbits = (_KBITS_MPEG1 if mpeg1 else _KBITS_MPEG2)[bitrate]
    rate = _RATES[version][header[2] >> 2 & 3]
    padding = header[2] >> 1 & 1
    return (144 if mpeg1 else 72) * kbits * 1000 // rate + padding, 1152 if mpeg1 else 576


# Containers that FFmpeg reads

FFMPEG = "FFMPEG"
TOLERANCE = 0.25
"""Seconds that may be missing at the end: encoders pad the first and the last packet."""
_CODECS = (
    *("aac", "mp3", "alac", "opus", "vorbis", "flac", "ac3", "eac3", "amr", "wma", "pcm_", "mp2"),
    *("libopus", "libvorbis", "libopencore_amr", "libfdk_aac"),
)


class FfmpegError(Exception):
    """FFmpeg cannot go on; the text is its own."""


class FfmpegFile:
    """The sound of a file, with the interface of `soundfile.SoundFile` that decoding needs.

    Raises FfmpegError, and ModuleNotFoundError where PyAV is not installed.
    """

    format = FFMPEG
    frames = 1 << 62  # not known

    def __init__(self, path: str | os.PathLike[str], container: str) -> None:
        import av

        self._errors = (av.FFmpegError, ValueError, StorageError)
        try:
            self._remote = open_file(path) if isinstance(path, RemotePath) else None
            source: Any = self._remote or os.fspath(path)
            self._file: Any = av.open(source, format=container, metadata_errors="ignore")
        except self._errors as error:
            raise FfmpegError(_ffmpeg_says(error)) from error
        if not self._file.streams.audio:
            self._file.close()
            raise FfmpegError("it holds no sound")
        stream = self._file.streams.audio[0]
        if not stream.codec_context.name.startswith(_CODECS):
            self._file.close()
            raise FfmpegError(f"its codec {stream.codec_context.name} is none that is read here")
        self.subtype = stream.codec_context.name.upper()
        self.samplerate: int = stream.codec_context.sample_rate
        self.channels: int = stream.codec_context.channels
        length, unit = stream.duration, stream.time_base
        self.promised = float(length * unit) if length and unit else None
        self._resampler = av.AudioResampler(format="fltp", rate=self.samplerate)
        self._blocks = self._decode(stream)
        self._rest = np.zeros((0, self.channels), dtype=np.float32)

    @property
    def failure(self) -> StorageError | None:
        """Why a remote file could be read no further."""
        return getattr(getattr(self._remote, "raw", None), "failure", None)

    def read(self, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill `out` (frames, channels) as far as there is sound; what was filled."""
        filled = 0
        while filled < len(out):
            if not len(self._rest):
                block = next(self._blocks, None)
                if block is None:
                    break
                self._rest = block
            part = self._rest[: len(out) - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            self._rest = self._rest[len(part) :]
        return out[:filled]

    def _decode(self, stream: Any) -> Iterator[NDArray[np.float32]]:
        """Blocks (frames, channels)."""
        try:
            for frame in self._file.decode(stream):
                for part in self._resampler.resample(frame):
                    yield np.ascontiguousarray(part.to_ndarray().T)
            for part in self._resampler.resample(None):
                yield np.ascontiguousarray(part.to_ndarray().T)
        except self._errors as error:
            raise FfmpegError(_ffmpeg_says(error)) from error

    def close(self) -> None:
        self._file.close()


def _ffmpeg_says(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error)

"""What libsndfile needs help with in MP3: streams whose header does not give their length.

MP3 has no length field. Encoders may write one into a first, silent frame ("Xing" or "Info"); where
it is missing, libsndfile 1.2 takes the length from the file's size and the first frame's bitrate
and never reads past it. With tags in the file that is too long (harmless to a reader that stops at
the end of the data), but with variable bitrate it can be far too short, and the rest of the
recording would be lost without a word. `OpenEndedFile` makes the estimate too long on purpose.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

MAX_FRAME_SAMPLES = 1152

_HEAD_BYTES = 1 << 16  # the MPEG decoder also gives up after this much that is not audio
_ID3V2_HEADER = 10
_ID3V1_BYTES = 128
_SEARCH_BYTES = 1 << 20
_CHAIN = 4  # frames, each where the one before says, are no accident in other data
_LENGTH_TAGS = (b"Xing", b"Info")
_LENGTH_TAG_REACH = 64  # the tag follows the frame header and at most 34 bytes

# Layer III, by the two version bits of the header: 3 is MPEG-1, 2 is MPEG-2, 0 is MPEG-2.5.
_KBITS_MPEG1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_MPEG2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def first_frame(path: str | os.PathLike[str]) -> bytes:
    """How the first MPEG frame begins; empty where none is near the start, as in text."""
    with open(path, "rb") as file:
        file.seek(_tag_bytes(file))
        head = file.read(_HEAD_BYTES)
    first = _find_sync(head)
    return b"" if first is None else head[first : first + _LENGTH_TAG_REACH]


def gives_length(path: str | os.PathLike[str]) -> bool:
    """Whether the first frame holds the number of frames."""
    frame = first_frame(path)
    return any(tag in frame for tag in _LENGTH_TAGS)


def count_frames(path: str | os.PathLike[str]) -> int | None:
    """Samples per channel of a Layer III stream by its frame headers; None where there are none."""
    samples = 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = _tag_bytes(file)
        while True:
            file.seek(position)
            frame = _frame_size(file.read(4))
            if frame is None:
                file.seek(position)
                skipped = _find_chain(file.read(_SEARCH_BYTES))
                if skipped is None:
                    break
                position += skipped
                continue
            position += frame[0]
            if position > size:
                break
            samples += frame[1]
    return samples or None


class OpenEndedFile(io.FileIO):
    """A file that claims to be 64 times its size, so that a length guessed from it is never short.

    Between the real and the claimed end there is nothing to read, but for the last 128 bytes, where
    the decoder looks for an ID3v1 tag and finds zeros.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._size = os.fstat(self.fileno()).st_size
        # Between the frames of one stream the bitrate differs by no more than 320 to 8.
        self._claimed = self._size * 64 + _ID3V1_BYTES
        self._position = 0

    def audio_follows(self) -> bool:
        """Whether there are more MPEG frames after the reading position.

        What may follow the last frame instead: tags (with pictures), padding, a part of a frame.
        """
        super().seek(min(self._position, self._size))
        return _find_chain(super().read(_SEARCH_BYTES)) is not None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._claimed}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        count = 0
        if self._position < self._size:
            if super().tell() != self._position:
                super().seek(self._position)
            count = super().readinto(view)
        elif self._position >= self._claimed - _ID3V1_BYTES:
            count = min(len(view), self._claimed - self._position)
            view[:count] = bytes(count)
        self._position += count
        return count


def _tag_bytes(file: BinaryIO) -> int:
    """Bytes of ID3v2 tags at the start of the file."""
    end = 0
    while True:
        file.seek(end)
        tag = file.read(_ID3V2_HEADER)
        if len(tag) < _ID3V2_HEADER or not tag.startswith(b"ID3"):
            return end
        size = 0
        for byte in tag[6:]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(tag[5] & 0x10)
        end += _ID3V2_HEADER * (1 + has_footer) + size


def _find_sync(data: bytes, start: int = 0) -> int | None:
    """Offset of the next frame header of any layer (eleven set bits, no reserved value)."""
    at = data.find(b"\xff", start)
    while 0 <= at < len(data) - 3:
        second, third = data[at + 1], data[at + 2]
        version, layer = second >> 3 & 3, second >> 1 & 3
        known = version != 1 and layer != 0 and third >> 4 != 15 and third >> 2 & 3 != 3
        if second & 0xE0 == 0xE0 and known:
            return at
        at = data.find(b"\xff", at + 1)
    return None


def _find_chain(data: bytes) -> int | None:
    """Offset of the first of several Layer III frames that follow each other."""
    at = _find_sync(data)
    while at is not None:
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

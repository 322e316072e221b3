"""What a sound file's header promises, against the bytes that are there, and the tags beside it.

libsndfile believes headers: what stands behind the promised end is left out, a size of 0 is no
sound, of chained streams only the first is read. `examine` finds where the sound of a file lies by
its structure, and `Stream`s say which bytes to decode, with which header in front of them.
What is missing becomes an error in `decode`. `read_tags` gives what recorders and programs write
beside the sound; `field.clock` says what it means.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, BinaryIO

from NatureLM.audio.streams import (
    Stream,
    StreamFile,
    behind_tags,
    first_chain,
    is_frame,
    stream_starts,
)
from NatureLM.storage import RemotePath, StorageError, file_size, open_file, stat

_SCAN_BYTES, _TAIL_BYTES = 1 << 20, 1 << 16
_STREAMED = (0x7FFF_F000, 0x8000_0000, 0xFFFF_FF00)
_CHUNK_NAMES = {b"LIST", b"INFO", b"bext", b"iXML", b"axml", b"chna", b"cue ", b"smpl", b"inst"} | {
    b"id3 ", b"ID3 ", b"guan", b"wamd", b"junk", b"JUNK", b"PAD ", b"FLLR", b"fact", b"PEAK",
}  # fmt: skip
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
_FLAC_START = b"fLaC\0\0\0\x22"  # the marker and a STREAMINFO block of 34 bytes
_MOST_CHUNKS, _MOST_STREAMS = 10_000, 1000  # no real file comes near
FORMATS = "wav, flac, ogg (Vorbis, Opus), mp3, aiff, caf, au and w64"
"""What is read, whatever a file's name; PyAV adds what `_FFMPEG_DEMUXERS` lists."""
_FFMPEG_DEMUXERS = (
    (4, b"ftyp", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"#!AMR", "amr"),
    (0, b"\xff\xf1", "aac"),
    (0, b"\xff\xf9", "aac"),
)
_FLAC_BLOCK_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << n for n in range(8)))


@dataclass(frozen=True)
class Contents:
    """Where the sound of a file lies.

    streams: to decode one after the other; empty where libsndfile reads the file rightly
    present, promised: bytes of sound (FLAC: samples) that are there and that the header gives;
        equal where nothing is missing
    fault: what else is wrong at the end, as the rest of a sentence about the file
    demuxer: of a container that FFmpeg reads, its name for it
    is_known: whether it begins as a container that is read: only these come to a decoder
    """

    streams: tuple[Stream, ...] = ()
    present: int = 1
    promised: int = 1
    fault: str = ""
    demuxer: str = ""
    is_known: bool = True


AS_READ = Contents()


def examine(path: str | os.PathLike[str]) -> Contents:
    """Know the container by its first bytes, and compare its header with what is there."""
    with open_file(path) as file:
        size = file_size(file)
        head = file.read(12)
        if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
            return _wave(file, size, head[:4])
        if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
            return _aiff(file, size, head[8:12])
        if head.startswith(b"dns.") or (head[:4] == b"RIFX" and head[8:12] == b"WAVE"):
            return AS_READ  # with the bytes the other way around
        reader = {b"riff": _w64, b".snd": _au, b"caff": _caf, b"fLaC": _flac, b"OggS": _ogg}.get(
            head[:4]
        )
        if reader is not None:
            return reader(file, size)
        head += file.read(4)
        for at, start, name in _FFMPEG_DEMUXERS:
            if head[at:].startswith(start):
                return Contents(demuxer=name)
        return _mpeg(file, size)


# Sample data behind a header: WAV and its relatives, AIFF, AU, CAF, Wave64.


def _extent(file: BinaryIO, size: int, start: int, given: int, streamed: bool) -> tuple[int, int]:
    """Bytes of sound from `start` on that are there, and that the header promises.

    given: the header's size of them. Behind them may stand chunks, tags or padding; anything else
    is sound of which the header does not know (a recorder that lost power before it wrote the
    sizes, a 32-bit size that began anew at 4 GiB).
    """
    end = start + given
    if streamed:
        return max(0, size - start), max(0, size - start)
    if end >= size:
        return max(0, size - start), given
    for times in range((size - end) >> 32, 0, -1):  # a 32-bit size that began anew
        if _are_chunks(file, end + (times << 32), size):
            return given + (times << 32), given + (times << 32)
    if _are_chunks(file, end, size):
        return given, given
    return size - start, size - start


def _are_chunks(file: BinaryIO, at: int, size: int) -> bool:
    """Whether chunks, or a tag, fill the file from here to its end."""
    for start, order in itertools.product((at, at + at % 2), "<>"):
        end = start
        for name, begin, length in riff_chunks(file, start, size, order):
            if not _is_name(name) or (begin + length > size and name not in _CHUNK_NAMES):
                break
            end = _behind_chunk(file, begin, length)
        if end >= size or _is_tag(file, end) or _is_padding(file, end):
            return True
    return False


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _is_tag(file: BinaryIO, at: int) -> bool:
    """Whether a tag of another kind of file stands here: ID3v1, ID3v2 or APE."""
    file.seek(at)
    return file.read(8).startswith((b"TAG", b"ID3", b"APETAGEX"))


def _is_padding(file: BinaryIO, at: int) -> bool:
    """Whether all bytes from here on are zero."""
    file.seek(at)
    while block := file.read(_SCAN_BYTES):
        if block.count(0) != len(block):
            return False
    return True


def riff_chunks(file: BinaryIO, at: int, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the content, given length) of the chunks from here on, 10,000 at most.

    order: "<" for RIFF, ">" for AIFF
    """
    return _chunks(file, at, size, f"{order}4sI", partial(_behind_chunk, file))


def _chunks(
    file: BinaryIO, at: int, size: int, form: str, behind: Callable[[int, int], int]
) -> Iterator[tuple[bytes, int, int]]:
    """Chunks as `riff_chunks` gives them, of any container.

    form: of name and length
    behind: where the next chunk begins, by start and length of the content of this one
    """
    for _ in range(_MOST_CHUNKS):
        if at + struct.calcsize(form) > size:
            break
        file.seek(at)
        name, length = struct.unpack(form, file.read(struct.calcsize(form)))
        start = at + struct.calcsize(form)
        yield name, start, length
        at = behind(start, length)


def _behind_chunk(file: BinaryIO, start: int, length: int) -> int:
    """Where the chunk after this one begins; some programs leave out the pad byte of odd ones."""
    end = start + length
    file.seek(end)
    return end + (length % 2 and not _is_name(file.read(4)))


def _wave(file: BinaryIO, size: int, kind: bytes) -> Contents:
    form = b""
    long_size = None
    for name, start, length in riff_chunks(file, 12, size, "<"):
        if name in (b"ds64", b"fmt ") and length <= _SCAN_BYTES:
            file.seek(start)
            content = file.read(length)
            if name == b"fmt ":
                form = content
            elif len(content) >= 16:
                long_size = struct.unpack("<Q", content[8:16])[0]
        if name == b"data":
            break
    else:
        return AS_READ
    if len(form) < 16:
        return AS_READ
    given = long_size if long_size is not None and length == 0xFFFFFFFF else length
    present, promised = _extent(file, size, start, given, _is_streamed(given))
    found = Contents(present=present, promised=promised)
    is_odd = kind == b"BW64" or not _finds_data(file, size)
    if (present == given or _is_streamed(given)) and not is_odd:
        return found
    chunk = b"fmt " + struct.pack("<I", len(form)) + form + bytes(len(form) % 2)
    if present < 0xFFFF_0000:
        sizes = struct.pack("<I", 4 + len(chunk) + 8 + present)
        header = b"RIFF" + sizes + b"WAVE" + chunk + b"data" + struct.pack("<I", present)
    else:
        block = max(1, struct.unpack("<H", form[12:14])[0])
        ds64 = struct.pack("<QQQI", 72 + len(chunk) + present, present, present // block, 0)
        header = b"RF64\xff\xff\xff\xffWAVE" + b"ds64" + struct.pack("<I", 28) + ds64
        header += chunk + b"data\xff\xff\xff\xff"
    stream = Stream(header, start, start + present)
    return Contents((stream,), present, promised)


def _is_streamed(given: int) -> bool:
    """Whether a size is what programs write that cannot go back to the header."""
    low, high, unknown = _STREAMED
    return low <= given <= high or unknown <= given <= 0xFFFFFFFF


def _finds_data(file: BinaryIO, size: int) -> bool:
    """Whether a reader that trusts every length and pad byte comes to the chunk of data."""
    chunks = _chunks(file, 12, size, "<4sI", lambda start, length: start + length + length % 2)
    return any(name == b"data" for name, *_ in chunks)


def _aiff(file: BinaryIO, size: int, kind: bytes) -> Contents:
    common = b""
    sound: tuple[int, int] | None = None
    for name, start, length in riff_chunks(file, 12, size, ">"):
        if name == b"COMM" and length <= _SCAN_BYTES:
            file.seek(start)
            common = file.read(length)
        elif name == b"SSND":
            sound = start, length
    if sound is None or len(common) < 18:
        return AS_READ
    channels, frames, bits = struct.unpack(">hIh", common[:8])
    block = channels * ((bits + 7) // 8)
    compressed = kind == b"AIFC" and common[18:22] not in (b"NONE", b"sowt", b"twos", b"")
    if block <= 0 or compressed:
        return AS_READ
    start, length = sound[0] + 8, max(sound[1] - 8, 0)
    present, promised = _extent(file, size, start, length, _is_streamed(length))
    if present == length and frames * block == length:
        return Contents(present=present, promised=promised)
    present -= present % block
    common = common[:2] + struct.pack(">I", present // block) + common[6:]
    chunk = b"COMM" + struct.pack(">I", len(common)) + common + bytes(len(common) % 2)
    header = b"FORM" + struct.pack(">I", 20 + len(chunk) + present) + kind + chunk
    header += b"SSND" + struct.pack(">III", present + 8, 0, 0)
    return Contents((Stream(header, start, start + present),), present, promised)


def _au(file: BinaryIO, size: int) -> Contents:
    file.seek(0)
    head = file.read(24)
    if len(head) < 24:
        return AS_READ
    start, given = struct.unpack(">II", head[4:12])
    present, promised = _extent(file, size, start, given, _is_streamed(given))
    if present == given or _is_streamed(given) or not 24 <= start <= _SCAN_BYTES:
        return Contents(present=present, promised=promised)
    file.seek(0)
    head = file.read(start)
    header = head[:8] + struct.pack(">I", min(present, 0xFFFFFFFF)) + head[12:]
    return Contents((Stream(header, start, start + present),), present, promised)


def _caf(file: BinaryIO, size: int) -> Contents:
    description = b""
    chunks = _chunks(file, 8, size, ">4sq", lambda start, given: start + max(given, 0))
    for name, start, given in chunks:  # noqa: B007
        if name == b"desc" and 0 <= given <= _SCAN_BYTES:
            description = file.read(given)
        if name == b"data":
            break
    else:
        return AS_READ
    if description[8:12] != b"lpcm":
        return AS_READ
    start, given = start + 4, given - 4 if given > 0 else given
    present, promised = _extent(file, size, start, max(given, 0), given < 0)
    if present == given:
        return Contents(present=present, promised=promised)
    header = b"caff\0\1\0\0desc" + struct.pack(">q", len(description)) + description
    header += b"data" + struct.pack(">q", present + 4) + bytes(4)
    return Contents((Stream(header, start, start + present),), present, promised)


def _w64(file: BinaryIO, size: int) -> Contents:
    def behind(start: int, length: int) -> int:
        return start - 24 + max(24, -(-length // 8) * 8)

    for name, start, length in _chunks(file, 40, min(size, _SCAN_BYTES), "<16sQ", behind):  # noqa: B007
        if name == _W64_DATA:
            break
    else:
        return AS_READ
    given = max(0, length - 24)
    present, promised = _extent(file, size, start, given, False)
    if present == given:
        return Contents(present=present, promised=promised)
    file.seek(0)
    head = file.read(start)
    header = head[:16] + struct.pack("<Q", start + present) + head[24:-8]
    header += struct.pack("<Q", present + 24)
    return Contents((Stream(header, start, start + present),), present, promised)


# FLAC: the last frame says how many samples there are.


def _flac(file: BinaryIO, size: int) -> Contents:
    file.seek(0)
    head = file.read(42)
    if len(head) < 42 or head[4] & 0x7F:
        return AS_READ
    facts = int.from_bytes(head[18:26], "big")
    total = facts & ((1 << 36) - 1)
    stop = _without_tags(file, size)
    found = _last_flac_frame(file, stop, int.from_bytes(head[8:10], "big"))
    if found is None:
        return AS_READ
    samples, stop = found
    if samples == total and stop == size:
        return AS_READ
    header = head[:18] + (facts - total + samples).to_bytes(8, "big")
    return Contents((Stream(header, 26, stop),), samples, max(samples, total))


def holds_another_flac(path: str | os.PathLike[str]) -> bool:
    """Whether a second FLAC stream was put behind the first; reads the whole file."""
    with open_file(path) as file:
        before = file.read(8)[4:]
        while block := file.read(_SCAN_BYTES):
            if _FLAC_START in before + block:
                return True
            before = block[-len(_FLAC_START) :]
    return False


def _without_tags(file: BinaryIO, size: int) -> int:
    """Where the file ends without ID3v1 and APE tags and zeros at its end."""
    stop = size
    while True:
        file.seek(max(0, stop - 160))
        tail = file.read(min(stop, 160))
        if tail[-128:].startswith(b"TAG") and len(tail) >= 128:
            stop -= 128
        elif tail[-32:].startswith(b"APETAGEX"):
            length, _, flags = struct.unpack("<III", tail[-20:-8])
            stop -= min(stop, length + (32 if flags >> 31 else 0))
        elif tail and not any(tail):
            stop -= len(tail)
        else:
            break
        if stop <= 0:
            return size
    return stop


def _last_flac_frame(file: BinaryIO, stop: int, block_size: int) -> tuple[int, int] | None:
    """Samples up to the end of the last whole frame, and where it ends.

    block_size: of all frames but the last, where the file's frames are counted
    """
    for reach in (_TAIL_BYTES, _SCAN_BYTES):
        start = max(0, stop - reach)
        file.seek(start)
        found = _last_frame_of(file.read(stop - start), stop, block_size)
        if found is not None or start == 0:
            break
    return found


def _last_frame_of(data: bytes, stop: int, block_size: int) -> tuple[int, int] | None:
    """The last whole frame of the bytes before `stop`."""
    at, tried = len(data), 0
    while (at := data.rfind(b"\xff", 0, at)) >= 0 and tried < _SCAN_BYTES:
        frame = _flac_frame(data[at : at + 16], block_size)
        if frame is not None:
            tried += 3 * (len(data) - at)  # a forged file has headers of frames without end
            # The last bytes of a frame may be zeros, which were taken for padding.
            for zeros in range(3):
                if _crc(data[at:] + bytes(zeros), 0x8005, 16) == 0:
                    return frame, stop + zeros
    return None


def _flac_frame(head: bytes, block_size: int) -> int | None:
    """Samples up to the end of the frame with this header; None if it is none."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[2] >> 4 == 0 or head[3] & 1:
        return None
    code = head[2] >> 4
    extra = 6 - (head[4] ^ 0xFF).bit_length() + 1 if head[4] & 0x80 else 0
    if head[4] & 0xC0 == 0x80 or extra > 6:
        return None
    number = head[4] & ((1 << 6 - extra) - 1 if extra else 0x7F)
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    at = 5 + extra
    wide = {6: 1, 7: 2}.get(code, 0)
    samples = _FLAC_BLOCK_SIZES[code]
    if wide:
        samples = int.from_bytes(head[at : at + wide], "big") + 1
    at += wide + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if at >= len(head) or _crc(head[: at + 1], 0x07, 8):
        return None
    return samples + (number if head[1] & 1 else number * block_size)


def _crc(data: bytes, polynomial: int, bits: int) -> int:
    """The remainder that FLAC's frames end with; 0 over a whole frame."""
    table = _crc_table(polynomial, bits)
    mask, shift = (1 << bits) - 1, bits - 8
    crc = 0
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> shift ^ byte]
    return crc


@lru_cache(maxsize=2)
def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    top, mask = 1 << bits - 1, (1 << bits) - 1
    table = []
    for value in range(256):
        crc = value << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & mask
        table.append(crc)
    return tuple(table)


# Ogg: pages, of which each says how long it is and whether it begins or ends a stream.


def _ogg(file: BinaryIO, size: int) -> Contents:
    starts: list[int] = []
    at, in_heads, has_end = 0, False, True
    while True:
        file.seek(at)
        head = file.read(282)
        if len(head) < 27 or not head.startswith(b"OggS"):
            break
        segments = head[27 : 27 + head[26]]
        end = at + 27 + len(segments) + sum(segments)
        if len(segments) < head[26] or end > size:
            break
        begins = bool(head[5] & 2)
        if begins and not in_heads:
            if len(starts) == _MOST_STREAMS:
                break
            starts.append(at)
        in_heads, has_end = begins, bool(head[5] & 4)
        at = end
    rest = size - at
    ends = [*starts[1:], at]
    if not starts:
        return AS_READ
    fault = "" if has_end else "the file ends in the middle of its stream"
    if rest and not (_is_tag(file, at) or _is_padding(file, at)):
        many = f"more than {_MOST_STREAMS} streams follow each other"
        is_page = len(starts) == _MOST_STREAMS
        fault = fault or (many if is_page else "what follows is no page of a stream")
    if len(starts) == 1 and not rest:
        return Contents(fault=fault)
    streams = tuple(Stream(b"", start, stop) for start, stop in zip(starts, ends, strict=True))
    return Contents(streams, fault=fault)


# MPEG audio: one file may hold several, each with a length of its own.


def _mpeg(file: BinaryIO, size: int) -> Contents:
    first, tags = first_chain(file), behind_tags(file)
    file.seek(tags)
    start = file.read(64)
    if tags and start.startswith(_FLAC_START):
        return AS_READ
    if not is_frame(start):  # what is no MPEG frame would be for libsndfile to guess at
        return Contents((Stream(b"", first, size),)) if first else Contents(is_known=False)
    starts = stream_starts(file, size)[:_MOST_STREAMS]
    stops = [*starts[1:], size] if starts else []
    return Contents(tuple(Stream(b"", *span) for span in zip(starts, stops, strict=True)))


# Tags: GUANO lines, WAMD fields and comments. Only a few kilobytes of a file are read, whatever its
# header promises, and what cannot be read is taken as not said: a broken tag is no reason to refuse
# the sound.

logger = logging.getLogger(__name__)
_MOST_BYTES = 1 << 16  # of a chunk; those of recorders have a few hundred
_WAMD = {1: "model", 2: "serial", 5: "timestamp", 6: "gps"}
_WITH_COMMENTS = (b"fLaC", b"OggS", b"ID3")


@dataclass(frozen=True)
class Tags:
    """What stands beside the sound of a file.

    guano: keys with their namespaces (`OAD|Battery Voltage`) and values, as they are written
    wamd: what Song Meters write: model, serial, timestamp, gps
    comments: of LIST chunks, Vorbis comments and ID3
    artist: AudioMoths write their name there
    """

    guano: Mapping[str, str] = field(default_factory=dict)
    wamd: Mapping[str, str] = field(default_factory=dict)
    comments: tuple[str, ...] = ()
    artist: str = ""


def read_tags(path: str | os.PathLike[str]) -> Tags:
    """The tags of a file as `tags_in` gives them; none, and a note, where a store fails."""
    try:
        return tags_in(path)
    except StorageError as error:
        logger.warning("%s; what its header says of time and place is left out", error)
        return Tags()


def tags_in(path: str | os.PathLike[str]) -> Tags:
    """The tags of a WAV, FLAC, Ogg or MP3 file; none where there are none or the file is broken.

    Raises StorageError.
    """
    try:
        with open_file(path) as file:
            head = file.read(12)
            if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
                return _wave_tags(file)
    except StorageError:
        raise
    except (OSError, ValueError, struct.error):
        return Tags()
    return _other_tags(path) if head.startswith(_WITH_COMMENTS) else Tags()


def time_expansion(path: str | os.PathLike[str]) -> float:
    """How many times slower a WAV is than what was recorded, as its GUANO chunk says; else 1."""
    try:
        with open_file(path) as file:
            if file.read(12)[8:] != b"WAVE":
                return 1.0
            said = _wave_tags(file).guano.get("TE", "")
    except StorageError:
        return 1.0
    try:
        return float(said) if re.fullmatch(r"[0-9.]+", said) else 1.0
    except ValueError:
        return 1.0


def _wave_tags(file: BinaryIO) -> Tags:
    guano: dict[str, str] = {}
    wamd: dict[str, str] = {}
    comments: list[str] = []
    artist = ""
    for name, content in _contents(file):
        if name == b"guan" and not guano:
            guano = _guano(content)
        elif name == b"wamd" and not wamd:
            wamd = _wamd(content)
        elif name == b"LIST" and content[:4] == b"INFO":
            for key, value in _information(content[4:]):
                if key == b"ICMT":
                    comments.append(value)
                elif key == b"IART":
                    artist = artist or value
    return Tags(guano, wamd, tuple(comments), artist)


def _contents(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Names and beginnings of the chunks of tags in a WAV, before and behind its sound."""
    size = file.seek(0, os.SEEK_END)
    at, long_size = 12, None
    while at < size:
        for name, start, length in riff_chunks(file, at, size, "<"):
            if name in (b"guan", b"wamd", b"LIST", b"ds64"):
                file.seek(start)
                content = file.read(min(length, _MOST_BYTES))
                if name == b"ds64" and len(content) >= 16:
                    long_size = struct.unpack("<Q", content[8:16])[0]
                yield name, content
            elif name == b"data" and length == 0xFFFFFFFF and long_size is not None:
                at, long_size = start + long_size + long_size % 2, None
                break
        else:
            return


def _information(content: bytes) -> Iterator[tuple[bytes, str]]:
    """Keys and texts of a LIST chunk of the kind INFO."""
    at = 0
    while at + 8 <= len(content):
        key, length = struct.unpack("<4sI", content[at : at + 8])
        yield key, _text(content[at + 8 : at + 8 + length])
        at += 8 + length + length % 2


def _guano(content: bytes) -> dict[str, str]:
    """The first value of each key; lines without a colon are left out."""
    found: dict[str, str] = {}
    for line in _text(content).split("\n"):
        key, colon, value = line.partition(":")
        key = "|".join(part.strip() for part in key.split("|"))
        if colon and key and value.strip():
            found.setdefault(key, value.strip())
    return found


def _wamd(content: bytes) -> dict[str, str]:
    """The fields of Wildlife Acoustics' chunk that are known: number, length, text."""
    found: dict[str, str] = {}
    at = 0
    while at + 6 <= len(content):
        key, length = struct.unpack("<HI", content[at : at + 6])
        if key in _WAMD:
            found.setdefault(_WAMD[key], _text(content[at + 6 : at + 6 + length]))
        at += 6 + length
    return found


def _text(content: bytes) -> str:
    """UTF-8 or, where it is none, Latin-1; up to the zeros that fill it up."""
    content = content.strip(b"\0").partition(b"\0")[0]
    try:
        return content.decode().strip("\ufeff \r\n\t")
    except UnicodeDecodeError:
        return content.decode("latin-1").strip()


def _other_tags(path: str | os.PathLike[str]) -> Tags:
    """What libsndfile finds in FLAC, Ogg and MP3."""
    import soundfile  # type: ignore[import-untyped, unused-ignore]

    source: Any = path  # of a remote file one that soundfile reads in ranges
    if isinstance(path, RemotePath):
        source = StreamFile(path, Stream(b"", 0, stat(path).size or 0))
    try:
        with soundfile.SoundFile(source) as file:
            said = file.copy_metadata()
    except (OSError, RuntimeError, UnicodeDecodeError, ValueError):
        said = {}
    if (failure := getattr(source, "failure", None)) is not None:
        raise failure
    comment = said.get("comment", "").strip("\0 ")
    return Tags(comments=(comment,) if comment else (), artist=said.get("artist", "").strip("\0 "))

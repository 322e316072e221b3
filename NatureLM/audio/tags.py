"""What recorders and programs write beside the sound: GUANO lines, WAMD fields and comments.

Only a few kilobytes of a file are read, whatever its header promises, and what cannot be read is
taken as not said: a broken tag is no reason to refuse the sound.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from NatureLM.audio.container import as_soundfile_takes, riff_chunks
from NatureLM.storage import StorageError, open_file

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

    source = as_soundfile_takes(path)
    try:
        with soundfile.SoundFile(source) as file:
            said = file.copy_metadata()
    except (OSError, RuntimeError, UnicodeDecodeError, ValueError):
        said = {}
    if (failure := getattr(source, "failure", None)) is not None:
        raise failure
    comment = said.get("comment", "").strip("\0 ")
    return Tags(comments=(comment,) if comment else (), artist=said.get("artist", "").strip("\0 "))

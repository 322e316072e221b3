"""Small WAV files with the chunks that recorders write beside the sound."""

from __future__ import annotations

import struct
from pathlib import Path


def chunk(name: bytes, content: bytes, length: int | None = None) -> bytes:
    """A chunk, which may promise another length than it has."""
    size = len(content) if length is None else length
    return name + struct.pack("<I", size) + content + bytes(len(content) % 2)


def comment_chunk(text: str, artist: str = "", size: int = 384) -> bytes:
    """A LIST chunk as AudioMoths write it: the comment in a field of a fixed size."""
    content = b"INFO" + chunk(b"ICMT", text.encode().ljust(size, b"\0"))
    return chunk(b"LIST", content + (chunk(b"IART", artist.encode()) if artist else b""))


def guano_chunk(text: str) -> bytes:
    """A chunk of GUANO data."""
    return chunk(b"guan", text.encode())


def save_wav(path: Path, *before: bytes, behind: bytes = b"", seconds: float = 0.1) -> Path:
    """A silent WAV at 8 kHz with chunks before and behind its sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16_000, 2, 16))
    sound = chunk(b"data", bytes(2 * int(8000 * seconds)))
    content = b"WAVE" + form + b"".join(before) + sound + behind
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    return path


def wamd_chunk(**fields: str) -> bytes:
    """A chunk as Song Meters write it."""
    numbers = {"model": 1, "serial": 2, "prefix": 4, "timestamp": 5, "gps": 6, "program": 16}
    return chunk(
        b"wamd",
        struct.pack("<HIH", 0, 2, 1)
        + b"".join(
            struct.pack("<HI", numbers[name], len(text.encode())) + text.encode()
            for name, text in fields.items()
        ),
    )

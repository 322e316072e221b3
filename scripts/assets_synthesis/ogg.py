"""Makes Ogg files reproducible.

An encoder gives each Ogg stream a random serial number, which would make every run write
different bytes. The number has no meaning in a file of one stream, so it is set to a fixed one;
each page's checksum (CRC-32, polynomial 0x04C11DB7, not reflected; RFC 3533) is then computed anew.
"""

from __future__ import annotations

import struct
from functools import cache

_HEADER = 27  # bytes of a page header before its table of segment lengths
_SERIAL, _CHECKSUM, _SEGMENTS = 14, 22, 26  # where these fields are in the header


@cache
def _table() -> tuple[int, ...]:
    entries = []
    for byte in range(256):
        remainder = byte << 24
        for _ in range(8):
            remainder = (remainder << 1) ^ (0x04C11DB7 if remainder & 0x80000000 else 0)
        entries.append(remainder & 0xFFFFFFFF)
    return tuple(entries)


def _checksum(page: bytes) -> int:
    table, remainder = _table(), 0
    for byte in page:
        remainder = ((remainder << 8) & 0xFFFFFFFF) ^ table[(remainder >> 24) ^ byte]
    return remainder


def with_serial(data: bytes, serial: int) -> bytes:
    """The Ogg file ``data`` with the given stream serial number (0 to 2**32 - 1)."""
    pages = bytearray(data)
    start = 0
    while start < len(pages):
        if pages[start : start + 4] != b"OggS":
            raise ValueError(f"no Ogg page at byte {start}")
        count = pages[start + _SEGMENTS]
        lengths = pages[start + _HEADER : start + _HEADER + count]
        end = start + _HEADER + count + sum(lengths)
        struct.pack_into("<I", pages, start + _SERIAL, serial)
        struct.pack_into("<I", pages, start + _CHECKSUM, 0)
        struct.pack_into("<I", pages, start + _CHECKSUM, _checksum(bytes(pages[start:end])))
        start = end
    return bytes(pages)

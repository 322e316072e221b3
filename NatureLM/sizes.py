"""Sizes in bytes, as people write and read them: 1 GB is 10**9 bytes, 1 GiB is 2**30."""

from __future__ import annotations

import re

from NatureLM.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str | int, option: str = "the number of bytes") -> int:
    """Bytes of `4GB`, `512 MiB` or `1000000`.

    option: what messages call it

    Raises UsageError for anything else, and for none.
    """
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
        if match is None:
            raise UsageError(f"{option} is {text!r}; give a size such as 4GB, 512MB or 2GiB")
        number, unit = match.groups()
        size = int(float(number) * {**_UNITS, **_BINARY_UNITS}[unit or ""])
    if size < 1:
        raise UsageError(f"{option} is {text!r}, and it must be above 0")
    return size


def show_bytes(size: float) -> str:
    """A size for people: `1.5 GB`, `20 MB`, `5 bytes`."""
    if size < 1000:
        return f"{size:g} bytes"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 999.95:
            return f"{_one_place(size)} {unit}"
    return f"{_one_place(size / 1000)} GB"


def _one_place(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

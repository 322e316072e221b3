"""Headers of GGUF files, as llama.cpp writes them, read with care: nothing of a stranger's file is
believed that does not fit the file's own length.

A header has keys with values, among them the tokenizer's vocabulary, and each tensor's name, shape,
kind and place. Strings and arrays are passed over and found again when they are asked for.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from NatureLM.models.registry import CheckpointError
from NatureLM.util import format_bytes, library, shown

INSTALL = "GGUF files need the package gguf: pip install 'naturelm-audio[gguf]'"
_HEADER_BYTES = 40_000_000  # a vocabulary of 256,000 has 14 MB
_MOST = 10_000  # keys, and tensors: Llama 3.1 405B has 1,137
_MOST_STRINGS = 1_000_000  # of arrays: 256,000 tokens have twice as many merges
_LENGTH = struct.Struct("<Q")
_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9


class _BrokenHeaderError(ValueError):
    """What is wrong with a header, as the end of a sentence."""


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in the file: rows of blocks, each of some numbers in some bytes."""

    name: str
    kind: str  # F16, Q4_K and so on
    code: int  # that of the kind in gguf's GGMLQuantizationType
    shape: tuple[int, ...]  # as torch has it: rows first
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        """A vector counts as one row."""
        return math.prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of itself. Of an array `values` has the place; see `strings`."""

    path: Path
    data: bytes
    values: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    def refuse(self, what: str) -> CheckpointError:
        """The error that says what is wrong with the file."""
        return CheckpointError(f"{self.path}: {what}")

    def number(
        self, key: str, default: float | None = None, *, least: float = 1, most: float = 2**31
    ) -> float:
        """A number of the header within bounds; raises CheckpointError for any other value."""
        value: Any = self.values.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise self.refuse(
                f"{key} is {shown(value)}, and it must be a number from {least:,} to {most:,}"
            )
        return float(value)

    def size(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31
    ) -> int:
        """A whole number within bounds."""
        value = self.number(key, default, least=least, most=most)
        if value != int(value):
            raise self.refuse(f"{key} is {value:g}, and it must be a whole number")
        return int(value)

    def text(self, key: str, default: str | None = None) -> str | None:
        """A string, or the default where there is none."""
        value = self.values.get(key, default)
        if not isinstance(value, str | None):
            raise self.refuse(f"{key} is {shown(value)}, and it must be a string")
        return value

    def strings(self, key: str) -> list[str]:
        """An array of strings; empty where there is none. Raises CheckpointError for no UTF-8."""
        found = self.values.get(key)
        if not isinstance(found, _Array) or found.kind != _STRING:
            return []
        reader = _Reader(self.data, found.offset)
        try:
            return [reader.string() for _ in range(found.count)]
        except UnicodeDecodeError:
            raise self.refuse(f"{key} holds a string that is no UTF-8") from None

    def integers(self, key: str) -> list[int]:
        """An array of 32-bit integers; empty where there is none."""
        found = self.values.get(key)
        if not isinstance(found, _Array) or found.kind not in (4, 5):
            return []
        return list(struct.unpack_from(f"<{found.count}i", self.data, found.offset))


@dataclass(frozen=True)
class _Array:
    """Where an array of a header lies."""

    kind: int
    count: int
    offset: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """The header of a file, all of it checked against the file's length.

    Raises CheckpointError, within a second and 200 MB whatever the file holds.
    """
    kinds = _kinds()
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
            length = file.seek(0, 2)
        reader = _Reader(data)
        counts = _counts(reader)
        values = _values(reader, counts[1])
        tensors = _tensors(reader, counts[0], kinds)
        tensors = _placed(tensors, reader.offset, values.get("general.alignment", 32), length)
        return GGUFHeader(path, data[: reader.offset], values, tensors)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except struct.error:
        raise CheckpointError(
            f"{path} is no whole GGUF file: its header runs beyond the file or the "
            f"{format_bytes(_HEADER_BYTES)} that are read of one; copy or download it again"
        ) from None
    except (_BrokenHeaderError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no usable GGUF file: {error}") from None


def _kinds() -> dict[int, tuple[str, int, int]]:
    """By its code each kind's name, and the numbers and bytes of a block."""
    gguf = library("gguf", INSTALL, CheckpointError)
    return {
        int(kind): (kind.name, *sizes)
        for kind, sizes in gguf.GGML_QUANT_SIZES.items()
        if kind.name[0] in "FBQ" or kind.name.startswith("IQ")
    }


class _Reader:
    """Takes values one after the other; `struct.error` where they would run beyond the end."""

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self.data, self.offset = data, offset
        self.strings = 0  # of arrays

    def number(self, kind: str) -> Any:
        form = f"<{kind}"
        (value,) = struct.unpack_from(form, self.data, self.offset)
        self.offset += struct.calcsize(form)
        return value

    def skip(self, size: int) -> None:
        self.offset += size
        if self.offset > len(self.data):
            raise struct.error

    def string(self) -> str:
        start = self.offset
        self.skip_string()
        return self.data[start + 8 : self.offset].decode()

    def skip_string(self) -> None:
        (size,) = _LENGTH.unpack_from(self.data, self.offset)
        self.skip(8 + size)


def _counts(reader: _Reader) -> tuple[int, int]:
    """The numbers of tensors and of keys."""
    if reader.data[:4] != b"GGUF":
        raise _BrokenHeaderError("it does not begin with GGUF")
    reader.skip(4)
    if (version := reader.number("I")) not in (2, 3):
        raise _BrokenHeaderError(
            f"its version is {version}, and 2 and 3 are read, in the byte order of this machine"
        )
    counts = reader.number("Q"), reader.number("Q")
    for count, what in zip(counts, ("tensors", "keys"), strict=True):
        if count > _MOST:
            raise _BrokenHeaderError(f"it would have {count:,} {what}, and {_MOST:,} are read")
    return counts


def _values(reader: _Reader, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        key, kind = reader.string(), reader.number("I")
        if key in values:
            raise _BrokenHeaderError(f"it has the key {shown(key)} twice")
        values[key] = _value(reader, kind, key)
    return values


def _value(reader: _Reader, kind: int, key: str) -> Any:
    if kind in _NUMBERS:
        return reader.number(_NUMBERS[kind])
    if kind == _STRING:
        return reader.string()
    if kind != _ARRAY:
        raise _BrokenHeaderError(f"{shown(key)} is of the kind {kind}, which GGUF does not have")
    array = _Array(reader.number("I"), reader.number("Q"), reader.offset)
    if array.kind in _NUMBERS:
        reader.skip(array.count * struct.calcsize(f"<{_NUMBERS[array.kind]}"))
    elif array.kind == _STRING:
        reader.strings += array.count
        if reader.strings > _MOST_STRINGS:
            raise _BrokenHeaderError(f"{shown(key)} would be an array of {array.count:,} strings")
        for _ in range(array.count):
            reader.skip_string()
    else:
        raise _BrokenHeaderError(f"{shown(key)} is an array of the kind {array.kind}")
    return array


def _tensors(
    reader: _Reader, count: int, kinds: dict[int, tuple[str, int, int]]
) -> dict[str, GGUFTensor]:
    """Each tensor, with its offset as the file has it: from where the tensors begin."""
    found: dict[str, GGUFTensor] = {}
    for _ in range(count):
        name, dimensions = reader.string(), reader.number("I")
        if name in found or not 1 <= dimensions <= 4:
            what = "is there twice" if name in found else f"has {dimensions} dimensions"
            raise _BrokenHeaderError(f"the tensor {shown(name)} {what}")
        shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
        code, offset = reader.number("I"), reader.number("Q")
        if code not in kinds:
            raise _BrokenHeaderError(
                f"the tensor {shown(name)} is of the kind {code}, which gguf does not know"
            )
        kind, numbers, size = kinds[code]
        if shape[-1] % numbers:
            raise _BrokenHeaderError(
                f"the tensor {shown(name)} has rows of {shape[-1]:,}, and {kind} has blocks of "
                f"{numbers}"
            )
        found[name] = GGUFTensor(name, kind, code, shape, offset, shape[-1] // numbers * size)
    return found


def _placed(
    tensors: dict[str, GGUFTensor], end: int, alignment: Any, length: int
) -> dict[str, GGUFTensor]:
    """The tensors with their offsets in the file, which must hold them all."""
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise _BrokenHeaderError(f"general.alignment is {shown(alignment)}")
    start = end + -end % alignment
    placed = {}
    for name, one in tensors.items():
        place = start + one.offset
        if place + one.nbytes > length or not one.nbytes:
            raise _BrokenHeaderError(
                f"the tensor {shown(name)} would take {format_bytes(one.nbytes)} at byte "
                f"{place:,}, and the file has {length:,}: it is cut short, or no GGUF"
            )
        placed[name] = replace(one, offset=place)
    return placed

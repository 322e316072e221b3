"""Indexes as .npz: arrays that any NumPy reads, stored as they are, so that they can be mapped.

`vectors` (rows, width) float32, `file` (rows,) int32 numbers in `files`, `start` and `end` (rows,)
float64 seconds, `model` and `settings` texts. `files[file]` are the recordings of the rows.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from NatureLM.embeddings.errors import VectorIndexError
from NatureLM.embeddings.index import Block, IndexRow
from NatureLM.embeddings.settings import IndexSettings

_LOCAL_HEADER = 30  # bytes of a member's header in a zip file, before its name
_NEEDED = ("vectors", "file", "files", "start", "end", "settings")


def write(
    path: Path, settings: IndexSettings, rows: int, blocks: Callable[[], Iterable[Block]]
) -> None:
    """See `index.Writer`. The blocks are gone through once for each array."""
    numbers: dict[str, int] = {}
    for block in blocks():
        for file in block.files:
            numbers.setdefault(file, len(numbers))

    def file_numbers(block: Block) -> NDArray[Any]:
        return np.array([numbers[file] for file in block.files], np.int32)

    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        shape = (rows, settings.width)
        _write_array(archive, "vectors", np.float32, shape, (b.vectors for b in blocks()))
        _write_array(archive, "file", np.int32, (rows,), map(file_numbers, blocks()))
        _write_array(archive, "start", np.float64, (rows,), (b.starts for b in blocks()))
        _write_array(archive, "end", np.float64, (rows,), (b.ends for b in blocks()))
        for name, value in (
            ("files", np.array(list(numbers), dtype=np.str_)),
            ("model", np.array(settings.model_id)),
            ("settings", np.array(settings.to_json())),
        ):
            _write_array(archive, name, value.dtype, value.shape, [value])


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: DTypeLike,
    shape: tuple[int, ...],
    pieces: Iterable[NDArray[Any]],
) -> None:
    kind = np.dtype(dtype)
    header = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        npy.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, kind).tobytes())


@dataclass(frozen=True)
class _Place:
    """Where an array stands in the file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class NpzIndex:
    """An .npz that is mapped piece by piece."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._places = _places(path)
            missing = [name for name in _NEEDED if name not in self._places]
            if missing:
                raise VectorIndexError(
                    f"{path}: is no index of `naturelm embed`: it has no {', '.join(missing)}"
                )
            self._files = self._read("files")
            self.settings = IndexSettings.from_json(str(self._read("settings")), path)
        except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
            raise VectorIndexError(f"{path}: cannot be read as .npz: {error}") from None
        rows, width = self._places["vectors"].shape
        lengths = {self._places[name].shape for name in ("file", "start", "end")}
        if width != self.settings.width or lengths != {(rows,)}:
            raise VectorIndexError(f"{path}: its arrays do not fit together")

    def __len__(self) -> int:
        return self._places["vectors"].shape[0]

    def files(self) -> list[str]:
        return [str(file) for file in self._files]

    def file_numbers(self, rows: int) -> Iterator[NDArray[np.int32]]:
        for start in range(0, len(self), rows):
            yield self._read("file", start, min(start + rows, len(self)))

    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self), rows):
            yield self._read("vectors", start, min(start + rows, len(self)))

    def blocks(self, rows: int) -> Iterator[Block]:
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            yield Block(
                self._files[self._read("file", start, stop)].tolist(),
                self._read("start", start, stop),
                self._read("end", start, stop),
                self._read("vectors", start, stop),
            )

    def rows_at(self, numbers: Sequence[int]) -> list[IndexRow]:
        found: list[IndexRow] = []
        for number in numbers:
            file, start, end = (
                self._read(name, number, number + 1)[0] for name in ("file", "start", "end")
            )
            found.append(IndexRow(str(self._files[file]), float(start), float(end)))
        return found

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of an array; the pages that are mapped for it are let go of at once."""
        place = self._places[name]
        shape, skipped = place.shape, 0
        if shape:
            last = place.shape[0] if stop is None else stop
            shape = (last - start, *place.shape[1:])
            skipped = start * int(np.prod(place.shape[1:], dtype=np.int64)) * place.dtype.itemsize
        if 0 in shape or place.dtype.itemsize == 0:
            return np.empty(shape, place.dtype)
        mapped = np.memmap(self.path, place.dtype, "r", place.offset + skipped, shape)
        return np.array(mapped)


def _places(path: Path) -> dict[str, _Place]:
    """Where the arrays of an .npz stand in it."""
    places: dict[str, _Place] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise VectorIndexError(
                    f"{path}: is compressed, so it cannot be mapped; make it anew with "
                    "`naturelm embed`"
                )
            file.seek(member.header_offset + _LOCAL_HEADER - 4)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            file.seek(name_length + extra_length, 1)
            version = npy.read_magic(file)
            if version != (1, 0):
                raise VectorIndexError(f"{path}: {member.filename} is of a version not known here")
            shape, fortran, dtype = npy.read_array_header_1_0(file)
            if fortran or dtype.hasobject:
                raise VectorIndexError(f"{path}: {member.filename} cannot be mapped")
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if file.tell() + size > path.stat().st_size:
                raise VectorIndexError(f"{path}: is cut off")
            places[member.filename.removesuffix(".npy")] = _Place(file.tell(), dtype, shape)
    return places

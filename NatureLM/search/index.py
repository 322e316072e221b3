"""Errors about indexes.

What an index was made with.

Indexes as .npz: arrays that any NumPy reads, stored as they are, so that they can be mapped.

`vectors` (rows, width) float32, `file` (rows,) int32 numbers in `files`, `start` and `end` (rows,)
float64 seconds, `model` and `settings` texts. `files[file]` are the recordings of the rows.

Indexes as Parquet: columns file, start, end, vector and model; settings in the metadata.

Indexes: files with one row for each window. What reads and writes them, by suffix.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from NatureLM.errors import UsageError


class VectorIndexError(UsageError):
    """An index cannot be read, written, gone on with, or searched with this model."""


SCHEMA_VERSION = 1


@dataclass(frozen=True)
class IndexSettings:
    """What decides the vectors of a window.

    model: as it was named
    fingerprint: of the weights and settings that the vectors come from
    layer: `encoder` or `projected`
    width: numbers of a vector
    sample_rate: Hz, of the sound as the model hears it
    window_seconds, hop_seconds: in heard time
    unfinished: recordings that could not be heard to their end; tried again by the next run
    """

    model: str
    fingerprint: str
    layer: str
    width: int
    sample_rate: int
    window_seconds: float
    hop_seconds: float
    channel: str | int = "mean"
    time_expansion: float = 1.0
    schema_version: int = SCHEMA_VERSION
    unfinished: tuple[str, ...] = ()

    @property
    def model_id(self) -> str:
        """What rows call the model."""
        return f"{self.model}@{self.fingerprint}/{self.layer}"

    @property
    def deciding(self) -> dict[str, Any]:
        """What two sets of vectors must share to stand in one index; names do not matter."""
        values = asdict(self)
        del values["model"], values["unfinished"]
        return values

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, name: str | Path) -> IndexSettings:
        """Read `to_json`; `name` is what messages call the file it stood in."""
        try:
            values: Mapping[str, Any] = json.loads(text)
            if values["schema_version"] > SCHEMA_VERSION:
                raise VectorIndexError(
                    f"{name}: was made by a newer version of this program (schema version "
                    f"{values['schema_version']}, this one reads {SCHEMA_VERSION})"
                )
            unfinished = tuple(map(str, values.get("unfinished", ())))  # older ones lack it
            names = [one.name for one in fields(cls) if one.name != "unfinished"]
            return cls(**{name: values[name] for name in names}, unfinished=unfinished)
        except (ValueError, KeyError, TypeError):
            raise VectorIndexError(
                f"{name}: its settings cannot be read; was it made by `naturelm embed`?"
            ) from None


_LOCAL_HEADER = 30  # bytes of a member's header in a zip file, before its name
_NPZ_COLUMNS = ("vectors", "file", "files", "start", "end", "settings")


def write_npz(
    path: Path, settings: IndexSettings, rows: int, blocks: Callable[[], Iterable[Shard]]
) -> None:
    """See `index.Writer`. The blocks are gone through once for each array."""
    numbers: dict[str, int] = {}
    for block in blocks():
        for file in block.files:
            numbers.setdefault(file, len(numbers))

    def file_numbers(block: Shard) -> NDArray[Any]:
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
            missing = [name for name in _NPZ_COLUMNS if name not in self._places]
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

    def blocks(self, rows: int) -> Iterator[Shard]:
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            yield Shard(
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


_KEY = b"naturelm_index"
_PARQUET_COLUMNS = {"file", "start", "end", "vector", "model"}


def needed() -> Any:
    """pyarrow; raises VectorIndexError where it is not installed."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise VectorIndexError(
            "Parquet needs pyarrow: pip install 'naturelm-audio[embed]'; an index whose name ends "
            "in .npz needs nothing"
        ) from None
    return pyarrow


def write_parquet(
    path: Path, settings: IndexSettings, rows: int, blocks: Callable[[], Iterable[Shard]]
) -> None:
    """See `index.Writer`; a block is a row group."""
    pa = needed()
    schema = pa.schema(
        [
            ("file", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("vector", pa.list_(pa.float32(), settings.width)),
            ("model", pa.string()),
        ],
        metadata={_KEY: settings.to_json().encode()},
    )
    with pa.parquet.ParquetWriter(
        path, schema, use_dictionary=["file", "model"], compression="none"
    ) as writer:
        for block in blocks():
            flat = pa.array(np.ascontiguousarray(block.vectors).reshape(-1))
            columns = [
                pa.array(list(block.files), pa.string()),
                pa.array(block.starts),
                pa.array(block.ends),
                pa.FixedSizeListArray.from_arrays(flat, settings.width),
                pa.array([settings.model_id] * len(block.files), pa.string()),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


class ParquetIndex:
    """A Parquet file that is read block by block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pa = needed()
        try:
            self._file = pa.parquet.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise VectorIndexError(f"{path}: cannot be read as Parquet: {error}") from None
        schema = self._file.schema_arrow
        metadata = schema.metadata or {}
        if _KEY not in metadata or not set(schema.names) >= _PARQUET_COLUMNS:
            raise VectorIndexError(f"{path}: is no index of `naturelm embed`")
        self.settings = IndexSettings.from_json(metadata[_KEY], path)
        if schema.field("vector").type != pa.list_(pa.float32(), self.settings.width):
            raise VectorIndexError(f"{path}: its vectors do not have the width that it says")
        groups = self._file.metadata.num_row_groups
        sizes = (self._file.metadata.row_group(group).num_rows for group in range(groups))
        self._starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def files(self) -> list[str]:
        found: dict[str, None] = {}
        for table in self._tables(["file"]):
            found.update(dict.fromkeys(table.column("file").to_pylist()))
        return list(found)

    def file_numbers(self, rows: int) -> Iterator[NDArray[np.int32]]:
        places = {file: place for place, file in enumerate(self.files())}
        for table in self._tables(["file"], rows):
            names = table.column("file").to_pylist()
            yield np.array([places[name] for name in names], np.int32)

    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        for table in self._tables(["vector"], rows):
            yield self._matrix(table.column("vector"))

    def blocks(self, rows: int) -> Iterator[Shard]:
        for table in self._tables(["file", "start", "end", "vector"], rows):
            yield Shard(
                table.column("file").to_pylist(),
                table.column("start").to_numpy(),
                table.column("end").to_numpy(),
                self._matrix(table.column("vector")),
            )

    def rows_at(self, numbers: Sequence[int]) -> list[IndexRow]:
        found: dict[int, IndexRow] = {}
        for group, start in enumerate(self._starts[:-1]):
            here = [n for n in set(numbers) if start <= n < self._starts[group + 1]]
            if not here:
                continue
            table = self._file.read_row_group(group, columns=["file", "start", "end"])
            for number in here:
                file, begin, end = (
                    table.column(name)[number - start].as_py() for name in ("file", "start", "end")
                )
                found[number] = IndexRow(file, begin, end)
        return [found[number] for number in numbers]

    def _tables(self, columns: list[str], rows: int | None = None) -> Iterator[Any]:
        """Columns of the rows in order, of one row group at a time, so many rows at most.

        `iter_batches` reads ahead, and holds much more.
        """
        pool = needed().default_memory_pool()
        for group in range(self._file.metadata.num_row_groups):
            table = self._file.read_row_group(group, columns=columns, use_threads=False)
            for start in range(0, len(table), rows or max(1, len(table))):
                yield table.slice(start, rows)
            del table
            pool.release_unused()

    def _matrix(self, column: Any) -> NDArray[np.float32]:
        pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        flat = np.concatenate([np.empty(0, np.float32), *pieces])
        return flat.reshape(-1, self.settings.width)


_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class IndexRow:
    """A window of an index: seconds in the recording."""

    file: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Shard:
    """Rows that follow one another: windows of files, and their vectors (rows, width)."""

    files: Sequence[str]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    vectors: NDArray[np.float32]


class VectorIndex(Protocol):
    """An index that is open for reading; no more of it is in memory than is asked for."""

    path: Path
    settings: IndexSettings

    def __len__(self) -> int:
        """How many rows there are."""

    def files(self) -> list[str]:
        """The recordings, in the order of their first rows."""

    def file_numbers(self, rows: int) -> Iterator[NDArray[np.int32]]:
        """The recording of each row in order, as its place in `files()`, so many at a time."""

    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        """The vectors in order, float32 (so many rows at most, width) at a time."""

    def blocks(self, rows: int) -> Iterator[Shard]:
        """All of the rows in order, so many at most at a time."""

    def rows_at(self, numbers: Sequence[int]) -> list[IndexRow]:
        """Rows by their numbers, in the order of these."""


Writer: TypeAlias = Callable[[Path, IndexSettings, int, Callable[[], Iterable[Shard]]], None]
"""Writes an index of so many rows to a file that is not there yet; its blocks can be asked for
several times."""

SUFFIXES = (".npz", ".parquet")


def open_index(path: Path) -> VectorIndex:
    """Open an index. Raises VectorIndexError."""
    if not path.is_file():
        raise VectorIndexError(f"{path}: there is no such index; make one with `naturelm embed`")
    if check_suffix(path) == ".parquet":
        return ParquetIndex(path)

    return NpzIndex(path)


def writer_of(path: Path) -> Writer:
    """What writes an index of this name. Raises VectorIndexError where it lacks a library."""
    if check_suffix(path) == ".parquet":
        needed()
        return write_parquet

    return write_npz


def check_suffix(path: Path) -> str:
    """The suffix of an index, in lower case; raises VectorIndexError for another."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise VectorIndexError(
            f"{path}: an index is a file whose name ends in {' or '.join(SUFFIXES)}"
        )
    return suffix


def rows_of_a_block(width: int) -> int:
    """How many vectors of a width are worked on at once."""
    return max(64, _BLOCK_BYTES // (4 * width))

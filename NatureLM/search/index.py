"""Indexes on disk: one row for each window of recordings, with its vector.

As .npz: arrays that any NumPy reads, stored uncompressed, so that they can be mapped: `vectors`
(rows, width) float32, `file` (rows,) int32 numbers in `files`, `start` and `end` (rows,) float64
seconds, `model` and `settings` strings. `files[file]` are the recordings of the rows.

As Parquet: columns file, start, end, vector and model; settings in the metadata.
"""

from __future__ import annotations

import json
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from NatureLM.errors import UsageError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class IndexSettings:
    """What decides the vectors of a window.

    model: as it was named
    fingerprint: of the weights and settings that the vectors come from
    layer: `encoder` or `projected`
    width: numbers of a vector
    sample_rate: Hz, of the sound as the model hears it
    window_seconds, hop_seconds: of the sound as the model hears it
    unfinished: recordings that could not be read to their end; tried again by the next run
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
                raise UsageError(
                    f"{name}: was made by a newer version of this program (schema version "
                    f"{values['schema_version']}, this one reads {SCHEMA_VERSION})"
                )
            unfinished = tuple(map(str, values.get("unfinished", ())))  # older ones lack it
            names = [one.name for one in fields(cls) if one.name != "unfinished"]
            return cls(**{name: values[name] for name in names}, unfinished=unfinished)
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{name}: its settings cannot be read; was it made by `naturelm embed`?"
            ) from None


_SHARD_BYTES = 4 << 20


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


def rows_of_a_shard(width: int) -> int:
    """How many vectors of a width are worked on at once."""
    return max(64, _SHARD_BYTES // (4 * width))


class VectorIndex(ABC):
    """An index that is open for reading; no more of it is in memory than is asked for."""

    path: Path
    settings: IndexSettings

    @abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @abstractmethod
    def files(self) -> list[str]:
        """The recordings, in the order of their first rows."""

    @abstractmethod
    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        """The vectors in order, float32 (so many rows at most, width) at a time."""

    @abstractmethod
    def shards(self, rows: int) -> Iterator[Shard]:
        """All of the rows in order, so many at most at a time."""

    @abstractmethod
    def rows_at(self, numbers: Sequence[int]) -> list[IndexRow]:
        """Rows by their numbers, in the order of these."""


Writer: TypeAlias = Callable[[Path, IndexSettings, int, Callable[[], Iterable[Shard]]], None]
"""Writes an index of so many rows to a file that is not there yet; its shards can be asked for
several times."""

SUFFIXES = (".npz", ".parquet")


def open_index(path: Path) -> VectorIndex:
    """Open an index. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such index; make one with `naturelm embed`")
    if check_suffix(path) == ".parquet":
        return ParquetIndex(path)
    return NpzIndex(path)


def writer_of(path: Path) -> Writer:
    """What writes an index of this name. Raises UsageError where it lacks a library."""
    if check_suffix(path) == ".parquet":
        import_pyarrow()
        return write_parquet
    return write_npz


def check_suffix(path: Path) -> str:
    """The suffix of an index, in lower case; raises UsageError for another."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: an index is a file whose name ends in {' or '.join(SUFFIXES)}")
    return suffix


_LOCAL_HEADER = 30  # bytes of a member's header in a zip file, before its name
_NPZ_COLUMNS = ("vectors", "file", "files", "start", "end", "settings")


def write_npz(
    path: Path, settings: IndexSettings, rows: int, shards: Callable[[], Iterable[Shard]]
) -> None:
    """See `Writer`. The shards are gone through once for each array."""
    numbers: dict[str, int] = {}
    for shard in shards():
        for file in shard.files:
            numbers.setdefault(file, len(numbers))

    def file_numbers(shard: Shard) -> NDArray[Any]:
        return np.array([numbers[file] for file in shard.files], np.int32)

    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        shape = (rows, settings.width)
        _write_array(archive, "vectors", np.float32, shape, (one.vectors for one in shards()))
        _write_array(archive, "file", np.int32, (rows,), map(file_numbers, shards()))
        _write_array(archive, "start", np.float64, (rows,), (one.starts for one in shards()))
        _write_array(archive, "end", np.float64, (rows,), (one.ends for one in shards()))
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


class NpzIndex(VectorIndex):
    """An .npz that is mapped part by part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._places = _places(path)
            missing = [name for name in _NPZ_COLUMNS if name not in self._places]
            if missing:
                raise UsageError(
                    f"{path}: is no index of `naturelm embed`: it has no {', '.join(missing)}"
                )
            self._files = self._read("files")
            self.settings = IndexSettings.from_json(str(self._read("settings")), path)
        except (OSError, ValueError, EOFError, struct.error, zipfile.BadZipFile) as error:
            raise UsageError(f"{path}: cannot be read as .npz: {error}") from None
        rows, width = self._places["vectors"].shape
        lengths = {self._places[name].shape for name in ("file", "start", "end")}
        if width != self.settings.width or lengths != {(rows,)}:
            raise UsageError(f"{path}: its arrays do not fit together")

    def __len__(self) -> int:
        return self._places["vectors"].shape[0]

    def files(self) -> list[str]:
        return [str(file) for file in self._files]

    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self), rows):
            yield self._read("vectors", start, min(start + rows, len(self)))

    def shards(self, rows: int) -> Iterator[Shard]:
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
                raise UsageError(
                    f"{path}: is compressed, so it cannot be mapped; make it anew with "
                    "`naturelm embed`"
                )
            file.seek(member.header_offset + _LOCAL_HEADER - 4)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            file.seek(name_length + extra_length, 1)
            version = npy.read_magic(file)
            if version != (1, 0):
                raise UsageError(f"{path}: {member.filename} is of a version not known here")
            shape, fortran, dtype = npy.read_array_header_1_0(file)
            if fortran or dtype.hasobject:
                raise UsageError(f"{path}: {member.filename} cannot be mapped")
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if file.tell() + size > path.stat().st_size:
                raise UsageError(f"{path}: is cut off")
            places[member.filename.removesuffix(".npy")] = _Place(file.tell(), dtype, shape)
    return places


_KEY = b"naturelm_index"
_PARQUET_COLUMNS = {"file", "start", "end", "vector", "model"}


def import_pyarrow() -> Any:
    """pyarrow with its module parquet; raises UsageError where it is not installed."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UsageError(
            "Parquet needs pyarrow: pip install 'naturelm-audio[embed]'; an index whose name ends "
            "in .npz needs nothing"
        ) from None
    return pyarrow


def write_parquet(
    path: Path, settings: IndexSettings, rows: int, shards: Callable[[], Iterable[Shard]]
) -> None:
    """See `Writer`; a shard is a row group."""
    pa = import_pyarrow()
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
        for shard in shards():
            flat = pa.array(np.ascontiguousarray(shard.vectors).reshape(-1))
            columns = [
                pa.array(list(shard.files), pa.string()),
                pa.array(shard.starts),
                pa.array(shard.ends),
                pa.FixedSizeListArray.from_arrays(flat, settings.width),
                pa.array([settings.model_id] * len(shard.files), pa.string()),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


class ParquetIndex(VectorIndex):
    """A Parquet file that is read row group by row group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pa = import_pyarrow()
        try:
            self._file = pa.parquet.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise UsageError(f"{path}: cannot be read as Parquet: {error}") from None
        schema = self._file.schema_arrow
        metadata = schema.metadata or {}
        if _KEY not in metadata or not set(schema.names) >= _PARQUET_COLUMNS:
            raise UsageError(f"{path}: is no index of `naturelm embed`")
        self.settings = IndexSettings.from_json(metadata[_KEY], path)
        if schema.field("vector").type != pa.list_(pa.float32(), self.settings.width):
            raise UsageError(f"{path}: its vectors do not have the width that it says")
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

    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        for table in self._tables(["vector"], rows):
            yield self._matrix(table.column("vector"))

    def shards(self, rows: int) -> Iterator[Shard]:
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
        pool = import_pyarrow().default_memory_pool()
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

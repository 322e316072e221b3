"""Indexes on disk, one row for each window of recordings, and the rows that are most like a clip.

As .npz: arrays that any NumPy reads, stored uncompressed, so that parts of them can be read:
`vectors` (rows, width) float32, `file` (rows,) int32 numbers in `files`, `start` and `end` (rows,)
float64 seconds, `model` and `settings` strings. `files[file]` are the recordings of the rows. As
Parquet: columns file, start, end, vector and model; settings in the metadata.

Shapes: Q query vectors, N rows of a block, E width.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.audio.files import Identity, KnownRecordings, identity
from NatureLM.audio.windows import Window, iter_windows, read_noted_clip
from NatureLM.errors import UsageError
from NatureLM.util import check_range, library, parse_json

SCHEMA_VERSION = 1
_NOT_DECIDING = ("model", "unfinished", "heard", "revision")


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
    heard: of each recording its name, real path, size, time of change and digest
    revision: commit of the model, if it came from the Hub
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
    heard: tuple[tuple[Any, ...], ...] = ()
    revision: str | None = None

    @property
    def model_id(self) -> str:
        """What rows call the model."""
        return f"{self.model}@{self.fingerprint}/{self.layer}"

    @property
    def deciding(self) -> dict[str, Any]:
        """What two sets of vectors must share to stand in one index; names do not matter."""
        values = asdict(self)
        for name in _NOT_DECIDING:
            del values[name]
        return values

    def _check(self) -> None:
        """Raise ValueError where a value is none that `naturelm embed` writes."""
        numbers = (self.window_seconds, self.hop_seconds, self.time_expansion)
        good = (
            type(self.width) is int and 0 < self.width <= 10**6,
            type(self.sample_rate) is int and 0 < self.sample_rate <= 10**6,
            all(type(one) in (int, float) and 0 < one <= 10**6 for one in numbers),
            all(type(one) is str for one in (self.model, self.fingerprint, self.layer)),
            type(self.channel) in (int, str),
            type(self.revision) in (str, type(None)),
            all(
                2 <= len(one) <= 5 and all(isinstance(part, str | int | None) for part in one)
                for one in self.heard
            ),
        )
        if not all(good):
            raise ValueError

    def to_json(self) -> str:
        """One line of JSON."""
        values = asdict(self)
        if self.revision is None:
            del values["revision"]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, name: str | Path) -> IndexSettings:
        """Read `to_json`; `name` is what messages call the file it stood in."""
        try:
            values: Mapping[str, Any] = parse_json(text)
            if values["schema_version"] > SCHEMA_VERSION:
                raise UsageError(
                    f"{name}: was made by a newer version of this program (schema version "
                    f"{values['schema_version']}, this one reads {SCHEMA_VERSION})"
                )
            unfinished = tuple(map(str, values.get("unfinished", ())))  # older ones lack it
            heard = tuple(map(tuple, values.get("heard", ())))
            names = {one.name for one in fields(cls)} - {"unfinished", "heard", "revision"}
            made = cls(
                **{name: values[name] for name in names},
                unfinished=unfinished,
                heard=heard,
                revision=values.get("revision"),
            )
            made._check()
            return made
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UsageError(
                f"{name}: its settings cannot be read; was it made by `naturelm embed`?"
            ) from None


_SHARD_BYTES = 4 << 20


def rows_of_a_block(width: int) -> int:
    """How many vectors of a width are worked on at once."""
    return max(64, _SHARD_BYTES // (4 * width))


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that follow one another: windows of files, and their vectors (rows, width)."""

    files: Sequence[str]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    vectors: NDArray[np.float32]


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
    def blocks(self) -> Iterator[Block]:
        """All of the rows in order, about `rows_of_a_block` at a time."""


Writer: TypeAlias = Callable[[Path, VectorIndex], None]
"""Writes the rows and settings of an index to a file that is not there yet."""

SUFFIXES = (".npz", ".parquet")


def open_index(path: Path) -> VectorIndex:
    """Open an index. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such index; make one with `naturelm embed`")
    return ParquetIndex(path) if _is_parquet(path) else NpzIndex(path)


def writer_of(path: Path) -> Writer:
    """What writes an index of this name. Raises UsageError where it lacks a library."""
    if not _is_parquet(path):
        return _write_npz
    _import_pyarrow()
    return _write_parquet


def _is_parquet(path: Path) -> bool:
    """Whether the suffix says so; raises UsageError for one that is no index's."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: an index is a file whose name ends in {' or '.join(SUFFIXES)}")
    return suffix == ".parquet"


_LOCAL_HEADER = 30  # bytes of a member's header in a zip file, before its name
_NPZ_COLUMNS = {  # name: kind of values, dimensions
    "vectors": ("f4", 2),
    "file": ("i4", 1),
    "files": ("U", 1),
    "start": ("f8", 1),
    "end": ("f8", 1),
    "settings": ("U", 0),
}


def _write_npz(path: Path, index: VectorIndex) -> None:
    """See `Writer`. All but the vectors is in memory until these are written."""
    numbers: dict[str, int] = {}
    columns: list[tuple[NDArray[Any], ...]] = [(np.empty(0, np.int32), *(np.empty(0),) * 2)]

    def vectors() -> Iterator[NDArray[np.float32]]:
        for block in index.blocks():
            files = [numbers.setdefault(file, len(numbers)) for file in block.files]
            columns.append((np.array(files, np.int32), block.starts, block.ends))
            yield block.vectors

    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        shape = (len(index), index.settings.width)
        _write_array(archive, "vectors", np.float32, shape, vectors())
        for name, column in zip(("file", "start", "end"), zip(*columns, strict=True), strict=True):
            _write_array(archive, name, column[0].dtype, shape[:1], column)
        for name, value in (
            ("files", np.array(list(numbers), dtype=np.str_)),
            ("model", np.array(index.settings.model_id)),
            ("settings", np.array(index.settings.to_json())),
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
    """An .npz that is read part by part."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._places = _places(path)
            missing = [name for name in _NPZ_COLUMNS if name not in self._places]
            if missing:
                raise UsageError(
                    f"{path}: is no index of `naturelm embed`: it has no {', '.join(missing)}"
                )
            for name, (kind, dimensions) in _NPZ_COLUMNS.items():
                place = self._places[name]
                if place.dtype.str[1:] != kind and place.dtype.kind != kind:
                    raise UsageError(f"{path}: its array {name} is of type {place.dtype}")
                if len(place.shape) != dimensions:
                    raise UsageError(f"{path}: its array {name} is of shape {place.shape}")
            self._files = self._read("files")
            self.settings = IndexSettings.from_json(str(self._read("settings")), path)
        except UsageError:
            raise
        except Exception as error:  # what is no archive of arrays fails in any way
            raise UsageError(f"{path}: cannot be read as .npz: {error}") from None
        rows, width = self._places["vectors"].shape
        lengths = {self._places[name].shape for name in ("file", "start", "end")}
        if width != self.settings.width or lengths != {(rows,)}:
            raise UsageError(f"{path}: its arrays do not fit together")

    def __len__(self) -> int:
        return self._places["vectors"].shape[0]

    def files(self) -> list[str]:
        return [str(file) for file in self._files]

    def blocks(self) -> Iterator[Block]:
        rows = rows_of_a_block(self.settings.width)
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            numbers = self._read("file", start, stop)
            if numbers.min() < 0 or numbers.max() >= len(self._files):
                raise UsageError(f"{self.path}: its rows are of recordings that it does not name")
            yield _checked(
                self.path,
                Block(
                    self._files[numbers].tolist(),
                    self._read("start", start, stop),
                    self._read("end", start, stop),
                    self._read("vectors", start, stop),
                ),
            )

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """An array, or rows of it."""
        place = self._places[name]
        shape, offset = place.shape, place.offset
        if shape:
            offset += start * math.prod(shape[1:]) * place.dtype.itemsize
            shape = ((shape[0] if stop is None else stop) - start, *shape[1:])
        flat = np.fromfile(self.path, place.dtype, math.prod(shape), offset=offset)
        return flat.reshape(shape)


def _checked(path: Path, block: Block) -> Block:
    """Rows of a file; raises UsageError where their times are none."""
    if not np.all((block.starts >= 0) & (block.starts <= block.ends) & (block.ends < np.inf)):
        raise UsageError(f"{path}: it has rows that do not start before they end")
    return block


def _places(path: Path) -> dict[str, _Place]:
    """Where the arrays of an .npz stand in it."""
    places: dict[str, _Place] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        members = archive.infolist()
        if len(members) > 2 * len(_NPZ_COLUMNS):
            raise UsageError(f"{path}: has {len(members)} arrays, more than an index has")
        for member in members:
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
            if fortran or dtype.hasobject or min(shape, default=0) < 0:
                raise UsageError(f"{path}: {member.filename} cannot be mapped")
            size = math.prod(shape) * dtype.itemsize
            if file.tell() + size > path.stat().st_size:
                raise UsageError(f"{path}: is cut off")
            places[member.filename.removesuffix(".npy")] = _Place(file.tell(), dtype, shape)
    return places


_KEY = b"naturelm_index"
_PARQUET_COLUMNS = {"file", "start", "end", "vector", "model"}


def _import_pyarrow() -> Any:
    """pyarrow with its module parquet; raises UsageError where it is not installed."""
    absent = (
        "Parquet needs pyarrow: pip install 'naturelm-audio[embed]'; an index whose name ends in "
        ".npz needs nothing"
    )
    library("pyarrow.parquet", absent)
    return library("pyarrow", absent)


def _write_parquet(path: Path, index: VectorIndex) -> None:
    """See `Writer`; a block is a row group."""
    pa = _import_pyarrow()
    settings = index.settings
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
        for block in index.blocks():
            flat = pa.array(np.ascontiguousarray(block.vectors).reshape(-1))
            columns = [
                pa.array(list(block.files), pa.string()),
                pa.array(block.starts),
                pa.array(block.ends),
                pa.FixedSizeListArray.from_arrays(flat, settings.width),
                pa.array([settings.model_id] * len(block.files), pa.string()),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


class ParquetIndex(VectorIndex):
    """A Parquet file that is read row group by row group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pa = _import_pyarrow()
        try:
            self._file = pa.parquet.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"{path}: cannot be read as Parquet: {error}") from None
        schema = self._file.schema_arrow
        metadata = schema.metadata or {}
        if _KEY not in metadata or not set(schema.names) >= _PARQUET_COLUMNS:
            raise UsageError(f"{path}: is no index of `naturelm embed`")
        self.settings = IndexSettings.from_json(metadata[_KEY], path)
        if schema.field("vector").type != pa.list_(pa.float32(), self.settings.width):
            raise UsageError(f"{path}: its vectors do not have the width that it says")
        times = [schema.field(name).type for name in ("start", "end")]
        if not all(map(pa.types.is_floating, times)) or schema.field("file").type not in (
            *(pa.string(), pa.large_string()),
        ):
            raise UsageError(f"{path}: its columns are of other types than an index has")
        if 4 * self.settings.width * len(self) > 64 * path.stat().st_size:
            raise UsageError(f"{path}: is too short for the {len(self):,} rows that it names")

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def files(self) -> list[str]:
        found: dict[str, None] = {}
        for table in self._tables(["file"]):
            found.update(dict.fromkeys(table.column("file").to_pylist()))
        return list(found)

    def blocks(self) -> Iterator[Block]:
        for table in self._tables(["file", "start", "end", "vector"]):
            pieces = [chunk.flatten().to_numpy() for chunk in table.column("vector").chunks]
            flat = np.concatenate([np.empty(0, np.float32), *pieces])
            if flat.size != len(table) * self.settings.width:
                raise UsageError(f"{self.path}: it has rows without a vector")
            yield _checked(
                self.path,
                Block(
                    table.column("file").to_pylist(),
                    table.column("start").to_numpy(),
                    table.column("end").to_numpy(),
                    flat.reshape(-1, self.settings.width),
                ),
            )

    def _tables(self, columns: list[str]) -> Iterator[Any]:
        """Columns of the rows in order, of one row group at a time, as many as a block at most.

        `iter_batches` reads ahead, and holds much more.
        """
        pa = _import_pyarrow()
        pool = pa.default_memory_pool()
        rows = rows_of_a_block(self.settings.width)
        for group in range(self._file.metadata.num_row_groups):
            try:
                table = self._file.read_row_group(group, columns=columns, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                raise UsageError(f"{self.path}: cannot be read as Parquet: {error}") from None
            for start in range(0, len(table), rows):
                yield table.slice(start, rows)
            del table
            pool.release_unused()


_MOST_WINDOWS = 32


def query_windows(
    clip: Path,
    settings: IndexSettings,
    *,
    start: float = 0.0,
    end: float | None = None,
) -> list[Window]:
    """A clip, or the part of it from `start` to `end` seconds, in windows like those of an index.

    Times of the windows are those of the sound as the model hears it, slowed down; windows without
    sound are left out. Raises UsageError for times that make no clip and for clips of more than 32
    windows, AudioError for one that cannot be read or has no sound.
    """
    if end is not None and not end > start:
        raise UsageError(f"--end is {end:g} and must be after --start, {start:g}")
    until = probe(clip).duration if end is None else end
    seconds = max(0.0, until - start) * settings.time_expansion
    if seconds > _MOST_WINDOWS * settings.window_seconds:
        raise UsageError(
            f"{clip}: the query lasts {seconds:.0f} s, and at most "
            f"{_MOST_WINDOWS * settings.window_seconds:g} s can be looked for at once; name a "
            "part of it with --start and --end"
        )
    none = ("there is no sound to look for", "Choose another clip")
    length = None if end is None else end - start
    hop = settings.window_seconds
    return list(windows_like(settings, clip, none, start=start, duration=length, hop_seconds=hop))


def windows_like(
    settings: IndexSettings,
    clip: Any,
    none: tuple[str, str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    hop_seconds: float | None = None,
) -> Iterator[Window]:
    """The windows of a clip that hold sound, cut and heard like those of an index.

    Their times are those of the clip as the model hears it, slowed down.

    none: what is wrong where there are none, and what to do
    hop_seconds: that of the index, where it is not told

    Raises AudioError for a clip that cannot be read or has no sound.
    """
    rate, is_heard = settings.sample_rate, False
    samples, note = read_noted_clip(
        clip,
        start=start,
        duration=duration,
        sample_rate=rate,
        channel=settings.channel,
        time_expansion=settings.time_expansion,
    )
    for window in iter_windows(
        samples,
        input_sample_rate=rate,
        sample_rate=rate,
        window_seconds=settings.window_seconds,
        hop_seconds=hop_seconds or settings.hop_seconds,
        warn=lambda text: None,
    ):
        if not (note or window.note):
            is_heard = True
            yield window
    if not is_heard:
        why, remedy = none
        raise AudioError(clip, f"{why} ({note})" if note else why, remedy)


def refuse_other_model(index: VectorIndex, fingerprint: str) -> None:
    """Raise UsageError where an index was not made with the model of this fingerprint."""
    if fingerprint != index.settings.fingerprint:
        raise UsageError(
            f"{index.path}: was made with another model than this one: {index.settings.model_id} "
            f"there, {fingerprint} here. Vectors of different models (or of one in another "
            "precision, see --dtype) cannot be compared: name the index's model with --model, or "
            "make the index anew with `naturelm embed`"
        )


@dataclass(frozen=True)
class Match:
    """A window of an index (seconds in its file) that is like the query: cosine from -1 to 1."""

    similarity: float
    file: str
    start: float
    end: float


def nearest(
    index: VectorIndex,
    queries_QE: NDArray[np.float32],
    top_k: int = 20,
    *,
    is_wanted: Callable[[str], bool] = lambda file: True,
) -> list[Match]:
    """The most similar rows, best first; of equal ones the earlier. Memory does not grow with rows.

    queries_QE: vectors (Q, E) of the query's windows; a row is as similar as to the nearest of them
    is_wanted: takes the file of a row; rows of other files are left out

    Raises UsageError for an impossible `top_k` or queries of another width.
    """
    check_range("--top-k", top_k, 1, 1_000_000)
    width = index.settings.width
    if queries_QE.ndim != 2 or queries_QE.shape[1] != width:
        raise UsageError(
            f"{index.path}: its vectors have {width} numbers, those of the query "
            f"{queries_QE.shape[-1]}"
        )
    unit_QE = _unit(queries_QE.astype(np.float32))
    remembered = cache(is_wanted)
    best: list[Match] = []
    for block in index.blocks():
        # Windows without sound have zeros, and are like nothing.
        has_sound: NDArray[np.bool_] = (block.vectors != 0).any(axis=1)
        wanted = np.flatnonzero(has_sound & [remembered(file) for file in block.files])
        similar_N = (_unit(block.vectors[wanted]) @ unit_QE.T).max(axis=1)
        for place in np.argsort(-similar_N, kind="stable")[:top_k]:
            row, similarity = wanted[place], float(similar_N[place])
            start, end = float(block.starts[row]), float(block.ends[row])
            best.append(Match(similarity, str(block.files[row]), start, end))
        best = sorted(best, key=lambda match: -match.similarity)[:top_k]
    return best


class HeldRecordings:
    """The recordings of an index, and which of them those are that are asked about.

    known: as they were when they were heard
    """

    def __init__(self, index: VectorIndex, asked: Iterable[str | os.PathLike[str]]) -> None:
        self.known = KnownRecordings(index.path)
        heard = {name: (real, Identity(*before)) for name, real, *before in index.settings.heard}
        self._keys = {
            name: self.known.add(*heard.get(name, (name, Identity()))) for name in index.files()
        }
        unfinished = set(index.settings.unfinished)
        self._whole = {key: name for name, key in self._keys.items() if name not in unfinished}
        self.known.match(asked, is_noted=False)

    def key(self, file: str) -> str:
        """What a file of the index and a path have in common that are one recording."""
        return self._keys.get(file) or self.known.key(file)

    def name(self, path: str | os.PathLike[str]) -> str | None:
        """What the index calls a recording that it holds to its end; None for any other."""
        return self._whole.get(self.known.key(path))


def same_recording(path: Path, index: VectorIndex) -> Callable[[str], bool]:
    """Whether a file of an index is this recording, whatever the paths, or a copy of it."""
    held = HeldRecordings(index, [path])
    content = identity(path, has_digest=True).digest
    found = held.known.found
    same = {key for key, before in found.items() if content and before.digest == content}
    return lambda file: held.key(file) in {held.known.key(path), *same}


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; those of length 0, or with NaN or infinity, become zero."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt(np.einsum("ne,ne->n", vectors, vectors))
        usable = np.isfinite(norms) & (norms > 0)
        lengths = np.where(usable, norms, 1.0).astype(np.float32)
        unit: NDArray[np.float32] = vectors / lengths[:, None]
    unit[~usable] = 0.0
    return unit

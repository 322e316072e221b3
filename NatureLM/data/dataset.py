"""One labelled sample of a benchmark or of a table of one's own.

Sound as it lies in the rows of datasets: encoded bytes, samples, or the path of a file.

From the columns of a row to a `Sample`.

Datasets with sound in them: `save_to_disk` folders, Arrow and Parquet files, the Hub.

Nothing here loads a component: labels are read without the sound, the sound row by row, and it is
handed on as it is stored, because decoding is the work of `NatureLM.audio`.

Where the sound of a clip lies: in a file of its own, or in a row of a dataset.

Samples from wherever they lie: a dataset on disk or on the Hub, or a table of one's own.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.errors import AudioError, EmptyAudio, NotAudio
from NatureLM.audio.stream import clip_array, read_clip
from NatureLM.config.base import TableSource
from NatureLM.data.clip import AudioSource, Clip, clip_key
from NatureLM.data.components import components
from NatureLM.data.table import CLIP_ALIASES, Columns, Row, audio_folder, passes, rows_of
from NatureLM.errors import UsageError
from NatureLM.util import did_you_mean, digest

if TYPE_CHECKING:
    import numpy as np


class DataError(UsageError):
    """Data cannot be read, are not there, or a row of them cannot be used."""


@dataclass(frozen=True)
class Sample:
    """What is asked about, and the right answer; its sound is read through `clip`.

    id: unique within its dataset
    label: the right answer (`output` in BEANS-Zero's schema)
    instruction: the dataset's own prompt, empty if it has none
    task: classification, detection or captioning, empty if it is not said
    cluster: samples of one recording or family share it; intervals and examples go by it
    """

    id: str
    dataset_name: str
    label: str
    clip: Clip
    cluster: str
    instruction: str = ""
    task: str = ""


def read_embedded(
    value: Any,
    *,
    name: str,
    array_rate: float | None = None,
    folder: Path | None = None,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16_000,
) -> NDArray[np.float32]:
    """Read a clip from the cell of a dataset, like `read_clip` from a file.

    Args:
        value: bytes of a file; a path; samples; or a mapping with `bytes`, `path`, or `array` and
            `sampling_rate`, as Hugging Face datasets keep them.
        name: what errors call it.
        array_rate: sample rate of samples that name none, in Hz.
        folder: where relative paths start from.

    Returns:
        float32 in [-1, 1], shape (samples,).

    Raises:
        AudioError: there is no sound in the cell, or it cannot be used.
    """
    content, suffix = value, ""
    if isinstance(value, Mapping):
        array_rate = value.get("sampling_rate") or array_rate
        suffix = Path(value.get("path") or "").suffix
        content = next(
            (value[key] for key in ("bytes", "array", "path") if value.get(key) is not None), None
        )
    if content is None:
        raise EmptyAudio(name, "there is no sound in the data")
    if isinstance(content, (str, os.PathLike)):
        path = Path(content) if folder is None else folder / content
        return read_clip(path, start=start, duration=duration, sample_rate=sample_rate)
    try:
        if isinstance(content, (bytes, bytearray, memoryview)):
            return _from_bytes(bytes(content), suffix, start, duration, sample_rate)
        return clip_array(
            np.asarray(content),
            array_rate,
            start=start,
            duration=duration,
            sample_rate=sample_rate,
        )
    except AudioError as error:
        raise type(error)(name, error.reason, error.advice) from error
    except UsageError as error:
        raise NotAudio(name, f"the sound in the data cannot be used ({error})") from error


def _from_bytes(
    data: bytes, suffix: str, start: float, duration: float | None, sample_rate: int
) -> NDArray[np.float32]:
    """Through a file of its own, because that is how everything else is decoded and checked."""
    handle, name = tempfile.mkstemp(suffix=suffix, prefix="naturelm-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        return read_clip(name, start=start, duration=duration, sample_rate=sample_rate)
    finally:
        Path(name).unlink(missing_ok=True)


ALIASES: dict[str, tuple[str, ...]] = {
    **CLIP_ALIASES,
    "label": ("label", "output", "answer", "common_name", "species", "text"),
    "instruction": ("instruction_text", "instruction", "prompt", "query", "question"),
    "dataset": ("dataset_name", "dataset"),
    "cluster": ("cluster", "group_id", "family", "recording_id", "recording"),
    "metadata": ("metadata",),
}
"""Our columns and how they may be called: BEANS-Zero's schema, and usual names of tables."""


class RowParser:
    """Makes samples of the rows of one source.

    dataset: name of rows that name none
    folder: where paths of files start from
    rows: the dataset that holds the sound; None where files do
    key_prefix: in front of the names of clips, to tell them from those of another source
    """

    def __init__(
        self,
        columns: Columns,
        name: str,
        dataset: str,
        folder: Path,
        rows: Rows | None,
        key_prefix: str = "",
    ) -> None:
        self._columns = columns
        self._name = name
        self._dataset = dataset
        self._folder = folder
        self._rows = rows
        self._prefix = key_prefix

    def dataset_of(self, row: Row) -> str:
        """The dataset that a row belongs to."""
        return str(self._columns.get(row, "dataset") or self._dataset)

    def make(self, row: Row, number: int) -> Sample:
        """The sample of a row; `number` counts the rows of the source from 1 on."""
        where = f"{self._name}, row {number}"
        get = self._columns.get
        label = get(row, "label")
        if label is None:
            names = ", ".join(self._columns.names["label"])
            raise DataError(
                f"{where}: no label (a column called one of {names}); another column is named "
                "with --options extended.data.columns.label=COLUMN. Columns: "
                + ", ".join(map(str, row))
            )
        dataset = self.dataset_of(row)
        path = get(row, "path")
        start, end = self._columns.stretch(row, where)
        identity = self._identity(row, path, start, end, where)
        facts = _facts(get(row, "metadata"))
        duration = None if end is None else end - start
        known = components().get(dataset)
        window = None if known is None else known.max_duration
        sound = str(path) if self._rows is None else identity
        return Sample(
            id=identity,
            dataset_name=dataset,
            label=str(label),
            clip=Clip(
                key=self._prefix + clip_key(dataset, sound, start, _shorter(duration, window)),
                source=self._source(row, number, identity, dataset, facts),
                start=start,
                duration=duration,
                window=window,
            ),
            cluster=_cluster(row, self._columns.names["cluster"])
            or _cluster(facts, ALIASES["cluster"])
            or str(path or identity),
            instruction=str(get(row, "instruction") or ""),
            task=str(get(row, "task") or ""),
        )

    def _identity(self, row: Row, path: Any, start: float, end: float | None, where: str) -> str:
        named = self._columns.get(row, "id")
        if named is not None:
            return str(named)
        if path is None:
            raise DataError(f"{where}: neither an id nor a path names this sample")
        is_part = start > 0 or end is not None
        return f"{path}@{start:g}-{'' if end is None else f'{end:g}'}" if is_part else str(path)

    def _source(
        self, row: Row, number: int, identity: str, dataset: str, facts: Row
    ) -> AudioSource:
        if self._rows is not None:
            name = f"sample {identity} of {self._rows.name}"
            return RowSource(self._rows, number - 1, name, _array_rate(row, facts, dataset))
        path = self._columns.get(row, "path")
        if path is None:
            names = ", ".join(self._columns.names["path"])
            raise DataError(
                f"{self._name}, row {number}: names no recording (a column called one of {names})"
            )
        return FileSource(self._folder / str(path))


def _facts(metadata: Any) -> Row:
    """The metadata of a row, which BEANS-Zero keeps as JSON in a text."""
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            return {}
    return metadata if isinstance(metadata, dict) else {}


def _cluster(facts: Row, names: tuple[str, ...]) -> str | None:
    """What the first of these columns says that has a value.

    A family of animals (their names end in -idae) is no family of recordings, unless just that
    column was named.
    """
    for name in names:
        value = facts.get(name)
        is_taxon = name == "family" and len(names) > 1 and str(value).lower().endswith("idae")
        if value not in (None, "") and not is_taxon:
            return str(value)
    return None


def _array_rate(row: Row, facts: Row, dataset: str) -> float | None:
    """Sample rate of sound that is stored as bare samples."""
    rate = row.get("sample_rate") or facts.get("sample_rate")
    if rate is None and dataset in components():
        rate = components()[dataset].sample_rate
    return None if rate is None else float(rate)


def _shorter(*lengths: float | None) -> float | None:
    """The shortest of those that are known."""
    return min((length for length in lengths if length is not None), default=None)


AUDIO = "audio"
_BATCH = 1000
_UNFINISHED = "is damaged or was not downloaded to its end: fetch it again"


class ArrowRows:
    """A dataset of the library `datasets`, memory-mapped."""

    def __init__(self, dataset: Any, name: str, folder: Path | None) -> None:
        self.name, self.folder = name, folder
        # In this format cells come as they are stored: nothing is decoded.
        self._all = dataset.with_format("arrow")
        self.has_audio = AUDIO in dataset.column_names
        self._labels = self._all.select_columns([c for c in dataset.column_names if c != AUDIO])

    def light(self) -> Iterator[Row]:
        """Every row without its sound."""
        for table in self._labels.iter(batch_size=_BATCH):
            yield from table.to_pylist()

    def audio(self, index: int) -> Any:
        """The sound of a row as it is stored."""
        return cell(self._all[index].column(AUDIO)[0])


class ParquetRows:
    """Parquet files, here or on the Hub; of the sound one row group at a time is in memory.

    filesystem: where the files are; None is this machine
    """

    def __init__(
        self, files: Sequence[str], name: str, folder: Path | None, filesystem: Any = None
    ) -> None:
        self.name, self.folder = name, folder
        self._files = [parquet_file(file, filesystem) for file in files]
        self._groups = [
            (file, group) for file in self._files for group in range(file.metadata.num_row_groups)
        ]
        self._ends: list[int] = []
        for file, group in self._groups:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + file.metadata.row_group(group).num_rows)
        self.has_audio = all(AUDIO in file.schema_arrow.names for file in self._files)
        self._lock = threading.Lock()
        self._held: tuple[int, Any] | None = None

    def light(self) -> Iterator[Row]:
        """Every row without its sound, which is not fetched."""
        for file in self._files:
            names = [name for name in file.schema_arrow.names if name != AUDIO]
            for batch in file.iter_batches(batch_size=_BATCH, columns=names):
                yield from batch.to_pylist()

    def audio(self, index: int) -> Any:
        """The sound of a row as it is stored."""
        number = bisect.bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        with self._lock:
            if self._held is None or self._held[0] != number:
                file, group = self._groups[number]
                self._held = (number, file.read_row_group(group, columns=[AUDIO]).column(AUDIO))
            return cell(self._held[1][index - first])


DatasetRows: TypeAlias = ArrowRows | ParquetRows


def saved_dataset(folder: Path) -> ArrowRows:
    """A folder that `save_to_disk` made; of several splits the one called `test`."""
    library = _datasets(folder)
    try:
        found = library.load_from_disk(str(folder))
    except Exception as error:
        raise DataError(f"{folder}: {_UNFINISHED} ({short(error)})") from error
    if isinstance(found, dict):
        if len(found) > 1 and "test" not in found:
            raise DataError(
                f"{folder}: has the splits {', '.join(found)} and none called test: name the "
                "folder of one of them"
            )
        found = found["test"] if "test" in found else next(iter(found.values()))
    return ArrowRows(found, str(folder), folder)


def arrow_files(files: Sequence[Path], name: str, folder: Path) -> ArrowRows:
    """Arrow files of the library `datasets`, one after the other."""
    library = _datasets(name)
    parts = []
    for file in files:
        try:
            parts.append(library.Dataset.from_file(str(file)))
        except Exception as error:
            raise DataError(f"{file}: {_UNFINISHED} ({short(error)})") from error
    return ArrowRows(library.concatenate_datasets(parts), name, folder)


def hub_dataset(name: str) -> ParquetRows:
    """The Parquet files of a dataset on the Hugging Face Hub, of which only what is read comes."""
    try:
        files, filesystem = hub_files(name)
    except DataError as error:
        raise DataError(f"{name}: is no file or folder here, and {error}") from error
    return ParquetRows(files, name, None, filesystem)


def hub_files(name: str) -> tuple[list[str], Any]:
    """The Parquet files of a dataset on the Hub, in order, and the file system they are in.

    Raises DataError, whose message says nothing of where else the dataset may be.
    """
    from huggingface_hub import HfFileSystem

    filesystem = HfFileSystem()
    try:
        files = sorted(filesystem.glob(f"datasets/{name}/**/*.parquet"))
    except Exception as error:
        raise DataError(
            f"as a dataset of the Hugging Face Hub it cannot be reached ({short(error)})"
        ) from error
    if not files:
        raise DataError(
            "on the Hugging Face Hub no dataset of this name with Parquet files was found"
        )
    return files, filesystem


def cell(scalar: Any) -> Any:
    """An Arrow scalar as plain data; lists of numbers as arrays, which is quicker."""
    pyarrow: Any = import_module("pyarrow")
    if isinstance(scalar, pyarrow.StructScalar):
        return {name: cell(scalar[name]) for name in scalar}
    if isinstance(scalar, (pyarrow.ListScalar, pyarrow.LargeListScalar)) and scalar.is_valid:
        values = scalar.values
        if pyarrow.types.is_floating(values.type) or pyarrow.types.is_integer(values.type):
            return values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


def parquet_file(file: str, filesystem: Any) -> Any:
    """An open Parquet file, of which the end was read. Raises DataError."""
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(_needs(file)) from None
    try:
        return parquet.ParquetFile(file, filesystem=filesystem)
    except Exception as error:
        raise DataError(f"{file}: {_UNFINISHED} ({short(error)})") from error


def _datasets(name: str | Path) -> Any:
    try:
        return import_module("datasets")
    except ImportError:
        raise DataError(_needs(name)) from None


def _needs(name: str | Path) -> str:
    return (
        f"{name}: reading it needs libraries that are not installed: "
        "pip install 'naturelm-audio[beans]'"
    )


def short(error: BaseException) -> str:
    """The first line of what other libraries say."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


class Rows(Protocol):
    """The rows of a dataset that holds sound; safe under threads.

    name: what messages call it
    folder: where relative paths in it start from
    has_audio: whether there is a column with sound
    """

    name: str
    folder: Path | None
    has_audio: bool

    def light(self) -> Iterator[Row]:
        """Every row without its sound, which is not read."""

    def audio(self, index: int) -> Any:
        """The cell `audio` of a row, not decoded."""


_STRETCH = 2**16
_STRETCHES = 17


@dataclass(frozen=True, eq=False)
class FileSource:
    """A file; however its path is written, it is the same source."""

    path: Path

    @cached_property
    def _real(self) -> str:
        return os.path.realpath(self.path)

    @cached_property
    def digest(self) -> str | None:
        """Hash of the file's length and content; None where it cannot be read.

        Of large files the ends and stretches between them are read: recordings of hours are told
        apart in a moment, and wherever they are copied they stay the same.
        """
        try:
            size = os.stat(self.path).st_size
            with open(self.path, "rb") as file:
                return digest(self._contents(file, size), "blake2b", size=8).hex()
        except OSError:
            return None

    @staticmethod
    def _contents(file: BinaryIO, size: int) -> Iterator[str | bytes]:
        yield str(size)
        for start in _stretches(size):
            file.seek(start)
            yield file.read(_STRETCH)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileSource) and self._real == other._real

    def __hash__(self) -> int:
        return hash(self._real)

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples; raises `AudioError`."""
        from NatureLM.audio import read_clip

        return read_clip(self.path, start=start, duration=duration, sample_rate=sample_rate)


@dataclass(frozen=True)
class RowSource:
    """The sound in row `index` of a dataset.

    name: what errors call it
    array_rate: sample rate of samples that name none, in Hz
    """

    rows: Rows
    index: int
    name: str
    array_rate: float | None

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples; raises `AudioError`."""
        from NatureLM.audio import AudioError

        try:
            stored = self.rows.audio(self.index)
        except Exception as error:  # a damaged file, or no network: each library has its own
            raise AudioError(self.name, f"cannot be read ({short(error)})") from error
        return read_embedded(
            stored,
            name=self.name,
            array_rate=self.array_rate,
            folder=self.rows.folder,
            start=start,
            duration=duration,
            sample_rate=sample_rate,
        )


def _stretches(size: int) -> Iterable[int]:
    """Where the stretches of a file begin that its digest is made of: all, if it is small."""
    if size <= _STRETCHES * _STRETCH:
        return range(0, size, _STRETCH)
    last = size - _STRETCH
    return (last * number // (_STRETCHES - 1) for number in range(_STRETCHES))


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TABLES = ("metadata.csv", "metadata.jsonl")
_SAYING_NOTHING = ("metadata", "data", "labels", "table", "test")


@dataclass(frozen=True)
class SampleSet:
    """Samples in the order of the data.

    name: what messages call the source
    notes: what a user should know about how it was read
    """

    name: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets in it, in order."""
        return tuple(dict.fromkeys(sample.dataset_name for sample in self.samples))


def open_samples(
    config: TableSource, datasets: Sequence[str] | None = None, *, key_prefix: str = ""
) -> SampleSet:
    """All samples of `config` that pass `where` and are of `datasets` (None: of all).

    A table that has no column for the dataset stands in for those that are named. `key_prefix`
    stands in front of the names of clips. Raises DataError or TableError with file and row.
    """
    columns = Columns(config, ALIASES)
    rows = _rows(config.path)
    maker = RowParser(
        columns,
        name=config.path,
        dataset=_name(config.path),
        folder=audio_folder(config),
        rows=rows if rows is not None and rows.has_audio else None,
        key_prefix=key_prefix,
    )
    samples: dict[tuple[str, str], Sample] = {}
    seen: dict[str, None] = {}
    is_named = False
    for number, row in _light(config, rows):
        named = columns.get(row, "dataset")
        is_named = is_named or named is not None
        seen.setdefault(maker.dataset_of(row))
        if datasets is not None and named is not None and str(named) not in datasets:
            continue
        sample = maker.make(row, number)
        if (sample.dataset_name, sample.id) in samples:
            raise DataError(
                f"{config.path}, row {number}: a second sample with the id {sample.id!r} in "
                f"{sample.dataset_name}; ids must be different"
            )
        samples[sample.dataset_name, sample.id] = sample
    notes = _check_datasets(config.path, datasets, seen, is_named)
    return SampleSet(config.path, tuple(samples.values()), notes)


def _check_datasets(
    name: str, wanted: Sequence[str] | None, seen: Iterable[str], is_named: bool
) -> tuple[str, ...]:
    """Notes on the datasets that were found; raises DataError where one that is wanted is not."""
    if wanted is None:
        return ()
    if not is_named:
        return (
            f"extended.datasets names {', '.join(wanted)}, and {name} does not say which dataset "
            "its rows are of: all of them are taken",
        )
    missing = [dataset for dataset in wanted if dataset not in seen]
    if missing:
        hint = did_you_mean(missing[0], seen)
        raise DataError(
            f"{name}: has no sample of {', '.join(map(repr, missing))}{hint} (its datasets: "
            f"{', '.join(seen)})"
        )
    return ()


def _light(config: TableSource, rows: DatasetRows | None) -> Iterator[tuple[int, Row]]:
    """(number from 1 on, row) of every row that passes `where`, without its sound."""
    if rows is None:
        table = _table(Path(config.path))
        yield from rows_of(config.model_copy(update={"path": str(table)}))
        return
    for number, row in enumerate(rows.light(), start=1):
        if passes(row, config, number):
            yield number, row


def _rows(path: str) -> DatasetRows | None:
    """The dataset that a path names; None for a table of text or a folder of recordings."""
    place = Path(path)
    if place.is_dir():
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            return saved_dataset(place)
        if files := sorted(place.rglob("*.parquet")):
            return ParquetRows([str(file) for file in files], path, place)
        if files := sorted(place.rglob("*.arrow")):
            return arrow_files(files, path, place)
        return None
    suffix = place.suffix.lower()
    if place.is_file() and suffix == ".arrow":
        return arrow_files([place], path, place.parent)
    if place.is_file() and suffix == ".parquet":
        return ParquetRows([path], path, place.parent)
    if not place.exists() and _HUB_ID.fullmatch(path) and not suffix:
        return hub_dataset(path)
    return None


def _table(place: Path) -> Path:
    """The table that a path names: a file, or the one inside a folder."""
    if not place.is_dir():
        return place
    for name in _TABLES:
        if (place / name).is_file():
            return place / name
    tables = sorted([*place.glob("*.jsonl"), *place.glob("*.csv")])
    return tables[0] if len(tables) == 1 else place


def _name(path: str) -> str:
    """What to call the dataset of a table that does not say: the file, or its folder."""
    place = Path(path)
    stem = place.name if place.is_dir() else place.stem
    return place.resolve().parent.name if stem.lower() in _SAYING_NOTHING else stem

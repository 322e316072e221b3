"""Datasets with sound in them: `save_to_disk` folders, Arrow and Parquet files, the Hub.

Nothing here loads the sound as a whole: labels are read without it, the sound row by row, and it is
handed on as it is stored, because decoding is the work of `NatureLM.audio`.
"""

from __future__ import annotations

import bisect
import os
import re
import tempfile
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.windows import read_clip
from NatureLM.config.schema import TableConfig, TableSource
from NatureLM.data.table import Columns, DataError, Row, audio_folder, filtered_rows, passes
from NatureLM.errors import UsageError

AUDIO = "audio"
RATES = ("sampling_rate", "sample_rate")
"""Columns that may say the sample rate of sound that is stored as bare samples."""

_BATCH = 1000
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAVED = ("state.json", "dataset_dict.json")
_UNFINISHED = "is damaged or was not downloaded to its end: fetch it again"


class ArrowRows:
    """A dataset of the library `datasets`, memory-mapped.

    name: what messages call it
    folder: where relative paths in it start from
    audio: the column with sound
    class_names: whether numbers of class labels are given as the names behind them
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        folder: Path | None,
        *,
        audio: str = AUDIO,
        class_names: bool = False,
    ) -> None:
        self.name, self.folder = name, folder
        self.has_audio = audio in dataset.column_names
        self._audio = audio
        self._dataset = dataset
        # In this format cells come as they are stored: nothing is decoded.
        self._arrow = dataset.with_format("arrow")
        self._sound: Any = self._arrow.select_columns([audio]) if self.has_audio else None
        self._class_names = class_names

    def light(self, columns: Container[str] | None = None) -> Iterator[Row]:
        """Every row without its sound, which is not read; of `columns` only, if they are given."""
        names = [
            name
            for name in self._dataset.column_names
            if name != self._audio and (columns is None or name in columns)
        ]
        classes = {
            name: _classes(self._dataset.features[name]) if self._class_names else None
            for name in names
        }
        for table in self._arrow.select_columns(names).iter(batch_size=_BATCH) if names else ():
            for row in table.to_pylist():
                yield {name: _class_name(value, classes[name]) for name, value in row.items()}

    def audio(self, index: int) -> Any:
        """The sound of a row as it is stored."""
        return cell(self._sound[index].column(self._audio)[0])


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

    def light(self, columns: Container[str] | None = None) -> Iterator[Row]:
        """Every row without its sound, which is not fetched; of `columns` only, if given."""
        for file in self._files:
            names = [
                name
                for name in file.schema_arrow.names
                if name != AUDIO and (columns is None or name in columns)
            ]
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


@dataclass(frozen=True)
class RowSource:
    """The sound in row `index` of a dataset.

    name: what errors call it
    array_rate: sample rate of samples that name none, in Hz
    """

    rows: DatasetRows
    index: int
    name: str
    array_rate: float | None

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples; raises `AudioError`."""
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


def labelled_rows(
    config: TableSource, dataset: DatasetRows | None, columns: Container[str] | None = None
) -> Iterator[tuple[int, Row]]:
    """(number, row) of every row of a table or dataset that passes `where`, without its sound.

    dataset: what `config` names, opened; None for a table or a folder of class names
    columns: those of a dataset that are read; None for all
    """
    if dataset is None:
        yield from filtered_rows(config)
        return
    for number, row in enumerate(dataset.light(columns), start=1):
        if passes(row, config, number):
            yield number, row


def open_rows(path: str) -> DatasetRows | None:
    """The dataset that a path names; None for a table of text or a folder of recordings.

    Of several splits it is the one called `test`. Raises DataError.
    """
    place = Path(path)
    if place.is_dir():
        if _is_saved(place):
            return _saved_dataset(place)
        if files := sorted(place.rglob("*.parquet")):
            return ParquetRows([str(file) for file in files], path, place)
        if files := sorted(place.rglob("*.arrow")):
            return _arrow_files(files, path, place)
        return None
    suffix = place.suffix.lower()
    if place.is_file() and suffix == ".arrow":
        return _arrow_files([place], path, place.parent)
    if place.is_file() and suffix == ".parquet":
        return ParquetRows([path], path, place.parent)
    if not place.exists() and _HUB_ID.fullmatch(path) and not suffix:
        try:
            files_there, filesystem = hub_files(path)
        except DataError as error:
            raise DataError(f"{path}: is no file or folder here, and {error}") from error
        return ParquetRows(files_there, path, None, filesystem)
    return None


def open_split(config: TableConfig, columns: Columns) -> ArrowRows | None:
    """The split of a dataset that a source names; None where it is no dataset with sound.

    Rows are drawn in any order, so Parquet files and datasets on the Hub are kept as Arrow files on
    the disk. Class labels come as names, and the column with sound may be any.

    Raises DataError with what is missing: the library, the dataset, the split, the column.
    """
    place = Path(config.path)
    saved = _is_saved(place)
    arrow = sorted(place.glob("*.arrow")) if place.is_dir() else []
    if place.suffix == ".arrow" and place.is_file():
        arrow = [place]
    parquet = place.is_dir() and any((*place.glob("*.parquet"), *place.glob("*/*.parquet")))
    hub = not place.exists() and not place.suffix and _HUB_ID.fullmatch(config.path)
    if not (saved or arrow or parquet or hub or _holds_sound(place)):
        for key in ("split", "subset"):
            if getattr(config, key) is not None:
                raise DataError(f"{place}: {key} is for Hugging Face datasets, and this is none")
        return None
    library = _library(
        f"{config.path}: reading Hugging Face datasets needs the package datasets: "
        "pip install 'naturelm-audio[beans]'"
    )
    try:
        if saved:
            found = library.load_from_disk(str(place))
        elif arrow:
            found = library.concatenate_datasets([library.Dataset.from_file(str(f)) for f in arrow])
        elif place.is_file():
            found = library.load_dataset("parquet", data_files=str(place))
        else:
            found = library.load_dataset(config.path, name=config.subset, split=config.split)
    except Exception as error:
        raise DataError(_not_opened(config.path, error)) from error
    split = _split(found, config)
    audio = _audio_column(split, config, columns)
    _check_where(split, config, audio)
    return ArrowRows(
        split,
        config.path + (f" [{config.split}]" if config.split else ""),
        audio_folder(config) if place.is_dir() else None,
        audio=audio,
        class_names=True,
    )


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


def _is_saved(place: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return any((place / file).is_file() for file in _SAVED)


def _saved_dataset(folder: Path) -> ArrowRows:
    library = _library(_needs(folder))
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


def _arrow_files(files: Sequence[Path], name: str, folder: Path) -> ArrowRows:
    library = _library(_needs(name))
    parts = []
    for file in files:
        try:
            parts.append(library.Dataset.from_file(str(file)))
        except Exception as error:
            raise DataError(f"{file}: {_UNFINISHED} ({short(error)})") from error
    return ArrowRows(library.concatenate_datasets(parts), name, folder)


def _split(found: Any, config: TableConfig) -> Any:
    """The split that is asked for, or the only one."""
    if not isinstance(found, Mapping):
        return found
    if config.split is None and len(found) == 1:
        return next(iter(found.values()))
    if config.split not in found:
        said = "no split is named" if config.split is None else f"there is no {config.split!r}"
        raise DataError(f"{config.path}: {said}; set `split` to one of {', '.join(found)}")
    return found[config.split]


def _audio_column(dataset: Any, config: TableConfig, columns: Columns) -> str:
    """The column named in the configuration, or the only one with sound, or else `audio`."""
    there = dataset.column_names
    (named, *_) = columns.names[AUDIO]
    if AUDIO in config.columns and named not in there:
        raise DataError(f"{config.path}: columns.audio is {named!r}; there are {', '.join(there)}")
    if named in there:
        return named
    sounds = [name for name in there if type(dataset.features[name]).__name__ == "Audio"]
    if len(sounds) > 1:
        raise DataError(
            f"{config.path}: several columns hold sound ({', '.join(sounds)}); choose "
            "with `columns: {audio: <column>}`"
        )
    return sounds[0] if sounds else AUDIO


def _check_where(dataset: Any, config: TableConfig, audio: str) -> None:
    light = [name for name in dataset.column_names if name != audio]
    for column in config.where:
        if column not in light:
            raise DataError(
                f"{config.path}: `where` asks for column {column!r}; there are {', '.join(light)}"
            )


def _holds_sound(place: Path) -> bool:
    """Whether a Parquet file has sound in it, which must not be read as a whole."""
    if place.suffix.lower() != ".parquet" or not place.is_file():
        return False
    try:
        parquet: Any = import_module("pyarrow.parquet")
        schema = parquet.read_schema(place)
    except Exception:  # whatever it is, it is said where the table is read
        return False
    types = (str(column.type) for column in schema)
    return any(kind.startswith("struct<") and "bytes: binary" in kind for kind in types)


def _classes(feature: Any) -> list[str] | None:
    """The names behind the numbers of a class label, or of a list of them."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names else None


def _class_name(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_class_name(item, names) for item in value]
    return names[value] if value >= 0 else None  # the library's mark of no label


def _library(needed: str) -> Any:
    """The library `datasets`; raises DataError with this message where it is not installed."""
    try:
        return import_module("datasets")
    except ImportError:
        raise DataError(needed) from None


def _needs(name: str | Path) -> str:
    return (
        f"{name}: reading it needs libraries that are not installed: "
        "pip install 'naturelm-audio[beans]'"
    )


def _not_opened(path: str, error: Exception) -> str:
    if Path(path).exists():
        return f"{Path(path)}: cannot be read as a Hugging Face dataset ({short(error)})"
    return (
        f"{path}: there is no such table or folder, and as a dataset on the Hugging Face "
        f"Hub it cannot be opened ({short(error)})"
    )


def short(error: BaseException) -> str:
    """The first line of what other libraries say."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


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
        raise AudioError(name, "there is no sound in the data", kind="EmptyAudio")
    if isinstance(content, (str, os.PathLike)):
        path = Path(content) if folder is None else folder / content
        return read_clip(path, start=start, duration=duration, sample_rate=sample_rate)
    try:
        if isinstance(content, (bytes, bytearray, memoryview)):
            return _from_bytes(bytes(content), suffix, start, duration, sample_rate)
        return read_clip(
            np.asarray(content),
            input_sample_rate=array_rate,
            start=start,
            duration=duration,
            sample_rate=sample_rate,
        )
    except AudioError as error:
        raise AudioError(name, error.reason, error.advice, error.kind) from error
    except UsageError as error:
        reason = f"the sound in the data cannot be used ({error})"
        raise AudioError(name, reason, kind="NotAudio") from error


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

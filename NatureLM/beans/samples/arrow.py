"""Datasets with sound in them: `save_to_disk` folders, Arrow and Parquet files, the Hub.

Nothing here loads a component: labels are read without the sound, the sound row by row, and it is
handed on as it is stored, because decoding is the work of `NatureLM.audio`.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from NatureLM.beans.samples.sample import DataError
from NatureLM.tables import Row

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

"""Tables of labelled clips: JSONL, JSON, CSV, Parquet, and folders of class names.

Columns are found by their names or by aliases, which whoever reads a table chooses; `columns` of
its configuration maps others.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from NatureLM.config.schema import TableSource
from NatureLM.errors import UsageError

Row = dict[str, Any]

CLIP_ALIASES: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "file_name", "audio_path"),
    "start": ("start", "begin", "offset"),
    "end": ("end",),
    "task": ("task",),
    "id": ("id",),
}
"""Columns that every table of clips may have, and the names that each may bear."""


class DataError(UsageError):
    """Data cannot be read, are not there, or a row of them cannot be used."""


class Columns:
    """Finds the columns of one table.

    aliases: how each column that is known may be called; those of the configuration come first
    """

    def __init__(self, config: TableSource, aliases: Mapping[str, tuple[str, ...]]) -> None:
        unknown = sorted(set(config.columns) - set(aliases))
        if unknown:
            raise DataError(
                f"{config.path}: columns maps {', '.join(unknown)}; known are {', '.join(aliases)}"
            )
        mapped = {column: (name,) for column, name in config.columns.items()}
        self.names = {**aliases, **mapped}

    def get(self, row: Row, column: str) -> Any:
        """The first of the column's names that has a value; None if there is none."""
        for name in self.names[column]:
            value = row.get(name)
            if value is not None and value != "":
                return value
        return None

    def stretch(self, row: Row, where: str) -> tuple[float, float | None]:
        """Start and end of a clip in its recording, in seconds; end None is the end of the file."""
        start = number_of(self.get(row, "start"), "start", where, 0.0)
        end = self.get(row, "end")
        stop = None if end is None else number_of(end, "end", where, math.inf)
        if stop is not None and stop <= start:
            raise DataError(f"{where}: end {stop:g} is not after start {start:g}")
        return start, stop


def filtered_rows(config: TableSource) -> Iterator[tuple[int, Row]]:
    """(line or row number, columns) of every row that passes `where`."""
    source = Path(config.path)
    if not source.exists():
        raise DataError(f"{source}: there is no such table or folder")
    is_empty = True
    for number, row in read_rows(source):
        if passes(row, config, number):
            is_empty = False
            yield number, row
    if is_empty:
        raise DataError(f"{source}: no row is left" + (" by `where`" if config.where else ""))


def read_rows(source: Path) -> Iterator[tuple[int, Row]]:
    """(line or row number, columns) of any kind of source."""
    if source.is_dir():
        yield from enumerate(_class_folders(source), start=1)
        return
    readers = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".parquet": _parquet,
    }
    reader = readers.get(source.suffix.lower())
    if reader is None:
        raise DataError(
            f"{source}: tables end in {', '.join(readers)}, or are folders of class names"
        )
    yield from reader(source)


def _class_folders(folder: Path) -> Iterator[Row]:
    """`folder/<class name>/<recordings>`; underscores in class names are spaces."""
    from NatureLM.audio import find_recordings

    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{folder}: expected a folder for each class, with recordings in it")
    for directory in classes:
        for path in find_recordings([directory]):
            yield {
                "path": os.path.relpath(path, folder),
                "answer": directory.name.replace("_", " "),
            }


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            yield number, _object(_parse(line, path, number), path, number)


def _json(path: Path) -> Iterator[tuple[int, Row]]:
    """A list of rows, or the reference's `{"annotation": [rows]}`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        yield from _jsonl(path)  # the reference names JSON lines .json at times
        return
    rows = content.get("annotation") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f'{path}: expected a list of rows, or {{"annotation": [rows]}}')
    for number, row in enumerate(rows, start=1):
        yield number, _object(row, path, number)


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter), start=2):
            if None in row:
                raise DataError(f"{path}, row {number}: more fields than the header has columns")
            yield number, dict(row)


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not valid JSON ({error})") from None


def _object(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}, row {number}: expected an object with columns, got {value!r}")
    return value


def passes(row: Row, config: TableSource, number: int) -> bool:
    """Whether a row has the values that `where` asks for."""
    for column, allowed in config.where.items():
        if column not in row:
            raise DataError(
                f"{config.path}, row {number}: `where` asks for column {column!r}; there are "
                f"{', '.join(map(str, row))}"
            )
        values = [allowed] if isinstance(allowed, str) else allowed
        if str(row[column]) not in values:
            return False
    return True


def audio_folder(config: TableSource) -> Path:
    """The folder that relative paths of a table start from."""
    source = Path(config.path)
    if config.audio_root:
        return Path(config.audio_root)
    return source if source.is_dir() else source.parent


def number_of(value: Any, column: str, where: str, default: float) -> float:
    """A cell as a number of 0 or more. Raises DataError."""
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise DataError(f"{where}: {column} must be a number of 0 or more, got {value!r}")
    return number


def strings_of(value: Any) -> list[str]:
    """A list cell: a list, a JSON list as a string, or one string."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]

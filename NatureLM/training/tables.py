"""Tables of training data: JSONL, JSON, CSV, Parquet, and folders of class names.

Every source becomes a list of `Example`. Columns are found by their names or the aliases below
(which include those of the reference's annotations and of BEANS-Zero); `columns` maps others.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from NatureLM.config.training import TableConfig
from NatureLM.errors import UsageError
from NatureLM.training.examples import Clip, Example, split_labels

ALIASES: dict[str, tuple[str, ...]] = {
    "path": ("path", "file", "file_name", "audio_path"),
    "files": ("files", "paths"),
    "start": ("start", "begin", "offset"),
    "end": ("end",),
    "prompt": ("prompt", "prompts", "query", "question", "instruction_text", "instruction"),
    "answer": ("answer", "text", "output", "label"),
    "labels": ("labels",),
    "task": ("task",),
    "dataset": ("dataset", "dataset_name", "source_dataset"),
    "weight": ("weight",),
    "group": ("group_id", "family", "recording_id"),
    "id": ("id",),
}
Row = dict[str, Any]


class TableError(UsageError):
    """A table cannot be read, or a row of it cannot be used."""


def load_examples(config: TableConfig) -> list[Example]:
    """All rows of one source that pass `where`, weights balanced as `balance` says."""
    source = Path(config.path)
    if not source.exists():
        raise TableError(f"{source}: there is no such table or folder")
    name = config.name or source.stem
    unknown = sorted(set(config.columns) - set(ALIASES))
    if unknown:
        raise TableError(
            f"{source}: columns maps {', '.join(unknown)}; known are {', '.join(ALIASES)}"
        )
    examples = [
        _example(row, number, config, source, name)
        for number, row in _rows(source, config.audio_root)
        if _passes(row, config, source, number)
    ]
    if not examples:
        raise TableError(f"{source}: no row is left" + (" by `where`" if config.where else ""))
    return balanced(examples, config.balance)


def balanced(examples: Sequence[Example], balance: str) -> list[Example]:
    """Weights so that rows, answers, or answers by their square root are drawn alike."""
    if balance == "rows":
        return list(examples)
    counts = Counter(example.answer for example in examples)
    power = 1.0 if balance == "answers" else 0.5
    return [
        replace(example, weight=example.weight / counts[example.answer] ** power)
        for example in examples
    ]


def _rows(source: Path, audio_root: str | None) -> Iterator[tuple[int, Row]]:
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
        raise TableError(
            f"{source}: tables end in {', '.join(readers)}, or are folders of class names"
        )
    yield from reader(source)


def _class_folders(folder: Path) -> Iterator[Row]:
    """`folder/<class name>/<recordings>`; underscores in class names are spaces."""
    from NatureLM.audio import find_recordings

    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise TableError(f"{folder}: expected a folder for each class, with recordings in it")
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
        raise TableError(f'{path}: expected a list of rows, or {{"annotation": [rows]}}')
    for number, row in enumerate(rows, start=1):
        yield number, _object(row, path, number)


def _csv(path: Path) -> Iterator[tuple[int, Row]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines, delimiter=delimiter), start=2):
            if None in row:
                raise TableError(f"{path}, row {number}: more fields than the header has columns")
            yield number, dict(row)


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise TableError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    number = 0
    for batch in parquet.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield number, row


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise TableError(f"{path}, line {number}: not valid JSON ({error})") from None


def _object(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise TableError(f"{path}, row {number}: expected an object with columns, got {value!r}")
    return value


def _passes(row: Row, config: TableConfig, source: Path, number: int) -> bool:
    for column, allowed in config.where.items():
        if column not in row:
            raise TableError(
                f"{source}, row {number}: `where` asks for column {column!r}; there are "
                f"{', '.join(map(str, row))}"
            )
        values = [allowed] if isinstance(allowed, str) else allowed
        if str(row[column]) not in values:
            return False
    return True


def _example(row: Row, number: int, config: TableConfig, source: Path, name: str) -> Example:
    def get(column: str) -> Any:
        wanted = config.columns.get(column)
        for candidate in [wanted] if wanted is not None else ALIASES[column]:
            value = row.get(candidate)
            if value is not None and value != "":
                return value
        return None

    where = f"{source}, row {number}"
    root = Path(config.audio_root) if config.audio_root else _own_folder(source)
    prompts = tuple(_texts(get("prompt"))) or tuple(config.prompts) or ("",)
    labels = tuple(_texts(get("labels")))
    answer = get("answer")
    if answer is None and labels:
        answer = ", ".join(labels)
    if answer is None:
        raise TableError(
            f"{where}: no answer (a column {' or '.join(ALIASES['answer'])}, or `columns: "
            "{answer: <column>}`)"
        )
    return Example(
        id=f"{name}/{get('id') or number}",
        clips=tuple(_clips(get, root, where)),
        prompts=prompts,
        answer=str(answer),
        labels=labels,
        task=str(get("task") or config.task or ""),
        dataset=str(get("dataset") or name),
        group=str(get("group") or ""),
        weight=_number(get("weight"), "weight", where, 1.0),
    )


def _own_folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _clips(get: Any, root: Path, where: str) -> Iterable[Clip]:
    start = _number(get("start"), "start", where, 0.0)
    end = get("end")
    stop = None if end is None else _number(end, "end", where, math.inf)
    if stop is not None and stop <= start:
        raise TableError(f"{where}: end {stop:g} is not after start {start:g}")
    path = get("path")
    if path is not None:
        return [Clip(str(root / str(path)), start, stop)]
    return [Clip(str(root / str(file))) for file in _texts(get("files"))]


def _number(value: Any, column: str, where: str, default: float) -> float:
    if value is None:
        return default
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise TableError(f"{where}: {column} must be a number of 0 or more, got {value!r}")
    return number


def _texts(value: Any) -> list[str]:
    """A list cell: a list, a JSON list as text, or one text."""
    if value is None:
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def with_mixable_labels(examples: Iterable[Example], tasks: Sequence[str]) -> list[Example]:
    """Rows of `tasks` get their answer as labels, so that clips of them may be mixed."""
    wanted = set(tasks)
    return [
        replace(example, labels=split_labels(example.answer))
        if example.task in wanted and not example.labels
        else example
        for example in examples
    ]

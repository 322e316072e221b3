"""Scores as files: `metrics.json`, tables as CSV and Parquet, and metrics beside a file of answers.

Every file is written whole or not at all, and its folder is made where it is not there; what cannot
be written is a UsageError.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import (
    METRICS_SUFFIX,
    NothingToScoreError,
    ReadOptions,
    load_answers,
)
from NatureLM.evaluation.bootstrap import BootstrapOptions
from NatureLM.evaluation.names import Problem
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import Scores, score_answers
from NatureLM.evaluation.tasks import ClassRow, ConfusionRow
from NatureLM.util import atomic_write

BENCHMARK = "beans-zero"
ERROR_COLUMNS = ("file", "line", "kind", "message")


def metrics_path(answers: Path) -> Path:
    """The file of metrics of a file of answers: `x.jsonl` has `x_metrics.jsonl`."""
    return answers.with_name(answers.stem + METRICS_SUFFIX)


def score_file(
    answers: Path,
    bootstrap: BootstrapOptions = BootstrapOptions(),  # noqa: B008 (frozen)
) -> tuple[Scores, Path]:
    """Score a file of answers under the benchmark's protocol, and write a line for each data set.

    Rows without an answer, and those of data sets without a task, are counted and left out. Raises
    NothingToScoreError, and takes away the metrics of an earlier run, where no row can be scored.
    """
    path = metrics_path(answers)
    problems: list[Problem] = []
    try:
        found = load_answers([answers], ReadOptions(), problems)
    except NothingToScoreError as error:
        path.unlink(missing_ok=True)
        why = f" (the first: {problems[0].message})" if problems else ""
        raise NothingToScoreError(f"No metrics: {error}{why}") from None
    scores = score_answers(found, [protocol(BENCHMARK)], bootstrap)
    lines = [
        json.dumps(without_nan(record), ensure_ascii=False, allow_nan=False) + "\n"
        for record in scores.records()
    ]
    return scores, write_text(path, "".join(lines))


def write_scores(scores: Scores, folder: str | Path, settings: Mapping[str, Any]) -> list[Path]:
    """Write everything into the folder, over what an earlier scoring left; returns the files.

    metrics.json: the records. per_class and confusion: tables. errors.csv: lines left out.
    scoring.json: `settings`, kinds of errors and remarks.
    """
    folder = Path(folder)
    written = [write_json(folder / "metrics.json", scores.records())]
    classes = [(g, row) for g in scores.groups for row in g.samples.class_rows()]
    cells = [(g, row) for g in scores.groups for row in g.samples.confusion_rows()]
    for name, kind, rows in (("per_class", ClassRow, classes), ("confusion", ConfusionRow, cells)):
        columns = ["dataset", *scores.by, "protocol", *(field.name for field in fields(kind))]
        values = [(*group.key, group.protocol, *vars(row).values()) for group, row in rows]
        written += write_table(folder / name, columns, values)
    errors = [(one.path, one.line, one.kind, one.message) for one in scores.problems]
    written.append(write_csv(folder / "errors.csv", ERROR_COLUMNS, errors))
    about = {**settings, "errors": scores.problem_kinds(), "remarks": scores.remarks}
    written.append(write_json(folder / "scoring.json", about))
    return written


def check_folder(folder: Path) -> None:
    """Make a folder and try to write into it: before long work, not after it."""
    write_data(folder / ".try", b"").unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> Path:
    """Write JSON; NaN becomes null."""
    text = json.dumps(without_nan(content), ensure_ascii=False, indent=1, allow_nan=False)
    return write_text(path, text + "\n")


def without_nan(content: Any) -> Any:
    """The same, with null for NaN and infinities, which JSON does not have."""
    if isinstance(content, Mapping):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Path]:
    """`path`.csv, and `path`.parquet where pyarrow is installed."""
    written = [write_csv(path.with_name(path.name + ".csv"), columns, rows)]
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        return written
    values = [_of_one_type([row[i] for row in rows]) for i in range(len(columns))]
    stream = io.BytesIO()
    parquet.write_table(arrow.table(dict(zip(columns, values, strict=True))), stream)
    return [*written, write_data(path.with_name(path.name + ".parquet"), stream.getvalue())]


def _of_one_type(values: list[Any]) -> list[Any]:
    """Columns of a Parquet file have one type: numbers stay numbers, mixed ones become strings."""
    types = {type(value) for value in values if value is not None}
    if types == {int, float}:
        return [None if value is None else float(value) for value in values]
    if types and types <= {int, bool, float}:
        return values
    return [None if value is None else _encoded(str(value)).decode() for value in values]


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """A table with a line of column names, UTF-8."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_text(path, stream.getvalue())


def write_text(path: Path, text: str) -> Path:
    """UTF-8; halves of characters, which JSON can hold, are escaped."""
    return write_data(path, _encoded(text))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def write_data(path: Path, data: bytes) -> Path:
    """A file of any kind; returns its path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent}: cannot be made a folder ({error.strerror})") from None
    try:
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    return path

"""Metrics in a file beside the answers of a run of the benchmark.

Scores as files: `metrics.json`, and tables as CSV and, where pyarrow is there, Parquet.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import METRICS, ReadOptions, read_answers
from NatureLM.evaluation.names import Problems
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import DEFAULT, BootstrapOptions, Scores, score_answers
from NatureLM.evaluation.tasks import ClassRow, ConfusionRow
from NatureLM.util import atomic_write

BENCHMARK = "beans-zero"


class NothingToScoreError(UsageError):
    """No row of the answers can be scored; the message says why."""


def metrics_path(answers: Path) -> Path:
    """The file of metrics of a file of answers: `x.jsonl` has `x_metrics.jsonl`."""
    return answers.with_name(answers.stem + METRICS)


def score_beside(answers: Path, evaluation: BootstrapOptions = DEFAULT) -> tuple[Scores, Path]:
    """Score a file of answers under the benchmark's protocol, and write a line for each data set.

    Rows without an answer, and those of data sets without a task, are counted and left out. The
    file of metrics is there whole or not at all. Raises NothingToScoreError, and takes away the
    metrics of an earlier run, where no row can be scored.
    """
    problems, path = Problems("skip"), metrics_path(answers)
    reading = ReadOptions()
    try:
        found = read_answers([answers], reading, problems)
    except UsageError as error:
        path.unlink(missing_ok=True)
        why = f" (the first: {problems.found[0].message})" if problems.found else ""
        raise NothingToScoreError(f"No metrics: {error}{why}") from None
    scores = score_answers(found, [protocol(BENCHMARK)], problems, evaluation=evaluation)
    lines = [
        json.dumps(without_nan(record), ensure_ascii=False, allow_nan=False) + "\n"
        for record in scores.records()
    ]
    write_data(path, "".join(lines).encode("utf-8", "backslashreplace"))
    return scores, path


ERROR_COLUMNS = ("file", "line", "kind", "message")


def write_scores(scores: Scores, folder: str | Path, settings: Mapping[str, Any]) -> list[Path]:
    """Write everything into the folder, over what an earlier scoring left; returns the files.

    metrics.json: the records. per_class and confusion: tables. errors.csv: lines left out.
    scoring.json: `settings`, kinds of errors and remarks.
    """
    folder = Path(folder)
    _make(folder)
    written = [write_json(scores.records(), folder / "metrics.json")]
    for name, kind in (("per_class", ClassRow), ("confusion", ConfusionRow)):
        columns = [*_key_columns(scores.by), "protocol", *kind.__dataclass_fields__]
        written += write_table(folder / name, columns, list(_rows(scores, kind)))
    problems = scores.problems
    errors = [(one.path, one.line, one.kind, one.message) for one in problems.found]
    written.append(write_csv(folder / "errors.csv", ERROR_COLUMNS, errors))
    about = {**settings, "errors": problems.kinds(), "remarks": scores.remarks}
    written.append(write_json(about, folder / "scoring.json"))
    return written


def check_folder(folder: Path) -> None:
    """Make a folder and try to write into it: before long work, not after it."""
    _make(folder)
    _write(folder / ".try", b"").unlink(missing_ok=True)


def write_folder_json(content: Any, folder: str | Path, name: str) -> Path:
    """Write JSON into a folder, which is made where it is not there."""
    _make(Path(folder))
    return write_json(content, Path(folder) / name)


def write_json(content: Any, path: Path) -> Path:
    """Write JSON; what is not a number becomes null."""
    text = json.dumps(without_nan(content), ensure_ascii=False, indent=1, allow_nan=False)
    return _write(path, _encoded(text) + b"\n")


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
    table = arrow.table(dict(zip(columns, values, strict=True)))
    parquet.write_table(table, stream)
    return [*written, _write(path.with_name(path.name + ".parquet"), stream.getvalue())]


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """A table with a line of column names, UTF-8."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_data(path, _encoded(stream.getvalue()))


def _rows(scores: Scores, kind: type[ClassRow] | type[ConfusionRow]) -> Iterator[tuple[Any, ...]]:
    names = list(kind.__dataclass_fields__)
    for group in scores.groups:
        samples = group.samples
        rows = samples.class_rows() if kind is ClassRow else samples.confusion_rows()
        for row in rows:
            yield (*group.key, group.protocol, *(getattr(row, name) for name in names))


def _key_columns(by: Sequence[str]) -> list[str]:
    return ["dataset", *by]


def _of_one_type(values: list[Any]) -> list[Any]:
    """Columns of a Parquet file have one type: numbers stay numbers, mixed ones become texts."""
    types = {type(value) for value in values if value is not None}
    if types == {int, float}:
        return [None if value is None else float(value) for value in values]
    if types and types <= {int, bool, float}:
        return values
    return [None if value is None else _encoded(str(value)).decode() for value in values]


def without_nan(content: Any) -> Any:
    """The same, with null for what is not a number, which JSON does not have."""
    if isinstance(content, Mapping):
        return {name: without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _encoded(text: str) -> bytes:
    """UTF-8; halves of characters, which JSON can hold, are escaped."""
    return text.encode("utf-8", "backslashreplace")


def write_data(path: Path, data: bytes) -> Path:
    """A file of any kind, whole or not at all; its folder is made where it is not there."""
    _make(path.parent)
    return _write(path, data)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made a folder ({error.strerror})") from None


def _write(path: Path, data: bytes) -> Path:
    """All of the file or nothing."""
    try:
        with atomic_write(path) as unfinished:
            unfinished.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    return path

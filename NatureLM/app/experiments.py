"""The runs and scored folders below a folder.

The recording of a sample, where it lies beside the run that asked about it.

What `beans score` wrote: `metrics.json` and `per_class.csv`, as charts and tables.

One run or scored folder, read: charts, tables and single answers as plain data.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from NatureLM.app.jobs.store import JOBS_FOLDER
from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.data.table import read_rows
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.tasks import METRICS, METRICS_OF, metric_name
from NatureLM.reports.charts import Curve, CurveChart, Point
from NatureLM.reports.tables import Cell, Measured, Table

SCORES_FILE = "metrics.json"
_DEEPEST = 4
_MOST = 500
_SAME_AGAIN = "reference_layout"
"""Copies of a run's answers in another layout."""


@dataclass(frozen=True)
class Found:
    """A folder to open.

    name: its path below the folder that was searched
    kind: `run`: answers to score; `scored`: what `beans score` wrote
    files: of answers, or of scores
    """

    name: str
    kind: Literal["run", "scored"]
    files: tuple[Path, ...]

    @property
    def identity(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when a file does."""
        found = []
        for path in self.files:
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
        return tuple(found)


def find_experiments(folder: Path) -> list[Found]:
    """Runs and scored folders, by name; the jobs of the app are not among them."""
    if not folder.is_dir():
        return []
    found = []
    for place in _folders(folder, _DEEPEST):
        name = str(place.relative_to(folder))
        if (place / SCORES_FILE).is_file():
            found.append(Found(name, "scored", (place / SCORES_FILE,)))
            continue
        answers = tuple(path for path in sorted(place.glob("*.jsonl")) if _holds_answers(path))
        if answers:
            found.append(Found(name, "run", answers))
        if len(found) >= _MOST:
            break
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folder and those below it, in order; links lead nowhere."""
    yield folder
    if not depth:
        return
    try:
        children = sorted(
            (one for one in os.scandir(folder) if one.is_dir(follow_symlinks=False)),
            key=lambda one: one.name,
        )
    except OSError:
        return
    for child in children:
        if not child.name.startswith(".") and child.name not in (JOBS_FOLDER, _SAME_AGAIN):
            yield from _folders(Path(child.path), depth - 1)


def _holds_answers(path: Path) -> bool:
    """Whether the first row is an answer that can be scored."""
    if path.is_symlink():
        return False
    try:
        with open(path, "rb") as file:
            row = json.loads(file.readline(1 << 20))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and {"prediction", "label", "id"} <= row.keys()


_TABLE = "metadata.jsonl"
_NAMES = ("file_name", "path", "file", "audio_path")
_MOST_ROWS = 100_000


def find_audio(sample: str, run: Path, root: Path) -> Path | None:
    """The file of a sample, or None.

    sample: its id, as the answers have it; run: the folder of the answers; root: no file outside
    of it is ever given

    Benchmarks keep their clips beside the answers, under a `metadata.jsonl` with ids and files.
    """
    for table in _tables(run, root):
        try:
            for number, row in read_rows(table):
                if number > _MOST_ROWS:
                    break
                if str(row.get("id")) == sample:
                    return _inside(row, table.parent, root)
        except (NatureLMError, OSError, UnicodeDecodeError):
            continue
    return None


def _tables(run: Path, root: Path) -> Iterator[Path]:
    places = [run, *sorted(path for path in run.iterdir() if path.is_dir())]
    if run != root:
        places += sorted(path for path in run.parent.iterdir() if path.is_dir() and path != run)
    for place in places:
        if (place / _TABLE).is_file():
            yield place / _TABLE


def _inside(row: dict[str, object], folder: Path, root: Path) -> Path | None:
    for name in _NAMES:
        value = row.get(name)
        if not isinstance(value, str) or not value:
            continue
        path = (folder / value).resolve()
        is_allowed = path.is_relative_to(root.resolve()) and path.suffix.lower() in AUDIO_SUFFIXES
        return path if is_allowed and path.is_file() else None
    return None


CLASSES_FILE = "per_class.csv"
_BASELINES = {"majority": "always the same answer", "random": "random"}
_NO_LINE = ("protocol", "task", "n", "intervals", "clusters", "cluster_by", "baselines")

Lines: TypeAlias = dict[tuple[str, str], list[Mapping[str, Any]]]
"""Records by data set and question."""


@dataclass(frozen=True)
class Scored:
    """What stands in a folder of scores."""

    facts: dict[str, str]
    charts: tuple[CurveChart, ...]
    metrics: Table
    classes: dict[str, Table]


def read_scored(path: Path) -> Scored:
    """The scores of the folder of a `metrics.json`. Raises UsageError where it is none."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        lines: Lines = {}
        for record in records:
            lines.setdefault((str(record["dataset"]), _line(record)), []).append(record)
        charts = tuple(_charts(lines))
        rows = tuple(_row(key, record) for key, some in lines.items() for record in some)
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path.name}: this is no file of scores of `beans score`") from None
    if not rows:
        raise UsageError(f"{path.name}: there is no score in it")
    return Scored(
        {"Scores": f"{len(rows):,} groups", "Protocol": str(records[0].get("protocol", "-"))},
        charts,
        Table(
            "metrics",
            "Metrics",
            ("data set", "question", "α", "n", "metric", "value"),
            rows,
            frozenset({"value"}),
        ),
        _classes(path.with_name(CLASSES_FILE)),
    )


def _line(record: Mapping[str, Any]) -> str:
    """The question: what tells groups of a data set apart, but α."""
    metrics = {*METRICS, "cider_benchmark"}
    left_out = {"dataset", "lora_scale", "errors", "errors_in_group", *_NO_LINE, *metrics}
    named = [
        f"{name} {value}"
        for name, value in record.items()
        if name not in left_out and value is not None and isinstance(value, str | int | float)
    ]
    return ", ".join(named) or "all answers"


def _charts(lines: Lines) -> Iterator[CurveChart]:
    """The main metric of every data set and task, a curve for each question."""
    alike: dict[tuple[str, str], Lines] = {}
    for (dataset, line), records in lines.items():
        metric = METRICS_OF[records[0]["task"]][0]
        alike.setdefault((dataset, metric), {})[dataset, line] = records
    for number, ((dataset, metric), some) in enumerate(alike.items()):
        first = next(iter(some.values()))[0]
        yield CurveChart(
            key=f"scored-{number}",
            title=f"{dataset}: {metric_name(metric)}",
            measure=metric_name(metric),
            curves=tuple(_curve(line, metric, records) for (_, line), records in some.items()),
            baselines={
                _BASELINES.get(name, name): float(values[metric])
                for name, values in (first.get("baselines") or {}).items()
                if values.get(metric) is not None
            },
            is_share=metric != "cider",
        )


def _curve(line: str, metric: str, records: Sequence[Mapping[str, Any]]) -> Curve:
    points = [_point(record, metric) for record in records]
    return Curve(line, tuple(sorted(points, key=lambda point: point.alpha or 0.0)))


def _point(record: Mapping[str, Any], metric: str) -> Point:
    low, high = (record.get("intervals") or {}).get(metric) or (None, None)
    alpha = record.get("lora_scale")
    return Point(None if alpha is None else float(alpha), float(record[metric] or 0.0), low, high)


def _row(key: tuple[str, str], record: Mapping[str, Any]) -> tuple[Cell, ...]:
    metric = METRICS_OF[record["task"]][0]
    low, high = (record.get("intervals") or {}).get(metric) or (None, None)
    alpha = record.get("lora_scale")
    return (
        *key,
        None if alpha is None else float(alpha),
        int(record["n"]),
        metric_name(metric),
        Measured(record[metric], low, high),
    )


def _classes(path: Path) -> dict[str, Table]:
    """The classes of each data set; none where the table is not there."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return {}
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(row.get("dataset", ""), []).append(row)
    return {
        name: Table(
            f"classes-{number}",
            f"Classes of {name}",
            tuple(column for column in some[0] if column != "dataset"),
            tuple(
                tuple(_cell(value) for column, value in row.items() if column != "dataset")
                for row in some
            ),
        )
        for number, (name, some) in enumerate(found.items())
    }


def _cell(value: str) -> Cell:
    for kind in (int, float):
        try:
            return kind(value)
        except (TypeError, ValueError):
            continue
    return value


MOST_ANSWERS = 2000


@dataclass(frozen=True)
class Answer:
    """A single answer. `right` is None for captions, which are neither right nor wrong."""

    line: str
    alpha: float | None
    sample: str
    label: str
    answer: str
    taken_for: str
    right: bool | None


@dataclass(frozen=True)
class Experiment:
    """What is shown.

    facts: what was read and how, by name
    charts: curves over α
    classes: the table of classes of each line (data set and question), by its name
    answers: single answers, the same samples at every α; none for a scored folder
    remark: what should be known besides
    """

    name: str
    facts: dict[str, str]
    charts: tuple[CurveChart, ...]
    metrics: Table
    classes: dict[str, Table]
    answers: tuple[Answer, ...]
    remark: str


def open_experiment(found: Found) -> Experiment:
    """Read a folder; a second time only when its files have changed.

    Raises UsageError and OutputError for files that cannot be scored.
    """
    return _open(found, found.identity)


@lru_cache(maxsize=8)
def _open(found: Found, identity: object) -> Experiment:
    if found.kind == "scored":
        scored = read_scored(found.files[0])
        return Experiment(
            found.name,
            scored.facts,
            scored.charts,
            scored.metrics,
            scored.classes,
            (),
            "This folder holds scores; single answers are in the folder of the run.",
        )
    return _run(found.name, found.files)


def _run(name: str, files: tuple[Path, ...]) -> Experiment:
    from NatureLM.evaluation.protocols import protocol
    from NatureLM.evaluation.score import score
    from NatureLM.reports.report import make_report

    scores = score([str(path) for path in files], [protocol("beans-zero")], on_error="skip")
    report = make_report(
        scores, title=name, sources=[path.name for path in files], most_answers=MOST_ANSWERS
    )
    lines = [one for dataset in report.datasets for one in dataset.lines]
    shown = report.answers
    remark = "; ".join(report.remarks)
    if shown.shown < shown.total:
        remark = f"{shown.shown:,} of {shown.total:,} answers can be read here. {remark}".strip()
    return Experiment(
        name=name,
        facts=report.facts,
        charts=tuple(chart for dataset in report.datasets for chart in dataset.charts),
        metrics=report.metrics,
        classes={
            f"{one.line.dataset}, {one.line.name}": one.classes
            for one in lines
            if one.classes is not None and one.classes.rows
        },
        answers=tuple(_answers(shown.data)),
        remark=remark,
    )


def _answers(data: dict[str, list[list[object]]]) -> Iterator[Answer]:
    """Single answers from the form in which the page of a report holds them."""
    groups, texts = data["groups"], data["texts"]
    for group, *places, score in data["rows"]:
        dataset, line, alpha, is_caption = groups[int(str(group))]
        sample, label, answer, taken = (str(texts[int(str(place))]) for place in places)
        yield Answer(
            line=f"{dataset}, {line}",
            alpha=alpha if isinstance(alpha, int | float) else None,
            sample=sample,
            label=label,
            answer=answer,
            taken_for=taken,
            right=None if is_caption else score == 1,
        )

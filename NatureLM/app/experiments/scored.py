"""What `beans score` wrote: `metrics.json` and `per_class.csv`, as charts and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from NatureLM.errors import UsageError
from NatureLM.reports.charts import METRIC_NAMES, Curve, CurveChart, Point
from NatureLM.reports.study import MAIN_METRIC
from NatureLM.reports.tables import Cell, Measured, Table

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
    metrics = set(METRIC_NAMES) | {"precision", "recall", "top1", "cider_benchmark"}
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
        metric = MAIN_METRIC[records[0]["task"]]
        alike.setdefault((dataset, metric), {})[dataset, line] = records
    for number, ((dataset, metric), some) in enumerate(alike.items()):
        first = next(iter(some.values()))[0]
        yield CurveChart(
            key=f"scored-{number}",
            title=f"{dataset}: {METRIC_NAMES[metric]}",
            measure=METRIC_NAMES[metric],
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
    metric = MAIN_METRIC[record["task"]]
    low, high = (record.get("intervals") or {}).get(metric) or (None, None)
    alpha = record.get("lora_scale")
    return (
        *key,
        None if alpha is None else float(alpha),
        int(record["n"]),
        METRIC_NAMES[metric],
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

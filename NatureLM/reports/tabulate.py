"""The tables that a report holds."""

from __future__ import annotations

from collections.abc import Sequence

from NatureLM.beans.scoring.results import ClassRow
from NatureLM.reports.charts import METRIC_NAMES, GridChart, Point
from NatureLM.reports.classes import confusion_counts, rows_by_label
from NatureLM.reports.form import Form
from NatureLM.reports.study import Line, alpha_text
from NatureLM.reports.tables import Cell, Measured, Table

MOST_CONFUSIONS = 50
_METRICS = ("accuracy", "precision", "recall", "f1", "map", "cider", "spice")


def metrics_table(lines: Sequence[Line]) -> Table:
    """All metrics of all lines at every α, with intervals and the baselines beside them."""
    groups = [group for line in lines for group in line.groups]
    metrics = [name for name in _METRICS if any(name in group.metrics for group in groups)]
    rows = []
    for line in lines:
        for alpha, group in zip(line.alphas, line.groups, strict=True):
            cells: list[Cell] = [line.dataset, line.name, alpha_text(alpha), len(group.ids)]
            for name in metrics:
                low, high = group.intervals.get(name) or (None, None)
                cells.append(Measured(group.metrics.get(name), low, high))
            for kind in ("majority", "random"):
                cells.append(group.baselines.get(kind, {}).get(line.main_metric))
            rows.append(tuple(cells))
    names = [METRIC_NAMES.get(name, name) for name in metrics]
    return Table(
        key="metrics",
        title="Metrics with 95 % intervals; majority and random are what answers without "
        "listening get in the first of accuracy, F1 and CIDEr that the task has",
        columns=("data set", "question", "α", "n", *names, "majority", "random"),
        rows=tuple(rows),
        measured=frozenset(names),
    )


def class_table(line: Line, between: tuple[float, float] | None) -> Table | None:
    """Every class of a line at two α (at one, where there is only one); None without classes."""
    if line.task == "captioning":
        return None
    places = line.pair(between) or (line.best,)
    found = [rows_by_label(line.groups[place]) for place in places]
    labels = sorted({label for rows in found for label in rows})
    columns = ["class", "n"]
    for place in places:
        at = f" at {alpha_text(line.alphas[place])}" if len(places) > 1 else ""
        columns += [f"precision{at}", f"recall{at}", f"F1{at}"]
    rows: list[tuple[Cell, ...]] = []
    for label in labels:
        per_class = [rows_of.get(label) for rows_of in found]
        support = max(row.support for row in per_class if row is not None)
        cells: list[Cell] = [label, support]
        for row in per_class:
            cells += _scores(row)
        if len(places) > 1:
            cells.append(_f1(per_class[-1]) - _f1(per_class[0]))
        rows.append(tuple(cells))
    if len(places) > 1:
        columns.append("change of F1")
    title = f"Classes of {line.dataset}, {line.name}"
    return Table(f"{line.dataset}-{line.name}-classes", title, tuple(columns), tuple(rows))


def confusion_table(line: Line) -> Table | None:
    """The most frequent mistakes at the best α; None where labels are no single ones."""
    if line.task != "classification":
        return None
    found: list[tuple[str, str, int, float]] = [
        (label, taken, n, n / sum(row.values()))
        for label, row in confusion_counts(line.groups[line.best]).items()
        for taken, n in row.items()
        if label != taken
    ]
    found.sort(key=lambda one: (-one[2], one[0], one[1]))
    return Table(
        f"{line.dataset}-{line.name}-confusions",
        f"Most frequent mistakes: {line.dataset}, {line.name}, "
        f"α = {alpha_text(line.alphas[line.best])}",
        ("class", "taken for", "times", "share of the class"),
        tuple(found[:MOST_CONFUSIONS]),
    )


def form_table(lines: Sequence[Line], forms: Sequence[Sequence[Form]]) -> Table:
    """The form of answers at every α."""
    names = ("words per answer", "are a label", "name one label", "taken for a label")
    rows: list[tuple[Cell, ...]] = []
    for line, found in zip(lines, forms, strict=True):
        for alpha, form in zip(line.alphas, found, strict=True):
            points = (form.words, form.is_label, form.names_one, form.matched)
            shares = map(_measured, points)
            rows.append((line.dataset, line.name, alpha_text(alpha), *shares))
    return Table(
        "form",
        "Form of the answers: mean length, and shares that do as they were told",
        ("data set", "question", "α", *names),
        tuple(rows),
        measured=frozenset(names),
    )


def grid_table(chart: GridChart) -> Table:
    """A heat map as a table."""
    rows = tuple((name, *row) for name, row in zip(chart.rows, chart.values, strict=True))
    columns = tuple(f"{chart.column_title} {name}" for name in chart.columns)
    return Table(chart.key, chart.title, (chart.row_title or "data set", *columns), rows)


def _measured(point: Point | None) -> Measured:
    return Measured(None) if point is None else Measured(point.value, point.low, point.high)


def _scores(row: ClassRow | None) -> list[Cell]:
    return [None, None, None] if row is None else [row.precision, row.recall, row.f1]


def _f1(row: ClassRow | None) -> float:
    return 0.0 if row is None else row.f1

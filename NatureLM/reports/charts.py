"""What a report shows, as plain numbers: curves over α, grids, changes of classes, and tables.

`Series` is one question to one data set along α; `series_of` makes them of scores, in the order in
which a report shows them. The page holds the same numbers as JSON.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from NatureLM.data.components import METRICS, METRICS_OF, Task, metric_name
from NatureLM.errors import UsageError
from NatureLM.evaluation.metrics import (
    BootstrapOptions,
    Estimate,
    Floats,
    percentile_interval,
    resampled_mean,
)
from NatureLM.evaluation.protocols import (
    END_OF_TEXT,
    NO_LABEL,
    PROTOCOLS,
    ClassRow,
    Matcher,
    caseless,
)
from NatureLM.evaluation.score import GroupScore, Scores

MOST_CONFUSIONS = 50
MOST_CHANGES = 12
"""Classes shown at either end of the changes."""

WORST = 10
OTHERS = 3
ALL_OTHERS = "(other labels)"

_FORMS = {
    "is_label": ("answers that are a label", "are a label"),
    "names_one": ("answers that name one label", "name one label"),
    "matched": ("answers taken for a label", "taken for a label"),
    "words": ("words per answer", "words per answer"),
}
"""Measures of the form of answers: their names in charts and in tables."""

Cell: TypeAlias = str | int | float | Estimate | None
Form: TypeAlias = dict[str, Estimate]
Keyed = TypeVar("Keyed", bound=Any)


@dataclass(frozen=True)
class Point:
    """A value at one α with its 95 % interval."""

    alpha: float | None
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """The points of one series."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class CurveChart:
    """Curves over α.

    key: name of the figure's files
    baselines: values of answers without listening, by name
    is_share: whether values lie between 0 and 1
    marks: values of α that upright lines point out, by name
    """

    key: str
    title: str
    measure: str
    curves: tuple[Curve, ...]
    baselines: dict[str, float] = field(default_factory=dict)
    marks: dict[str, float] = field(default_factory=dict)
    is_share: bool = True
    kind: str = "curves"


@dataclass(frozen=True)
class GridChart:
    """Values in cells, (rows, columns); None is an empty cell.

    counts: what is written into the cells, where it is not the value
    """

    key: str
    title: str
    measure: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    row_title: str
    column_title: str
    counts: tuple[tuple[int, ...], ...] | None = None
    kind: str = "grid"


@dataclass(frozen=True)
class Change:
    """A class before and after."""

    name: str
    support: int
    before: float
    after: float


@dataclass(frozen=True)
class ChangeChart:
    """Classes at two α.

    classes: those with the largest gains and losses, from gain to loss
    gains, losses, total: how many classes gain, lose, and are there
    """

    key: str
    title: str
    measure: str
    before: str
    after: str
    classes: tuple[Change, ...]
    gains: int
    losses: int
    total: int
    kind: str = "change"


Chart = CurveChart | GridChart | ChangeChart


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    key: name of the table's files
    measured: columns whose cells are estimates; in CSV the interval has columns of its own
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    measured: frozenset[str] = frozenset()

    @property
    def is_number(self) -> tuple[bool, ...]:
        """Whether a column holds numbers."""
        return tuple(
            all(isinstance(row[place], int | float | Estimate | None) for row in self.rows)
            for place in range(len(self.columns))
        )


class Keys:
    """Gives charts and tables keys that may be names of files, each another."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def key(self, wanted: str) -> str:
        """The wanted key without odd characters; another where something else has it."""
        slug = re.sub(r"[^a-z0-9._]+", "-", wanted.lower()).strip("-.")[:80] or "figure"
        key, number = slug, 2
        while key in self._used:
            key, number = f"{slug}-{number}", number + 1
        self._used.add(key)
        return key

    def unique(self, one: Keyed) -> Keyed:
        """A chart or table under a key that nothing else has."""
        return replace(one, key=self.key(one.key))


def cell_text(cell: Cell) -> str:
    """A cell as people read it: shares to three places."""
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def alpha_text(alpha: float | None) -> str:
    """α as it is written: exact, and as short as that allows."""
    return "-" if alpha is None else repr(alpha)


@dataclass(frozen=True, eq=False)
class Series:
    """One question to one data set, at every α that was tried.

    name: in legends, such as "query 0"
    groups: the scores by rising α; a single one where the answers tell no α
    alphas: the α of each group; None where the answers tell none
    forms: the form of the answers of each group, where it has one
    """

    dataset: str
    name: str
    groups: tuple[GroupScore, ...]
    alphas: tuple[float | None, ...]
    forms: tuple[Form, ...]

    def __iter__(self) -> Iterator[tuple[float | None, GroupScore]]:
        """α and scores of each group."""
        return zip(self.alphas, self.groups, strict=True)

    @property
    def task(self) -> Task:
        return self.groups[0].task

    @property
    def main_metric(self) -> str:
        """The metric by which the best α is chosen; accuracy where the task's is not defined."""
        wanted = METRICS_OF[self.task][0]
        return wanted if self.has(wanted) else "accuracy"

    def has(self, metric: str) -> bool:
        """Whether a metric is defined at every α."""
        return all(metric in group.metrics for group in self.groups)

    @property
    def best(self) -> int:
        """Place of the best α; the smallest among equals."""
        values = [group.metrics[self.main_metric] for group in self.groups]
        return values.index(max(values))

    def at(self, place: int) -> str:
        """α of a group in words."""
        return f"α = {alpha_text(self.alphas[place])}"

    def pair(self, between: tuple[float, float] | None) -> tuple[int, int] | None:
        """Places of the two α whose classes are compared; None where there is only one α.

        between: the two values; None takes the adapted model (α = 1, else the largest α) and the
            best α, or, if that is the best, the smallest α and it.

        Raises UsageError for an α that the series does not have.
        """
        if len(self.groups) < 2:
            return None
        if between is None:
            adapted = self.alphas.index(1.0) if 1.0 in self.alphas else len(self.groups) - 1
            return (0 if adapted == self.best else adapted), self.best
        for alpha in between:
            if alpha not in self.alphas:
                known = ", ".join(map(alpha_text, self.alphas))
                raise UsageError(
                    f"--between: {self.dataset}, {self.name} has no answers at α = {alpha:g}; "
                    f"there are {known}"
                )
        return self.alphas.index(between[0]), self.alphas.index(between[1])

    def curve(self, estimates: Iterable[Estimate | None]) -> Curve:
        """The curve of a value at each α; left out where there is none."""
        points = [
            Point(alpha, one.value, None, None)
            if math.isnan(one.low)
            else Point(alpha, one.value, one.low, one.high)
            for alpha, one in zip(self.alphas, estimates, strict=True)
            if one is not None
        ]
        return Curve(self.name, tuple(points))


def series_of(scores: Scores, bootstrap: BootstrapOptions) -> dict[str, list[Series]]:
    """The series of each data set in sorted order; `scores` of one protocol.

    Columns other than α tell series apart. Intervals of the answers' form are made as `bootstrap`
    says.
    """
    found: dict[tuple[str, str], list[tuple[float | None, GroupScore]]] = {}
    for group in scores.groups:
        values = dict(zip(scores.by, group.key[1:], strict=True))
        alpha = None
        if isinstance(tried := values.get("lora_scale"), int | float):
            alpha = float(tried)
            del values["lora_scale"]
        name = ", ".join(
            f"{'α' if column == 'lora_scale' else column} {value}"
            for column, value in values.items()
            if value is not None
        )
        key = group.dataset, name or "all answers"
        found.setdefault(key, []).append((alpha, _defined(group)))
    datasets: dict[str, list[Series]] = {}
    for (dataset, name), pairs in found.items():
        pairs.sort(key=lambda pair: -1.0 if pair[0] is None else pair[0])
        alphas, groups = zip(*pairs, strict=True)
        forms = tuple(_form(group, bootstrap) for group in groups)
        datasets.setdefault(dataset, []).append(Series(dataset, name, groups, alphas, forms))
    return datasets


def _defined(group: GroupScore) -> GroupScore:
    """Without metrics that are NaN: those of labels, where no sample has any."""
    metrics = {name: value for name, value in group.metrics.items() if math.isfinite(value)}
    baselines = {
        kind: {name: value for name, value in values.items() if name in metrics}
        for kind, values in group.baselines.items()
    }
    return replace(group, metrics=metrics, baselines=baselines)


def _form(group: GroupScore, bootstrap: BootstrapOptions) -> Form:
    """Means over a group's answers, with intervals.

    words: how many an answer has. is_label: whether it is one of the labels (in detection, a list
    of labels) and nothing else. names_one: whether it contains exactly one of the labels. matched:
    whether the protocol took it for some label.
    """
    texts = [answer.partition(END_OF_TEXT)[0] for answer in group.answers]
    found: dict[str, Sequence[float]] = {"words": [len(text.split()) for text in texts]}
    if group.task != "captioning":
        folded = set(map(caseless, group.candidates))
        parts = [text.split(",") if group.task == "detection" else [text] for text in texts]
        found["is_label"] = [all(caseless(part) in folded for part in one) for one in parts]
    if group.task == "classification":
        labels = [label for label in group.candidates if label != NO_LABEL]
        named = Matcher(PROTOCOLS["mention"], group.dataset, labels).codes(texts)
        found["names_one"] = (named >= 0).tolist()
        taken_for = set(group.candidates)
        found["matched"] = [taken in taken_for for taken in group.samples.predicted]
    return {name: _mean(group, each, bootstrap) for name, each in found.items()}


def _mean(group: GroupScore, each: Sequence[float], bootstrap: BootstrapOptions) -> Estimate:
    values: Floats = np.array(each, dtype=np.float64)
    drawn = resampled_mean(values, group.cluster_codes, bootstrap)
    return Estimate(float(values.mean()), *(percentile_interval(drawn) or ()))


def curve_charts(dataset: str, series: Sequence[Series]) -> Iterator[CurveChart]:
    """A chart for each metric of a data set and for the form of its answers, with all series."""
    for metric in METRICS_OF[series[0].task]:
        if metric not in ("precision", "recall") and all(one.has(metric) for one in series):
            name = metric_name(metric)
            yield CurveChart(
                key=f"{dataset}-{metric}",
                title=f"{dataset}: {name}",
                measure=name,
                curves=tuple(one.curve(g.estimate(metric) for g in one.groups) for one in series),
                baselines=_common_baselines(series, metric),
                is_share=metric != "cider",
            )
    for form, (measure, _) in _FORMS.items():
        curves = tuple(one.curve(found.get(form) for found in one.forms) for one in series)
        # A protocol that takes every answer for a label has nothing to show there.
        values = {point.value for curve in curves for point in curve.points}
        if all(curve.points for curve in curves) and not (form == "matched" and values == {1}):
            key, title = f"{dataset}-{form.replace('_', '-')}", f"{dataset}: {measure}"
            yield CurveChart(key, title, measure, curves, is_share=form != "words")


def _common_baselines(series: Sequence[Series], metric: str) -> dict[str, float]:
    """The baselines of all groups where they agree to three places, else those of each series."""
    found: dict[str, float] = {}
    for kind in ("majority", "random"):
        values = {
            one.name: baseline[metric]
            for one in series
            if metric in (baseline := one.groups[0].baselines.get(kind, {}))
        }
        if values and max(values.values()) - min(values.values()) < 0.0005:
            found[kind] = next(iter(values.values()))
        else:
            found |= {f"{kind}, {name}": value for name, value in values.items()}
    return found


def heat_charts(series: Iterable[Series]) -> list[GridChart]:
    """Data set × α for each name of a series; nothing where there is only one of either."""
    alike: dict[str, dict[str, list[Series]]] = {}
    for one in series:
        alike.setdefault(one.name, {}).setdefault(one.main_metric, []).append(one)
    charts = [
        _heat_chart(name, metric, found)
        for name, by_metric in alike.items()
        for metric, found in by_metric.items()
    ]
    return [chart for chart in charts if len(chart.rows) > 1 and len(chart.columns) > 1]


def _heat_chart(name: str, metric: str, series: Sequence[Series]) -> GridChart:
    alphas = sorted({alpha for one in series for alpha in one.alphas if alpha is not None})
    known = [{alpha: group.metrics[metric] for alpha, group in one} for one in series]
    return GridChart(
        key=f"datasets-{name}-{metric}",
        title=f"{metric_name(metric)} of {name} by data set and α",
        measure=metric_name(metric),
        rows=tuple(one.dataset for one in series),
        columns=tuple(f"{alpha:g}" for alpha in alphas),
        values=tuple(tuple(row.get(alpha) for alpha in alphas) for row in known),
        row_title="",
        column_title="α",
    )


def grid_table(chart: GridChart) -> Table:
    """A heat map as a table."""
    rows = tuple((name, *row) for name, row in zip(chart.rows, chart.values, strict=True))
    columns = tuple(f"{chart.column_title} {name}" for name in chart.columns)
    return Table(chart.key, chart.title, (chart.row_title or "data set", *columns), rows)


def metrics_table(series: Sequence[Series]) -> Table:
    """All metrics of all series at every α, with intervals and the baselines beside them."""
    known = {name for one in series for group in one.groups for name in group.metrics}
    metrics = [name for name in METRICS if name in known and name != "top1"]
    names = list(map(metric_name, metrics))
    rows: list[tuple[Cell, ...]] = [
        (
            *(one.dataset, one.name, alpha_text(alpha), len(group.ids)),
            *map(group.estimate, metrics),
            *(group.baselines.get(k, {}).get(one.main_metric) for k in ("majority", "random")),
        )
        for one in series
        for alpha, group in one
    ]
    return Table(
        key="metrics",
        title="Metrics with 95 % intervals; majority and random are what answers without "
        "listening get in the first of accuracy, F1 and CIDEr that the task has",
        columns=("data set", "question", "α", "n", *names, "majority", "random"),
        rows=tuple(rows),
        measured=frozenset(names),
    )


def form_table(series: Sequence[Series]) -> Table:
    """The form of answers at every α."""
    forms = {name: _FORMS[name][1] for name in ("words", "is_label", "names_one", "matched")}
    rows = [
        (one.dataset, one.name, alpha_text(alpha), *map(form.get, forms))
        for one in series
        for alpha, form in zip(one.alphas, one.forms, strict=True)
    ]
    return Table(
        "form",
        "Form of the answers: mean length, and shares that do as they were told",
        ("data set", "question", "α", *forms.values()),
        tuple(rows),
        measured=frozenset(forms.values()),
    )


def class_table(series: Series, between: tuple[float, float] | None) -> Table | None:
    """Every class of a series at two α (at one, where there is only one); None without classes."""
    if series.task == "captioning":
        return None
    places = series.pair(between) or (series.best,)
    found = [_rows_by_label(series.groups[place]) for place in places]
    columns = ["class", "n"]
    for place in places:
        at = f" at {alpha_text(series.alphas[place])}" if len(places) > 1 else ""
        columns += [f"precision{at}", f"recall{at}", f"F1{at}"]
    rows: list[tuple[Cell, ...]] = []
    for label in sorted({label for rows_of in found for label in rows_of}):
        per_class = [rows_of.get(label) for rows_of in found]
        cells: list[Cell] = [label, max(row.support for row in per_class if row is not None)]
        for row in per_class:
            cells += [row.precision, row.recall, row.f1] if row else [None, None, None]
        if len(places) > 1:
            cells.append(_f1(found[-1], label) - _f1(found[0], label))
        rows.append(tuple(cells))
    if len(places) > 1:
        columns.append("change of F1")
    title = f"Classes of {series.dataset}, {series.name}"
    key = f"{series.dataset}-{series.name}-classes"
    return Table(key, title, tuple(columns), tuple(rows))


def change_chart(series: Series, between: tuple[float, float] | None) -> ChangeChart | None:
    """F1 of each class at two α: the largest gains and losses; None where nothing can change."""
    pair = series.pair(between)
    if pair is None or series.task == "captioning":
        return None
    before, after = (_rows_by_label(series.groups[place]) for place in pair)
    changes = [
        Change(label, row.support, _f1(before, label), row.f1)
        for label, row in after.items()
        if row.support
    ]
    changes.sort(key=lambda one: (one.before - one.after, one.name))
    gains = [one for one in changes if one.after > one.before]
    losses = [one for one in changes if one.after < one.before]
    shown = changes
    if len(changes) > 2 * MOST_CHANGES:
        shown = gains[:MOST_CHANGES] + losses[-MOST_CHANGES:]
    if not shown:
        return None
    return ChangeChart(
        key=f"{series.dataset}-{series.name}-change",
        title=f"{series.dataset}, {series.name}: F1 of classes",
        measure="F1 of the class",
        before=series.at(pair[0]),
        after=series.at(pair[1]),
        classes=tuple(shown),
        gains=len(gains),
        losses=len(losses),
        total=len(changes),
    )


def _rows_by_label(group: GroupScore) -> dict[str, ClassRow]:
    return {row.label: row for row in group.samples.class_rows()}


def _f1(rows: Mapping[str, ClassRow], label: str) -> float:
    return rows[label].f1 if label in rows else 0.0


def confusion_table(series: Series) -> Table | None:
    """The most frequent mistakes at the best α; None where labels are no single ones."""
    if series.task != "classification":
        return None
    found: list[tuple[str, str, int, float]] = [
        (label, taken, n, n / row.total())
        for label, row in _confusions(series).items()
        for taken, n in row.items()
        if label != taken
    ]
    found.sort(key=lambda one: (-one[2], one[0], one[1]))
    return Table(
        f"{series.dataset}-{series.name}-confusions",
        f"Most frequent mistakes: {series.dataset}, {series.name}, {series.at(series.best)}",
        ("class", "taken for", "times", "share of the class"),
        tuple(found[:MOST_CONFUSIONS]),
    )


def confusion_chart(series: Series) -> GridChart | None:
    """The classes with most errors at the best α, and what their clips were taken for.

    Cells hold shares of the row. None where labels are sets or texts, or nothing is wrong.
    """
    if series.task != "classification":
        return None
    counts = _confusions(series)
    wrong = Counter({label: row.total() - row[label] for label, row in counts.items()})
    worst = sorted(wrong, key=lambda one: (-wrong[one], one))[:WORST]
    if not any(wrong.values()):
        return None
    taken: Counter[str] = Counter()
    for label in worst:
        taken.update({name: n for name, n in counts[label].items() if name not in worst})
    others = sorted(taken, key=lambda one: (-taken[one], one))[:OTHERS]
    answered = {name for label in worst for name in counts[label]}
    columns = [name for name in (*worst, *others) if name in answered]
    totals = [counts[label].total() for label in worst]
    table = [[counts[label][name] for name in columns] for label in worst]
    if len(taken) > len(others):
        columns.append(ALL_OTHERS)
        table = [[*row, total - sum(row)] for row, total in zip(table, totals, strict=True)]
    return GridChart(
        key=f"{series.dataset}-{series.name}-confusion",
        title=f"{series.dataset}, {series.name}: worst classes, {series.at(series.best)}",
        measure="share of the class's clips",
        rows=tuple(worst),
        columns=tuple(columns),
        values=tuple(
            tuple(n / total for n in row) for row, total in zip(table, totals, strict=True)
        ),
        row_title="true",
        column_title="taken for",
        counts=tuple(map(tuple, table)),
    )


def _confusions(series: Series) -> dict[str, Counter[str]]:
    """How often each label was taken for what at the best α."""
    counts: dict[str, Counter[str]] = {}
    for row in series.groups[series.best].samples.confusion_rows():
        counts.setdefault(row.label, Counter())[row.predicted] += row.count
    return counts

"""What the figures draw: plain numbers, the same that stand in the page as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from NatureLM.beans.scoring.results import GroupScore
from NatureLM.reports.study import SHOWN_METRICS, Line

METRIC_NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "map": "mean average precision",
    "cider": "CIDEr",
    "spice": "SPICE",
}


@dataclass(frozen=True)
class Point:
    """A value at one α with its 95 % interval."""

    alpha: float | None
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Curve:
    """The points of one line."""

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


def metric_charts(dataset: str, lines: Sequence[Line]) -> list[CurveChart]:
    """A chart for each metric of a data set, with a curve for each of its lines."""
    metrics = [
        name
        for name in SHOWN_METRICS[lines[0].task]
        if all(name in group.metrics for line in lines for group in line.groups)
    ]
    return [_metric_chart(dataset, lines, name) for name in metrics]


def heat_charts(datasets: dict[str, list[Line]]) -> list[GridChart]:
    """Data set × α for each name of a line; nothing where there is only one of either."""
    names = list(dict.fromkeys(line.name for lines in datasets.values() for line in lines))
    charts = []
    for name in names:
        lines = [line for found in datasets.values() for line in found if line.name == name]
        for metric in dict.fromkeys(line.main_metric for line in lines):
            chart = _heat_chart(name, metric, [one for one in lines if one.main_metric == metric])
            if len(chart.rows) > 1 and len(chart.columns) > 1:
                charts.append(chart)
    return charts


def point_of(alpha: float | None, group: GroupScore, metric: str) -> Point:
    """A metric of a group as a point."""
    low, high = group.intervals.get(metric) or (None, None)
    return Point(alpha, group.metrics[metric], low, high)


def _metric_chart(dataset: str, lines: Sequence[Line], metric: str) -> CurveChart:
    curves = tuple(
        Curve(
            line.name,
            tuple(
                point_of(alpha, group, metric)
                for alpha, group in zip(line.alphas, line.groups, strict=True)
            ),
        )
        for line in lines
    )
    return CurveChart(
        key=f"{dataset}-{metric}",
        title=f"{dataset}: {METRIC_NAMES[metric]}",
        measure=METRIC_NAMES[metric],
        curves=curves,
        baselines=_common_baselines(lines, metric),
        is_share=metric != "cider",
    )


def _common_baselines(lines: Sequence[Line], metric: str) -> dict[str, float]:
    """The baselines of all groups where they agree to three places, else those of each line."""
    found: dict[str, float] = {}
    for kind in ("majority", "random"):
        values = {
            line.name: baseline[metric]
            for line in lines
            if metric in (baseline := line.groups[0].baselines.get(kind, {}))
        }
        if values and max(values.values()) - min(values.values()) < 0.0005:
            found[kind] = next(iter(values.values()))
        else:
            found |= {f"{kind}, {name}": value for name, value in values.items()}
    return found


def _heat_chart(name: str, metric: str, lines: Sequence[Line]) -> GridChart:
    alphas = sorted({alpha for line in lines for alpha in line.alphas if alpha is not None})
    values = []
    for line in lines:
        there = {
            alpha: group.metrics[metric]
            for alpha, group in zip(line.alphas, line.groups, strict=True)
        }
        values.append(tuple(there.get(alpha) for alpha in alphas))
    return GridChart(
        key=f"datasets-{name}-{metric}",
        title=f"{METRIC_NAMES[metric]} of {name} by data set and α",
        measure=METRIC_NAMES[metric],
        rows=tuple(line.dataset for line in lines),
        columns=tuple(f"{alpha:g}" for alpha in alphas),
        values=tuple(values),
        row_title="",
        column_title="α",
    )

"""What the figures draw: plain numbers, the same that stand in the page as JSON.

`Series` is one question to one data set along α; `series_of` makes them of scores, in the order in
which a report shows them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from NatureLM.data.components import METRICS_OF, Task, metric_name
from NatureLM.errors import UsageError
from NatureLM.evaluation.bootstrap import Estimate
from NatureLM.evaluation.score import GroupScore, Scores

_WITHOUT_CURVES = ("precision", "recall")


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


@dataclass(frozen=True, eq=False)
class Series:
    """One question to one data set, at every α that was tried.

    name: in legends, such as "query 0"
    groups: the scores by rising α; a single one where the answers tell no α
    alphas: the α of each group; None where the answers tell none
    """

    dataset: str
    name: str
    groups: tuple[GroupScore, ...]
    alphas: tuple[float | None, ...]

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
        return max(range(len(values)), key=lambda place: (values[place], -place))

    def pair(self, between: tuple[float, float] | None) -> tuple[int, int] | None:
        """Places of the two α whose classes are compared; None where there is only one α.

        between: the two values; None takes the adapted model (α = 1, else the largest α) and the
            best α, or, if that is the best, the smallest α and it.

        Raises UsageError for an α that the series does not have.
        """
        if len(self.groups) < 2:
            return None
        if between is not None:
            return self._place(between[0]), self._place(between[1])
        adapted = self.alphas.index(1.0) if 1.0 in self.alphas else len(self.groups) - 1
        return (0 if adapted == self.best else adapted), self.best

    def _place(self, alpha: float) -> int:
        if alpha not in self.alphas:
            known = ", ".join(alpha_text(one) for one in self.alphas)
            raise UsageError(
                f"--between: {self.dataset}, {self.name} has no answers at α = {alpha:g}; "
                f"there are {known}"
            )
        return self.alphas.index(alpha)


def series_of(scores: Scores) -> dict[str, list[Series]]:
    """The series of each data set in sorted order; `scores` of one protocol.

    Columns other than α tell series apart.
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
        key = str(group.key[0]), name or "all answers"
        found.setdefault(key, []).append((alpha, _defined(group)))
    datasets: dict[str, list[Series]] = {}
    for (dataset, name), groups in found.items():
        groups.sort(key=lambda pair: -1.0 if pair[0] is None else pair[0])
        alphas, scores_of = zip(*groups, strict=True)
        datasets.setdefault(dataset, []).append(Series(dataset, name, scores_of, alphas))
    return datasets


def _defined(group: GroupScore) -> GroupScore:
    """Without metrics that are NaN: those of labels, where no sample has any."""
    metrics = {name: value for name, value in group.metrics.items() if math.isfinite(value)}
    baselines = {
        kind: {name: value for name, value in values.items() if name in metrics}
        for kind, values in group.baselines.items()
    }
    return replace(group, metrics=metrics, baselines=baselines)


def alpha_text(alpha: float | None) -> str:
    """α as it is written: exact, and as short as that allows."""
    return "-" if alpha is None else repr(alpha)


def curve(name: str, estimates: Iterable[tuple[float | None, Estimate | None]]) -> Curve:
    """The curve of a value at each α; left out where there is none."""
    return Curve(
        name,
        tuple(
            Point(alpha, one.value, None, None)
            if math.isnan(one.low)
            else Point(alpha, one.value, one.low, one.high)
            for alpha, one in estimates
            if one is not None
        ),
    )


def metric_charts(dataset: str, series: Sequence[Series]) -> list[CurveChart]:
    """A chart for each metric of a data set, with a curve for each of its series."""
    return [
        CurveChart(
            key=f"{dataset}-{metric}",
            title=f"{dataset}: {metric_name(metric)}",
            measure=metric_name(metric),
            curves=tuple(
                curve(one.name, ((alpha, group.estimate(metric)) for alpha, group in one))
                for one in series
            ),
            baselines=_common_baselines(series, metric),
            is_share=metric != "cider",
        )
        for metric in METRICS_OF[series[0].task]
        if metric not in _WITHOUT_CURVES and all(one.has(metric) for one in series)
    ]


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


def heat_charts(datasets: Mapping[str, Sequence[Series]]) -> list[GridChart]:
    """Data set × α for each name of a series; nothing where there is only one of either."""
    alike: dict[str, dict[str, list[Series]]] = {}
    for one in (one for series in datasets.values() for one in series):
        alike.setdefault(one.name, {}).setdefault(one.main_metric, []).append(one)
    charts = [
        _heat_chart(name, metric, series)
        for name, by_metric in alike.items()
        for metric, series in by_metric.items()
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

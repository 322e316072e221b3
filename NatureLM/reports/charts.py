"""What the figures draw: plain numbers, the same that stand in the page as JSON.

Scores in the order in which a report shows them: data sets, questions, and α along each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from NatureLM.data.components import Task
from NatureLM.errors import UsageError
from NatureLM.evaluation.score import GroupScore, Scores
from NatureLM.evaluation.tasks import METRICS_OF, metric_name

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


def metric_charts(dataset: str, lines: Sequence[Series]) -> list[CurveChart]:
    """A chart for each metric of a data set, with a curve for each of its lines."""
    metrics = [
        name
        for name in METRICS_OF[lines[0].task]
        if name not in _WITHOUT_CURVES
        and all(name in group.metrics for line in lines for group in line.groups)
    ]
    return [_metric_chart(dataset, lines, name) for name in metrics]


def heat_charts(datasets: dict[str, list[Series]]) -> list[GridChart]:
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


def _metric_chart(dataset: str, lines: Sequence[Series], metric: str) -> CurveChart:
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
        title=f"{dataset}: {metric_name(metric)}",
        measure=metric_name(metric),
        curves=curves,
        baselines=_common_baselines(lines, metric),
        is_share=metric != "cider",
    )


def _common_baselines(lines: Sequence[Series], metric: str) -> dict[str, float]:
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


def _heat_chart(name: str, metric: str, lines: Sequence[Series]) -> GridChart:
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
        title=f"{metric_name(metric)} of {name} by data set and α",
        measure=metric_name(metric),
        rows=tuple(line.dataset for line in lines),
        columns=tuple(f"{alpha:g}" for alpha in alphas),
        values=tuple(values),
        row_title="",
        column_title="α",
    )


@dataclass(frozen=True)
class Series:
    """One question to one data set, at every α that was tried.

    name: what the line is called in legends, such as "query 0"
    groups: the scores by rising α; a single one where the answers tell no α
    alphas: the α of each group; None where the answers tell none
    prompt: an example of what was asked, as the model read it
    """

    dataset: str
    name: str
    task: Task
    groups: tuple[GroupScore, ...]
    alphas: tuple[float | None, ...]
    prompt: str | None

    @property
    def main_metric(self) -> str:
        """The metric by which the best α is chosen; accuracy where the task's is not defined."""
        wanted = METRICS_OF[self.task][0]
        return wanted if all(wanted in group.metrics for group in self.groups) else "accuracy"

    @property
    def best(self) -> int:
        """Place of the best α; the smallest among equals."""
        values = [group.metrics[self.main_metric] for group in self.groups]
        return max(range(len(values)), key=lambda place: (values[place], -place))

    def pair(self, between: tuple[float, float] | None) -> tuple[int, int] | None:
        """Places of the two α whose classes are compared; None where there is only one α.

        between: the two values; None takes the adapted model (α = 1, else the largest α) and the
            best α, or, if that is the best, the smallest α and it.

        Raises UsageError for an α that the line does not have.
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


def lines_of(scores: Scores) -> list[Series]:
    """The lines of all data sets in sorted order; `scores` of one protocol.

    Columns other than α make the lines.
    """
    found: dict[tuple[str, str], list[tuple[float | None, GroupScore]]] = {}
    for group in scores.groups:
        values = dict(zip(scores.by, group.key[1:], strict=True))
        alpha = values.get("lora_scale")
        if isinstance(alpha, int | float):
            del values["lora_scale"]
        else:
            alpha = None
        name = ", ".join(
            f"{'α' if column == 'lora_scale' else column} {value}"
            for column, value in values.items()
            if value is not None
        )
        key = (str(group.key[0]), name or "all answers")
        found.setdefault(key, []).append((None if alpha is None else float(alpha), group))
    return [_line(dataset, name, groups) for (dataset, name), groups in found.items()]


def datasets_of(lines: Sequence[Series]) -> dict[str, list[Series]]:
    """The lines of each data set."""
    found: dict[str, list[Series]] = {}
    for line in lines:
        found.setdefault(line.dataset, []).append(line)
    return found


def alpha_text(alpha: float | None) -> str:
    """α as it is written: exact, and as short as that allows."""
    return "-" if alpha is None else repr(alpha)


def _line(dataset: str, name: str, groups: list[tuple[float | None, GroupScore]]) -> Series:
    order = sorted(groups, key=lambda pair: -1.0 if pair[0] is None else pair[0])
    scored = tuple(_defined(group) for _, group in order)
    return Series(
        dataset=dataset,
        name=name,
        task=scored[0].task,
        groups=scored,
        alphas=tuple(alpha for alpha, _ in order),
        prompt=scored[0].prompt,
    )


def _defined(group: GroupScore) -> GroupScore:
    """Without metrics that are no number: those of labels, where no sample has any."""
    metrics = {name: value for name, value in group.metrics.items() if math.isfinite(value)}
    if len(metrics) == len(group.metrics):
        return group
    baselines = {
        kind: {name: value for name, value in values.items() if name in metrics}
        for kind, values in group.baselines.items()
    }
    return replace(group, metrics=metrics, baselines=baselines)

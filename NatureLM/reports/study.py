"""Scores in the order in which a report shows them: data sets, questions, and α along each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from NatureLM.beans.scoring.results import GroupScore
from NatureLM.beans.scoring.scores import Scores
from NatureLM.errors import UsageError

MAIN_METRIC = {"classification": "accuracy", "detection": "f1", "captioning": "cider"}
"""By which the best α of a line is chosen."""

SHOWN_METRICS = {
    "classification": ("accuracy", "f1"),
    "detection": ("f1", "map", "accuracy"),
    "captioning": ("cider", "spice"),
}
"""The metrics with a curve of their own."""


@dataclass(frozen=True)
class Line:
    """One question to one data set, at every α that was tried.

    name: what the line is called in legends, such as "query 0"
    groups: the scores by rising α; a single one where the answers tell no α
    alphas: the α of each group; None where the answers tell none
    prompt: an example of what was asked, as the model read it
    """

    dataset: str
    name: str
    task: str
    groups: tuple[GroupScore, ...]
    alphas: tuple[float | None, ...]
    prompt: str | None

    @property
    def main_metric(self) -> str:
        """The metric by which the best α is chosen; accuracy where the task's is not defined."""
        wanted = MAIN_METRIC[self.task]
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


def lines_of(scores: Scores) -> list[Line]:
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


def datasets_of(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each data set."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line.dataset, []).append(line)
    return found


def alpha_text(alpha: float | None) -> str:
    """α as it is written: exact, and as short as that allows."""
    return "-" if alpha is None else repr(alpha)


def _line(dataset: str, name: str, groups: list[tuple[float | None, GroupScore]]) -> Line:
    order = sorted(groups, key=lambda pair: -1.0 if pair[0] is None else pair[0])
    scored = tuple(_defined(group) for _, group in order)
    return Line(
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

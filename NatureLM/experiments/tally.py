"""Where a run stands: done and total, rate, time left, share of right answers at each α."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from NatureLM.experiments.plan import Cell, Plan


@dataclass
class Tally:
    """Counts of a run, as it goes.

    total: cells of the plan; before: those that had an answer already
    answers, errors: what was done since
    right: answers that stand for the label, and all that were given, at each α
    """

    total: int
    before: int = 0
    answers: int = 0
    errors: int = 0
    right: dict[float, tuple[int, int]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        """Cells that need nothing more in this run."""
        return self.before + self.answers + self.errors

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Answers a second."""
        return (self.answers + self.errors) / max(self.seconds, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first answer."""
        if not self.answers + self.errors:
            return None
        return max(0, self.total - self.done) / self.rate

    def accuracy(self) -> dict[float, float]:
        """Share of right answers of this run so far, by α in order."""
        return {alpha: right / count for alpha, (right, count) in sorted(self.right.items())}

    def count(self, cell: Cell, is_right: bool) -> None:
        """Count an answer."""
        right, count = self.right.get(cell.alpha, (0, 0))
        self.right[cell.alpha] = (right + is_right, count + 1)
        self.answers += 1


Progress: TypeAlias = Callable[[Tally], None]
"""Called after every answer and error, and once before the first."""


class RightOrWrong:
    """Whether an answer stands for its label: the nearest label of the dataset, as when scored.

    Without rapidfuzz: the same text but for case. This is for watching a run; scoring is done
    afterwards, with intervals.
    """

    def __init__(self, plan: Plan) -> None:
        labels: dict[str, set[str]] = {}
        for sample in plan.samples:
            labels.setdefault(sample.dataset_name, set()).add(sample.label)
        self._labels = {name: sorted(found) for name, found in labels.items()}
        self._known: dict[tuple[str, str], str] = {}

    def __call__(self, cell: Cell, prediction: str) -> bool:
        """Whether it is right."""
        what = (cell.dataset_name, prediction)
        if what not in self._known:
            self._known[what] = self._read(*what)
        return self._known[what] == cell.label

    def _read(self, dataset: str, prediction: str) -> str:
        labels = self._labels[dataset]
        try:
            from rapidfuzz.distance import Levenshtein
        except ImportError:
            folded = prediction.strip().casefold()
            return next((one for one in labels if one.strip().casefold() == folded), "")
        return min(labels, key=lambda label: Levenshtein.distance(label, prediction.strip()))

"""Weighted precision, recall and F1 of single labels, from counts of (true, predicted) cells.

As in scikit-learn's weighted averages with zero_division=0: every label's value, 0 where it is not
defined, weighted by how often the label is true.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[Any]
Codes = npt.NDArray[np.integer]


@dataclass(frozen=True)
class ClassCounts:
    """For each label: how often it is true, was predicted, and was predicted where true.

    Each (labels, ...); the axes behind are resamples.
    """

    true: Floats
    predicted: Floats
    hits: Floats

    @property
    def precision(self) -> Floats:
        """Share of a label's predictions that are right, (labels, ...); 0 without predictions."""
        return share(self.hits, self.predicted)

    @property
    def recall(self) -> Floats:
        """Share of a label's samples that are found, (labels, ...); 0 without samples."""
        return share(self.hits, self.true)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall, (labels, ...); 0 where both are."""
        return share(2 * self.hits, self.true + self.predicted)


def class_counts(counts: Counts, true: Codes, predicted: Codes, labels: int) -> ClassCounts:
    """Counts for each label from counts for each cell.

    counts: (cells, ...); true, predicted: labels of the cells, (cells,); a negative `predicted` is
    an answer that is no label
    """
    return ClassCounts(
        _sum_by(counts, true, labels),
        _sum_by(counts, predicted, labels),
        _sum_by(counts, np.where(true == predicted, true, -1), labels),
    )


def weighted_scores(per_class: ClassCounts) -> dict[str, Floats]:
    """accuracy, precision, recall and f1, each (...); NaN where no sample counts."""
    total = per_class.true.sum(axis=0)
    with np.errstate(invalid="ignore"):
        weights = per_class.true / total
        accuracy = per_class.hits.sum(axis=0) / total
    return {
        "accuracy": accuracy,
        "precision": (weights * per_class.precision).sum(axis=0),
        "recall": (weights * per_class.recall).sum(axis=0),
        "f1": (weights * per_class.f1).sum(axis=0),
    }


def share(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def _sum_by(counts: Floats, codes: Codes, size: int) -> Floats:
    """Sums over the cells of each code, (size, ...); negative codes are left out."""
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] >= 0]
    sums = np.zeros((size, *counts.shape[1:]))
    if len(order):
        present, starts = np.unique(codes[order], return_index=True)
        sums[present] = np.add.reduceat(counts[order], starts, axis=0)
    return sums

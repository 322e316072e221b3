"""Accuracies of answered samples, weighted so that a bootstrap can resample them.

Every function takes `weights` (how often each sample counts); None counts each once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def accuracy(correct: Sequence[bool] | Floats, weights: Floats | None = None) -> float:
    """Share of samples answered correctly, weighted; NaN if nothing counts."""
    hits = np.asarray(correct, dtype=np.float64)
    counts = _counts(len(hits), weights)
    total = counts.sum()
    return float(hits @ counts / total) if total > 0 else float("nan")


def macro_accuracy(
    correct: Sequence[bool] | Floats, labels: Sequence[str], weights: Floats | None = None
) -> float:
    """Mean over the true labels of the accuracy within each, over labels that count.

    With the labels "Yes" and "No" this is the balanced accuracy.
    """
    hits = np.asarray(correct, dtype=np.float64)
    if len(hits) != len(labels):
        raise ValueError(f"{len(hits)} results were given with {len(labels)} labels")
    counts = _counts(len(hits), weights)
    _, index = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    totals = np.bincount(index, weights=counts)
    right = np.bincount(index, weights=counts * hits)
    seen = totals > 0
    return float(np.mean(right[seen] / totals[seen])) if seen.any() else float("nan")


def _counts(samples: int, weights: Floats | None) -> Floats:
    if weights is None:
        return np.ones(samples)
    if len(weights) != samples:
        raise ValueError(f"{samples} results were given with {len(weights)} weights")
    return np.asarray(weights, dtype=np.float64)

"""Scores of sets of labels, averaged over the labels that occur (macro averages)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from NatureLM.metrics.confusion import ClassCounts, Floats, share


def set_counts(
    counts: npt.NDArray[Any], true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]
) -> ClassCounts:
    """Counts for each label from counts for each cell of a true and a predicted set.

    counts: (cells, ...); true, predicted: whether the sets of a cell hold a label, (cells, labels)
    """
    counts = np.asarray(counts, dtype=np.float64)
    return ClassCounts(
        true.T.astype(np.float64) @ counts,
        predicted.T.astype(np.float64) @ counts,
        (true & predicted).T.astype(np.float64) @ counts,
    )


def macro_scores(per_class: ClassCounts, samples: Floats) -> dict[str, Floats]:
    """precision, recall, f1 and map over labels that are true somewhere, each (...).

    samples: how many there are, (...). NaN where no label is true anywhere.
    """
    return {
        "precision": _mean(per_class, per_class.precision),
        "recall": _mean(per_class, per_class.recall),
        "f1": _mean(per_class, per_class.f1),
        "map": _mean(per_class, average_precision(per_class, samples)),
    }


def average_precision(per_class: ClassCounts, samples: Floats) -> Floats:
    """Area under the steps of precision over recall for each label, (labels, ...).

    Answers hold a label or not, so there are two thresholds: what was named, and everything. All
    samples that tie are added at once, which makes the value independent of their order.
    """
    prevalence = share(per_class.true, np.broadcast_to(samples, per_class.true.shape))
    recall = per_class.recall
    return recall * per_class.precision + (1 - recall) * prevalence


def _mean(per_class: ClassCounts, values: Floats) -> Floats:
    occurs = per_class.true > 0
    total = np.where(occurs, values, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / occurs.sum(axis=0))

"""How far confidences mean what they say, and how well they tell two kinds of samples apart.

Every function takes `weights` (how often each sample counts); None counts each once.

Sources: expected calibration error as in Guo and others, "On calibration of modern neural
networks" (2017), with bins of equal width; the area under the ROC curve as the probability that a
positive sample scores higher than a negative one (Hanley and McNeil 1982).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """The samples whose confidence lies between `low` and `high` (above `low`, 0 in the first).

    confidence, accuracy: their means; NaN where there is no sample
    samples: how many they are
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    samples: float


def reliability_bins(
    confidences: Sequence[float] | Floats,
    correct: Sequence[bool] | Floats,
    weights: Floats | None = None,
    bins: int = BINS,
) -> list[ReliabilityBin]:
    """Mean confidence and share of right answers in bins of equal width from 0 to 1."""
    sure, hits, counts = _arrays(confidences, correct, weights)
    places = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    total = np.bincount(places, counts, bins)
    with np.errstate(invalid="ignore"):
        mean_sure = np.bincount(places, counts * sure, bins) / total
        mean_hits = np.bincount(places, counts * hits, bins) / total
    return [
        ReliabilityBin(
            place / bins,
            (place + 1) / bins,
            float(mean_sure[place]),
            float(mean_hits[place]),
            float(total[place]),
        )
        for place in range(bins)
    ]


def calibration_error(
    confidences: Sequence[float] | Floats,
    correct: Sequence[bool] | Floats,
    weights: Floats | None = None,
    bins: int = BINS,
) -> float:
    """Mean distance of confidence and share of right answers over the bins; NaN for no samples."""
    filled = [
        one for one in reliability_bins(confidences, correct, weights, bins) if one.samples > 0
    ]
    total = sum(one.samples for one in filled)
    if not total:
        return float("nan")
    return sum(one.samples * abs(one.accuracy - one.confidence) for one in filled) / total


def auroc(
    scores: Sequence[float] | Floats,
    positive: Sequence[bool] | npt.NDArray[np.bool_],
    weights: Floats | None = None,
) -> float:
    """Probability that a positive sample scores higher than a negative one; ties count half.

    NaN where a kind does not count.
    """
    values, kinds, counts = _arrays(scores, positive, weights)
    yes, no = counts * kinds, counts * (1 - kinds)
    _, places = np.unique(values, return_inverse=True)
    up, down = np.bincount(places, yes), np.bincount(places, no)
    pairs = up.sum() * down.sum()
    if not pairs:
        return float("nan")
    lower = np.cumsum(down) - down
    return float((up * (lower + down / 2)).sum() / pairs)


def _arrays(
    values: Sequence[float] | Floats,
    flags: Sequence[bool] | npt.NDArray[np.bool_] | Floats,
    weights: Floats | None,
) -> tuple[Floats, Floats, Floats]:
    made = np.asarray(values, dtype=np.float64)
    kinds = np.asarray(flags, dtype=np.float64)
    counts = np.ones(len(made)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(made) == len(kinds) == len(counts):
        raise ValueError(
            f"{len(made)} values were given with {len(kinds)} truths and {len(counts)} weights"
        )
    return made, kinds, counts

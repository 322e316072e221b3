"""The temperature that fits scores of labels to what was right.

Source: Guo and others, "On calibration of modern neural networks" (2017): one number that all
scores are divided by, chosen to make the right labels likeliest. It changes no answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from NatureLM.errors import UsageError

Floats = npt.NDArray[np.float64]
RANGE = (0.01, 100.0)
"""Where the temperature is looked for."""

_STEPS = 100


def fit_temperature(scores: Sequence[Sequence[float]], right: Sequence[int]) -> float:
    """The temperature within `RANGE` under which the right labels are likeliest.

    scores: of the labels, one row for each sample; rows may be of different length
    right: place of the right label in each row

    The log-likelihood is concave in 1 / temperature, so a golden-section search over its logarithm
    finds the best. Raises UsageError where there is nothing to fit: no sample, or all labels equal.
    """
    if len(scores) != len(right):
        raise ValueError(f"{len(scores)} rows of scores were given with {len(right)} right labels")
    if not scores:
        raise UsageError("a temperature cannot be fitted to no samples")
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    gaps = [row - row[place] for row, place in zip(rows, right, strict=True)]
    if all(np.all(gap == 0) for gap in gaps):
        raise UsageError("a temperature cannot be fitted: all labels have the same scores")
    low, high = (math.log(limit) for limit in RANGE)
    ratio = (math.sqrt(5) - 1) / 2
    left, far = high - ratio * (high - low), low + ratio * (high - low)
    cost_left, cost_far = _cost(gaps, left), _cost(gaps, far)
    for _ in range(_STEPS):
        if cost_left <= cost_far:
            high, far, cost_far = far, left, cost_left
            left = high - ratio * (high - low)
            cost_left = _cost(gaps, left)
        else:
            low, left, cost_left = left, far, cost_far
            far = low + ratio * (high - low)
            cost_far = _cost(gaps, far)
    return math.exp((low + high) / 2)


def surprise(scores: Sequence[Sequence[float]], right: Sequence[int], temperature: float) -> float:
    """Mean of -log probability of the right labels, in nats, at a temperature."""
    rows = [np.asarray(row, dtype=np.float64) for row in scores]
    gaps = [row - row[place] for row, place in zip(rows, right, strict=True)]
    return _cost(gaps, math.log(temperature))


def _cost(gaps: Sequence[Floats], log_temperature: float) -> float:
    temperature = math.exp(log_temperature)
    return float(np.mean([np.logaddexp.reduce(gap / temperature) for gap in gaps]))

"""Bootstrap intervals that respect clusters.

Clips of one recording (a "family") succeed or fail together, so whole clusters are resampled, not
clips. Source: Field and Welsh, "Bootstrapping clustered data" (2007), the cluster bootstrap with
percentile intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value, its interval, and what it rests on (samples in clusters)."""

    value: float
    low: float
    high: float
    samples: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def clustered_interval(
    statistic: Callable[[Floats], float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    repeats: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile interval of a statistic over resampled clusters.

    statistic: takes weights (how often each sample counts, shape (samples,)) and gives the value;
        resamples for which it gives NaN are left out
    clusters: the cluster of each sample
    """
    if not clusters:
        raise ValueError("an interval needs at least one sample")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    rng = np.random.default_rng(seed)
    values = np.empty(repeats)
    for repeat in range(repeats):
        drawn = rng.integers(0, len(numbers), len(numbers))
        multiplicity = np.bincount(drawn, minlength=len(numbers)).astype(np.float64)
        values[repeat] = statistic(multiplicity[index])
    values = values[~np.isnan(values)]
    value = float(statistic(np.ones(len(clusters))))
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), len(clusters), len(numbers))

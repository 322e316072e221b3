"""The cluster bootstrap: many resamples at once, and the intervals that they give.

Clips of one recording (a "family") succeed or fail together, so whole clusters are drawn with
replacement, not clips. Samples that look the same to a metric (same truth, same answer) fall into
one cell, so a resample is a column of counts and a metric of all resamples is a little array
arithmetic. Source: Field and Welsh, "Bootstrapping clustered data" (2007), percentile intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

LEVEL = 0.95
_BLOCK = 4_000_000  # numbers held at a time


@dataclass(frozen=True)
class BootstrapOptions:
    """How intervals are made. The seed is also that of answers at random."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A value, its interval (NaN without one), and what it rests on (samples in clusters)."""

    value: float
    low: float = math.nan
    high: float = math.nan
    samples: int = 0
    clusters: int = 0

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


def multiplicities(clusters: int, options: BootstrapOptions) -> Iterator[npt.NDArray[np.int32]]:
    """How often each cluster is drawn, block by block: (clusters, some resamples).

    The draws depend on the number of clusters and the seed only, so two sets of answers to the same
    samples meet the same resamples.
    """
    if clusters * options.resamples <= _BLOCK:
        yield _kept(clusters, options)
    else:
        yield from _drawn(clusters, options)


@lru_cache(maxsize=1)
def _kept(clusters: int, options: BootstrapOptions) -> npt.NDArray[np.int32]:
    drawn = np.ascontiguousarray(np.concatenate(list(_drawn(clusters, options)), axis=1))
    drawn.setflags(write=False)
    return drawn


def _drawn(clusters: int, options: BootstrapOptions) -> Iterator[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(options.seed)
    step = max(1, _BLOCK // 4 // clusters)
    for start in range(0, options.resamples, step):
        rows = min(step, options.resamples - start)
        drawn = rng.integers(0, clusters, (rows, clusters))
        drawn *= rows
        drawn += np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * clusters)
        yield counts.reshape(clusters, rows).astype(np.int32)


def cell_counts(
    cells: Integers, clusters: Integers, options: BootstrapOptions
) -> Iterator[npt.NDArray[np.int32]]:
    """How many samples of each resample fall into each cell: blocks (cells, some resamples).

    cells, clusters: numbers from 0 of each sample's cell and cluster, none left out, (samples,)
    """
    n_clusters = int(clusters.max()) + 1
    pairs, repeated = np.unique(cells.astype(np.int64) * n_clusters + clusters, return_counts=True)
    starts = np.unique(pairs // n_clusters, return_index=True)[1]
    members = pairs % n_clusters
    step = max(1, _BLOCK // len(pairs))
    for drawn in multiplicities(n_clusters, options):
        for start in range(0, drawn.shape[1], step):
            weights = drawn[members, start : start + step]
            if repeated.max() > 1:
                weights = weights * repeated[:, None].astype(np.int32)
            yield np.add.reduceat(weights, starts, axis=0)


def resampled_mean(values: Floats, clusters: Integers, options: BootstrapOptions) -> Floats:
    """The mean of each resample, (resamples,); values, clusters: of each sample, (samples,)."""
    sizes = np.bincount(clusters).astype(np.float64)
    sums = np.bincount(clusters, values)
    blocks = [(sums @ drawn) / (sizes @ drawn) for drawn in multiplicities(len(sizes), options)]
    return np.concatenate(blocks)


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """The middle 95 % of resampled values; NaN are left out, None if nothing is left."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def clustered_interval(
    statistic: Callable[[Floats], float],
    clusters: Sequence[Hashable],
    *,
    repeats: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile interval of any statistic; for one that is not a sum over cells.

    statistic: takes weights (how often each sample counts, (samples,)) and gives the value;
        resamples for which it gives NaN are left out
    clusters: the cluster of each sample
    repeats: number of resamples
    """
    if not clusters:
        raise ValueError("an interval needs at least one sample")
    codes: dict[Hashable, int] = {}
    index = np.array([codes.setdefault(cluster, len(codes)) for cluster in clusters])
    values = [
        statistic(weights[index])
        for drawn in multiplicities(len(codes), BootstrapOptions(repeats, seed))
        for weights in drawn.T.astype(np.float64)
    ]
    low, high = percentile_interval(np.array(values)) or (math.nan, math.nan)
    value = float(statistic(np.ones(len(clusters))))
    return Estimate(value, low, high, len(clusters), len(codes))

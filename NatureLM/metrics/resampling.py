"""Many bootstrap resamples at once.

Clusters are drawn with replacement (Field and Welsh 2007, see `bootstrap`). Samples that look the
same to a metric (same truth, same answer) fall into one cell, so a resample is a row of cell counts
and a metric of all resamples is a little array arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
_BLOCK = 4_000_000  # numbers held at a time


def multiplicities(
    clusters: int, resamples: int = RESAMPLES, seed: int = 0, width: int | None = None
) -> Iterator[npt.NDArray[np.int32]]:
    """How often each cluster is drawn, block by block: (some resamples, clusters).

    The draws depend on the number of clusters and the seed only, so two sets of answers to the same
    samples meet the same resamples. width: numbers that the caller makes of a resample.
    """
    rng = np.random.default_rng(seed)
    step = max(1, _BLOCK // max(clusters, width or 0, 1))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, clusters, (rows, clusters))
        drawn += np.arange(rows)[:, None] * clusters
        counts = np.bincount(drawn.ravel(), minlength=rows * clusters)
        yield counts.reshape(rows, clusters).astype(np.int32)


def cell_counts(
    cells: npt.NDArray[np.integer],
    clusters: npt.NDArray[np.integer],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Iterator[Ints]:
    """How many samples of each resample fall into each cell: blocks (some resamples, cells).

    cells, clusters: numbers from 0 of each sample's cell and cluster, none left out, (samples,)
    """
    n_clusters = int(clusters.max()) + 1
    pairs, repeated = np.unique(cells.astype(np.int64) * n_clusters + clusters, return_counts=True)
    starts = np.unique(pairs // n_clusters, return_index=True)[1]
    members = pairs % n_clusters
    for drawn in multiplicities(n_clusters, resamples, seed, width=len(pairs)):
        weights = drawn[:, members]
        if repeated.max() > 1:
            weights = weights * repeated.astype(np.int32)
        yield np.add.reduceat(weights, starts, axis=1, dtype=np.int64)


def percentile_interval(values: Floats, level: float = LEVEL) -> tuple[float, float] | None:
    """The middle `level` of resampled values; NaN are left out, None if nothing is left."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

from __future__ import annotations

import numpy as np
import pytest

from NatureLM.evaluation import bootstrap as resampling
from NatureLM.evaluation.bootstrap import (
    cell_counts,
    clustered_interval,
    multiplicities,
    percentile_interval,
)
from NatureLM.evaluation.metrics import accuracy


def all_of(cells: np.ndarray, clusters: np.ndarray, resamples: int = 200) -> np.ndarray:
    return np.concatenate(list(cell_counts(cells, clusters, resamples=resamples, seed=3)), axis=1)


def test_every_resample_has_as_many_clusters_as_there_are() -> None:
    [drawn] = multiplicities(7, 50, 1)
    assert drawn.shape == (7, 50)
    assert (drawn.sum(axis=0) == 7).all()
    assert (drawn.sum(axis=1) > 0).all()


def test_cells_count_the_samples_of_the_drawn_clusters() -> None:
    rng = np.random.default_rng(0)
    clusters = np.concatenate([np.arange(5), rng.integers(0, 5, 25)])
    cells = np.concatenate([np.arange(4), rng.integers(0, 4, 26)])
    [drawn] = multiplicities(5, 200, 3)
    expected = [drawn[clusters[cells == cell]].sum(axis=0) for cell in range(4)]
    np.testing.assert_array_equal(all_of(cells, clusters), expected)


def test_blocks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    cells, clusters = np.arange(40) % 3, np.arange(40) // 2
    whole = all_of(cells, clusters)
    monkeypatch.setattr(resampling, "_BLOCK", 500)
    resampling._kept.cache_clear()
    assert len(list(cell_counts(cells, clusters, resamples=200, seed=3))) > 5
    np.testing.assert_array_equal(all_of(cells, clusters), whole)


def test_the_interval_agrees_with_the_plain_cluster_bootstrap() -> None:
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(30), 8)
    right = (rng.random(30) < 0.6)[clusters] ^ (rng.random(240) < 0.1)
    blocks = list(cell_counts(right.astype(int), clusters, resamples=4000, seed=0))
    counts = np.concatenate(blocks, axis=1)
    found = percentile_interval(counts[1] / counts.sum(axis=0))
    plain = clustered_interval(lambda w: accuracy(list(right), w), list(clusters), repeats=4000)
    assert found == pytest.approx((plain.low, plain.high), abs=0.02)


def test_resamples_without_a_value_are_left_out() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert percentile_interval(np.array([np.nan])) is None

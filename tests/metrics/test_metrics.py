from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.evaluation.bootstrap import clustered_interval
from NatureLM.evaluation.metrics import accuracy, macro_accuracy


def test_accuracy_and_macro_accuracy_by_hand() -> None:
    correct = [True, True, True, False]
    labels = ["Dog", "Dog", "Dog", "Cat"]
    assert accuracy(correct) == 0.75
    assert macro_accuracy(correct, labels) == 0.5
    assert macro_accuracy(correct, labels, np.array([1.0, 1.0, 1.0, 0.0])) == 1.0
    assert math.isnan(accuracy([], None))


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="labels"):
        macro_accuracy([True], ["Dog", "Cat"])
    with pytest.raises(ValueError, match="weights"):
        accuracy([True], np.ones(2))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_integer_weights_equal_repetition(rows: list[tuple[bool, str]]) -> None:
    weights = np.arange(len(rows), dtype=np.float64) % 3
    repeated = [row for row, weight in zip(rows, weights, strict=True) for _ in range(int(weight))]
    correct, labels = [r[0] for r in rows], [r[1] for r in rows]
    if repeated:
        expected = macro_accuracy([r[0] for r in repeated], [r[1] for r in repeated])
        assert macro_accuracy(correct, labels, weights) == pytest.approx(expected)
        assert accuracy(correct, weights) == pytest.approx(np.mean([r[0] for r in repeated]))


def test_clusters_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    per_cluster = rng.random(40) < 0.7
    correct = np.repeat(per_cluster, 10).astype(float)
    clustered = clustered_interval(lambda w: accuracy(correct, w), list(np.repeat(range(40), 10)))
    alone = clustered_interval(lambda w: accuracy(correct, w), list(range(400)))
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert clustered.low <= clustered.value <= clustered.high
    assert (clustered.samples, clustered.clusters) == (400, 40)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        hits = (rng.random(100) < 0.7).astype(float)
        e = clustered_interval(
            lambda w, h=hits: accuracy(h, w), list(range(100)), repeats=200, seed=trial
        )
        covered += e.low <= 0.7 <= e.high
    assert covered >= 50


def test_interval_is_seeded_and_checks_its_input() -> None:
    correct = np.array([1.0, 0.0, 1.0, 1.0])
    a, b = (clustered_interval(lambda w: accuracy(correct, w), "abcd", seed=3) for _ in range(2))
    assert a == b
    with pytest.raises(ValueError, match="at least one"):
        clustered_interval(lambda w: 0.0, [])
    with pytest.raises(ValueError, match="level"):
        clustered_interval(lambda w: 0.0, "ab", level=1.0)

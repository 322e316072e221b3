from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.evaluation.metrics import (
    ClassCounts,
    average_precision,
    class_counts,
    macro_scores,
    set_counts,
    weighted_scores,
)

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 5)), min_size=1, max_size=40)


def by_hand(rows: list[tuple[int, int]]) -> dict[str, float]:
    """Weighted averages, label by label."""
    sums = {"accuracy": float(sum(t == p for t, p in rows)), "precision": 0.0}
    sums |= {"recall": 0.0, "f1": 0.0}
    for label in {t for t, _ in rows}:
        hits = sum(t == p == label for t, p in rows)
        support = sum(t == label for t, _ in rows)
        precision = hits / max(1, sum(p == label for _, p in rows))
        recall = hits / support
        sums["precision"] += support * precision
        sums["recall"] += support * recall
        sums["f1"] += support * (2 * precision * recall / (precision + recall or 1))
    return {name: value / len(rows) for name, value in sums.items()}


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_weighted_scores_are_those_by_hand(rows: list[tuple[int, int]]) -> None:
    true, predicted = np.array(rows).T
    counts = class_counts(np.ones(len(rows)), true, predicted, 6)
    found = {name: float(value) for name, value in weighted_scores(counts).items()}
    assert found == pytest.approx(by_hand(rows), abs=1e-12)


@given(pairs, st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_counts_stand_for_repeated_samples_in_every_resample(
    rows: list[tuple[int, int]], seed: int
) -> None:
    true, predicted = np.array(rows).T
    repeats = np.random.default_rng(seed).integers(0, 3, (len(rows), 4))
    together = weighted_scores(class_counts(repeats, true, predicted, 6))
    for column in range(4):
        drawn = [row for row, n in zip(rows, repeats[:, column], strict=True) for _ in range(n)]
        if drawn:
            found = {name: float(values[column]) for name, values in together.items()}
            assert found == pytest.approx(by_hand(drawn), abs=1e-12)


def test_nothing_is_not_a_number() -> None:
    empty = class_counts(np.zeros(1), np.array([0]), np.array([0]), 1)
    assert np.isnan(weighted_scores(empty)["accuracy"])


def average_precision_by_steps(true: list[bool], scores: list[float]) -> float:
    """Precision at each distinct threshold, weighted by the recall gained there."""
    found, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [t for t, score in zip(true, scores, strict=True) if score >= threshold]
        recall = sum(taken) / sum(true)
        found += (recall - before) * sum(taken) / len(taken)
        before = recall
    return found


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_average_precision_does_not_depend_on_the_order_of_ties(
    rows: list[tuple[bool, bool]],
) -> None:
    true, predicted = [t for t, _ in rows], [p for _, p in rows]
    if not any(true):
        return
    expected = average_precision_by_steps(true, [float(p) for p in predicted])
    for order in (1, -1):
        sets = np.array(true[::order])[:, None], np.array(predicted[::order])[:, None]
        counts = set_counts(np.ones(len(rows)), *sets)
        found = average_precision(counts, np.asarray(float(len(rows))))
        assert found[0] == pytest.approx(expected, abs=1e-12)


def test_macro_scores_average_over_labels_that_occur() -> None:
    counts = ClassCounts(
        np.array([2.0, 0.0, 1.0]), np.array([1.0, 3.0, 1.0]), np.array([1.0, 0, 1])
    )
    scores = macro_scores(counts, np.asarray(4.0))
    assert float(scores["recall"]) == pytest.approx((0.5 + 1) / 2)
    assert float(scores["precision"]) == 1.0
    assert float(scores["f1"]) == pytest.approx((2 / 3 + 1) / 2)
    assert float(scores["map"]) == pytest.approx((0.5 * 1 + 0.5 * 2 / 4 + 1) / 2)

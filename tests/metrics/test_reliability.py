"""Calibration error and area under the ROC curve, against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.evaluation.metrics import auroc, calibration_error, reliability_bins

SAMPLES = st.lists(
    st.tuples(st.floats(0, 1).map(lambda x: round(x, 2)), st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=40,
)


@given(samples=SAMPLES)
def test_the_area_counts_pairs(samples: list[tuple[float, bool, int]]) -> None:
    up = [(x, n) for x, yes, n in samples if yes]
    down = [(x, n) for x, yes, n in samples if not yes]
    pairs = sum(n * m for _, n in up for _, m in down)
    won = sum(n * m * ((x > y) + (x == y) / 2) for x, n in up for y, m in down)
    values, kinds, weights = zip(*samples, strict=True)
    found = auroc(values, kinds, np.array(weights, dtype=float))
    assert math.isnan(found) if not pairs else found == pytest.approx(won / pairs)


@given(samples=SAMPLES)
def test_weights_are_repetitions(samples: list[tuple[float, bool, int]]) -> None:
    values, kinds, weights = zip(*samples, strict=True)
    repeated = [(x, yes) for x, yes, n in samples for _ in range(n)]
    weighted = calibration_error(values, kinds, np.array(weights, dtype=float))
    if not repeated:
        assert math.isnan(weighted)
        return
    plain = calibration_error(*zip(*repeated, strict=True))
    assert weighted == pytest.approx(plain)
    assert 0 <= plain <= 1


def test_bins_have_their_upper_ends() -> None:
    bins = reliability_bins([0.0, 0.1, 0.11, 1.0], [False, True, True, True], bins=10)
    assert [one.samples for one in bins] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert bins[0].accuracy == 0.5
    assert math.isnan(bins[5].confidence)


def test_calibration_error_of_known_cases() -> None:
    assert calibration_error([0.75] * 4, [True, True, True, False]) == pytest.approx(0)
    assert calibration_error([1.0] * 4, [True, False, False, False]) == pytest.approx(0.75)
    assert calibration_error([0.2, 0.9], [False, True]) == pytest.approx((0.2 + 0.1) / 2)
    with pytest.raises(ValueError, match="2 values were given with 1 truths"):
        calibration_error([0.2, 0.9], [False])

"""The order of draws: balanced, seeded, and readable from any position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.training.sampler import Sampler, derive_seed, generator, mixture_weights

weights = st.lists(st.floats(0.1, 10), min_size=1, max_size=30)


def order(rows: list[list[float]], size: int, seed: int = 0, temperature: float = 1.0):
    probabilities = mixture_weights(rows, [1.0] * len(rows), temperature)
    return Sampler(probabilities, [len(r) for r in rows], size, seed)


@given(weights, st.integers(1, 60), st.integers(0, 5))
def test_every_row_comes_as_often_as_its_weight_says(rows: list[float], size: int, epoch: int):
    drawn = Counter(order([rows], size).epoch(epoch)[0].tolist())
    for row, weight in enumerate(rows):
        expected = size * weight / sum(rows)
        assert expected - 1 - 1e-6 <= drawn[row] <= expected + 1 + 1e-6


def test_equal_weights_give_every_row_once_in_another_order_each_epoch():
    one = order([[1.0] * 20], 20)
    first, second = (one.epoch(e)[0].tolist() for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


@given(st.integers(0, 100), st.integers(1, 40))
def test_draws_depend_on_the_position_only(first: int, count: int):
    rows = [[1.0, 2.0, 3.0], [1.0] * 4]
    stretch = order(rows, 9).draws(first, count)
    assert stretch == order(rows, 9).draws(0, first + count)[first:]


def test_copies_within_an_epoch_are_told_apart():
    draws = order([[5.0, 1.0]], 12).draws(0, 12)
    assert len({(d.row, d.copy) for d in draws}) == 12
    assert Counter(d.row for d in draws) == {0: 10, 1: 2}


def test_another_seed_gives_another_order():
    assert order([[1.0] * 30], 30, 0).draws(0, 30) != order([[1.0] * 30], 30, 1).draws(0, 30)


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.9), (2.0, 0.75), (1e9, 0.5)])
def test_temperature_favours_small_datasets(temperature: float, share: float):
    probabilities = mixture_weights([[1.0] * 90, [1.0] * 10], [1.0, 1.0], temperature)
    assert probabilities[:90].sum() == pytest.approx(share)
    assert probabilities.sum() == pytest.approx(1.0)


def test_datasets_and_rows_of_weight_zero_are_never_drawn():
    probabilities = mixture_weights([[1.0, 0.0], [1.0]], [1.0, 0.0])
    assert probabilities.tolist() == [1.0, 0.0, 0.0]
    drawn = Sampler(probabilities, [2, 1], 50, 3).epoch(0)[0]
    assert set(drawn.tolist()) == {0}
    with pytest.raises(ValueError, match="weight 0"):
        mixture_weights([[0.0]], [1.0])


def test_seeds_are_the_same_everywhere_and_differ_by_key():
    assert derive_seed(0, "a", 1) == 4489593995922410626
    assert derive_seed(0, "a", 1) != derive_seed(0, "a", "1")
    assert derive_seed(0, "ab") != derive_seed(0, "a", "b")
    assert np.array_equal(generator(1, "x").random(3), generator(1, "x").random(3))

"""Where windows lie: the arithmetic, free of any audio."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from NatureLM.audio.windows import WindowPlan, count_windows, to_fraction
from NatureLM.errors import UsageError

TAIL = Fraction(1, 2)

lengths = st.integers(1, 30_000).map(lambda ms: Fraction(ms, 1000))
steps = st.integers(25, 15_000).map(lambda ms: Fraction(ms, 1000))


def starts(length: Fraction, window: Fraction, hop: Fraction) -> list[Fraction]:
    plan = WindowPlan(16_000, window, hop, Fraction(1))
    return [hop * index for index in range(plan.count(length))]


@pytest.mark.parametrize(
    ("length", "window", "hop", "expected"),
    [
        (60, 10, 10, [0, 10, 20, 30, 40, 50]),
        (10, 10, 10, [0]),
        (10.499, 10, 10, [0]),  # a remainder under half a second is left out
        (10.5, 10, 10, [0, 10]),
        (3, 10, 10, [0]),
        (0.4, 10, 10, [0]),  # a short file is one window
        (0.025, 10, 10, [0]),
        (0.0249, 10, 10, []),
        (12, 10, 5, [0, 5]),  # the second one reaches the end
        (15, 10, 5, [0, 5]),
        (15.4, 10, 5, [0, 5]),
        (15.6, 10, 5, [0, 5, 10]),
        (21, 2, 10, [0, 10, 20]),  # gaps by request
        (20.4, 2, 10, [0, 10]),
        (19, 2, 10, [0, 10]),
        (1, 0.25, 0.25, [0, 0.25, 0.5, 0.75]),  # short windows cover the file as well
        (1.1, 0.25, 0.25, [0, 0.25, 0.5, 0.75]),
        (0.3, 0.1, 0.1, [0, 0.1, 0.2]),  # exact, where floats would give 0.30000000000000004
    ],
)
def test_examples(length: float, window: float, hop: float, expected: list[float]) -> None:
    found = starts(to_fraction(length), to_fraction(window), to_fraction(hop))
    assert [float(start) for start in found] == expected
    assert count_windows(length, window, hop) == len(expected)


@settings(deadline=None)
@given(length=lengths, window=steps, hop=steps)
@example(length=Fraction(21, 2), window=Fraction(10), hop=Fraction(10))
@example(length=Fraction(21, 2), window=Fraction(10), hop=Fraction(1, 4))
@example(length=Fraction(20), window=Fraction(2), hop=Fraction(10))
def test_windows_cover_all_but_a_remainder(
    length: Fraction, window: Fraction, hop: Fraction
) -> None:
    found = starts(length, window, hop)
    if length < Fraction(25, 1000):
        assert found == []
        return
    ends = [start + window for start in found]
    # None starts once the end of the file is reached.
    assert all(end < length for end in ends[:-1])
    if hop <= window:
        assert length - ends[-1] < TAIL
    else:
        assert length - (found[-1] + hop) < TAIL
    # No window is there for a crumb: it fits whole, or brings half a second, or is the only one.
    if len(found) > 1 and ends[-1] > length:
        assert length - max(found[-1], ends[-2]) >= TAIL


def test_window_k_does_not_drift() -> None:
    plan = WindowPlan.of(22_050, 0.1, 0.1, 1.0)
    assert plan.samples == 2205
    odd = WindowPlan.of(22_050, 0.0333, 0.0333, 1.0)  # 734.265 samples
    assert odd.first_sample(1) == 734
    assert odd.first_sample(100_000) == 73_426_500


def test_count_windows() -> None:
    assert count_windows(86_400.0, 1.0, 0.1) == 863_991
    assert count_windows(60.0, 10.0, 10.0) == 6
    assert count_windows(6.7, 10.0, 10.0, time_expansion=10) == 7
    assert count_windows(0.01, 10.0, 10.0) == 0
    assert count_windows(0.01, 10.0, 10.0, time_expansion=10) == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["window length", "hop length", "time expansion"])
def test_values_that_make_no_windows(which: str, value: float) -> None:
    values = {"window length": 10.0, "hop length": 10.0, "time expansion": 1.0, which: value}
    with pytest.raises(UsageError, match=f"the {which} is .*; it must be above 0"):
        WindowPlan.of(16_000, *values.values())


def test_window_shorter_than_a_frame() -> None:
    with pytest.raises(UsageError, match=r"window length is 0\.02 s; .* at least 0\.025 s"):
        WindowPlan.of(16_000, 0.02, 1.0, 1.0)

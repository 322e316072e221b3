"""The arithmetic of the page on scaling, and what the benchmark of archives makes of its runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`benchmark(name)` is the module of that name."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)

    def named(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield named
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def test_a_petabyte_by_hand(benchmark: Any) -> None:
    scaling = benchmark("scaling")
    one = scaling.Archive.of("x", seconds=60, bytes_a_second=96_000, bytes=1e15)
    assert one.recordings == 173_611_111
    assert one.hours == pytest.approx(2_893_518.5, rel=1e-6)
    assert one.windows(10) == 6 * one.recordings
    hours = scaling.card_hours(one, {"windows_a_second": 100.0}, 10)
    assert hours == pytest.approx(1_041_666_666 / 100 / 3600)
    frogs = scaling.Archive.of("y", seconds=30, bytes_a_second=88_200, recordings=1_300_000)
    assert (frogs.windows(10), frogs.hours) == (3_900_000, pytest.approx(10_833.33, rel=1e-5))
    assert frogs.size == pytest.approx(3.44e12, rel=1e-3)


def test_numbers_are_shown_with_the_digits_that_count(benchmark: Any) -> None:
    scaling = benchmark("scaling")
    assert [scaling._count(one) for one in (4.4, 123.4, 1e4, 3.9e6, 1.04e9)] == [
        *("4.4", "123", "10,000", "3.9 million", "1.04 billion")
    ]
    assert [scaling._hours(one) for one in (0.1, 3.25, 240)] == ["6 min", "3.2 h", "10 days"]
    assert scaling._bytes(2e15) == "2 PB"


def runs(*processor: float) -> dict[str, Any]:
    sizes = (10, 100, 1_000, 10_000, 0)
    return {
        "runs": [
            {"way": "one process", "recordings": size, "processor": seconds}
            for size, seconds in zip(sizes, processor, strict=False)
        ]
    }


@pytest.mark.parametrize(
    ("processor", "more"),
    [((5, 14, 104, 1004), 0.0), ((5, 14, 104, 1184, 99), 0.2), ((5, 14), None)],
)
def test_a_further_recording_is_the_difference_between_two_sizes(
    processor: tuple[float, ...], more: float | None, benchmark: Any
) -> None:
    archive = benchmark("archive")
    report = runs(*processor)
    assert archive.further(report, "one process")[0] == (100, pytest.approx(0.1))
    assert archive.growth(report) == (None if more is None else pytest.approx(more))


def test_rows_are_the_same_but_for_the_last_digit(benchmark: Any) -> None:
    archive = benchmark("archive")
    rows = ['{"text": "a", "confidence": 0.908981}', '{"text": "b"}']
    assert archive.same(rows, ['{"text": "a", "confidence": 0.90898}', '{"text": "b"}'])
    assert not archive.same(rows, ['{"text": "c", "confidence": 0.908981}', '{"text": "b"}'])
    assert not archive.same(rows, rows[:1])


@pytest.mark.slow
def test_all_ways_give_the_same_answers(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["archive", "--smoke"])
    with pytest.raises(SystemExit) as ended:
        benchmark("archive").main()
    assert ended.value.code == 0, capsys.readouterr().out


@pytest.mark.slow
def test_merging_takes_the_same_memory_for_any_number(benchmark: Any) -> None:
    tables = benchmark("archive_tables")
    report = {"runs": [tables.measured(count) for count in (1_000, 20_000)]}
    assert tables.growth(report) < tables.MOST_GROWTH
    assert not any(one["merged"]["gaps"] for one in report["runs"])
    assert tables.markdown(report).count("| 20,000 |") == 4

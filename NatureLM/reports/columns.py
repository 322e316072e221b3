"""Answers of a questionnaire that name nothing: how often each was given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from NatureLM.reports.charts import Cell, Table
from NatureLM.reports.tally import ColumnTally
from NatureLM.results.rows import value_text

_MOST_BINS = 12  # of numbers
_MOST_BARS = 12


@dataclass(frozen=True)
class ColumnReport:
    """The answers to one question of a questionnaire.

    bars: value, how often, share of the answers
    """

    name: str
    kind: str
    about: str
    bars: tuple[tuple[str, int, float], ...]


def column_report(column: ColumnTally) -> ColumnReport:
    bars = _number_bars(column) if column.kind == "number" else _value_bars(column)
    answered = sum(column.values.values()) + column.others
    parts = [f"{answered:,} answers"]
    numbers = [one for one in column.values if isinstance(one, int | float)]
    if numbers and column.kind in ("count", "number"):
        total = sum(value * column.values[value] for value in numbers)
        mean = total / sum(column.values[value] for value in numbers)
        unit = f" {column.unit}" if column.unit else ""
        parts.append(f"from {min(numbers):g} to {max(numbers):g}{unit}, mean {mean:.3g}{unit}")
    if column.absent:
        parts.append(f"{column.absent:,} × none")
    if column.unread:
        parts.append(f"{column.unread:,} that could not be read as a {column.kind or 'value'}")
    shares = tuple((text, count, count / max(1, answered)) for text, count in bars)
    return ColumnReport(column.name, column.kind, "; ".join(parts), shares)


def _value_bars(column: ColumnTally) -> list[tuple[str, int]]:
    """The values, numbers in their order, others by how often they were given."""
    if column.kind == "json" or not column.values:
        return []
    ranked = column.values.most_common(_MOST_BARS)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in ranked):
        ranked.sort()
    bars = [(value_text(value), count) for value, count in ranked]
    rest = sum(column.values.values()) + column.others - sum(count for _, count in bars)
    return [*bars, ("others", rest)] if rest else bars


def _number_bars(column: ColumnTally) -> list[tuple[str, int]]:
    """Numbers in bins of a round width."""
    numbers = {value: n for value, n in column.values.items() if isinstance(value, int | float)}
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    width = _round_width((high - low) / _MOST_BINS)
    bins: Counter[int] = Counter()
    for value, count in numbers.items():
        bins[math.floor(value / width + 1e-9)] += count
    return [
        (f"{n * width:g} to {(n + 1) * width:g}", bins[n]) for n in range(min(bins), max(bins) + 1)
    ]


def _round_width(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least so wide."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def columns_table(columns: Iterable[ColumnTally]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for column in columns:
        rows += [
            (column.name, column.kind, value_text(value), count)
            for value, count in sorted(
                column.values.items(), key=lambda pair: (-pair[1], str(pair[0]))
            )
        ]
        others = (("(other values)", column.others), ("(none)", column.absent))
        rows += [
            (column.name, column.kind, text, count)
            for text, count in (*others, ("(could not be read)", column.unread))
            if count
        ]
    title = "Answers that name nothing"
    return Table("columns", title, ("column", "kind", "value", "windows"), tuple(rows))

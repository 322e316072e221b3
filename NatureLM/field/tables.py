"""Tables of deployments and of times: their columns by any of their names, and their cells.

A cell that cannot be meant is refused with file, line, column, value and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeVar

from NatureLM.data.table import DataError, clean, fold, read_table
from NatureLM.field.zones import OFFSET, UTC, WRITTEN, fixed_zone, parse_zone
from NatureLM.util import shown

TIMES = "write 2024-05-10 05:30, 2024-05-10T05:30:00+02:00 or 2024-05-10"
_TIME = re.compile(
    r"(\d{4})([-/.]?)(\d{1,2})\2(\d{1,2})"
    r"(?:[T _]+(\d{1,2}):?(\d\d)(?::?(\d\d)(?:[.,]\d+)?)?\s*(Z|(?:UTC|GMT)?" + OFFSET + ")?)?",
    re.ASCII | re.IGNORECASE,
)
Cell = TypeVar("Cell")


@dataclass(frozen=True)
class Line:
    """A row of a table.

    cells: texts by our names of the columns; those without a text are left out
    others: of columns that have no name here
    """

    path: Path
    number: int
    cells: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    decimal_comma: bool = False

    def read(self, column: str, parse: Callable[[str], Cell], allowed: str) -> Cell | None:
        """The cell by a function that raises ValueError; None without a text. Raises DataError."""
        text = self.cells.get(column)
        if text is None:
            return None
        try:
            return parse(text)
        except ValueError as error:
            raise self.wrong(column, f"is {shown(text)}; {allowed or error}") from None

    def degrees(self, column: str, most: float) -> float | None:
        """Degrees, from -most to most."""

        def parse(text: str) -> float:
            text = text.replace(",", ".") if self.decimal_comma else text
            number = float(text)
            if not abs(number) <= most:
                raise ValueError
            return number

        return self.read(column, parse, f"write degrees from -{most:g} to {most:g}, such as -25.39")

    def wrong(self, column: str, what: str) -> DataError:
        """An error that names the place."""
        return DataError(f"{self.path}, line {self.number}: {self.names[column]} {what}")


def read_lines(path: Path, aliases: Mapping[str, tuple[str, ...]]) -> tuple[list[Line], list[str]]:
    """The rows of a table, and notes about how it was read. Raises DataError."""
    table = read_table(path)
    folded = {column: [fold(name) for name in names] for column, names in aliases.items()}
    lines = []
    for number, row in table.rows:
        texts = {name: text for name, value in row.items() if (text := _text(value))}
        by_fold = {fold(name): name for name in reversed(list(row))}
        names: dict[str, str] = {}
        for column, some in folded.items():
            there = [by_fold[one] for one in some if one in by_fold]
            if there:
                names[column] = next((name for name in there if name in texts), there[0])
        cells = {column: texts[name] for column, name in names.items() if name in texts}
        taken = set(names.values())
        others = {name: text for name, text in texts.items() if name not in taken and name}
        lines.append(Line(path, number, cells, names, others, table.decimal_comma))
    if not lines:
        raise DataError(f"{path}: this table has no rows")
    return lines, [*table.notes, *_misspelled(lines[0], folded)]


def _misspelled(line: Line, folded: Mapping[str, list[str]]) -> Iterator[str]:
    """Columns that are not read and nearly called as one that is."""
    names = {name: column for column, some in folded.items() for name in some}
    for other in line.others:
        close = difflib.get_close_matches(fold(other), names, n=1, cutoff=0.85)
        if close and names[close[0]] not in line.cells:
            yield f"{line.path}: the column {other!r} is not read; did you mean {names[close[0]]}?"


def _text(value: Any) -> str:
    if value is None or value != value or isinstance(value, dict | list):
        return ""
    text = clean(str(value))
    return "" if text.casefold() in ("na", "nan", "null", "none", "n/a") else text


def parse_time(text: str) -> tuple[datetime, bool]:
    """The time, and whether it is a date alone. Raises ValueError."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError
    year, _, month, day, hour, minute, second, zone = found.groups()
    time = datetime(int(year), int(month), int(day))
    if not 1900 <= time.year <= date.today().year + 50:
        raise ValueError
    if hour is None:
        return time, True
    time = time.replace(hour=int(hour), minute=int(minute), second=int(second or 0))
    if zone:
        offset = re.sub("UTC|GMT", "", zone, flags=re.IGNORECASE)
        time = time.replace(tzinfo=UTC if offset in "Zz" else fixed_zone(offset))
    return time, False


def zone_of(line: Line, column: str) -> Any:
    """The zone of a cell."""
    text = line.cells.get(column)
    if text is None:
        return None
    try:
        return parse_zone(text)
    except ValueError as error:
        said = str(error)
        advice = said if said.startswith("write") else f"{said}; write a zone as {WRITTEN}"
        raise line.wrong(column, f"is {shown(text)}; {advice}") from None

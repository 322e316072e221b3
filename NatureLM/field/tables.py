"""Tables of deployments and of times: columns by any of their names, cells; times of recordings.

A cell that cannot be meant is refused with file, line, column, value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, TypeVar

from NatureLM.audio.files import as_on_disk
from NatureLM.data.table import DataError, clean, fold, read_table
from NatureLM.field.zones import OFFSET, UTC, WRITTEN, fixed_zone, parse_zone, to_utc
from NatureLM.storage import AnyPath, RemotePath
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


# When recordings began

_TIME_ALIASES = {
    "file": ("file", "path", "file_name", "recording", "file_path", "in_file", "audio_file"),
    "time": ("time", "begin", "start", "start_time", "recorded_at", "timestamp", "datetime"),
    "date": ("date", "start_date"),
    "zone": ("zone", "timezone", "time_zone", "tz"),
}
_Key = tuple[str, ...]


class FileTimes:
    """When recordings began, as a table says: columns file, time (or date and time), zone.

    A file is known by its path where that is there, counted from the folder of the table, else by
    the end of its path. A row that fits several of the `recordings` that are asked about is used
    for none of them, and a row that fits none is noted.

    notes: about how the table was read
    """

    def __init__(self, path: str | Path, recordings: Sequence[str | AnyPath] = ()) -> None:
        """Raises DataError for a cell that is no time, and for a file that is there twice."""
        self._path = Path(path)
        self._rows: dict[_Key, tuple[datetime, str, int]] = {}
        self._fitting: dict[_Key, int] = {}
        lines, self.notes = read_lines(self._path, _TIME_ALIASES)
        for line in lines:
            time, doubt = _time_of(line)
            key = self._key(line.cells["file"])
            if key in self._rows:
                raise line.wrong("file", f"is there in line {self._rows[key][2]}, too")
            self._rows[key] = time, doubt, line.number
        for recording in recordings:
            if key_of := self._found(recording):
                self._fitting[key_of] = self._fitting.get(key_of, 0) + 1
        unused = [row[2] for key, row in self._rows.items() if key not in self._fitting]
        if recordings and unused:
            self.notes.append(
                f"{self._path}: no recording is called as in {len(unused)} of its rows, such as "
                f"line {unused[0]}"
            )

    def of(self, recording: str | AnyPath) -> tuple[datetime | None, str]:
        """The time of a recording, and what is to say about it; None where there is none."""
        key = self._found(recording)
        if key is None:
            return None, ""
        time, doubt, line = self._rows[key]
        if self._fitting.get(key, 0) > 1:
            return None, (
                f"{self._path}, line {line}: the file fits {self._fitting[key]} recordings, so its "
                "time is used for none; write their folders, too."
            )
        return time, doubt

    def _key(self, name: str) -> _Key:
        """The parts of a path: of the full one where the file is there."""
        here = as_on_disk(self._path.parent / name, other_slashes=True)
        if os.path.isfile(here):
            return _full(here)
        return tuple(part for part in re.split(r"[\\/]+", name) if part not in ("", "."))

    def _found(self, recording: str | AnyPath) -> _Key | None:
        full = _full(recording)
        ends = (full[start:] for start in range(len(full)))
        return next((end for end in ends if end in self._rows), None)


def _full(path: str | AnyPath) -> _Key:
    if isinstance(path, RemotePath):
        return tuple(map(clean, path.parts))
    return tuple(clean(part) for part in Path(os.path.abspath(path)).parts)


def _time_of(line: Line) -> tuple[datetime, str]:
    """The time of a row, with the offset of its zone; without one and why, where that is unknown.

    Raises DataError.
    """
    for column in ("file", "time"):
        if column not in line.cells:
            raise DataError(
                f"{line.path}, line {line.number}: there is no {column}; a table of times has the "
                "columns file, time and, if you like, zone"
            )
    day, text = line.cells.get("date", ""), line.cells["time"]
    try:
        time, is_date = parse_time(f"{day} {text}".strip())
        if is_date:
            raise ValueError
    except ValueError:
        allowed = "write 05:30:00" if day else "write 2024-05-10 05:30:00"
        raise line.wrong("time", f"is {text!r}; {allowed}") from None
    zone = zone_of(line, "zone")
    if zone is None or time.tzinfo is not None:
        return time, ""
    utc, doubt = to_utc(time, zone)
    return (time, f"{doubt}.") if utc is None else (in_offset(utc, zone), "")


def in_offset(utc: datetime, zone: tzinfo) -> datetime:
    """A moment at the offset that a zone has then."""
    local = utc.astimezone(zone)
    return local.replace(tzinfo=timezone(local.utcoffset() or timedelta()))

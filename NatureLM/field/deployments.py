"""Tables of field work: where recorders stood, and when recordings began.

A table of deployments gives place, season and zone; its columns are called as people call them, or
as in Camtrap DP. A recording that two rows fit has no place: that is said, and nothing guessed. A
table of times is for recordings whose names and headers do not say when they began.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from NatureLM.audio.files import as_on_disk
from NatureLM.data.table import DataError, clean, fold, read_table
from NatureLM.field.clock import OFFSET, UTC, WRITTEN, Clock, fixed_zone, parse_zone, to_utc
from NatureLM.storage import AnyPath, RemotePath
from NatureLM.util import shown

ALIASES = {
    "site": (
        *("site", "site_name", "location_name", "location", "station", "plot", "point"),
        *("location_id", "site_id", "station_id", "deployment_id", "deployment"),
    ),
    "latitude": ("latitude", "lat", "decimal_latitude", "y"),
    "longitude": ("longitude", "lon", "long", "lng", "decimal_longitude", "x"),
    "from": (
        *("from", "start", "deployment_start", "start_date", "date_from", "start_time", "begin"),
        *("deployed", "installed"),
    ),
    "to": (
        *("to", "end", "deployment_end", "end_date", "date_to", "end_time", "stop", "until"),
        *("retrieved", "collected"),
    ),
    "zone": ("zone", "timezone", "time_zone", "tz"),
    "clock": ("clock", "clock_zone", "recorder_zone"),
    "recorder": (
        *("recorder", "recorder_id", "device_id", "device", "serial", "serial_number"),
        *("unit", "logger", "aru", "audiomoth"),
    ),
    "folder": ("folder", "path", "directory", "card"),
    "habitat": ("habitat", "habitat_type"),
}
"""Columns of a table of deployments, and what each may be called."""

_MODELS = frozenset(
    {"audiomoth", "audio moth", "hydromoth", "song meter", "sm2", "sm3", "sm4", "sm4bat", "sm mini"}
    | {"song meter mini", "song meter micro", "swift", "swiftone", "bar lt", "barlt", "soundtrap"}
)
"""What people write into a column `recorder` that says of what kind it is, and not which one."""
_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True)
class Deployment:
    """A row: where a recorder stood, and from when to when.

    latitude, longitude: degrees
    start, end: local times of the place, or with a zone of their own; both belong to it
    zone: of the place
    clock: the zone that the recorder's clock was set to, where that is another one
    folder: a folder that its recordings are in, at any depth
    values: what else the row says, by the table's names of the columns
    line: of the table
    """

    site: str = ""
    latitude: float | None = None
    longitude: float | None = None
    start: datetime | None = None
    end: datetime | None = None
    zone: tzinfo | None = None
    clock: tzinfo | None = None
    recorder: str = ""
    folder: str = ""
    habitat: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    line: int = 0

    def __str__(self) -> str:
        named = self.site or self.recorder or self.folder
        return f"{named} (line {self.line})" if named else f"line {self.line}"

    def wall(self, moment: datetime) -> datetime:
        """A recorder's time as clocks of the place show it."""
        if moment.tzinfo is None and self.clock is not None:
            moment = to_utc(moment, self.clock)[0] or moment
        return self.local(moment)

    def local(self, moment: datetime) -> datetime:
        """A moment, or one of the row's own times, as clocks of the place show it."""
        if moment.tzinfo is not None and self.zone is not None:
            moment = moment.astimezone(self.zone)
        return moment.replace(tzinfo=None)

    def holds(self, clock: Clock) -> bool:
        """Whether a recording that began then can be of it; a time that is not known can be."""
        if clock.time is not None:
            return self._order(self.start, clock.time) <= 0 <= self._order(self.end, clock.time, 1)
        if clock.date is None:
            return True
        days = [None if one is None else self.local(one).date() for one in (self.start, self.end)]
        return (days[0] or date.min) <= clock.date <= (days[1] or date.max)

    def _order(self, bound: datetime | None, moment: datetime, otherwise: int = -1) -> int:
        """Whether the bound is before (-1), at or after the moment."""
        if bound is None:
            return otherwise
        if bound.tzinfo is not None and moment.tzinfo is not None:
            first, second = bound.astimezone(UTC), moment.astimezone(UTC)
        else:
            first, second = self.local(bound), self.wall(moment)
        return (first > second) - (first < second)


class Deployments(Sequence[Deployment]):
    """The rows of a table.

    path: of the table
    notes: about how it was read
    """

    def __init__(
        self, rows: Sequence[Deployment], path: str | Path = "", notes: Sequence[str] = ()
    ) -> None:
        self._rows = tuple(rows)
        self.path = Path(path)
        self.notes = tuple(notes)

    def __getitem__(self, at: int) -> Deployment:  # type: ignore[override]
        return self._rows[at]

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, recording: str | Path, clock: Clock) -> tuple[Deployment | None, str]:
        """The deployment that a recording is of; or None, and why."""
        place = _Place(recording, clock.recorder)
        fitting = self._of(place)
        if not fitting:
            return None, f"{self.path}: no row has its folder, its recorder or its site."
        held = [row for row in fitting if row.holds(clock)]
        if not held:
            return None, f"{self.path}: it began outside of the time of {_listed(fitting)}."
        for narrower in (_goes_on(clock), place.made_by, place.named_for, place.sites):
            if len(held) > 1:
                held = narrower(held) or held
        if len(held) > 1:
            return None, (
                f"{self.path}: {len(held)} rows fit, {_listed(held)}, so its place is not known."
            )
        return held[0], ""

    def _of(self, place: _Place) -> list[Deployment]:
        """Rows of the recording, whatever its time: by folder, else by recorder, else by site."""
        rows = [row for row in self._rows if not row.folder]
        return (
            place.folders(self._rows)
            or place.made_by(self._rows)
            or place.named_for(place.possible(rows))
            or place.sites(place.possible(rows))
            or (place.possible(rows) if len(self._rows) == 1 else [])
        )


class _Place:
    """What path and recorder say of where a recording is from."""

    def __init__(self, recording: str | Path, recorder: str) -> None:
        self._full = _parts(os.path.abspath(recording))[:-1]
        *self._folders, name = _parts(str(recording)) or ("",)
        self._name = name
        self._recorder = _plain(recorder)

    def folders(self, rows: Sequence[Deployment]) -> list[Deployment]:
        """Rows whose folder the recording is in; where there are several, the innermost ones."""
        found = []
        for row in rows:
            wanted = _parts(row.folder)
            ends = [
                start + len(wanted)
                for start in range(len(self._full) - len(wanted) + 1)
                if wanted and self._full[start : start + len(wanted)] == wanted
            ]
            found += [((max(ends), len(wanted)), row)] if ends else []
        return _greatest(found)

    def made_by(self, rows: Sequence[Deployment]) -> list[Deployment]:
        """Rows whose recorder made it, as its header or the number in its name says."""
        return [row for row in rows if row.recorder and _plain(row.recorder) == self._recorder]

    def named_for(self, rows: Sequence[Deployment]) -> list[Deployment]:
        """Rows of a recorder that its name begins with or has within, or a folder is called by."""
        return [
            row
            for row in rows
            if _begins(self._name, _plain(row.recorder))
            or _plain(row.recorder) in self._folders
            or (len(row.recorder) > 3 and f" {_plain(row.recorder)} " in f" {self._name} ")
        ]

    def possible(self, rows: Sequence[Deployment]) -> list[Deployment]:
        """Rows without those of another recorder: one whose number is written in the same way."""
        form = _form(self._recorder)
        return [
            row
            for row in rows
            if not self._recorder
            or _plain(row.recorder) == self._recorder
            or _form(_plain(row.recorder)) != form
        ]

    def sites(self, rows: Sequence[Deployment]) -> list[Deployment]:
        """Rows whose site is what its name begins with, or a folder of its path.

        The longest beginning of the name counts, and the innermost folder. Where they are two
        sites, the rows of both come back.
        """
        sites = [(_plain(row.site), row) for row in rows if row.site]
        by_name = _greatest([(len(s), row) for s, row in sites if _begins(self._name, s)])
        depth = {part: number for number, part in enumerate(self._folders)}
        by_folder = _greatest([(depth[site], row) for site, row in sites if site in depth])
        both = [row for row in by_name if row in by_folder]
        return both or by_name + by_folder


def _greatest(found: Sequence[tuple[Any, Deployment]]) -> list[Deployment]:
    most = max((key for key, _ in found), default=None)
    return [row for key, row in found if key == most]


def _goes_on(clock: Clock) -> Callable[[list[Deployment]], list[Deployment]]:
    """Where one deployment ends at the moment at which another begins, the latter."""

    def narrower(rows: list[Deployment]) -> list[Deployment]:
        ended = Clock(time=clock.time + _INSTANT) if clock.time is not None else clock
        return [row for row in rows if row.holds(ended)]

    return narrower


def _begins(name: str, word: str) -> bool:
    """Whether a name begins with a whole word."""
    return bool(word) and f"{name} ".startswith(f"{word} ")


@lru_cache(maxsize=1 << 14)  # all rows are looked through for each recording
def _plain(text: str) -> str:
    """Small letters, and a blank for what words are set off by."""
    text = unicodedata.normalize("NFC", text).casefold().strip()
    return re.sub(r"[\W_]+", " ", text.removeprefix("audiomoth ")).strip()


@lru_cache(maxsize=1 << 14)
def _parts(path: str) -> tuple[str, ...]:
    return tuple(plain for part in re.split(r"[\\/]+", path) if (plain := _plain(part)))


@lru_cache(maxsize=1 << 14)
def _form(text: str) -> str:
    """How a number is written: a serial number of an AudioMoth, or letters and so many digits."""
    if re.fullmatch(r"[0-9a-f]{16}", text):
        return "0" * 16
    return re.sub(r"\d", "0", text)


def _listed(rows: Sequence[Deployment]) -> str:
    more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
    return ", ".join(map(str, rows[:4])) + more


# Reading


def read_deployments(path: str | Path) -> Deployments:
    """A table of deployments.

    Raises DataError, with file, line, column and value, for a cell that cannot be meant, and for
    two rows that place one recorder, or one site, twice at a time.
    """
    path = Path(path)
    lines, notes = read_lines(path, ALIASES)
    rows = [_deployment(line) for line in lines]
    recorders: dict[str, list[Deployment]] = {}
    sites: dict[str, list[Deployment]] = {}
    for row in rows:
        if row.recorder:
            recorders.setdefault(_plain(row.recorder), []).append(row)
        else:
            sites.setdefault(f"{_plain(row.site)}/{_plain(row.folder)}", []).append(row)
    for some in recorders.values():
        _refuse_overlaps(
            path, some, f"the recorder {some[0].recorder}", "; call a column of models `model`"
        )
    for some in sites.values():
        _refuse_overlaps(path, some, str(some[0]).partition(" (")[0], "; give recorder or folder")
    return Deployments(rows, path, notes)


def _deployment(line: Line) -> Deployment:
    latitude, longitude = line.degrees("latitude", 90), line.degrees("longitude", 180)
    cells = line.cells
    if (latitude is None) != (longitude is None):
        there, absent = ("latitude", "longitude")[:: 1 if longitude is None else -1]
        near = difflib.get_close_matches(absent, line.others, n=1)
        advice = f"rename the column {near[0]!r}" if near else "give both or none"
        raise line.wrong(there, f"is given, and no {absent}; {advice}")
    if not any(cells.get(column) for column in ("site", "recorder", "folder", "latitude")):
        raise DataError(
            f"{line.path}, line {line.number}: names no place; a table of deployments has columns "
            f"such as {', '.join(ALIASES)}"
        )
    is_model = _plain(cells.get("recorder", "")) in _MODELS
    start, end = line.read("from", parse_time, TIMES), line.read("to", parse_time, TIMES)
    last = end[0] + timedelta(days=1) - _INSTANT if end and end[1] else end and end[0]
    row = Deployment(
        **{column: cells.get(column, "") for column in ("site", "folder", "habitat")},
        recorder="" if is_model else cells.get("recorder", ""),
        latitude=latitude,
        longitude=longitude,
        start=start[0] if start else None,
        end=last or None,
        zone=zone_of(line, "zone"),
        clock=zone_of(line, "clock"),
        values={**line.others, "model": cells["recorder"]} if is_model else line.others,
        line=line.number,
    )
    if row.start and row.end and row.local(row.start) > row.local(row.end):
        raise line.wrong("to", f"is {shown(cells['to'])}, before {shown(cells['from'])}")
    return row


def _refuse_overlaps(path: Path, rows: Sequence[Deployment], what: str, advice: str) -> None:
    ends: tuple[datetime, Deployment] | None = None
    for row in sorted(rows, key=lambda row: _moment(row, row.start, datetime.min)):
        start, end = _moment(row, row.start, datetime.min), _moment(row, row.end, datetime.max)
        if ends is not None and start < ends[0]:
            raise DataError(
                f"{path}: lines {ends[1].line} and {row.line} place {what} twice at a time; their "
                "times from .. to may not overlap (where one ends on the day on which another "
                f"begins, give the time of day){advice}"
            )
        if ends is None or end > ends[0]:
            ends = end, row


def _moment(row: Deployment, bound: datetime | None, otherwise: datetime) -> datetime:
    """A bound of the row to compare with others."""
    if bound is None:
        return otherwise
    if bound.tzinfo is None and row.zone is not None:
        bound = bound.replace(tzinfo=row.zone)
    return bound.astimezone(UTC).replace(tzinfo=None) if bound.tzinfo is not None else bound


# Tables of deployments and of times. A cell that cannot be meant is refused with file, line,
# column, value and what is allowed.

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

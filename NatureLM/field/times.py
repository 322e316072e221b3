"""When recordings began, as a table of the user's says."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path

from NatureLM.audio.files import as_on_disk
from NatureLM.data.table import DataError, clean
from NatureLM.field.tables import Line, parse_time, read_lines, zone_of
from NatureLM.field.zones import to_utc
from NatureLM.storage import AnyPath, RemotePath

_ALIASES = {
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
        lines, self.notes = read_lines(self._path, _ALIASES)
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

"""What a recording's name says: when it began, by which recorder, and where.

Years come first, and are from 1990 to the next one: `20240510_053000`, `2024-05-10T05-30-00`,
`20240510T053000+1000`, `20240510_053000Z`, and the eight hexadecimal digits (seconds since 1970) of
early AudioMoths. Days and months that are written in another order mean different things in
different countries and are not read; neither are dates of six digits, and numbers that only might
be a time, such as those of catalogues.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import PurePath

from NatureLM.field.zones import UTC, fixed_zone

FIRST_YEAR = 1990
_UNSET = 1970  # clocks that nobody set begin here
_HEX_FROM = datetime(2015, 1, 1, tzinfo=UTC)  # there are no older AudioMoths

_STAMP = re.compile(
    r"""(?<!\d)(?P<year>\d{4})(?P<dash>[-_.]?)(?P<month>\d\d)(?P=dash)(?P<day>\d\d)
    (?P<between>[T_\-\ $]{0,3})
    (?P<hour>\d\d)(?P<colon>[-:._h]?)(?P<minute>\d\d)
    (?:(?:(?P=colon)|m)(?P<second>\d\d)(?:\.\d{1,6})?)?
    (?P<zone>Z(?![A-Za-z0-9])
      |[+-](?:0\d|1[0-4]):?(?:00|15|30|45)(?!\d)
      |\+(?:0\d|1[0-4])(?!\d)
      |[ _-]?\(?(?:UTC|GMT)(?:[+-]\d{1,2}(?::?[0-5]\d)?)?\)?(?![A-Za-z0-9]))?
    (?!\d)""",
    re.VERBOSE | re.ASCII,
)
_DATE = re.compile(r"(?<!\d)(\d{4})([-_.]?)(\d\d)\2(\d\d)(?!\d)", re.ASCII)
_CLOCK = re.compile(r"(?<!\d)(\d\d):(\d\d):(\d\d)(?!\d)", re.ASCII)  # `2024-05-10-birdnet-05:30:00`
_CATALOGUE = re.compile(r"(?<![A-Za-z])(?:ML|XC|iNat)[ _-]?$")
_SHORT = re.compile(r"\d{3,10}\.(\d{12})", re.ASCII)  # SoundTrap: serial number, year of 2 digits
_HEX = re.compile(r"[0-9A-F]{8}")
_CLIP = re.compile(r"[_-](\d{1,7}(?:\.\d{1,6})?)s[_-](\d{1,7}(?:\.\d{1,6})?)s$", re.ASCII)
_RECORDER = re.compile(
    r"(?<![A-Za-z])(?:BARLT|S\d[AU]|SM\d|SMM|SMA)\d{4,8}(?![A-Za-z0-9])"
    r"|(?<![A-Za-z0-9])(?=[0-9A-F]*[A-F])[0-9A-F]{16}(?![A-Za-z0-9])",
    re.ASCII,
)
_POSITION = re.compile(
    r"(?<![\d.])([+-]\d{1,2}\.\d{3,8})([+-]\d{1,3}\.\d{3,8})(?!\d)"
    r"|\[([+-]?\d{1,2}\.\d{1,8}) ([+-]?\d{1,3}\.\d{1,8})\]",
    re.ASCII,
)
_OFFSETS = {h * 60 for h in range(-12, 15)} | {-570, -210, -150, 210, 270, 330, 345} | {
    *(390, 525, 570, 630, 765, 825),
}  # fmt: skip
"""Minutes that a place on Earth is from UTC, or was since 1990."""


@dataclass(frozen=True)
class Name:
    """What a name says; `None` and "" are what it does not.

    time: with a zone where the name has one
    date: where there is no time, too
    recorder: its serial number
    position: latitude and longitude in degrees
    note: why a time was not taken
    """

    time: datetime | None = None
    date: date | None = None
    recorder: str = ""
    position: tuple[float, float] | None = None
    note: str = ""


def read_name(path: str | PurePath) -> Name:
    """What the name of a file says; folders are not looked at."""
    stem = PurePath(path).stem
    recorder = _RECORDER.search(stem)
    time, day, note = _time(stem)
    if time is not None and (clip := _CLIP.search(stem)) and float(clip[1]) < float(clip[2]):
        time += timedelta(seconds=float(clip[1]))  # cut out of a recording that began then
    return Name(
        time=time,
        date=time.date() if time is not None else day,
        recorder=recorder[0] if recorder else "",
        position=_position(stem),
        note=note,
    )


def _time(stem: str) -> tuple[datetime | None, date | None, str]:
    """Time, or date alone, and a note."""
    if _HEX.fullmatch(stem) and not stem.isdecimal():
        begun = datetime.fromtimestamp(int(stem, 16), UTC)
        is_time = begun >= _HEX_FROM and begun.year <= _last_year()
        return (begun, begun.date(), "") if is_time else (None, None, "")
    if short := _SHORT.fullmatch(stem):
        time = _moment(f"20{short[1][:2]}", *re.findall("..", short[1][2:]))
        if time is not None:
            return time, time.date(), ""
    stamps = dict(_stamps(stem))
    times = {time for time in stamps.values() if time.year >= FIRST_YEAR}
    starts = {time for at, time in stamps.items() if stem[at - 1 : at] == "S"}
    ends = {time for at, time in stamps.items() if stem[at - 1 : at] == "E"}
    if len(starts) == 1 and starts | ends == times:
        times = starts  # of a start and an end
    if len(times) == 1:
        (begun,) = times
        return begun, begun.date(), ""
    if times:
        return None, None, f"The name has {len(times)} times, and which is its start is not known"
    if stamps:
        unset = next(iter(stamps.values()))
        return None, None, f"The name says {unset.replace(tzinfo=None)}: the clock was not set"
    return _date(stem)


def _date(stem: str) -> tuple[datetime | None, date | None, str]:
    days = set(_dates(stem))
    if len(days) != 1:
        return None, None, ""
    (day,) = days
    clocks = _CLOCK.findall(stem)
    if len(clocks) == 1:
        time = _moment(*f"{day:%Y %m %d}".split(), *clocks[0])
        if time is not None:
            return time, day, ""
    return None, day, ""


def _stamps(stem: str) -> Iterator[tuple[int, datetime]]:
    """Where a time stands in the name, and the time; clocks that start in 1970 count, too."""
    at = 0
    while found := _STAMP.search(stem, at):
        at = found.start() + 1
        zone = _zone(found["zone"] or "")
        if found["second"] is None and zone is None:
            # `20240510_0530` may be a number; `2024-05-10_05.30` is a time.
            colon = found["colon"]
            if not found["dash"] or not colon or colon == found["between"] or colon == "_":
                continue
        parts = found.group("year", "month", "day", "hour", "minute")
        time = _moment(*parts, found["second"] or "0", first_year=_UNSET)
        if time is not None:
            yield found.start(), time.replace(tzinfo=zone)


def _zone(text: str) -> timezone | None:
    named = re.search("UTC|GMT|Z", text)
    offset = (text[named.end() :] if named else text).rstrip(")")
    if not offset:
        return UTC if named else None
    try:
        zone = fixed_zone(offset)
    except ValueError:
        return None
    is_real = zone.utcoffset(None).total_seconds() / 60 in _OFFSETS
    return zone if is_real and not offset.startswith("-00") else None


def _dates(stem: str) -> Iterator[date]:
    for found in _DATE.finditer(stem):
        if not found[2] and _CATALOGUE.search(stem[: found.start()]):
            continue
        day = _moment(found[1], found[3], found[4])
        if day is not None:
            yield day.date()


def _moment(*parts: str, first_year: int = FIRST_YEAR) -> datetime | None:
    """The time of year, month, day and whatever follows, or None if it is none."""
    try:
        time = datetime.strptime(" ".join(parts), "%Y %m %d %H %M %S"[: 3 * len(parts) - 1])
    except ValueError:
        return None
    return time if first_year <= time.year <= _last_year() else None


def _last_year() -> int:
    return date.today().year + 1


def _position(stem: str) -> tuple[float, float] | None:
    found = _POSITION.search(stem)
    if found is None:
        return None
    return checked_position(found[1] or found[3], found[2] or found[4])


def checked_position(latitude: str, longitude: str) -> tuple[float, float] | None:
    """Degrees, or None where they are no place on Earth, or the zeros of a receiver without fix."""
    try:
        place = float(latitude), float(longitude)
    except ValueError:
        return None
    is_place = abs(place[0]) <= 90 and abs(place[1]) <= 180 and place != (0.0, 0.0)
    return place if is_place else None

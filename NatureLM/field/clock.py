"""When a recording began, by all that says so: name, header, a table of times.

They are trusted in this order, and of headers AudioMoth's comment, GUANO, and WAMD of Song Meters.
A source of less trust gives the zone that a better one lacks, where both show the same time, and is
named where it shows another one. Nothing is guessed: without a zone there is a local time and no
UTC. The times of the file itself are never used: copying, unpacking and synchronising set them, and
on FAT, as memory cards have it, they are in no zone.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from pathlib import PurePath
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from NatureLM.audio.container import Tags, read_tags
from NatureLM.storage import AnyPath
from NatureLM.util import format_duration, parse_json

if TYPE_CHECKING:
    from NatureLM.field.deployments import FileTimes


# Zones: of the time zone database (`Europe/London`), with their summer time, or offsets from UTC
# that never change (`UTC+1`, `+10:00`, `Z`), as recorders have.

UTC = timezone.utc
WRITTEN = "Europe/London, UTC+1, +10:00 or Z"
"""How a zone may be written, for messages."""
OFFSET = r"[+\-−]\d{1,2}(?::?[0-5]\d)?"
"""Hours, or hours and minutes, from UTC."""

_FIXED = re.compile(rf"(?:Z|(?:UTC|GMT)\s*({OFFSET})?|({OFFSET}))", re.ASCII | re.IGNORECASE)
_MOST_HOURS = 14


def parse_zone(text: str) -> tzinfo:
    """The zone that is meant. Raises ValueError with what is allowed."""
    found = _FIXED.fullmatch(text.strip())
    if found:
        return fixed_zone(found[1] or found[2] or "+0")
    return _named_zone(text.strip())


def fixed_zone(text: str) -> timezone:
    """The zone of an offset: `+1`, `-3:30`, `+1000`. Raises ValueError for more than 14 hours."""
    digits = text[1:].replace(":", "")
    hours, minutes = (digits[:-2], digits[-2:]) if len(digits) > 2 else (digits, "0")
    if int(hours) * 60 + int(minutes) > _MOST_HOURS * 60:
        raise ValueError(f"no place is {text} hours from UTC")
    shift = timedelta(hours=int(hours), minutes=int(minutes))
    return timezone(shift if text[0] == "+" else -shift)


@lru_cache(maxsize=256)
def _named_zone(text: str) -> ZoneInfo:
    names = _zone_names()
    if not names:
        raise ValueError(
            "this machine has no time zone database: pip install 'naturelm-audio[field]'"
        )
    name = names.get(text.casefold())
    try:
        if name is not None:
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    close = difflib.get_close_matches(text.casefold(), names, n=1, cutoff=0.6)
    meant = f"; did you mean {names[close[0]]}?" if close else ""
    raise ValueError(f"write a zone as {WRITTEN}{meant}")


@lru_cache(maxsize=1)
def _zone_names() -> dict[str, str]:
    return {name.casefold(): name for name in available_timezones() - {"localtime", "Factory"}}


def zone_text(zone: tzinfo | None) -> str:
    """The zone as rows have it: its name, or `UTC+01:00`; "" where there is none."""
    if zone is None:
        return ""
    if isinstance(zone, ZoneInfo):
        return zone.key
    shift = zone.utcoffset(None)
    return offset_text(shift) if shift is not None else str(zone)


def offset_text(shift: timedelta) -> str:
    """`UTC`, `UTC+01:00`, `UTC-03:30`."""
    minutes = round(shift.total_seconds() / 60)
    sign = "-" if minutes < 0 else "+"
    return f"UTC{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}" if minutes else "UTC"


def to_utc(local: datetime, zone: tzinfo) -> tuple[datetime | None, str]:
    """The moment of a clock's local time in a zone, in UTC; or None, and why it is not known.

    local: without a zone of its own

    Where clocks are set back an hour comes twice, and which one is meant nobody can say; where they
    are set forward an hour does not exist, and a recorder that shows it was not set.
    """
    first = local.replace(tzinfo=zone, fold=0)
    if first.utcoffset() == local.replace(tzinfo=zone, fold=1).utcoffset():
        return first.astimezone(UTC), ""
    name = zone_text(zone)
    if first.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local:
        return None, (
            f"{local} does not exist in {name}, where clocks were set forward then: the recorder's "
            "clock did not follow, so UTC is not known"
        )
    return None, (
        f"{local} comes twice in {name}, where clocks were set back then, so UTC is not known"
    )


# Names of files. Years come first, and are from 1990 to the next one: `20240510_053000`,
# `2024-05-10T05-30-00`, `20240510T053000+1000`, `20240510_053000Z`, and the eight hexadecimal
# digits (seconds since 1970) of early AudioMoths. Days and months that are written in another order
# mean different things in different countries and are not read; neither are dates of six digits,
# and numbers that only might be a time, such as those of catalogues.

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


# Clocks

_SAME = timedelta(seconds=2)
_MOST_APART = timedelta(hours=26)  # of two zones
_COMMENT = re.compile(
    r"Recorded at (\d\d):(\d\d):(\d\d)(?:\.\d+)? (\d\d)/(\d\d)/(\d{4})"
    r"(?: ?\((UTC)(?:([+-])(\d{1,2})(?:: ?(\d{1,2}))?)?\))?"
    r"(?: by AudioMoth ([0-9A-Fa-f]{16}))?",
    re.ASCII,
)
_ARTIST = re.compile(r"AudioMoth ([0-9A-Fa-f]{16})", re.ASCII)
_BATTERY = re.compile(r"battery (?:state )?was (\d{1,2}\.\d{1,2})V", re.ASCII)
_TEMPERATURE = re.compile(r"temperature was (-?\d{1,2}\.\d)C", re.ASCII)
_WAMD_MAKE = "Wildlife Acoustics"
_GPS = re.compile(
    r"\w*\s*,\s*(-?\d{1,2}\.\d+)\s*,\s*(?:([NS])\s*,\s*)?(-?\d{1,3}\.\d+)(?:\s*,\s*([EW]))?",
    re.ASCII,
)
_ISO_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:\.\d+)?\s*(Z|" + OFFSET + ")?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Reading:
    """A time that one source gives; `source` is "name", "AudioMoth comment", "GUANO" or so."""

    time: datetime
    source: str

    def __str__(self) -> str:
        return f"{self.source} says {_shown(self.time)}"


@dataclass(frozen=True)
class Clock:
    """When a recording began, and what else its name and header say of it.

    time: without a zone where none is said; None where no time is known
    date: where only that is known, too
    source: what the time was read from
    zone_source: what its zone was read from
    recorder: serial number
    battery, temperature: volts, degrees Celsius, when it began
    position: latitude and longitude in degrees
    conflicts: what disagrees by more than 2 s, and times that were not taken; whole sentences
    tags: what the header says
    """

    time: datetime | None = None
    date: date | None = None
    source: str = ""
    zone_source: str = ""
    recorder: str = ""
    make: str = ""
    model: str = ""
    battery: float | None = None
    temperature: float | None = None
    position: tuple[float, float] | None = None
    conflicts: tuple[str, ...] = ()
    tags: Tags = field(default_factory=Tags, repr=False)

    @property
    def utc(self) -> datetime | None:
        """The moment, where the zone is known."""
        has_zone = self.time is not None and self.time.tzinfo is not None
        return self.time.astimezone(UTC) if self.time is not None and has_zone else None

    @property
    def zone(self) -> str:
        """The zone as it was read, such as `UTC+01:00`; "" where none is known."""
        return zone_text(self.time.tzinfo) if self.time is not None else ""


def read_clock(
    path: str | AnyPath, times: FileTimes | None = None, tags: Tags | None = None
) -> Clock:
    """All that name, header and table say of when a recording began; never an error.

    tags: of the header, where they are known and the file need not be opened
    """
    name, tags = read_name(str(path)), read_tags(path) if tags is None else tags
    readings: list[Reading] = []
    notes = [f"{name.note}."] if name.note else []
    if name.time is not None:
        readings.append(Reading(name.time, "name"))
    readings += _of_tags(tags)
    if times is not None:
        time, note = times.of(path)
        notes += [note] if note else []
        readings += [Reading(time, "file table")] if time is not None else []
    begun = _merged(readings, name.date)
    return replace(
        _about(tags, name),
        time=begun.time,
        date=begun.date,
        source=begun.source,
        zone_source=begun.zone_source,
        conflicts=(*notes, *begun.conflicts),
        tags=tags,
    )


# Headers

_GUANO = (
    *("Timestamp", "Serial", "Loc Position", "Make", "Model"),
    *("OAD|Battery Voltage", "Temperature Int"),
)
_MOST_CHARACTERS = 512  # of a value; what is read here is shorter


def tags_text(tags: Tags) -> str:
    """Those tags that a clock is read from, as JSON; `{}` where there are none."""
    guano = {key: tags.guano[key] for key in _GUANO if key in tags.guano}
    found = next(filter(None, map(_COMMENT.search, tags.comments)), None)
    kept = {
        "guano": {key: value[:_MOST_CHARACTERS] for key, value in guano.items()},
        "wamd": {key: value[:_MOST_CHARACTERS] for key, value in tags.wamd.items()},
        "comment": "" if found is None else found.string[found.start() :][:_MOST_CHARACTERS],
        "artist": tags.artist[:_MOST_CHARACTERS] if _ARTIST.search(tags.artist) else "",
    }
    return json.dumps({key: value for key, value in kept.items() if value}, separators=(",", ":"))


def tags_of(text: str) -> Tags | None:
    """What `tags_text` made a text of; None for anything else."""
    try:
        kept = parse_json(text)
        guano, wamd = (dict(kept.get(key, {})) for key in ("guano", "wamd"))
        comment, artist = kept.get("comment", ""), kept.get("artist", "")
        if not all(isinstance(one, str) for one in (*guano.values(), *wamd.values())):
            return None
        return Tags(guano, wamd, (str(comment),) if comment else (), str(artist))
    except (ValueError, TypeError, AttributeError):
        return None


def _of_tags(tags: Tags) -> Iterator[Reading]:
    for comment in tags.comments:
        if (found := _COMMENT.search(comment)) and (time := _comment_time(found)):
            yield Reading(time, "AudioMoth comment")
            break
    for source, text in (
        ("GUANO", tags.guano.get("Timestamp", "")),
        ("WAMD", tags.wamd.get("timestamp", "")),
    ):
        if (time := _iso_time(text)) is not None:
            yield Reading(time, source)


def _comment_time(found: re.Match[str]) -> datetime | None:
    hour, minute, second, day, month, year, utc, sign, hours, minutes, _ = found.groups()
    zone: timezone | None = None
    try:
        if utc:
            zone = fixed_zone(f"{sign}{hours}:{minutes or 0:0>2}") if sign else UTC
        time = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
    except ValueError:
        return None
    return _plausible(time.replace(tzinfo=zone))


def _iso_time(text: str) -> datetime | None:
    found = _ISO_TIME.fullmatch(text.strip())
    if found is None:
        return None
    *parts, zone = found.groups()
    try:
        time = datetime(*map(int, parts))  # type: ignore[arg-type]
        if zone:
            time = time.replace(tzinfo=UTC if zone in "Zz" else fixed_zone(zone))
    except ValueError:
        return None
    return _plausible(time)


def _plausible(time: datetime) -> datetime | None:
    return time if FIRST_YEAR <= time.year <= date.today().year + 1 else None


def _about(tags: Tags, name: Name) -> Clock:
    """Recorder, battery, temperature and position; a header is trusted more than a name here."""
    guano = tags.guano
    comment = next((one for one in tags.comments if _COMMENT.search(one)), "")
    said = _COMMENT.search(comment) if comment else None
    artist = _ARTIST.search(tags.artist)
    is_audiomoth = bool(said or artist)
    serial = (said and said[11]) or (artist and artist[1]) or guano.get("Serial")
    serial = serial or tags.wamd.get("serial") or name.recorder
    make = "Open Acoustic Devices" if is_audiomoth else _WAMD_MAKE if tags.wamd else ""
    latitude, longitude, *_ = [*guano.get("Loc Position", "").split(), "", ""]
    return Clock(
        recorder=(serial or "")[:64],
        make=guano.get("Make", make)[:64],
        model=guano.get("Model", "AudioMoth" if is_audiomoth else tags.wamd.get("model", ""))[:64],
        battery=_number(_BATTERY.search(comment), guano.get("OAD|Battery Voltage", "")),
        temperature=_number(_TEMPERATURE.search(comment), guano.get("Temperature Int", "")),
        position=checked_position(latitude, longitude) or _gps(tags) or name.position,
    )


def _gps(tags: Tags) -> tuple[float, float] | None:
    """`WGS84,25.39,N,80.68,W` of WAMD, or with signs in place of letters."""
    found = _GPS.match(tags.wamd.get("gps", ""))
    if found is None:
        return None
    latitude, south, longitude, west = found.groups()
    return checked_position(
        f"-{latitude}" if south == "S" else latitude, f"-{longitude}" if west == "W" else longitude
    )


def _number(found: re.Match[str] | None, otherwise: str) -> float | None:
    if found is not None:
        return float(found[1])
    return float(otherwise) if re.fullmatch(r"-?\d{1,3}(\.\d{1,4})?", otherwise) else None


# Several sources


def _merged(readings: Sequence[Reading], day: date | None) -> Clock:
    """The first time with the zone of the first that agrees with it; the others are compared."""
    if not readings:
        return Clock(date=day, source="name" if day else "")
    first, *others = readings
    time = first.time
    zone_source = first.source if time.tzinfo else ""
    conflicts = []
    if day is not None and first.source != "name" and day != time.date():
        conflicts.append(f"The name says {day}, and the {first}.")
    for other in others:
        is_same, sentence = _compared(time, first, other)
        if sentence:
            conflicts.append(sentence)
        if is_same and other.time.tzinfo is not None:
            if time.tzinfo is None:
                zone_source = other.source
                time = other.time if sentence else time.replace(tzinfo=other.time.tzinfo)
            elif not time.utcoffset():
                time = time.astimezone(other.time.tzinfo)
    return Clock(time, time.date(), first.source, zone_source, conflicts=tuple(conflicts))


def _compared(time: datetime, first: Reading, other: Reading) -> tuple[bool, str]:
    """Whether two sources mean the same moment, and what is to say about them."""
    theirs = other.time
    if time.tzinfo is not None and theirs.tzinfo is not None:
        apart = abs(time - theirs)
        if apart <= _SAME:
            return True, ""
    else:
        apart = abs(_wall(time) - _wall(theirs))
        if apart <= _SAME:
            return True, ""
        in_utc = next((t for t in (theirs, time) if t.tzinfo is not None), None)
        local = time if in_utc is theirs else theirs
        if in_utc is not None and abs(_wall(in_utc.astimezone(UTC)) - local) <= _SAME:
            whose = first.source if local is time else other.source
            return True, (
                f"The {first} and the {other}: the same moment where the {whose} counts in UTC, "
                "as it is taken."
            )
    return False, (f"The {first} and the {other}, {_apart(apart)}: the {first.source} is taken.")


def _apart(apart: timedelta) -> str:
    """How far, and whether zones can be why."""
    seconds = round(apart.total_seconds())
    text = format_duration(seconds, short=True)
    near = min(seconds % 900, 900 - seconds % 900)
    is_zone = near <= 2 and 900 <= seconds <= _MOST_APART.total_seconds()
    return f"{text} apart{' (as zones or summer time are)' if is_zone else ''}"


def _wall(time: datetime) -> datetime:
    return time.replace(tzinfo=None)


def _shown(time: datetime) -> str:
    zone = f" ({zone_text(time.tzinfo)})" if time.tzinfo else ""
    return f"{_wall(time):%Y-%m-%d %H:%M:%S}{zone}"

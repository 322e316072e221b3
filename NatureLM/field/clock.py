"""When a recording began, by all that says so: name, header, a table of times.

They are trusted in this order, and of headers AudioMoth's comment, GUANO, and WAMD of Song Meters.
A source of less trust gives the zone that a better one lacks, where both show the same time, and is
named where it shows another one. Nothing is guessed: without a zone there is a local time and no
UTC. The times of the file itself are never used: copying, unpacking and synchronising set them, and
on FAT, as memory cards have it, they are in no zone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone

from NatureLM.audio.tags import Tags, read_tags
from NatureLM.field.names import FIRST_YEAR, Name, checked_position, read_name
from NatureLM.field.tables import FileTimes
from NatureLM.field.zones import OFFSET, UTC, fixed_zone, zone_text
from NatureLM.storage import AnyPath
from NatureLM.util import format_duration, parse_json

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

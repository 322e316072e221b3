"""What rows and prompts are told of a moment in a recording: place, local time, UTC, sun, week.

`FieldClock` brings clock and deployments together; `fill` puts what is known into a question.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from NatureLM.audio.container import Tags
from NatureLM.field.clock import UTC, Clock, offset_text, read_clock, to_utc, zone_text
from NatureLM.field.deployments import Deployment, Deployments, FileTimes, in_offset
from NatureLM.progress import printable
from NatureLM.storage import AnyPath, RemotePath

KEYS = (
    *("site", "latitude", "longitude", "habitat", "recorder", "place"),
    *("local_time", "utc_time", "zone", "date", "week"),
    *("hours_after_sunrise", "hours_after_sunset", "clock_source", "clock_conflict"),
)
"""What the context of a moment may say, in this order."""
PLACEHOLDERS = ("place", "site", "habitat", "date", "time", "month")
"""What a question may be told, in braces."""

_PLACEHOLDER = re.compile(r"\{(" + "|".join(PLACEHOLDERS) + r")\}")
_NO_TEXT = re.compile(r"[<>{}\[\]|]")  # of which marks of prompts are made
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_FAR = 0.05  # degrees that a receiver and a table may differ by: about 5 km


@dataclass(frozen=True)
class RecordingContext:
    """What is known of where and when a recording was made.

    clock: what name and header say
    deployment: the row that it is of
    zone: of local times; None where they have none
    utc: when it began, where that is known
    local: when it began by the recorder's clock, where only that is known
    conflicts: sentences about clocks and zones that disagree
    notes: why it has no deployment
    has_sun: whether hours after sunrise and sunset can be had
    """

    clock: Clock
    deployment: Deployment | None = None
    zone: tzinfo | None = None
    utc: datetime | None = None
    local: datetime | None = None
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    has_sun: bool = False
    _fixed: dict[str, Any] = field(default_factory=dict)

    def at(self, seconds: float) -> dict[str, Any]:
        """What is known of a moment, so many seconds after the beginning; `KEYS` says of what.

        Times are ISO 8601: `local_time` with its offset where the zone is known and without where
        not, `utc_time` with Z. `week` is BirdNET's, from 1 to 48: four a month, as in `week_of`.
        Hours after sunrise and sunset are null where there is none within half a day.
        """
        later = timedelta(milliseconds=round(seconds * 1000))
        said = dict(self._fixed)
        local, day = None, self.clock.date
        if self.utc is not None:
            moment = self.utc + later
            local = moment.astimezone(self.zone)
            said["utc_time"] = _iso(moment)[:-6] + "Z"
            if self.has_sun and "latitude" in said:
                rise, set_ = hours_after(said["latitude"], said["longitude"], moment)
                said["hours_after_sunrise"], said["hours_after_sunset"] = rise, set_
        elif self.local is not None:
            local = self.local + later
        if local is not None:
            said["local_time"] = _iso(local)
            day = local.date()
        if day is not None:
            said["date"], said["week"] = day.isoformat(), week_of(day)
        return {key: said[key] for key in KEYS if key in said}


@dataclass(frozen=True)
class Told:
    """What a list says of a recording which is still as it was when the list was made.

    tags: of its header; None where the list does not say
    local_time, utc_time: when it began, ISO 8601; "" where that is not known
    clock_source: what said so
    """

    tags: Tags | None = None
    local_time: str = ""
    utc_time: str = ""
    clock_source: str = ""
    site: str = ""


class FieldClock:
    """Where and when recordings were made.

    deployments: places, zones and times of recorders
    times: when recordings began, where names and headers do not say it
    told: gives what a list says of a recording, None where it says nothing; of one that it tells of
        the header is not read again, and where there is no table, times and site of the list count
    notes: what is to be said once, for all recordings
    """

    def __init__(
        self,
        deployments: Deployments | None = None,
        times: FileTimes | None = None,
        told: Callable[[str | AnyPath], Told | None] | None = None,
    ) -> None:
        self._deployments, self._times, self._told = deployments, times, told
        self._known = lru_cache(maxsize=4096)(self._read)
        self._has_sun = has_astral()
        self.notes = [
            *(deployments.notes if deployments is not None else ()),
            *(times.notes if times is not None else ()),
        ]
        if not self._has_sun and any(row.latitude is not None for row in deployments or ()):
            self.notes.append(WITHOUT_ASTRAL)

    def of(self, recording: str | AnyPath, tags: Tags | None = None) -> RecordingContext:
        """What is known of a recording; its header is read once, and again after 4096 others.

        tags: of its header, where they are known
        """
        named = recording if isinstance(recording, RemotePath) else str(recording)
        return self._known(named) if tags is None else self._read(named, tags)

    def _read(self, recording: str | AnyPath, tags: Tags | None = None) -> RecordingContext:
        told = None if tags is not None or self._told is None else self._told(recording)
        clock = read_clock(recording, self._times, tags if told is None else told.tags)
        found = self._found(str(recording), clock)
        has_table = self._deployments is not None or self._times is not None
        return found if told is None or has_table else _as_told(found, told)

    def _found(self, recording: str, clock: Clock) -> RecordingContext:
        """What clock and deployments say."""
        row, note = None, ""
        if self._deployments is not None:
            row, note = self._deployments.find(recording, clock)
        zone, utc, conflicts = _moment(clock, row)
        conflicts = (*clock.conflicts, *conflicts, *_far_away(clock, row))
        return RecordingContext(
            clock,
            row,
            zone=zone,
            utc=utc,
            local=clock.time,
            conflicts=conflicts,
            notes=(note,) if note else (),
            has_sun=self._has_sun,
            _fixed=_fixed(clock, row, zone, conflicts),
        )


def _as_told(found: RecordingContext, told: Told) -> RecordingContext:
    """What is known of a recording, with the times and the site that a list gives it."""
    fixed = dict(found._fixed)
    if told.site and told.site != fixed.get("site"):
        coordinates = () if "latitude" not in fixed else (fixed["latitude"], fixed["longitude"])
        place = [_coordinates(*coordinates)] if coordinates else []
        fixed |= {"site": told.site, "place": ", ".join([told.site, *place])}
    now = found.at(0)
    times = (told.local_time, told.utc_time)
    if times in (("", ""), (now.get("local_time", ""), now.get("utc_time", ""))):
        return replace(found, _fixed=fixed)
    try:
        local, utc = (
            datetime.fromisoformat(re.sub("[Zz]$", "+00:00", one)) if one else None for one in times
        )
    except ValueError:
        sentence = f"The list says that it began at {' or '.join(filter(None, times))}: no time."
        return replace(found, conflicts=(*found.conflicts, sentence), _fixed=fixed)
    if utc is None and local is not None and local.tzinfo is not None:
        utc = local
    zone = local.tzinfo if local is not None and local.tzinfo is not None else None
    if utc is not None:
        utc, zone = (utc if utc.tzinfo else utc.replace(tzinfo=UTC)).astimezone(UTC), zone or UTC
        fixed["zone"] = zone_text(zone)
    fixed["clock_source"] = told.clock_source or "list"
    local = None if local is None else local.replace(tzinfo=None)
    return replace(found, zone=zone, utc=utc, local=local, _fixed=fixed)


def _moment(
    clock: Clock, row: Deployment | None
) -> tuple[tzinfo | None, datetime | None, tuple[str, ...]]:
    """Zone of local times, moment in UTC, and what disagrees.

    An offset that the file says wins over the zone of the table. UTC is no offset that disagrees:
    many recorders count in it wherever they are.
    """
    zone = row.zone if row is not None else None
    time = clock.time
    if time is None:
        return zone, None, ()
    if time.tzinfo is None:
        set_to = row.clock if row is not None and row.clock is not None else zone
        if set_to is None:
            return None, None, ()
        utc, why = to_utc(time, set_to)
        if utc is None:
            return None, None, (f"{why}.",)
        return zone or set_to, utc, ()
    if zone is None:
        return time.tzinfo, time.astimezone(UTC), ()
    there, here = in_offset(time, zone), time.utcoffset()
    if there.utcoffset() == here or not here:
        return zone, time.astimezone(UTC), ()
    return (
        time.tzinfo,
        time.astimezone(UTC),
        (
            f"The {clock.zone_source} says {zone_text(time.tzinfo)}, and the table of deployments "
            f"{zone_text(zone)}, which was {offset_text(there.utcoffset() or timedelta())} then: "
            "the former is taken.",
        ),
    )


def _far_away(clock: Clock, row: Deployment | None) -> tuple[str, ...]:
    if clock.position is None or row is None or row.latitude is None or row.longitude is None:
        return ()
    north, east = clock.position[0] - row.latitude, clock.position[1] - row.longitude
    east = (east + 180) % 360 - 180
    if math.hypot(north, east * math.cos(math.radians(row.latitude))) <= _FAR:
        return ()
    return (
        f"The recorder gives {_coordinates(*clock.position)}, and the table of deployments "
        f"{_coordinates(row.latitude, row.longitude)}: the latter is taken.",
    )


def _fixed(
    clock: Clock, row: Deployment | None, zone: tzinfo | None, conflicts: tuple[str, ...]
) -> dict[str, Any]:
    """What is the same all through a recording."""
    said: dict[str, Any] = {}
    if row is not None:
        said |= {"site": row.site, "habitat": row.habitat}
    place = (row.latitude, row.longitude) if row is not None else (None, None)
    place = place if place[0] is not None else clock.position or place
    if place[0] is not None and place[1] is not None:
        said |= {"latitude": place[0], "longitude": place[1]}
        said["place"] = _coordinates(place[0], place[1])
    if said.get("site"):
        said["place"] = ", ".join(filter(None, (said["site"], said.get("place"))))
    said["recorder"] = clock.recorder or (row.recorder if row is not None else "")
    said["zone"] = zone_text(zone)
    said["clock_source"] = clock.source
    said["clock_conflict"] = " ".join(conflicts)
    return {key: value for key, value in said.items() if value != ""}


def _coordinates(latitude: float, longitude: float) -> str:
    """`25.39 N 80.68 W`."""
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.2f} {north} {abs(longitude):.2f} {east}"


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds")


def week_of(day: date) -> int:
    """BirdNET's week, 1 to 48: four a month, of which the last goes to the end of the month."""
    return (day.month - 1) * 4 + min(4, (day.day + 6) // 7)


# Questions


def asks_context(question: str) -> bool:
    """Whether a question has a place for something that only a recording's context says."""
    return _PLACEHOLDER.search(question) is not None


def fill(question: str, context: Mapping[str, Any]) -> tuple[str, str]:
    """A question with what is known of a moment (`RecordingContext.at`), and what is missing.

    `{place}` becomes `Everglades, 25.39 N 80.68 W`, `{date}` `10 May 2024`, `{month}` `May`,
    `{time}` `05:30`, `{site}` and `{habitat}` what the table says. A question with a hole is not to
    be asked: where something is not known, the text is "" and the second part says what.
    """
    values = _words(context)
    wanted = dict.fromkeys(_PLACEHOLDER.findall(question))
    missing = [f"{{{name}}}" for name in wanted if not values.get(name)]
    if missing:
        return "", (
            f"the question asks for {', '.join(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not known of this recording"
        )
    return _PLACEHOLDER.sub(lambda found: values[found[1]], question), ""


def _words(context: Mapping[str, Any]) -> dict[str, str]:
    values = {
        name: _NO_TEXT.sub("", printable(context.get(name) or "")).strip()
        for name in ("place", "site", "habitat")
    }
    if "date" in context:
        day = date.fromisoformat(context["date"])
        month = _MONTHS[day.month - 1]
        values |= {"date": f"{day.day} {month} {day.year}", "month": month}
    if "local_time" in context:
        values["time"] = context["local_time"][11:16]
    return values


# The sun

WITHOUT_ASTRAL = (
    "hours after sunrise and sunset are left out: they need astral "
    "(pip install 'naturelm-audio[field]')"
)
_HALF_DAY = 45_000.0  # seconds: sunrises are up to half an hour more than a day apart


def has_astral() -> bool:
    """Whether the library is there that knows where the sun is."""
    return find_spec("astral") is not None


def hours_after(
    latitude: float, longitude: float, moment: datetime
) -> tuple[float | None, float | None]:
    """Hours after the nearest sunrise and sunset, from -12 to 12; None on polar days and nights.

    latitude, longitude: degrees
    moment: with a zone

    Needs astral, see `has_astral`.
    """
    seconds = moment.timestamp()
    # Days of the sun, of which no sunrise or sunset falls into two but near the poles.
    day = datetime.fromtimestamp(seconds + longitude * 240, timezone.utc).date()
    rises, sets = _around(latitude, longitude, day)
    return _nearest(seconds, rises), _nearest(seconds, sets)


def _nearest(seconds: float, events: tuple[float, ...]) -> float | None:
    after = min((seconds - event for event in events), key=abs, default=None)
    if after is None or abs(after) > _HALF_DAY:
        return None
    return round(after / 3600, 2)


@lru_cache(maxsize=1 << 14)
def _around(
    latitude: float, longitude: float, day: date
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sunrises and sunsets of the day, the one before and the one after, in seconds since 1970."""
    days = [_of_day(latitude, longitude, day + timedelta(days=shift)) for shift in (-1, 0, 1)]
    rises, sets = zip(*days, strict=True)
    return (
        tuple(one for one in rises if one is not None),
        tuple(one for one in sets if one is not None),
    )


@lru_cache(maxsize=1 << 14)
def _of_day(latitude: float, longitude: float, day: date) -> tuple[float | None, float | None]:
    from astral import Observer
    from astral.sun import sunrise, sunset

    observer = Observer(latitude, longitude)
    zone = timezone(timedelta(minutes=round(longitude * 4)))  # the sun's own time, to the minute

    def event(of: Callable[..., datetime]) -> float | None:
        try:
            return of(observer, day, tzinfo=zone).timestamp()
        except ValueError:  # the sun stays above or below the horizon
            return None

    return event(sunrise), event(sunset)

"""Whether tables about a made season tell its times rightly; see `field_archive`.

Nothing of NatureLM is used here: clocks, weeks and the sun are worked out anew, and tables are read
by their headers.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import field_archive
from field_archive import Site, Truth

SHORTEST = 0.5  # seconds
_SUN_HOURS = 0.05  # that two ways to work out a sunrise may differ by
_SITES = {card.site.name: card.site for card in field_archive.CARDS}
Stretch = tuple[str, float, float, str]
"""Recording (as `Truth.path`), start and end in seconds, label."""


@dataclass
class Findings:
    """What was compared.

    times: how many
    wrong: a sentence for each that is not so
    """

    times: int = 0
    wrong: list[str] = field(default_factory=list)

    def same(self, what: str, found: Any, expected: Any) -> None:
        """Count a comparison in."""
        self.times += 1
        if found != expected:
            self.wrong.append(f"{what} is {found!r:.200}, and {expected!r:.200} is true")

    def near(self, what: str, found: Any, expected: float, most: float = 0.0006) -> None:
        """Count a comparison of numbers in."""
        self.times += 1
        try:
            is_near = abs(float(found) - expected) <= most
        except (TypeError, ValueError):
            is_near = False
        if not is_near:
            self.wrong.append(f"{what} is {found!r:.200}, and {expected:.6f} is true")

    def add(self, other: Findings) -> None:
        self.times += other.times
        self.wrong += other.wrong


@dataclass(frozen=True)
class Moment:
    """A time in a recording; where nobody can know `utc`, it is None, and `local` has no zone."""

    utc: datetime | None
    local: datetime


class Season:
    """What is true of the recordings of a made archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.truths = {one.path: one for one in field_archive.read(folder)}

    def of(self, name: str) -> Truth:
        """The recording that a table calls so; relative names count from the archive's folder."""
        path = os.path.realpath(self.folder / name)
        return self.truths[Path(path).relative_to(self.folder).as_posix()]

    def full(self, truth: Truth) -> str:
        return str(self.folder / truth.path)

    def called(self, name: str) -> list[Truth]:
        """Those whose file has this name, on whatever card."""
        return [one for path, one in self.truths.items() if Path(path).name == Path(name).name]

    def ending(self, path: str) -> Truth:
        """The one whose path ends so."""
        (found,) = (one for name, one in self.truths.items() if name.endswith(path))
        return found

    def has_utc(self, path: str) -> bool:
        return bool(self.truths[path].begins_utc)

    def site(self, truth: Truth) -> Site:
        return _SITES[truth.site]

    @property
    def good(self) -> list[Truth]:
        """Those that are not broken, in the order of their paths."""
        return sorted(
            (one for one in self.truths.values() if not one.broken),
            key=lambda one: Path(one.path).parts,
        )


def moment(truth: Truth, seconds: float) -> Moment:
    """The time of a stretch that begins so many seconds after the recording."""
    later = timedelta(microseconds=round(seconds * 1e6))
    if not truth.begins_utc:
        return Moment(None, datetime.fromisoformat(truth.begins_local) + later)
    utc = datetime.fromisoformat(truth.begins_utc.replace("Z", "+00:00")) + later
    found = re.fullmatch(r"UTC([+-]\d\d)(?::00)?", truth.zone)
    zone = timezone(timedelta(hours=int(found[1]))) if found else ZoneInfo(truth.zone)
    return Moment(utc, utc.astimezone(zone))


def shown(time: datetime) -> str:
    """ISO 8601, with milliseconds where there are some."""
    text = time.isoformat(timespec="milliseconds" if time.microsecond else "seconds")
    return text.replace("+00:00", "Z") if time.tzinfo is timezone.utc else text


def week(day: date) -> int:
    """BirdNET's: 48 in a year."""
    return 4 * day.month - 3 + min(3, (day.day - 1) // 7)


# The sun, by the formulas that NOAA publishes with its solar calculator


@cache
def _sun(utc_day: date, latitude: float, longitude: float, *, rises: bool) -> datetime:
    """Sunrise or sunset of the day of the sun's own time that the date is."""
    noon = datetime(utc_day.year, utc_day.month, utc_day.day, 12, tzinfo=timezone.utc)
    at = noon - timedelta(minutes=4 * longitude)
    for _ in range(4):
        declination, equation = _position(at)
        phi = math.radians(latitude)
        height = math.cos(math.radians(90.833)) / (math.cos(phi) * math.cos(declination))
        angle = math.degrees(math.acos(height - math.tan(phi) * math.tan(declination)))
        minutes = -4 * longitude - equation + (-4 if rises else 4) * angle
        at = noon + timedelta(minutes=minutes)
    return at


def _position(at: datetime) -> tuple[float, float]:
    """Declination in radians, equation of time in minutes."""
    century = ((at.timestamp() / 86_400 + 2_440_587.5) - 2_451_545) / 36_525
    mean = math.radians((280.46646 + century * (36_000.76983 + century * 0.0003032)) % 360)
    anomaly = math.radians(357.52911 + century * (35_999.05029 - 0.0001537 * century))
    eccentricity = 0.016708634 - century * (0.000042037 + 0.0000001267 * century)
    centre = math.sin(anomaly) * (1.914602 - century * (0.004817 + 0.000014 * century))
    centre += math.sin(2 * anomaly) * (0.019993 - 0.000101 * century)
    centre += math.sin(3 * anomaly) * 0.000289
    node = math.radians(125.04 - 1934.136 * century)
    longitude = mean + math.radians(centre - 0.00569 - 0.00478 * math.sin(node))
    tilt = math.radians(23.439291 - 0.0130042 * century + 0.00256 * math.cos(node))
    declination = math.asin(math.sin(tilt) * math.sin(longitude))
    y, e = math.tan(tilt / 2) ** 2, eccentricity
    equation = y * math.sin(2 * mean) - 2 * e * math.sin(anomaly)
    equation += 4 * e * y * math.sin(anomaly) * math.cos(2 * mean)
    equation -= y * y * math.sin(4 * mean) / 2 + 1.25 * e * e * math.sin(2 * anomaly)
    return declination, 4 * math.degrees(equation)


def hours_after(site: Site, utc: datetime, *, rises: bool) -> float:
    """Hours after the nearest sunrise or sunset, from -12 to 12."""
    days = [utc.date() + timedelta(days=shift) for shift in (-2, -1, 0, 1, 2)]
    events = [_sun(day, site.latitude, site.longitude, rises=rises) for day in days]
    after = min(((utc - event).total_seconds() for event in events), key=abs)
    return after / 3600


# Rows


def check_context(
    found: Findings, what: str, context: Mapping[str, Any], truth: Truth, seconds: float
) -> None:
    """Compare all that a row says of where and when it is."""
    true, site = moment(truth, seconds), _SITES[truth.site]
    found.same(f"{what}: site", context.get("site"), truth.site)
    found.same(f"{what}: local_time", context.get("local_time"), shown(true.local))
    utc = None if true.utc is None else shown(true.utc)
    found.same(f"{what}: utc_time", context.get("utc_time") or None, utc)
    found.same(f"{what}: date", str(context.get("date"))[:10], f"{true.local:%Y-%m-%d}")
    found.near(f"{what}: week", context.get("week"), week(true.local.date()))
    found.near(f"{what}: latitude", context.get("latitude"), site.latitude)
    found.near(f"{what}: longitude", context.get("longitude"), site.longitude)
    for name, rises in (("hours_after_sunrise", True), ("hours_after_sunset", False)):
        if true.utc is None:
            found.same(f"{what}: {name}", context.get(name) or None, None)
            continue
        expected, said = hours_after(site, true.utc, rises=rises), context.get(name)
        if abs(abs(expected) - 12) < _SUN_HOURS:
            # Between two of them either is the nearest, or none is near enough.
            expected = abs(expected)
            said = expected if said in (None, "") else abs(float(said))
        found.near(f"{what}: {name}", said, expected, _SUN_HOURS)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an answer file."""
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def check_answers(found: Findings, season: Season, path: Path, window: float, hop: float) -> None:
    """The rows of a survey: every window of every good recording, once, at its time."""
    seen: Counter[tuple[str, float, float]] = Counter()
    failed: Counter[str] = Counter()
    for number, row in enumerate(rows(path), start=1):
        truth = season.of(row["audio_path"])
        if "error" in row:
            failed[truth.path] += 1
            continue
        seen[truth.path, round(row["start"], 6), round(row["end"], 6)] += 1
        what = f"{path.name}, line {number}, {truth.path} at {row['start']:g} s"
        check_context(found, what, row.get("context") or {}, truth, row["start"])
    broken = {one.path for one in season.truths.values() if one.broken}
    found.same(f"{path.name}: recordings with errors", dict(failed), dict.fromkeys(broken, 1))
    for one in season.good:
        for start, end in windows(one.seconds, window, hop):
            key = next((key for key in _near(one.path, start, end) if key in seen), None)
            there = 0 if key is None else seen.pop(key)
            found.same(f"{path.name}: rows of {one.path} from {start:g} to {end:g} s", there, 1)
    left = {key: count for key, count in seen.items() if key[0] not in broken}
    found.same(f"{path.name}: other windows", left, {})


def check_events(found: Findings, season: Season, path: Path) -> None:
    """The rows of events: each within its recording, at its time."""
    for number, row in enumerate(rows(path), start=1):
        truth = season.of(row["audio_path"])
        what = f"{path.name}, line {number}, {truth.path}"
        if "error" in row:
            found.same(f"{what}: is broken", bool(truth.broken), True)
            continue
        is_inside = 0 <= row["start"] < row["end"] <= truth.seconds + 1e-6
        found.same(f"{what}: {row['start']:g} to {row['end']:g} s is in it", is_inside, True)
        if row.get("context") or row["text"] not in ("", "None"):
            check_context(found, what, row.get("context") or {}, truth, row["start"])


def _near(path: str, start: float, end: float) -> Iterator[tuple[str, float, float]]:
    """Times that are the same but for a rounding to a microsecond."""
    for shift in (0.0, 1e-6, -1e-6):
        yield path, round(start, 6), round(end + shift, 6)


def windows(seconds: float, window: float, hop: float) -> Iterator[tuple[float, float]]:
    """Where windows begin and end; a last short one has half a second that none had before."""
    start = 0.0
    while True:
        yield start, min(start + window, seconds)
        if start + window >= seconds - 1e-9:
            return
        covered, start = start + window, start + hop
        if seconds - max(start, covered) < SHORTEST:
            return


def detections(
    season: Season, path: Path
) -> tuple[Counter[Stretch], Counter[tuple[str, float, float]]]:
    """What the rows of an answer file name, and where they all are, in milliseconds."""
    heard: Counter[Stretch] = Counter()
    spans: Counter[tuple[str, float, float]] = Counter()
    for row in rows(path):
        if "error" in row:
            continue
        truth = season.of(row["audio_path"])
        span = truth.path, round(row["start"], 3), round(row["end"], 3)
        spans[span] += 1
        for label in _labels(row):
            heard[(*span, label)] += 1
    return heard, spans


def _labels(row: Mapping[str, Any]) -> Iterator[str]:
    answers = row.get("answers", {"": row.get("text")})
    for name, value in answers.items():
        if value is True:
            yield name
        elif isinstance(value, str) and value not in ("", "None"):
            yield value
        elif isinstance(value, list):
            yield from value


def check_stretches(
    found: Findings, what: str, stretches: Iterable[Stretch], expected: Counter[Stretch]
) -> None:
    """Whether a table has these detections, each as often as it should, and no other."""
    there = Counter(stretches)
    found.times += 2 * expected.total()
    for key, count in (there - expected).items():
        found.wrong.append(f"{what}: {key} is there {count} times too often")
    for key, count in (expected - there).items():
        found.wrong.append(f"{what}: {key} is missing {count} times")


def summary(found: Findings, most: int = 5) -> str:
    """How many times were compared, and the first that are wrong."""
    lines = [f"{found.times} compared, {len(found.wrong)} wrong"]
    lines += [f"  {one}" for one in found.wrong[:most]]
    return "\n".join(lines)

"""What was not heard, and why: recordings and windows that gave no answer, gaps between recordings.

A gap can be told where a site has a habit: hours of the day in which it recorded on most days.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from NatureLM.reports.tally import RecordingTally, Tally
from NatureLM.util import format_duration

FEWEST_DAYS = 3
"""Days from which on a site may have a habit."""

NO_TIME = "no time is known"

_REST = 0.5  # seconds that are worth a word
_WHY = {
    "silent": "silence: all samples are 0",
    "constant": "no sound: all samples are the same",
    "cancelled": "no sound: the channels cancel each other out",
}


@dataclass(frozen=True)
class NotHeard:
    """A recording, or a part of it, without an answer.

    windows, seconds: how much of it, as far as that is known
    """

    recording: str
    why: str
    windows: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Gap:
    """Hours in which a site would have recorded, and did not.

    start, end: by its clock
    hours: of the habit in between
    """

    site: str
    start: datetime
    end: datetime
    hours: int


def not_heard(made: Tally, names: Sequence[str]) -> list[NotHeard]:
    """All that gave no answer, by recording; `names` are those of the recordings."""
    return [
        reason
        for one, name in zip(made.recordings, names, strict=True)
        for reason in _reasons(one, name, made.is_events)
    ]


def _reasons(one: RecordingTally, name: str, is_events: bool) -> Iterator[NotHeard]:
    heard = one.heard
    if heard.error and not heard.is_gone:
        # The message begins with a path of the machine that heard it.
        why = heard.error.removeprefix(f"{heard.name}: ").removeprefix(f"{heard.path}: ")
        yield NotHeard(name, why if not one.last else f"heard in part: {why}")
    for note, count in sorted(one.notes.items()):
        yield NotHeard(name, _WHY.get(note, note), windows=count)
    rest = heard.seconds - one.last
    if not is_events and not heard.error and one.last and rest >= _REST:
        yield NotHeard(
            name,
            "behind the last window: too short, or passed over by the hop",
            seconds=rest,
        )


def clock_problems(made: Tally, names: Sequence[str]) -> list[NotHeard]:
    """Recordings whose time is not known, or doubtful."""
    found = []
    for one, name in zip(made.recordings, names, strict=True):
        context = one.heard.context
        conflict = context.get("clock_conflict")
        if one.heard.error and not context:
            continue
        if one.began is None:
            day = context.get("date")
            found.append(NotHeard(name, f"{NO_TIME}, but the day: {day}" if day else NO_TIME))
        if isinstance(conflict, str) and conflict:
            found.append(NotHeard(name, conflict))
    return found


def summary(reasons: Iterable[NotHeard]) -> list[str]:
    """How much was not heard, by reason, the largest first: one line each."""
    recordings: Counter[str] = Counter()
    windows: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for one in reasons:
        why = one.why if one.windows is not None or one.seconds is not None else "an error"
        recordings[why] += 1
        windows[why] += one.windows or 0
        seconds[why] += one.seconds or 0  # type: ignore[assignment]
    lines = []
    for why, count in recordings.most_common():
        much = f"{windows[why]:,} windows of " if windows[why] else ""
        much = f"{format_duration(seconds[why])} of " if seconds[why] else much
        lines.append(f"{much}{count:,} {'recording' if count == 1 else 'recordings'}: {why}")
    return lines


def gaps(made: Tally) -> list[Gap]:
    """Gaps of every site in the order of time."""
    found: dict[str, set[datetime]] = defaultdict(set)
    for one in made.recordings:
        began = one.began
        if began is None or (one.heard.error and not one.last):
            continue
        hour = began.replace(minute=0, second=0)
        while hour < began + timedelta(seconds=max(1.0, one.heard.seconds)):
            found[one.site].add(hour)
            hour += timedelta(hours=1)
    return [gap for site in sorted(found) for gap in _gaps_of(site, found[site])]


def _gaps_of(site: str, recorded: set[datetime]) -> Iterator[Gap]:
    days = {hour.date() for hour in recorded}
    if len(days) < FEWEST_DAYS:
        return
    first, last = min(recorded), max(recorded)
    habit = Counter(hour.hour for hour in recorded)
    usual = {hour for hour, count in habit.items() if 2 * count > len(days)}
    start, missing, hour = first, 0, first
    while hour <= last:
        if hour in recorded:
            if missing:
                yield Gap(site, start, hour, missing)
            missing = 0
        elif hour.hour in usual:
            start = start if missing else hour
            missing += 1
        hour += timedelta(hours=1)

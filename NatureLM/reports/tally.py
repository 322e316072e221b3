"""Answers about recordings counted in one pass: what, where, when, how much was not heard, and why.

Memory grows with recordings, names, days and sites, and not with rows. Times are those that rows
carry in their `context` (`field.context`); a row without them counts wherever no time is needed.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeAlias

from NatureLM.results.detections import Detection, HeardRecording, ResultFile
from NatureLM.results.rows import ErrorRow, SurveyRow, WindowRow, value_text
from NatureLM.util import format_duration

MOST_NAMES = 2000
"""Names that are told apart; free answers may be new ones without end."""
MOST_VALUES = 500
"""Values of a column that are told apart."""
MOST_KEPT_CLIPS = 12
"""Stretches that are kept of each name: the surest ones, one a recording, and some more."""

_BINS_OF_A_RECORDING = 30
_NICE_SECONDS = (10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)

Cell: TypeAlias = tuple[str, int, int]
"""Site, day (`date.toordinal`), hour of the day."""

Least: TypeAlias = Callable[[str, str], float]
"""The least confidence of a name in answers to a question."""


class Clip(NamedTuple):
    """A stretch of a recording; `recording` is its place in `Tally.recordings`."""

    confidence: float
    order: int
    recording: int
    start: float
    end: float


@dataclass
class Spread:
    """How something lies in time and place: numbers by site, cell, and bin.

    sun: by half hours after sunset, rounded down; hours: by hour of the day; positions: by bin of
    `Tally.bin_seconds` within recordings
    """

    total: float = 0
    sites: Counter[str] = field(default_factory=Counter)
    cells: Counter[Cell] = field(default_factory=Counter)
    sun: Counter[int] = field(default_factory=Counter)
    hours: Counter[int] = field(default_factory=Counter)
    positions: Counter[int] = field(default_factory=Counter)

    def add(self, moment: Moment, position: int, amount: float = 1) -> None:
        """Count in what is said of a moment, so far into a recording."""
        self.total += amount
        self.sites[moment.site] += amount  # type: ignore[assignment]
        self.positions[position] += amount  # type: ignore[assignment]
        if moment.day is not None:
            self.cells[moment.site, moment.day, moment.hour] += amount  # type: ignore[assignment]
            self.hours[moment.hour] += amount  # type: ignore[assignment]
        if moment.sun is not None:
            self.sun[moment.sun] += amount  # type: ignore[assignment]


class Moment(NamedTuple):
    """Where and when, as far as it is known; `sun` is in half hours after sunset."""

    site: str
    day: int | None
    hour: int
    sun: int | None


@dataclass
class NameTally:
    """One name in the answers to one question."""

    label: str
    question: str
    common_name: str = ""
    scientific_name: str = ""
    spread: Spread = field(default_factory=Spread)
    recordings: set[int] = field(default_factory=set)
    scored: int = 0
    confidences: float = 0.0
    highest: float | None = None
    surest: list[Clip] = field(default_factory=list)
    surest_of: dict[int, Clip] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Windows, or events, that name it."""
        return int(self.spread.total)

    @property
    def mean(self) -> float | None:
        """Mean confidence."""
        return self.confidences / self.scored if self.scored else None

    def keep(self, clip: Clip) -> None:
        """Remember a stretch, if it is among the surest of all or of its recording."""
        if len(self.surest) < MOST_KEPT_CLIPS:
            heapq.heappush(self.surest, clip)
        elif clip > self.surest[0]:
            heapq.heapreplace(self.surest, clip)
        best = self.surest_of.get(clip.recording)
        if best is None or clip > best:
            self.surest_of[clip.recording] = clip
            if len(self.surest_of) > 2 * MOST_KEPT_CLIPS:
                most = heapq.nlargest(MOST_KEPT_CLIPS, self.surest_of.values())
                self.surest_of = {one.recording: one for one in most}

    def best_clips(self, count: int) -> list[Clip]:
        """The surest stretches, of as many recordings as there are; none twice."""
        first = sorted(self.surest_of.values(), reverse=True)
        more = sorted(set(self.surest) - set(first), reverse=True)
        return [*first, *more][:count]


@dataclass
class ColumnTally:
    """The answers to one question of a questionnaire that names nothing.

    values: how often each was given; numbers are rounded to three places
    others: answers beyond `MOST_VALUES` different ones
    absent: windows to which no value fits; unread: answers that could not be parsed
    """

    name: str
    kind: str
    unit: str = ""
    values: Counter[Any] = field(default_factory=Counter)
    others: int = 0
    absent: int = 0
    unread: int = 0

    def add(self, value: Any, *, is_unread: bool) -> None:
        """Count in the answer about one window."""
        if is_unread:
            self.unread += 1
        elif value is None:
            self.absent += 1
        elif not isinstance(value, dict):
            for one in value if isinstance(value, list) else [value]:
                self._count(one)

    def _count(self, value: Any) -> None:
        if isinstance(value, float):
            value = float(f"{value:.3g}")
        elif not isinstance(value, bool | int):
            value = value_text(value)
        if value in self.values or len(self.values) < MOST_VALUES:
            self.values[value] += 1
        else:
            self.others += 1


@dataclass
class RecordingTally:
    """What was heard of one recording.

    windows, seconds: that were asked about
    notes: why other windows were not, and how many
    last: end of the last window, in seconds
    """

    heard: HeardRecording
    site: str = ""
    windows: int = 0
    seconds: float = 0.0
    detections: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    last: float = 0.0
    counted: tuple[str, float] | None = None

    @property
    def began(self) -> datetime | None:
        """When it began, by its own clock; None where that is not known."""
        return clock_time(self.heard.context)


@dataclass
class Tally:
    """Everything that a report on recordings is made of.

    is_events: rows are events, so effort is hours of recordings and no number of windows
    effort: windows that were asked about, or hours
    bin_seconds: of a bin of positions
    unnamed: detections whose names are beyond `MOST_NAMES`
    unsure: detections below the least confidence; unscored: those without one, where one is asked
    alphas: of the rows
    """

    recordings: list[RecordingTally]
    bin_seconds: int
    is_events: bool = False
    effort: Spread = field(default_factory=Spread)
    names: dict[tuple[str, str], NameTally] = field(default_factory=dict)
    columns: dict[str, ColumnTally] = field(default_factory=dict)
    unnamed: int = 0
    unsure: int = 0
    unscored: int = 0
    alphas: set[float] = field(default_factory=set)

    def by_count(self) -> list[NameTally]:
        """All names, the most often heard first."""
        return sorted(self.names.values(), key=lambda one: (-one.count, one.label, one.question))


def clock_time(context: Mapping[str, Any] | None) -> datetime | None:
    """The time by the clock on the wall that a context tells, without its zone; else UTC."""
    text = (context or {}).get("local_time") or (context or {}).get("utc_time")
    try:
        return datetime.fromisoformat(text[:19]) if isinstance(text, str) else None
    except ValueError:
        return None


def tally(answers: ResultFile, least: Least | None = None) -> Tally:
    """Count all rows of a file.

    least: answers that are less sure are none, and neither are those without a confidence

    Raises OutputError where a line is no row.
    """
    made = Tally(
        [RecordingTally(one, _site(one.context)) for one in answers.recordings],
        _bin_seconds([one.seconds for one in answers.recordings]),
    )
    counting = _Counting(answers, made, least)
    for number, row in enumerate(answers.rows()):
        if not isinstance(row, ErrorRow):
            counting.add(row, number)
    if made.is_events:
        made.effort = _recorded(made)
    return made


class _Counting:
    """Rows are counted into a tally, one by one."""

    def __init__(self, answers: ResultFile, made: Tally, least: Least | None) -> None:
        self.answers, self.made, self.least = answers, made, least
        self.place = {one.heard.path: n for n, one in enumerate(made.recordings)}
        named = set(answers.columns)
        for name in answers.questions if answers.is_survey else ():
            if name not in named:
                kind = answers.types.get(name, {})
                unit = str(kind.get("unit") or "")
                made.columns[name] = ColumnTally(name, str(kind.get("type", "")), unit)

    def add(self, row: WindowRow | SurveyRow, number: int) -> None:
        place = self.place[self.answers.key(row.audio_path, row)]
        recording, made = self.made.recordings[place], self.made
        moment = moment_of(row.context)
        position = int(row.start // made.bin_seconds)
        made.alphas.add(row.merging_alpha)
        is_event = isinstance(row, WindowRow) and row.windows is not None
        made.is_events = made.is_events or is_event
        said = bool(row.answers) if isinstance(row, SurveyRow) else bool(row.text)
        question = (row.query, row.merging_alpha)
        recording.counted = recording.counted or question
        if recording.counted == question and not is_event:  # each window once
            self._count_window(row, recording, moment, position, said)
        if is_event and row.note and not said:
            recording.notes[row.note] += getattr(row, "windows", None) or 1
        if isinstance(row, SurveyRow):
            self._count_columns(row)
        for one in self.answers.detections_of(row):
            if self._is_sure(one):
                recording.detections += 1
                self._count_name(
                    one, moment, position, Clip(_sure(one), -number, place, row.start, row.end)
                )

    def _count_name(self, one: Detection, moment: Moment, position: int, clip: Clip) -> None:
        key = one.question, one.label
        name = self.made.names.get(key)
        if name is None:
            if len(self.made.names) >= MOST_NAMES:
                self.made.unnamed += 1
                return
            name = NameTally(one.label, one.question, one.common_name, one.scientific_name)
            self.made.names[key] = name
        name.spread.add(moment, position)
        name.recordings.add(clip.recording)
        name.keep(clip)
        if one.confidence is not None:
            name.scored += 1
            name.confidences += one.confidence
            name.highest = max(name.highest or 0.0, one.confidence)

    def _count_window(
        self,
        row: WindowRow | SurveyRow,
        recording: RecordingTally,
        moment: Moment,
        position: int,
        said: bool,
    ) -> None:
        if row.note and not said:
            recording.notes[row.note] += 1
        else:
            recording.windows += 1
            recording.seconds += max(0.0, row.end - max(row.start, recording.last))
            self.made.effort.add(moment, position)
        recording.last = max(recording.last, row.end)

    def _count_columns(self, row: SurveyRow) -> None:
        said = row.said or {}
        for name, column in self.made.columns.items():
            if name in row.answers or name in said:
                column.add(row.answers.get(name), is_unread=name in said)

    def _is_sure(self, one: Detection) -> bool:
        if self.least is None:
            return True
        if one.confidence is None:
            self.made.unscored += 1
            return False
        if one.confidence < self.least(one.label, one.question):
            self.made.unsure += 1
            return False
        return True


def _sure(one: Detection) -> float:
    return -1.0 if one.confidence is None else one.confidence


def _site(context: Mapping[str, Any] | None) -> str:
    site = (context or {}).get("site")
    return site if isinstance(site, str) else ""


def moment_of(context: Mapping[str, Any] | None) -> Moment:
    """Where and when a window is, from its context."""
    time = clock_time(context)
    sun = (context or {}).get("hours_after_sunset")
    half_hours = None
    if isinstance(sun, int | float) and math.isfinite(sun):
        half_hours = math.floor(2 * sun)
    if time is None:
        return Moment(_site(context), None, 0, half_hours)
    return Moment(_site(context), time.toordinal(), time.hour, half_hours)


def _bin_seconds(lengths: Sequence[float]) -> int:
    """A bin of positions: so long that the longest recording has a few dozen."""
    longest = max((one for one in lengths if math.isfinite(one)), default=0.0)
    fitting = [one for one in _NICE_SECONDS if longest / one <= _BINS_OF_A_RECORDING]
    return fitting[0] if fitting else math.ceil(longest / _BINS_OF_A_RECORDING / 3600) * 3600


def _recorded(made: Tally) -> Spread:
    """Hours of all recordings, which is what events were looked for in."""
    found = Spread()
    for one in made.recordings:
        step = min(600.0, made.bin_seconds)
        one.seconds = one.heard.seconds
        for piece in range(math.ceil(one.heard.seconds / step)):
            start = piece * step
            seconds = min(step, one.heard.seconds - start)
            moment = _moved(one, start)
            found.add(moment, int(start // made.bin_seconds), seconds / 3600)
    return found


def _moved(recording: RecordingTally, seconds: float) -> Moment:
    """The moment so many seconds after a recording began."""
    context, began = recording.heard.context, recording.began
    sun = context.get("hours_after_sunset")
    later = sun + seconds / 3600 if isinstance(sun, int | float) else None
    half_hours = None if later is None else math.floor(2 * ((later + 12) % 24 - 12))
    if began is None:
        return Moment(recording.site, None, 0, half_hours)
    time = began + timedelta(seconds=seconds)
    return Moment(recording.site, time.toordinal(), time.hour, half_hours)


# What was not heard, and why: recordings and windows that gave no answer, gaps between recordings

_FEWEST_DAYS = 3  # from which on a site may have a habit: hours in which it mostly recorded

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
    if len(days) < _FEWEST_DAYS:
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

"""Events: neighbouring windows of a recording with the same answer, joined.

Two windows are neighbours where they overlap, touch, or lie at most a gap apart. Times are compared
in microseconds and confidences summed in millionths, so that no order of rows and no rounding
changes an event.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from NatureLM.generation.labels import NOTHING
from NatureLM.results.detections import (
    Detection,
    HeardRecording,
    ResultFile,
    moved_context,
)
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    RunSettings,
    SurveyRow,
    WindowRow,
    read_record,
    to_line,
    whole_file,
    write_record,
)
from NatureLM.results.thresholds import MinConfidence
from NatureLM.util import check_range

_MILLION = 1_000_000
UNSURE, UNSCORED = "below the least confidence", "without a confidence"
CROWDED, SHORT = "beyond the most of a window", "events of too few windows"


@dataclass(frozen=True, kw_only=True)
class EventOptions:
    """How windows become events.

    gap: seconds that may lie between two of them
    min_windows: events of fewer windows are left out
    min_confidence: answers that are less sure are left out before they are joined
    max_per_window: of so many answers of a window the surest are taken; None for all
    """

    gap: float = 0.0
    min_windows: int = 1
    min_confidence: MinConfidence = field(default_factory=MinConfidence)
    max_per_window: int | None = None

    def __post_init__(self) -> None:
        check_range("--gap", self.gap, 0, 86_400)
        check_range("--min-windows", self.min_windows, 1)
        if self.max_per_window is not None:
            check_range("--max-per-window", self.max_per_window, 1)

    def plain(self) -> dict[str, Any]:
        """As settings of a run hold them."""
        return {**vars(self), "min_confidence": self.min_confidence.plain()}


@dataclass
class EventCounts:
    """What became of the answers.

    recordings, without, failed: how many there are, have no event, could not be read (to the end)
    answers: that name something
    events, seconds: by label
    left_out: answers and events, by reason
    unknown: answers of species that have no threshold, by species
    """

    recordings: int = 0
    without: int = 0
    failed: int = 0
    answers: int = 0
    events: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)


@dataclass
class _Open:
    """An event that may still grow; times in microseconds, `total` in millionths."""

    first: Detection
    start: int
    end: int
    highest: float | None
    total: int
    scored: int
    windows: int

    @classmethod
    def of(cls, one: Detection) -> _Open:
        count = one.windows or 1
        mean = one.confidence if one.mean_confidence is None else one.mean_confidence
        scored = 0 if mean is None else count
        total = round((mean or 0.0) * _MILLION) * scored
        return cls(one, _micro(one.start), _micro(one.end), one.confidence, total, scored, count)

    def is_near(self, later: _Open, gap: int) -> bool:
        return later.start <= self.end + gap

    def join(self, other: _Open) -> None:
        """Take in another one, which begins at the same time or later."""
        self.end = max(self.end, other.end)
        known = [one for one in (self.highest, other.highest) if one is not None]
        self.highest = max(known, default=None)
        self.total += other.total
        self.scored += other.scored
        self.windows += other.windows

    def made(self) -> Detection:
        mean = round(self.total / self.scored) / _MILLION if self.scored else None
        return replace(
            self.first,
            start=self.start / _MILLION,
            end=self.end / _MILLION,
            confidence=self.highest,
            windows=self.windows,
            mean_confidence=mean,
            claim=self.first.claim if self.windows == 1 else {},
        )


def joined(answers: Iterable[Detection], gap: float = 0.0) -> list[Detection]:
    """The events of answers about one recording, in any order; sorted by start, end and label."""
    near = _micro(gap)
    grown: dict[tuple[str, str], list[_Open]] = defaultdict(list)
    for one in sorted(map(_Open.of, answers), key=lambda one: (one.start, one.end)):
        events = grown[one.first.question, one.first.label]
        if events and events[-1].is_near(one, near):
            events[-1].join(one)
        else:
            events.append(one)
    found = [event.made() for events in grown.values() for event in events]
    return sorted(found, key=lambda one: (one.start, one.end, one.label, one.question))


def surest(answers: Iterable[Detection], most: int) -> list[Detection]:
    """At most so many answers of each window: those that are surest, ties by name."""
    windows: dict[tuple[int, int], list[Detection]] = defaultdict(list)
    for one in answers:
        windows[_micro(one.start), _micro(one.end)].append(one)
    kept: list[Detection] = []
    for group in windows.values():
        group.sort(key=lambda one: (-(one.confidence or 0.0), one.label, one.question))
        kept += group[:most]
    return kept


def write_events(answers: ResultFile, target: Path, options: EventOptions) -> EventCounts:
    """Write the events of a file of answers, with the settings that they were made with.

    Rows of recordings that could not be read are carried over. So is, as an answer `None`, the
    stretch behind the last event of a recording: no recording and no length gets lost. Held are the
    answers of one recording at a time. Raises OutputError where the file cannot be written or is
    none of events, UsageError for thresholds that do not hold for these answers.
    """
    check_target(target, answers.path)
    settings = _settings(answers, options)
    counts = EventCounts()
    with whole_file(target) as unfinished:
        with open(unfinished, "wb") as file:
            for recording in answers.recordings:
                view = answers.of(recording)
                for row in _rows_of(view, recording, options, counts, settings.run):
                    file.write(to_line(row))
        write_record(target, settings)
    return counts


def check_target(target: Path, source: Path) -> None:
    """Raise OutputError where a file is there that is none of events: it may be dear to somebody.

    source: the answers
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise OutputError(f"{target}: the answers themselves would be replaced; give another name")
    if target.exists() and not target.is_file():
        raise OutputError(f"{target}: is no file; give the name of one, such as events.jsonl")
    if target.is_file() and target.stat().st_size and not are_events(target):
        raise OutputError(
            f"{target}: exists and holds no events, so it is left as it is; give another "
            "--output-path"
        )


def are_events(path: Path) -> bool:
    """Whether a file holds events: its settings or its first row say so."""
    record = read_record(path)
    if record is not None:
        return "events" in record.values
    with open(path, "rb") as file:
        try:
            row = json.loads(file.readline(1 << 20))
        except ValueError:
            return False
    return isinstance(row, dict) and "windows" in row and "schema_version" in row


def _settings(answers: ResultFile, options: EventOptions) -> RunSettings:
    made = {**options.plain(), "columns": list(answers.columns)}
    if answers.record is None:
        return RunSettings({"model": answers.model, "events": made})
    made["run"] = answers.record.run
    return replace(answers.record, values={**answers.settings, "events": made})


def _rows_of(
    answers: ResultFile,
    recording: HeardRecording,
    options: EventOptions,
    counts: EventCounts,
    run: str,
) -> Iterator[WindowRow | ErrorRow]:
    """The rows of one recording: events, what is behind them, and what went wrong."""
    heard = _Heard(answers, options, counts)
    events = joined(heard.answers(), options.gap)
    kept = [one for one in events if (one.windows or 1) >= options.min_windows]
    counts.recordings += 1
    counts.without += not kept
    counts.left_out[SHORT] += len(events) - len(kept)
    for one in kept:
        counts.events[one.label] += 1
        before = counts.seconds.get(one.label, 0.0)
        counts.seconds[one.label] = round(before + one.end - one.start, 6)
        yield _row(one, heard, run)
    rest = heard.rest(max((_micro(one.end) for one in kept), default=None))
    if rest is not None:
        yield _row(rest, heard, run)
    counts.failed += bool(heard.errors)
    yield from (replace(one, run=run) for one in heard.errors)


_ORIGIN = (
    *("audio_path", "merging_alpha", "model"),
    *("audio_bytes", "audio_modified", "audio_digest", "audio_folder"),
)


class _Heard:
    """The answers about one recording, and what its rows say besides."""

    def __init__(self, source: ResultFile, options: EventOptions, counts: EventCounts) -> None:
        self._source, self._options, self._counts = source, options, counts
        self.origin: dict[str, Any] = {}
        self.errors: list[ErrorRow] = []
        self._spans: dict[tuple[int, int], tuple[str, int]] = {}  # → why silent, windows
        self._contexts: dict[int, Mapping[str, Any]] = {}  # by where windows start

    def answers(self) -> Iterable[Detection]:
        """Those that count."""
        most = self._options.max_per_window
        found = filter(self._is_sure, self._named())
        if most is None:
            return found
        every = list(found)
        kept = surest(every, most)
        self._counts.left_out[CROWDED] += len(every) - len(kept)
        return kept

    def _named(self) -> Iterator[Detection]:
        for row in self._source.rows():
            if isinstance(row, ErrorRow):
                self.errors.append(row)
                continue
            self._look_at(row)
            for one in self._source.detections_of(row):
                self._counts.answers += 1
                yield one
        self._counts.left_out.update(self._source.left_out)

    def _look_at(self, row: WindowRow | SurveyRow) -> None:
        if not self.origin:
            self.origin = {name: getattr(row, name) for name in _ORIGIN}
        silent = row.note if row.note and not row.text else ""
        span = _micro(row.start), _micro(row.end)
        self._spans[span] = silent, getattr(row, "windows", None) or 1
        self._contexts[span[0]] = row.context or {}

    def _is_sure(self, one: Detection) -> bool:
        least = self._options.min_confidence.of(one.label, one.question)
        if least <= 0 or (one.confidence is not None and one.confidence >= least):
            return True
        if one.confidence is None:
            self._counts.left_out[UNSCORED] += 1
        elif least > 1:
            self._counts.unknown[one.label] += 1
        else:
            self._counts.left_out[UNSURE] += 1
        return False

    def rest(self, after: int | None) -> Detection | None:
        """The windows that end behind `after` (microseconds; None: all): one without a label."""
        left = {
            span: what for span, what in self._spans.items() if after is None or span[1] > after
        }
        if not left:
            return None
        first = min(start for start, _ in left)
        start = max(first, after or 0)
        notes = {note for note, _ in left.values()}
        note = next(iter(notes)) if len(notes) == 1 else ""
        questions = self._source.columns or self._source.questions
        return Detection(
            audio_path="",
            start=start / _MILLION,
            end=max(end for _, end in left) / _MILLION,
            label="" if note else NOTHING,
            question=questions[0] if questions else "",
            note=note,
            windows=sum(windows for _, windows in left.values()),
            context=moved_context(self._contexts[first], (start - first) / _MILLION),
        )


def _row(one: Detection, heard: _Heard, run: str) -> WindowRow:
    return WindowRow(
        **heard.origin,
        run=run,
        start=one.start,
        end=one.end,
        query=one.question,
        text=one.label,
        confidence=one.confidence,
        note=one.note,
        context=one.context or None,
        claim=one.claim or None,
        windows=one.windows,
        mean_confidence=one.mean_confidence,
    )


def _micro(seconds: float) -> int:
    return round(seconds * _MILLION)

"""`make_field_report`: answers about recordings to charts, tables and clips, all as plain data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from NatureLM.reports.activity import (
    ActivityChart,
    DayHourChart,
    day_text,
    effort_chart,
    name_charts,
    rate_name,
    rate_text,
    site_chart,
)
from NatureLM.reports.charts import Cell, Keys, Table
from NatureLM.reports.clips import HeardClip, best_clips
from NatureLM.reports.tally import (
    NO_TIME,
    ColumnTally,
    Gap,
    Least,
    NameTally,
    NotHeard,
    Tally,
    clock_problems,
    gaps,
    not_heard,
    summary,
    tally,
)
from NatureLM.results.detections import HeardRecording, ResultFile
from NatureLM.results.rows import value_text
from NatureLM.results.tables import below_shared
from NatureLM.util import format_duration

MOST_DRAWN = 12
"""Names that are drawn; the others are in the table."""
CLIPS = 3
"""Clips of each of them."""

_MOST_SITES_TOLD = 6
_MOST_BARS = 12  # of values, or bins of numbers


@dataclass(frozen=True)
class NameReport:
    """What is shown of one name.

    headline: what happened, in a sentence
    clips: the surest ones
    """

    name: str
    scientific_name: str
    headline: str
    charts: tuple[ActivityChart, ...]
    sites: DayHourChart | None
    clips: tuple[HeardClip, ...]


@dataclass(frozen=True)
class FieldReport:
    """Everything that a report on recordings shows.

    facts: what was heard and how, by name
    effort: how much was heard, and when
    names: of what was heard, those that are drawn
    heard: all names
    unheard: how much was not heard, a line for each reason
    files: tables that are no part of the page
    """

    title: str
    facts: Mapping[str, str]
    remarks: tuple[str, ...]
    heard: Table
    effort: DayHourChart | None
    names: tuple[NameReport, ...]
    columns: tuple[ColumnReport, ...]
    unheard: tuple[str, ...]
    not_heard: Table
    clocks: Table
    gaps: Table
    files: tuple[Table, ...]

    def charts(self) -> Iterator[ActivityChart]:
        """All charts in the order of the page."""
        if self.effort is not None:
            yield self.effort
        for one in self.names:
            yield from one.charts
            if one.sites is not None:
                yield one.sites

    def tables(self) -> Iterator[Table]:
        """All tables."""
        yield from (self.heard, self.not_heard, self.clocks, self.gaps, *self.files)


def open_answers(path: str | Path, columns: Sequence[str] | None = None) -> ResultFile:
    """Answers about recordings, with the questions that name what is heard.

    columns: those questions; None: of a questionnaire the choices, or where there are none what is
        answered by yes or no, else all

    Raises OutputError where a line is no row, UsageError where there is none or no such question.
    """
    answers = ResultFile(path, columns=columns)
    if columns is None and answers.types:
        asked = answers.columns or (answers.settings.get("events") or {}).get("columns", ())
        kinds = {name: answers.types.get(name, {}).get("type") for name in asked}
        choices = tuple(name for name, kind in kinds.items() if kind != "yes_no")
        answers.columns = choices or answers.columns
    return answers


def make_field_report(
    answers: ResultFile,
    *,
    title: str = "",
    least: Least | None = None,
    least_text: str = "",
    clips: int = CLIPS,
) -> FieldReport:
    """Arrange answers about recordings for reading.

    answers: of `naturelm infer`, `survey` or `events`
    least: answers that are less sure are none
    least_text: how a reader is told of it
    clips: of each name that is drawn

    Raises OutputError where a line of the answers is no row.
    """
    made = tally(answers, least)
    ranked = made.by_count()
    drawn = ranked[:MOST_DRAWN]
    names = recording_names([one.heard.path for one in made.recordings])
    slowed = float(answers.settings.get("time_expansion") or 1.0)
    channel = answers.settings.get("channel", "mean")
    heard_clips, without_room = best_clips(
        drawn, made.recordings, names, each=clips, slowed=slowed, channel=channel
    )
    keys = Keys()
    unheard = not_heard(made, names)
    clocks = clock_problems(made, names)
    remarks = _remarks(made, answers, clocks, len(drawn) < len(ranked))
    if without_room:
        remarks.append(f"{without_room} clips have no room in this page.")
    return FieldReport(
        title=title or answers.path.name,
        facts=_facts(made, answers, least_text),
        remarks=tuple(remarks),
        heard=_heard_table(made, ranked),
        effort=effort_chart(made),
        names=tuple(
            _name_report(made, one, tuple(found), keys)
            for one, found in zip(drawn, heard_clips, strict=True)
        ),
        columns=tuple(map(column_report, made.columns.values())),
        unheard=tuple(summary(unheard)),
        not_heard=_reasons_table("not-heard", "Not heard", unheard),
        clocks=_reasons_table("clocks", "Times that are not known or doubtful", clocks),
        gaps=_gaps_table(gaps(made)),
        files=(
            _sites_table(made, ranked),
            _cells_table(made, ranked),
            _effort_table(made),
            _recordings_table(made, names),
            *([columns_table(made.columns.values())] if made.columns else []),
        ),
    )


def recording_names(paths: Sequence[str]) -> list[str]:
    """Names for readers elsewhere: below the folder that all recordings share."""
    return [one.as_posix() for one in below_shared(paths)]


# The head


def _state_of(recording: HeardRecording) -> str:
    """What is wrong with a recording, in a few words; nothing where it was read to its end."""
    if recording.is_gone:
        return "is not there any more"
    return "could not be read, or not to its end" if recording.error else ""


def _facts(made: Tally, answers: ResultFile, least_text: str) -> dict[str, str]:
    failed = answers.failed
    recordings = f"{len(made.recordings):,}"
    if failed:
        recordings += f", of which {failed:,} could not be read, or not to their end"
    settings = answers.settings
    choosing = settings.get("choosing") or {}
    facts = {
        "Recordings": recordings,
        "Heard": _heard_text(made, settings),
        "Sites": _sites_text(made),
        "From": _span_text(made, 0),
        "To": _span_text(made, -1),
        "Questions": "; ".join(answers.columns or answers.questions),
        "Model": answers.model,
        "Weights": str(settings.get("weights") or "")[:16],
        "α": ", ".join(f"{one:g}" for one in sorted(made.alphas)),
        "Least confidence": least_text or _least_of_run(choosing),
        "Slowed down": _slowed_text(settings),
        "File": answers.path.name,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _heard_text(made: Tally, settings: Mapping[str, Any]) -> str:
    duration = format_duration(sum(one.seconds for one in made.recordings))
    if made.is_events:
        return f"{duration} of recordings, answers joined to events"
    length = settings.get("window_length_seconds")
    each = f" of {length:g} s" if isinstance(length, int | float) else ""
    return f"{duration} in {int(made.effort.total):,} windows{each}"


def _sites_text(made: Tally) -> str:
    sites = sorted({one.site for one in made.recordings} - {""})
    if not sites:
        return ""
    told = ", ".join(sites[:_MOST_SITES_TOLD])
    more = len(sites) - _MOST_SITES_TOLD
    return f"{len(sites)}: {told}" + (f" and {more} more" if more > 0 else "")


def _span_text(made: Tally, place: int) -> str:
    """When the first recording began, or the last one."""
    times = sorted(one.began for one in made.recordings if one.began is not None)
    return time_text(times[place]) if times else "not known"


def time_text(time: datetime) -> str:
    """A time as people write it: `3 May 2024, 05:30`."""
    return f"{day_text(time.toordinal())}, {time:%H:%M}"


def _least_of_run(choosing: Mapping[str, Any]) -> str:
    least = choosing.get("min_confidence")
    if isinstance(least, dict):
        return "for each species, of the run"
    return f"{least:g}, of the run" if least else ""


def _slowed_text(settings: Mapping[str, Any]) -> str:
    slowed = float(settings.get("time_expansion") or 1.0)
    return f"{slowed:g} times, as the model heard it" if slowed != 1 else ""


def _remarks(
    made: Tally, answers: ResultFile, clocks: Sequence[NotHeard], has_more: bool
) -> list[str]:
    remarks = [
        "These are the answers of a model, which nobody has checked. A confidence is no share of "
        "right answers, unless clips were reviewed for it."
    ]
    if not made.names:
        remarks.append("Nothing was heard that the questions name.")
    if has_more:
        remarks.append(
            f"The {MOST_DRAWN} names that were heard most often are drawn; all are in the table."
        )
    for number, what in (
        (made.unsure, "answers are less sure than was asked for and left out"),
        (made.unscored, "answers have no confidence and are left out, because one was asked for"),
        (made.unnamed, "answers name ever more things and are left out"),
    ):
        if number:
            remarks.append(f"{number:,} {what}.")
    if answers.is_survey and not answers.columns:
        remarks.append("No question of the questionnaire names what is heard.")
    gone = sum(one.heard.is_gone for one in made.recordings)
    if gone:
        remarks.append(
            f"{gone:,} recordings are not where they were when they were asked about: there are no "
            "clips of them, and each counts as long as it has answers."
        )
    return remarks + _clock_remarks(made, clocks)


def _clock_remarks(made: Tally, clocks: Sequence[NotHeard]) -> list[str]:
    known = [one for one in made.recordings if one.began is not None]
    unknown = sum(1 for one in clocks if one.why.startswith(NO_TIME))
    if not known:
        return [
            "When the recordings were made is not known: instead of hours of the day, times are "
            "counted from the beginning of a recording."
        ]
    remarks = []
    if unknown:
        remarks.append(
            f"The times of {unknown:,} recordings are not known: pictures of days and hours are "
            "without them."
        )
    contexts = [one.heard.context for one in known]
    if any("local_time" not in context for context in contexts):
        remarks.append("Where no local time is known, hours are those of UTC.")
    elif lost := sum("utc_time" not in context for context in contexts):
        whose = "" if lost == len(contexts) else f" of {lost:,} of {len(contexts):,} recordings"
        remarks.append(f"Hours{whose} are those of the recorders' clocks; their zone is not known.")
    if not made.effort.sun:
        remarks.append("Hours after sunset need the places of the recordings.")
    if len(clocks) > unknown:
        remarks.append(
            f"What is said of time or place disagrees in {len(clocks) - unknown:,} recordings: see "
            "below."
        )
    return remarks


# Names


def shown_name(one: NameTally, names: Iterable[NameTally]) -> str:
    """A name as it is shown: with its question where several have it."""
    name = one.common_name or one.label
    is_shared = sum((other.common_name or other.label) == name for other in names) > 1
    return f"{name} ({one.question})" if is_shared and one.question != name else name


def _name_report(
    made: Tally, one: NameTally, clips: tuple[HeardClip, ...], keys: Keys
) -> NameReport:
    shown = shown_name(one, made.names.values())
    charts = tuple(map(keys.unique, name_charts(made, one, shown)))
    sites = site_chart(made, one, shown)
    latin = one.scientific_name if one.scientific_name != shown else ""
    unique = sites and keys.unique(sites)
    return NameReport(shown, latin, _headline(made, one), charts, unique, clips)


def _headline(made: Tally, one: NameTally) -> str:
    sites = len(made.effort.sites)
    what = "events" if made.is_events else f"of {int(made.effort.total):,} windows"
    rate = f"{rate_text(_rate(made, one), not made.is_events)}"
    text = f"{one.count:,} {what} ({rate}{' an hour' if made.is_events else ''}), in "
    text += f"{len(one.recordings):,} of {len(made.recordings):,} recordings"
    if sites > 1:
        text += f", at {len(one.spread.sites)} of {sites} sites"
    days = {day for _, day, _ in one.spread.cells}
    if len(days) > 1:
        text += f", on {len(days)} days from {day_text(min(days))} to {day_text(max(days))}"
    if one.highest is not None:
        text += f"; confidence up to {one.highest:.2f}, {one.mean:.2f} in the mean"
    return text + "."


def _rate(made: Tally, one: NameTally) -> float:
    return one.count / made.effort.total if made.effort.total else 0.0


def _counted(made: Tally) -> str:
    return "events" if made.is_events else "windows"


def _listened(made: Tally) -> str:
    return "hours recorded" if made.is_events else "windows heard"


def _heard_table(made: Tally, ranked: Sequence[NameTally]) -> Table:
    has_questions = len({one.question for one in ranked}) > 1
    has_sites = len(made.effort.sites) > 1
    columns = ["name", "scientific name", _counted(made), rate_name(made), "recordings"]
    rows: list[list[Cell]] = []
    for one in ranked:
        cells: list[Cell] = [one.common_name or one.label, one.scientific_name, one.count]
        cells += [_rate(made, one), len(one.recordings)]
        cells += [len(one.spread.sites)] if has_sites else []
        cells += [len({day for _, day, _ in one.spread.cells}), one.highest, one.mean]
        rows.append([*cells, one.question] if has_questions else cells)
    columns += ["sites"] if has_sites else []
    columns += ["days", "highest confidence", "mean confidence"]
    columns += ["question"] if has_questions else []
    known = [n for n, _ in enumerate(columns) if not rows or any(row[n] for row in rows)]
    return Table(
        "heard",
        "What was heard",
        tuple(columns[n] for n in known),
        tuple(tuple(row[n] for n in known) for row in rows),
    )


def _sites_table(made: Tally, ranked: Sequence[NameTally]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in ranked:
        for site, effort in sorted(made.effort.sites.items()):
            heard = int(one.spread.sites.get(site, 0))
            cells = (one.common_name or one.label, one.scientific_name, one.question, site)
            rows.append((*cells, heard, effort, heard / effort if effort else None))
    columns = ("name", "scientific name", "question", "site", _counted(made), _listened(made))
    return Table("by-site", "By site", (*columns, rate_name(made)), tuple(rows))


def _cells_table(made: Tally, ranked: Sequence[NameTally]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in ranked:
        for (site, day, hour), heard in sorted(one.spread.cells.items()):
            effort = made.effort.cells.get((site, day, hour), 0)
            cells = (one.common_name or one.label, one.scientific_name, one.question)
            when = (site, datetime.fromordinal(day).date().isoformat(), hour)
            rows.append((*cells, *when, int(heard), effort, heard / effort if effort else None))
    columns = ("name", "scientific name", "question", "site", "day", "hour", _counted(made))
    title = "By hour and day, where it was heard; effort has all hours"
    return Table(
        "by-hour-and-day", title, (*columns, _listened(made), rate_name(made)), tuple(rows)
    )


def _effort_table(made: Tally) -> Table:
    rows = tuple(
        (site, datetime.fromordinal(day).date().isoformat(), hour, effort)
        for (site, day, hour), effort in sorted(made.effort.cells.items())
    )
    return Table("effort", "Effort", ("site", "day", "hour", _listened(made)), rows)


def _recordings_table(made: Tally, names: Sequence[str]) -> Table:
    rows = tuple(
        (
            *(name, one.site, "" if one.began is None else one.began.isoformat()),
            *(one.heard.seconds, one.windows, one.seconds, one.detections),
            _state_of(one.heard),
        )
        for one, name in zip(made.recordings, names, strict=True)
    )
    columns = ("recording", "site", "began", "seconds", "windows heard", "seconds heard")
    return Table("recordings", "Recordings", (*columns, "detections", "problem"), rows)


def _reasons_table(key: str, title: str, reasons: Iterable[NotHeard]) -> Table:
    rows = tuple((one.recording, one.why, one.windows, one.seconds) for one in reasons)
    return Table(key, title, ("recording", "why", "windows", "seconds"), rows)


def _gaps_table(found: Iterable[Gap]) -> Table:
    rows = tuple(
        (
            one.site,
            one.start.isoformat(" ", "minutes"),
            one.end.isoformat(" ", "minutes"),
            one.hours,
        )
        for one in found
    )
    title = "Gaps: hours in which a site records on most days, and did not"
    return Table("gaps", title, ("site", "from", "to", "hours missing"), rows)


# Answers of a questionnaire that name nothing


@dataclass(frozen=True)
class ColumnReport:
    """The answers to one question of a questionnaire.

    bars: value, how often, share of the answers
    """

    name: str
    about: str
    bars: tuple[tuple[str, int, float], ...]


def column_report(column: ColumnTally) -> ColumnReport:
    bars = _number_bars(column) if column.kind == "number" else _value_bars(column)
    answered = sum(column.values.values()) + column.others
    parts = [f"{answered:,} answers"]
    numbers = [one for one in column.values if isinstance(one, int | float)]
    if numbers and column.kind in ("count", "number"):
        total = sum(value * column.values[value] for value in numbers)
        mean = total / sum(column.values[value] for value in numbers)
        unit = f" {column.unit}" if column.unit else ""
        parts.append(f"from {min(numbers):g} to {max(numbers):g}{unit}, mean {mean:.3g}{unit}")
    if column.absent:
        parts.append(f"{column.absent:,} × none")
    if column.unread:
        parts.append(f"{column.unread:,} that could not be read as a {column.kind or 'value'}")
    shares = tuple((text, count, count / max(1, answered)) for text, count in bars)
    return ColumnReport(column.name, "; ".join(parts), shares)


def _value_bars(column: ColumnTally) -> list[tuple[str, int]]:
    """The values, numbers in their order, others by how often they were given."""
    if column.kind == "json" or not column.values:
        return []
    ranked = column.values.most_common(_MOST_BARS)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value, _ in ranked):
        ranked.sort()
    bars = [(value_text(value), count) for value, count in ranked]
    rest = sum(column.values.values()) + column.others - sum(count for _, count in bars)
    return [*bars, ("others", rest)] if rest else bars


def _number_bars(column: ColumnTally) -> list[tuple[str, int]]:
    """Numbers in bins of a round width."""
    numbers = {value: n for value, n in column.values.items() if isinstance(value, int | float)}
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    width = _round_width((high - low) / _MOST_BARS)
    bins: Counter[int] = Counter()
    for value, count in numbers.items():
        bins[math.floor(value / width + 1e-9)] += count
    return [
        (f"{n * width:g} to {(n + 1) * width:g}", bins[n]) for n in range(min(bins), max(bins) + 1)
    ]


def _round_width(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least so wide."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def columns_table(columns: Iterable[ColumnTally]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for column in columns:
        rows += [
            (column.name, column.kind, value_text(value), count)
            for value, count in sorted(
                column.values.items(), key=lambda pair: (-pair[1], str(pair[0]))
            )
        ]
        others = (("(other values)", column.others), ("(none)", column.absent))
        rows += [
            (column.name, column.kind, text, count)
            for text, count in (*others, ("(could not be read)", column.unread))
            if count
        ]
    title = "Answers that name nothing"
    return Table("columns", title, ("column", "kind", "value", "windows"), tuple(rows))

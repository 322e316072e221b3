"""A job in words, tables and bars: HTML in which every text of a user or model is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from NatureLM.app.jobs.view import JobView, RecordingView
from NatureLM.app.limits import say_seconds
from NatureLM.outputs import WindowRow
from NatureLM.outputs.tables import alternatives_text

MOST_ROWS = 5000
"""Rows of the table on the page; downloads hold all."""
RECORDING, FROM, TO = "Recording", "From (s)", "To (s)"
ANSWER, CONFIDENCE, QUESTION = "Answer", "Confidence", "Question"


def status_html(view: JobView) -> str:
    """How far the job is: a sentence, a bar, the link."""
    job, share = view.job, view.share
    label = f"{100 * share:.0f} %"
    created = job.created.replace("T", " ").removesuffix("+00:00")
    return (
        f'<div class="job" data-job="{escape(job.id)}" data-state="{escape(job.state)}" '
        f'data-answers="{len(view.answers)}" data-expected="{job.expected}">'
        f'<p role="status">{escape(sentence(view))}</p>'
        f'<progress max="1" value="{share:.4f}" aria-label="Progress">{label}</progress>'
        f'<p class="about">Begun {escape(created)} UTC. It goes on when this page is closed; '
        f'<a href="?job={escape(job.id)}">this link opens it again</a>. Keep the link to '
        "yourself: whoever has it can see the job.</p></div>"
    )


def sentence(view: JobView) -> str:
    """How far the job is, in one sentence or two."""
    job = view.job
    done = f"{len(view.answers):,} of {job.expected:,} answers"
    if job.state == "waiting":
        return f"Waits: {_count(view.ahead, 'job')} before it." if view.ahead else "Begins …"
    if job.state == "working":
        if view.is_stopping:
            return f"Stops after the answer that is being made: {done} so far."
        return f"Works: {done}." if view.answers else "Begins with the first windows …"
    if job.state == "failed":
        return job.message
    bad = f", {_count(len(view.errors), 'recording')} with errors" if view.errors else ""
    if job.state == "stopped":
        return f"Stopped at {done}{bad}. What is there is kept; Go on asks the rest."
    return f"Done: {_count(len(view.answers), 'answer')}{bad}."


def recordings_html(view: JobView) -> str:
    """A table of the recordings: how far each is, and what was wrong."""
    lines = "".join(map(_recording_line, view.recordings()))
    return (
        '<div class="job-files" tabindex="0" role="region" aria-label="Recordings of the job">'
        "<table><thead><tr><th>Recording</th><th>Length</th><th>Progress</th><th>State</th></tr>"
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


@dataclass(frozen=True)
class AnswerTable:
    """The columns that a job's answers need: what is the same in all rows stays out."""

    headers: tuple[str, ...]

    @classmethod
    def of(cls, view: JobView) -> AnswerTable:
        """The table of a job."""
        wanted = [RECORDING] if len(view.job.recordings) > 1 else []
        wanted += [FROM, TO, ANSWER]
        wanted += [CONFIDENCE] if has_confidence(view) else []
        wanted += [QUESTION] if len(view.job.settings.queries) > 1 else []
        return cls(tuple(wanted))

    def value(self, rows: Sequence[WindowRow], names: Mapping[str, str]) -> dict[str, Any]:
        """What the component shows."""
        return {
            "headers": list(self.headers),
            "data": [self._cells(row, names) for row in rows[:MOST_ROWS]],
        }

    def named(self, cells: Sequence[Any]) -> dict[str, Any]:
        """The cells of one row by their headers."""
        return dict(zip(self.headers, cells, strict=False))

    def _cells(self, row: WindowRow, names: Mapping[str, str]) -> list[Any]:
        cells: dict[str, Any] = {
            RECORDING: names[row.audio_path],
            FROM: row.start,
            TO: row.end,
            ANSWER: row.text,
            CONFIDENCE: confidence_text(row),
            QUESTION: row.query,
        }
        return [cells[header] for header in self.headers]


def has_confidence(view: JobView) -> bool:
    """Whether the answers say how sure they are."""
    return any(row.confidence is not None for row in view.answers[:100])


def confidence_text(row: WindowRow) -> str:
    """`83 % (Barn Owl 0.10)`; nothing where it is not known."""
    if row.confidence is None:
        return ""
    others = alternatives_text(row)
    return f"{100 * row.confidence:.0f} %" + (f" ({others})" if others else "")


def filtered(
    rows: Sequence[WindowRow], names: Mapping[str, str], words: str, least: float
) -> list[WindowRow]:
    """Rows with all of the words somewhere in them, and enough confidence where it is known."""
    wanted = words.casefold().split()
    return [
        row
        for row in rows
        if all(
            word in f"{names[row.audio_path]} {row.text} {row.query}".casefold() for word in wanted
        )
        and (row.confidence is None or row.confidence >= least)
    ]


def _recording_line(one: RecordingView) -> str:
    recording = one.recording
    length = "" if recording.seconds is None else say_seconds(recording.seconds)
    state = {
        "done": "done",
        "begun": f"{one.answers} of {one.expected}",
        "waiting": "waits",
        "error": escape(one.error),
    }[one.state]
    bar = (
        f'<progress max="{max(1, one.expected)}" value="{one.answers}" '
        f'aria-label="Progress of {escape(recording.name)}"></progress>'
        if one.expected
        else ""
    )
    return (
        f'<tr data-file="{escape(recording.file)}" data-state="{one.state}">'
        f'<td class="job-name" title="{escape(recording.name)}">{escape(recording.name)}</td>'
        f"<td>{escape(length)}</td><td>{bar}</td><td>{state}</td></tr>"
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"

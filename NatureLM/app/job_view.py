"""What the page shows of a job, the same before and after a restart of the app: it is on disk.

Progress and recordings as HTML, in which every text of a user or model is escaped; tables and
timeline as plain data; the answers as files to take away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from html import escape
from pathlib import Path
from typing import Any

from NatureLM.app.jobs import Job, JobRecording, Jobs
from NatureLM.results.rows import ErrorRow, Row, WindowRow, read_rows
from NatureLM.results.tables import (
    CSV_ENCODING,
    RavenRecording,
    alternatives_text,
    write_csv,
    write_jsonl,
    write_raven,
    write_table,
)
from NatureLM.util import format_duration

MOST_ROWS = 5000
"""Rows of the table on the page; downloads hold all."""
RECORDING, FROM, TO = "Recording", "From (s)", "To (s)"
ANSWER, CONFIDENCE, QUESTION = "Answer", "Confidence", "Question"
NAMED = 6
"""Answers that have a colour of their own: more could not be told apart."""
_STEPS = 5
_LONGEST = 300


@dataclass(frozen=True)
class JobView:
    """A job as the page shows it.

    rows: answers and errors in the order in which they came
    ahead: how many jobs come before it
    is_stopping: it was told to stop and is at its last answer
    """

    job: Job
    rows: tuple[Row, ...]
    ahead: int
    is_stopping: bool

    @property
    def is_settled(self) -> bool:
        """Whether nothing changes by itself."""
        return self.job.state in ("done", "stopped", "failed")

    @cached_property
    def answers(self) -> tuple[WindowRow, ...]:
        return tuple(row for row in self.rows if isinstance(row, WindowRow))

    @cached_property
    def errors(self) -> tuple[ErrorRow, ...]:
        """Recordings that could not be heard (to their end)."""
        return tuple(row for row in self.rows if isinstance(row, ErrorRow))

    @cached_property
    def names(self) -> dict[str, str]:
        """What the user calls the recordings, by the path in the rows."""
        by_file = {one.file: one.name for one in self.job.recordings}
        return {row.audio_path: by_file.get(_file(row), _file(row)) for row in self.rows}

    @property
    def share(self) -> float:
        if self.job.state == "done":
            return 1.0
        return min(1.0, len(self.answers) / max(1, self.job.expected))

    @property
    def has_confidence(self) -> bool:
        """Whether the answers say how sure they are."""
        return any(row.confidence is not None for row in self.answers)

    @cached_property
    def headers(self) -> list[str]:
        """The columns that the answers need: what is the same in all rows stays out."""
        return [
            *([RECORDING] if len(self.job.recordings) > 1 else []),
            *(FROM, TO, ANSWER),
            *([CONFIDENCE] if self.has_confidence else []),
            *([QUESTION] if len(self.job.settings.queries) > 1 else []),
        ]

    def filtered(self, words: str, least: float) -> list[WindowRow]:
        """Answers with all of the words somewhere in them, and enough confidence if it is known."""
        wanted = words.casefold().split()

        def has_all(row: WindowRow) -> bool:
            text = f"{self.names[row.audio_path]} {row.shown} {row.query}".casefold()
            return all(word in text for word in wanted)

        return [row for row in self.answers if _sure_enough(row, least) and has_all(row)]

    def table(self, rows: Sequence[WindowRow]) -> dict[str, Any]:
        cells: dict[str, Callable[[WindowRow], Any]] = {
            RECORDING: lambda row: self.names[row.audio_path],
            FROM: lambda row: row.start,
            TO: lambda row: row.end,
            ANSWER: lambda row: row.shown,
            CONFIDENCE: _confidence_text,
            QUESTION: lambda row: row.query,
        }
        shown = [[cells[header](row) for header in self.headers] for row in rows[:MOST_ROWS]]
        return {"headers": self.headers, "data": shown}


def view_job(jobs: Jobs, job_id: str) -> JobView:
    """The job of this name. Raises UsageError where there is none, OutputError for bad answers."""
    job = jobs.open(job_id)
    path = job.answers_path
    try:
        status = path.stat()
        rows = _read(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        rows = ()
    folder = job.folder / "recordings"
    if rows and Path(rows[0].audio_path).parent != folder:  # the folder of jobs was moved
        rows = tuple(replace(row, audio_path=str(folder / _file(row))) for row in rows)
    return JobView(job, rows, jobs.ahead(job_id), jobs.is_stopping(job_id))


@lru_cache(maxsize=16)
def _read(path: Path, size: int, changed: int) -> tuple[Row, ...]:
    """The rows of a file, which are read again only when it has grown."""
    return tuple(read_rows(path))


def _file(row: Row) -> str:
    """The recording of a row, as `JobRecording.file` names it."""
    return Path(row.audio_path).name


def _sure_enough(row: WindowRow, least: float) -> bool:
    if row.confidence is None:
        return not (row.note and least)
    return row.confidence >= least


def _confidence_text(row: WindowRow) -> str:
    """`83 % (Barn Owl 0.10)`; nothing where it is not known."""
    if row.confidence is None:
        return ""
    others = alternatives_text(row)
    return f"{100 * row.confidence:.0f} %" + (f" ({others})" if others else "")


def status_html(view: JobView) -> str:
    """How far the job is: a sentence, a bar, the link."""
    job, share = view.job, view.share
    label = f"{100 * share:.0f} %"
    return (
        f'<div class="job" data-job="{escape(job.id)}" data-state="{escape(job.state)}" '
        f'data-answers="{len(view.answers)}" data-expected="{job.expected}">'
        f'<p role="status">{escape(progress_sentence(view))}</p>'
        f'<progress max="1" value="{share:.4f}" aria-label="Progress">{label}</progress>'
        f'<p class="about">Begun {escape(job.when)} UTC. It goes on when this page is closed; '
        f'<a href="?job={escape(job.id)}">this link opens it again</a>. Keep the link to '
        "yourself: whoever has it can see the job.</p></div>"
    )


def progress_sentence(view: JobView) -> str:
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
    silent = sum(bool(row.note and not row.text) for row in view.answers)
    bad = f", {silent:,} of them without sound and not asked" if silent else ""
    bad += f", {_count(len(view.errors), 'recording')} with errors" if view.errors else ""
    if job.state == "stopped":
        return f"Stopped at {done}{bad}. What is there is kept; Go on asks the rest."
    return f"Done: {_count(len(view.answers), 'answer')}{bad}."


def recordings_html(view: JobView) -> str:
    """A table of the recordings: how far each is, and what was wrong."""
    counts = Counter(map(_file, view.answers))
    errors = {
        # Under the name that the user knows.
        _file(row): row.error.replace(row.audio_path, view.names[row.audio_path])
        for row in view.errors
    }
    questions = len(view.job.settings.queries)
    lines = "".join(
        _recording_line(one, counts[one.file], one.windows * questions, errors.get(one.file, ""))
        for one in view.job.recordings
    )
    return (
        '<div class="job-files" tabindex="0" role="region" aria-label="Recordings of the job">'
        "<table><thead><tr><th>Recording</th><th>Length</th><th>Progress</th><th>State</th></tr>"
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


def _recording_line(recording: JobRecording, answers: int, expected: int, error: str) -> str:
    name = escape(recording.name)
    length = "" if recording.seconds is None else format_duration(recording.seconds, short=True)
    if error:
        state, shown = "error", escape(error)
    elif answers >= expected:
        state, shown = "done", "done"
    elif answers:
        state, shown = "begun", f"{answers} of {expected}"
    else:
        state, shown = "waiting", "waits"
    bar = (
        f'<progress max="{expected}" value="{answers}" aria-label="Progress of {name}"></progress>'
    )
    return (
        f'<tr data-file="{escape(recording.file)}" data-state="{state}">'
        f'<td class="job-name" title="{name}">{name}</td>'
        f"<td>{escape(length)}</td><td>{bar if expected else ''}</td><td>{shown}</td></tr>"
    )


def count_html(shown: int, of: int) -> str:
    if not of:
        return ""
    more = f" The first {MOST_ROWS:,} are shown." if shown > MOST_ROWS else ""
    return f'<p class="about" role="status">{shown:,} of {of:,} answers.{more}</p>'


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def timeline(
    view: JobView, recording: JobRecording, query: str, colouring: str = "answer"
) -> dict[str, Any]:
    """The windows of a recording that have an answer to one question, with their colours.

    `windows` are start and end (seconds of the recording), answer, confidence (0 to 1, or None) and
    place in `legend`; what has no answer yet is not among them. `colouring` is `answer` or
    `confidence`, which is of no use where no answer has any.
    """
    found = [row for row in view.answers if _file(row) == recording.file and row.query == query]
    rows = sorted(found, key=lambda row: row.start)
    by_answer = colouring != "confidence" or all(row.confidence is None for row in rows)
    legend, places = _by_answer(rows) if by_answer else _by_confidence(rows)
    return {
        "job": view.job.id,
        "recording": recording.file,
        "name": recording.name,
        "seconds": recording.seconds or 0.0,
        "legend": legend,
        "windows": [
            {
                "start": row.start,
                "end": row.end,
                "text": row.shown[:_LONGEST],
                "confidence": row.confidence,
                "colour": place,
            }
            for row, place in zip(rows, places, strict=True)
        ],
    }


def _by_answer(rows: Sequence[WindowRow]) -> tuple[list[dict[str, Any]], list[int]]:
    """The legend, and the place of each row in it."""
    counts = Counter(row.shown for row in rows)
    # By number, then by name: the same answers have the same colours whenever one looks.
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    legend = [
        _legend(text[:_LONGEST] or "(nothing)", f"series-{n}", counts[text])
        for n, text in enumerate(ordered[:NAMED])
    ]
    if len(ordered) > NAMED:
        rest = sum(counts[text] for text in ordered[NAMED:])
        legend.append(_legend("other answers", "other", rest))
    places = {text: min(n, NAMED) for n, text in enumerate(ordered)}
    return legend, [places[row.shown] for row in rows]


def _by_confidence(rows: Sequence[WindowRow]) -> tuple[list[dict[str, Any]], list[int]]:
    places = [
        _STEPS if share is None else max(0, min(_STEPS - 1, int(share * _STEPS)))
        for share in (row.confidence for row in rows)
    ]
    counts = Counter(places)
    legend = [
        _legend(f"{100 * n // _STEPS} to {100 * (n + 1) // _STEPS} %", f"step-{n}", counts[n])
        for n in range(_STEPS)
    ]
    if counts[_STEPS]:
        legend.append(_legend("not known", "other", counts[_STEPS]))
    return legend, places


def _legend(label: str, style: str, count: int) -> dict[str, Any]:
    return {"label": label, "style": style, "count": count}


def write_downloads(view: JobView, sample_rate: int = 16_000) -> list[Path]:
    """Write the files of a job anew: CSV for spreadsheets, a selection table of Raven, JSON lines.

    sample_rate: in Hz, of the model: selections end at what it can hear

    Raises OutputError where they cannot be written.
    """
    job, names = view.job, view.names
    # Those that could be read, in the order in which Raven is to open them.
    recordings = [
        RavenRecording(str(path), one.seconds, one.rate)
        for path, one in zip(job.recording_paths, job.recordings, strict=True)
        if one.seconds is not None and one.rate is not None
    ]
    selections = partial(
        write_raven,
        recordings=recordings,
        channel=job.settings.channel,
        heard_hz=sample_rate / 2 * job.settings.time_expansion,
    )
    made = []
    for name, encoding, write in (
        ("answers.csv", CSV_ENCODING, write_csv),
        ("answers.selections.txt", "utf-8", selections),
        ("answers.jsonl", "utf-8", write_jsonl),
    ):
        made.append(job.folder / "downloads" / name)
        write_table(made[-1], encoding, partial(write, view.rows, names=names))
    return made

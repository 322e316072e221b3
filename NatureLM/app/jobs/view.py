"""What the timeline of a recording shows, as plain data for the page.

The answers of a job as files to take away.

How far a job is, from what is on disk: the same before and after a restart of the app.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

from NatureLM.app.jobs.queue import JobQueue
from NatureLM.app.jobs.store import Job, JobLibrary, JobRecording
from NatureLM.results.rows import ErrorRow, Row, WindowRow, read_rows
from NatureLM.results.tables import (
    CSV_ENCODING,
    RavenRecording,
    write_csv,
    write_jsonl,
    write_raven,
    write_table,
)

Colouring: TypeAlias = Literal["answer", "confidence"]

NAMED = 6
"""Answers that have a colour of their own: more could not be told apart."""
_OTHER = "other answers"
_STEPS = 5
_LONGEST = 300


def timeline(
    view: JobView, recording: JobRecording, query: str, colouring: Colouring = "answer"
) -> dict[str, Any]:
    """The windows of a recording that have an answer to one question, with their colours.

    `windows` are start and end (seconds of the recording), answer, confidence (0 to 1, or None) and
    place in `legend`; what has no answer yet is not among them.
    """
    rows = view.answers_of(recording, query)
    by_answer = colouring == "answer" or all(row.confidence is None for row in rows)
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
                "text": row.text[:_LONGEST],
                "confidence": row.confidence,
                "colour": place,
            }
            for row, place in zip(rows, places, strict=True)
        ],
    }


def _by_answer(rows: Sequence[WindowRow]) -> tuple[list[dict[str, Any]], list[int]]:
    counts = Counter(row.text for row in rows)
    # By number, then by name: the same answers have the same colours whenever one looks.
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    named = ordered[:NAMED]
    legend = [
        {"label": text[:_LONGEST] or "(nothing)", "style": f"series-{n}", "count": counts[text]}
        for n, text in enumerate(named)
    ]
    if len(ordered) > NAMED:
        rest = sum(counts[text] for text in ordered[NAMED:])
        legend.append({"label": _OTHER, "style": "other", "count": rest})
    places = {text: n for n, text in enumerate(named)}
    return legend, [places.get(row.text, NAMED) for row in rows]


def _by_confidence(rows: Sequence[WindowRow]) -> tuple[list[dict[str, Any]], list[int]]:
    steps = [_step(row.confidence) for row in rows]
    counts = Counter(steps)
    legend = [
        {
            "label": f"{100 * n // _STEPS} to {100 * (n + 1) // _STEPS} %",
            "style": f"step-{n}",
            "count": counts[n],
        }
        for n in range(_STEPS)
    ]
    if counts[_STEPS]:
        legend.append({"label": "not known", "style": "other", "count": counts[_STEPS]})
    return legend, steps


def _step(confidence: float | None) -> int:
    return _STEPS if confidence is None else max(0, min(_STEPS - 1, int(confidence * _STEPS)))


DOWNLOADS_FOLDER = "downloads"


@dataclass(frozen=True)
class Downloads:
    """Files in the job's folder.

    csv: for spreadsheets; jsonl: as `naturelm infer` writes; raven: a selection table
    """

    csv: Path
    jsonl: Path
    raven: Path


def write_downloads(library: JobLibrary, view: JobView, sample_rate: int = 16_000) -> Downloads:
    """Write the files anew.

    sample_rate: in Hz, of the model: selections end at what it can hear

    Raises OutputError where they cannot be written.
    """
    job, names = view.job, view.names()
    folder = library.folder_of(job.id) / DOWNLOADS_FOLDER
    made = Downloads(
        folder / "answers.csv", folder / "answers.jsonl", folder / "answers.selections.txt"
    )

    def raven(file: TextIO) -> None:
        write_raven(
            view.rows,
            file,
            _recordings(library, view),
            names,
            channel=job.settings.channel,
            heard_hz=sample_rate / 2 * job.settings.time_expansion,
        )

    write_table(made.csv, CSV_ENCODING, lambda file: write_csv(view.rows, file, names))
    write_table(made.jsonl, "utf-8", lambda file: write_jsonl(view.rows, file, names))
    write_table(made.raven, "utf-8", raven)
    return made


def _recordings(library: JobLibrary, view: JobView) -> list[RavenRecording]:
    """The recordings that could be read, in the order in which Raven is to open them."""
    job = view.job
    return [
        RavenRecording(str(path), one.seconds, one.rate)
        for path, one in zip(library.recording_paths(job), job.recordings, strict=True)
        if one.seconds is not None and one.rate is not None
    ]


SETTLED = ("done", "stopped", "failed")
"""States in which nothing changes by itself."""


@dataclass(frozen=True)
class RecordingView:
    """A recording of a job: how many answers it has, of how many, and what went wrong."""

    recording: JobRecording
    answers: int
    expected: int
    error: str

    @property
    def state(self) -> str:
        """In a word: waiting, asked in part, done, or not readable (to its end)."""
        if self.error:
            return "error"
        if self.answers >= self.expected:
            return "done"
        return "begun" if self.answers else "waiting"


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
        return self.job.state in SETTLED

    @property
    def answers(self) -> tuple[WindowRow, ...]:
        """The answers."""
        return tuple(row for row in self.rows if isinstance(row, WindowRow))

    @property
    def share(self) -> float:
        """How much is done, 0 to 1."""
        if self.job.state == "done":
            return 1.0
        return min(1.0, len(self.answers) / self.job.expected) if self.job.expected else 0.0

    def answers_of(self, recording: JobRecording, query: str) -> list[WindowRow]:
        """Answers about a recording to one question, in the order of time."""
        found = [
            row for row in self.answers if file_of(row) == recording.file and row.query == query
        ]
        return sorted(found, key=lambda row: row.start)

    def names(self) -> dict[str, str]:
        """What the user calls the recordings, by the path in the rows."""
        by_file = {one.file: one.name for one in self.job.recordings}
        return {row.audio_path: by_file.get(file_of(row), file_of(row)) for row in self.rows}

    def recordings(self) -> list[RecordingView]:
        """All recordings, in the order in which they are asked."""
        counts = Counter(file_of(row) for row in self.answers)
        reasons = {file_of(row): reason(row, self.job) for row in self.errors}
        questions = len(self.job.settings.queries)
        return [
            RecordingView(one, counts[one.file], one.windows * questions, reasons.get(one.file, ""))
            for one in self.job.recordings
        ]

    @property
    def errors(self) -> tuple[ErrorRow, ...]:
        """Recordings that could not be heard (to their end)."""
        return tuple(row for row in self.rows if isinstance(row, ErrorRow))


def view_job(library: JobLibrary, queue: JobQueue, job_id: str) -> JobView:
    """The job of this name. Raises JobError where there is none, OutputError for bad answers."""
    job = queue.open(job_id)
    rows = _rows(library.answers_path(job_id))
    folder = library.recordings_folder(job_id)
    if rows and Path(rows[0].audio_path).parent != folder:  # the folder of jobs was moved
        rows = tuple(replace(row, audio_path=str(folder / file_of(row))) for row in rows)
    return JobView(job, rows, queue.ahead(job_id), queue.is_stopping(job_id))


def file_of(row: Row) -> str:
    """The recording of a row, as `JobRecording.file` names it."""
    return Path(row.audio_path).name


def reason(row: ErrorRow, job: Job) -> str:
    """Why a recording could not be heard, under the name that the user knows."""
    names = {one.file: one.name for one in job.recordings}
    return row.error.replace(row.audio_path, names.get(file_of(row), file_of(row)))


def say_time(seconds: float) -> str:
    """A place in a recording: `1:02:03.5`, `2:03.5`."""
    tenths = math.floor(seconds * 10 + 0.5)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02d}:{shown}" if hours else f"{minutes}:{shown}"


def _rows(path: Path) -> tuple[Row, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _read(path: Path, size: int, changed: int) -> tuple[Row, ...]:
    """The rows of a file, which are read again only when it has grown."""
    try:
        return tuple(read_rows(path))
    except FileNotFoundError:
        return ()

"""How far a job is, from what is on disk: the same before and after a restart of the app."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from NatureLM.app.jobs.library import JobLibrary
from NatureLM.app.jobs.queue import JobQueue
from NatureLM.app.jobs.record import Job, JobRecording
from NatureLM.outputs import ErrorRow, WindowRow, read_rows
from NatureLM.outputs.rows import Row

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

"""What the page shows of a job, the same before and after a restart of the app: it is on disk.

Progress and recordings as HTML, in which every text of a user or model is escaped; tables and
timeline as plain data; the answers as files to take away. Answers are read on from where they ended
the last time, and the page gets a part of a long list at once.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from NatureLM import formats
from NatureLM.app.clips import without_paths
from NatureLM.app.job import Job, JobRecording
from NatureLM.app.jobs import Jobs
from NatureLM.generation.labels import NOTHING
from NatureLM.results.detections import ResultFile
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    Row,
    RunSettings,
    SurveyRow,
    WindowRow,
    from_line,
    read_record,
    read_rows,
    to_line,
    value_text,
    write_record,
)
from NatureLM.results.tables import alternatives_text, write_lines
from NatureLM.util import format_duration

DOWNLOADS = ("csv", "raven", "jsonl")
"""The tables that have a button of their own."""
PAGE_ROWS = 1000
"""Rows of the table that the page gets at once."""
RECORDING, FROM, TO = "Recording", "From (s)", "To (s)"
ANSWER, CONFIDENCE, QUESTION = "Answer", "Confidence", "Question"
_MOST_READ = 400_000  # answers that are kept of all jobs but the one that was looked at last


class Answer(NamedTuple):
    """What the page shows of an answer: much less than a row of the file.

    file: as `JobRecording.file`
    start, end: seconds of the recording
    text: the answer, or why there is none
    others: the next likely ones
    note: as in the row
    """

    file: str
    start: float
    end: float
    query: str
    text: str
    confidence: float | None = None
    others: str = ""
    note: str = ""

    @property
    def is_silent(self) -> bool:
        """Whether the window was not asked about, because there is no sound in it."""
        return bool(self.note) and self.text == f"{self.note}, not asked"


@dataclass(frozen=True)
class JobView:
    """A job as the page shows it.

    answers: in the order in which they came
    errors: what is wrong with recordings, by `JobRecording.file`
    ahead: how many jobs come before it
    is_stopping: it was told to stop and is at its last answer
    is_elsewhere: another app has it
    problem: what keeps its answers from being read
    """

    job: Job
    answers: Sequence[Answer]
    errors: dict[str, str]
    ahead: int = 0
    is_stopping: bool = False
    is_elsewhere: bool = False
    problem: str = ""

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

    def filtered(self, words: str, least: float) -> Sequence[Answer]:
        """Answers with all of the words somewhere in them, and enough confidence if it is known."""
        wanted = words.casefold().split()
        if not wanted and least <= 0:
            return self.answers
        found: dict[tuple[str, str, str], bool] = {}  # answers are much alike

        def has_all(one: Answer) -> bool:
            said = one.file, one.text, one.query
            if said not in found:
                text = f"{self.name_of(one)} {one.text} {one.query}".casefold()
                found[said] = all(word in text for word in wanted)
            return found[said]

        return [one for one in self.answers if _sure_enough(one, least) and has_all(one)]

    def name_of(self, answer: Answer) -> str:
        return self.job.names.get(answer.file, answer.file)

    def table(self, answers: Sequence[Answer], page: int = 0) -> dict[str, Any]:
        """A page, from 0 on, of a list of answers."""
        cells: dict[str, Callable[[Answer], Any]] = {
            RECORDING: self.name_of,
            FROM: lambda one: one.start,
            TO: lambda one: one.end,
            ANSWER: lambda one: one.text,
            CONFIDENCE: _confidence_text,
            QUESTION: lambda one: one.query,
        }
        shown = answers[page * PAGE_ROWS : (page + 1) * PAGE_ROWS]
        data = [[cells[header](one) for header in self.headers] for one in shown]
        return {"headers": self.headers, "data": data}

    def rows(self) -> Iterator[Row]:
        """The rows of the file as the user gets them: without folders of this computer."""
        models = dict[str, str]()
        for row in read_rows(self.job.answers_path):
            file = _file(row)
            if row.model not in models:
                models[row.model] = self.job.told(row.model)
            if isinstance(row, ErrorRow):
                row = replace(row, error=self.errors.get(file) or self.job.told(row.error))
            name = self.table_names.get(file, file)
            yield replace(row, audio_path=name, model=models[row.model], audio_folder=None)

    @cached_property
    def table_names(self) -> dict[str, str]:
        """What tables call the recordings: where two have one name, with their numbers."""
        often = Counter(self.job.names.values())
        return {
            file: name if often[name] == 1 else f"{number}/{name}"
            for number, (file, name) in enumerate(self.job.names.items(), start=1)
        }


def view_job(jobs: Jobs, job_id: str) -> JobView:
    """The job of this name. Raises UsageError where there is none."""
    job = jobs.open(job_id)
    answers, errors, problem = _read(job)
    return JobView(
        job,
        answers,
        errors,
        jobs.ahead(job_id),
        jobs.is_stopping(job_id),
        not (job.is_settled or jobs.has(job_id)),
        problem,
    )


class _Growing:
    """A file of answers that is read on from where it ended the last time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: tuple[int, int] | None = None  # device and number: another file has others
        self._forget()

    def _forget(self) -> None:
        self._read, self._lines = 0, 0
        self._found: list[Answer] = []
        self.answers: tuple[Answer, ...] = ()
        self.errors: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def read(self, job: Job) -> None:
        """Read what is new. Raises FileNotFoundError, and OutputError for what is no row."""
        with self._lock, open(job.answers_path, "rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._file or status.st_size < self._read:
                self._forget()
                self._file = status.st_dev, status.st_ino
            file.seek(self._read)
            try:
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._take(from_line(line, job.answers_path.name, self._lines + 1), job)
                    self._read, self._lines = self._read + len(line), self._lines + 1
            finally:
                if len(self._found) > len(self.answers):
                    self.answers = tuple(self._found)

    def _take(self, row: Row, job: Job) -> None:
        file = self._same(_file(row))
        if isinstance(row, ErrorRow):
            named = row.error.replace(row.audio_path, job.names.get(file, file))
            self.errors = {**self.errors, file: job.told(named)}
            return
        note = self._same(row.note)
        for query, text, confidence in self._answers(row, job):
            others = self._same(alternatives_text(row.alternatives))
            query, text = self._same(query), self._same(text)
            self._found.append(
                Answer(file, row.start, row.end, query, text, confidence, others, note)
            )

    @staticmethod
    def _answers(row: WindowRow | SurveyRow, job: Job) -> Iterator[tuple[str, str, float | None]]:
        """Question, answer and confidence; of a survey those of each column that was asked."""
        if not isinstance(row, SurveyRow):
            yield row.query, row.shown, row.confidence
            return
        sure, said = row.confidences or {}, row.said or {}
        for name in job.settings.queries:
            if name in row.answers:
                text = value_text(row.answers[name]) or NOTHING
                if name in said:
                    text = f"{said[name]} (not understood)"
                yield name, text, sure.get(name)
            elif row.note and not row.answers:
                yield name, row.shown, None

    def _same(self, text: str) -> str:
        """Equal texts once in memory."""
        return self._texts.setdefault(text, text)


_READ: OrderedDict[Path, _Growing] = OrderedDict()
"""Of the jobs that were looked at, the last one at the end."""
_READING = threading.Lock()


def _read(job: Job) -> tuple[Sequence[Answer], dict[str, str], str]:
    """Answers, errors by recording, and what is wrong with the file."""
    with _READING:
        growing = _READ.setdefault(job.answers_path, _Growing())
        _READ.move_to_end(job.answers_path)
        while len(_READ) > 1 and sum(len(one.answers) for one in _READ.values()) > _MOST_READ:
            _READ.popitem(last=False)
    problem = ""
    try:
        growing.read(job)
    except FileNotFoundError:
        with _READING:
            _READ.pop(job.answers_path, None)
        return (), {}, ""
    except (OSError, OutputError) as error:
        problem = f"The answers cannot be read: {job.told(str(error))}."
    return growing.answers, growing.errors, problem


def _file(row: Row) -> str:
    """The recording of a row, as `JobRecording.file` names it."""
    return row.audio_path.replace("\\", "/").rpartition("/")[2]


def _sure_enough(answer: Answer, least: float) -> bool:
    if answer.confidence is None:
        return not (answer.is_silent and least)
    return answer.confidence >= least


def _confidence_text(answer: Answer) -> str:
    """`83 % (Barn Owl 0.10)`; nothing where it is not known."""
    if answer.confidence is None:
        return ""
    return f"{100 * answer.confidence:.0f} %" + (f" ({answer.others})" if answer.others else "")


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
    if view.is_elsewhere:
        return f"Another app that uses the same folder of runs has it: {done} so far."
    if job.state == "waiting":
        before = f"{counted(view.ahead, 'job')} before it" if view.ahead else "next"
        if view.answers:
            return f"Has had a turn and lets others have theirs, {before}: {done} so far."
        return f"Waits: {before}." if view.ahead else "Begins …"
    if job.state == "working":
        if view.is_stopping:
            return f"Stops after the answer that is being made: {done} so far."
        return f"Works: {done}." if view.answers else "Begins with the first windows …"
    if job.state == "failed":
        return without_paths(job.message)
    silent = sum(one.is_silent for one in view.answers)
    bad = f", {silent:,} of them without sound and not asked" if silent else ""
    bad += f", {counted(len(view.errors), 'recording')} with errors" if view.errors else ""
    if job.state == "stopped":
        return f"Stopped at {done}{bad}. What is there is kept; Go on asks the rest."
    return f"Done: {counted(len(view.answers), 'answer')}{bad}."


def recordings_html(view: JobView) -> str:
    """A table of the recordings: how far each is, and what was wrong."""
    counts, errors = Counter(one.file for one in view.answers), view.errors
    questions = len(view.job.settings.queries)
    # A questionnaire does not ask everything of every window.
    has_less = view.job.questionnaire and view.job.state == "done"

    def expected(one: JobRecording) -> int:
        return counts[one.file] if has_less else one.windows * questions

    lines = "".join(
        _recording_line(one, counts[one.file], expected(one), errors.get(one.file, ""))
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


def count_html(shown: int, of: int, page: int = 0) -> str:
    """How many answers the filter leaves, and which of them the table shows."""
    if not of:
        return ""
    last = min(shown, (page + 1) * PAGE_ROWS)
    part = f" The table shows {page * PAGE_ROWS + 1:,} to {last:,}." if shown > PAGE_ROWS else ""
    return f'<p class="about" role="status">{shown:,} of {of:,} answers.{part}</p>'


def counted(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def write_downloads(view: JobView) -> list[Path]:
    """The files of a job: CSV for spreadsheets, a selection table of Raven, JSON lines.

    Those that are there and newer than the answers stay. Raises OutputError where one cannot be
    written.
    """
    return [write_download(view, name) for name in DOWNLOADS]


def write_download(view: JobView, name: str) -> Path:
    """The answers of a job in a format, as a file to take away; of a folder its archive.

    Raises OutputError, and UsageError for what the format cannot say.
    """
    job = view.job
    changed = job.answers_path.stat().st_mtime_ns
    folder = job.folder / "downloads"
    answers = folder / "answers.jsonl"
    if not _is_newer(answers, changed):
        write_lines(answers, (to_line(row).decode() for row in view.rows()))
        record = read_record(job.answers_path)
        if record is not None:
            values = {**record.values, "model": job.told(str(record.values.get("model", "")))}
            write_record(answers, RunSettings(values, record.asked))
    target = answers.with_suffix(formats.FORMATS[name].suffix)
    archive = target.with_name(f"{target.name}.zip")
    if not (_is_newer(target, changed) or _is_newer(archive, changed)):
        sounds = {view.table_names[path.name]: path for path in job.recording_paths}
        made = formats.write(name, ResultFile(answers, sounds=sounds), target).path
        if made.is_dir():
            shutil.make_archive(str(target), "zip", made)
            shutil.rmtree(made)
    return archive if archive.exists() else target


def _is_newer(path: Path, changed: int) -> bool:
    try:
        return path.stat().st_mtime_ns > changed
    except OSError:
        return False

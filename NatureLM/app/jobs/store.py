"""What can be wrong with a job.

`job.json`: what a job is to do and how far it is said to be.

What a visitor fills in for a job, checked: a sentence for what cannot be.

The jobs of a folder: each has a folder of its own, under a name that nobody can guess.

jobs/<id>/job.json              what it is to do, and its state
jobs/<id>/recordings/           the recordings, under safe names
jobs/<id>/answers.jsonl         the answers, as `naturelm infer` writes them
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from NatureLM.app.limits import Limits, link_or_copy, say_seconds, shown_name
from NatureLM.audio import AUDIO_SUFFIXES, AudioError, count_windows, probe
from NatureLM.errors import UsageError
from NatureLM.inference.options import AskOptions
from NatureLM.util import atomic_write, format_bytes


class JobError(UsageError):
    """A job cannot be made, found, started or gone on with."""


JOB_FILE = "job.json"
SCHEMA_VERSION = 1

Kind: TypeAlias = Literal["long", "folder"]
State: TypeAlias = Literal["waiting", "working", "done", "stopped", "failed"]

JobSettings = AskOptions


@dataclass(frozen=True)
class JobRecording:
    """A recording of a job.

    name: as the user's file is called; shown, and written to downloads, never used as a path
    file: name in the job's folder of recordings
    seconds: length; None where the file cannot be read
    rate: sample rate in Hz; None likewise
    windows: how many windows it gives
    """

    name: str
    file: str
    bytes: int
    seconds: float | None
    rate: int | None
    windows: int


@dataclass(frozen=True)
class Job:
    """A job as it stands in its `job.json`.

    id: unguessable; whoever knows it may open the job
    kind: the tab that made it
    state: what was last written; a job that no queue has is stopped, whatever this says
    message: why it failed
    created: UTC, ISO 8601
    """

    id: str
    kind: Kind
    state: State
    created: str
    settings: JobSettings
    recordings: tuple[JobRecording, ...]
    message: str = ""

    def with_state(self, state: State, message: str = "") -> Job:
        """The same job in another state."""
        return replace(self, state=state, message=message)

    @property
    def expected(self) -> int:
        """How many answers there will be."""
        return sum(one.windows for one in self.recordings) * len(self.settings.queries)


_CHOOSING = ("mode", "labels", "several", "top_k", "min_confidence")
_CALIBRATED = {"normalize": "sum", "temperature": 1.0}
"""Keys of a job's file that stand for nothing: the model's calibration decides."""


def write_job(folder: Path, job: Job) -> None:
    """Write `job.json`, whole or not at all. Raises JobError."""
    data = {"schema_version": SCHEMA_VERSION, **asdict(job)}
    data["settings"]["choosing"] = {
        **{name: data["settings"].pop(name) for name in _CHOOSING},
        **_CALIBRATED,
    }
    try:
        with atomic_write(folder / JOB_FILE) as unfinished:
            unfinished.write_text(
                json.dumps(data, indent=2, ensure_ascii=False) + "\n",
                encoding="utf-8",
                errors="backslashreplace",
            )
    except OSError as error:
        raise JobError(f"the job cannot be kept on disk: {error.strerror}") from None


def read_job(folder: Path) -> Job:
    """The job of a folder. Raises JobError where there is none or it is damaged."""
    try:
        data = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        return _job(data)
    except FileNotFoundError:
        raise JobError("there is no job of this name; it may have been removed") from None
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        raise JobError(
            "the job cannot be read: its job.json is damaged or of another version"
        ) from None


def _job(data: Mapping[str, Any]) -> Job:
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError
    if data["kind"] not in get_args(Kind) or data["state"] not in get_args(State):
        raise ValueError
    settings = dict(data["settings"])
    settings["queries"] = tuple(map(str, settings["queries"]))
    choosing = dict(settings.pop("choosing"))
    choosing["labels"] = tuple(map(str, choosing["labels"]))
    settings |= {name: value for name, value in choosing.items() if name not in _CALIBRATED}
    return Job(
        id=str(data["id"]),
        kind=data["kind"],
        state=data["state"],
        created=str(data["created"]),
        settings=JobSettings(**settings),
        recordings=tuple(JobRecording(**one) for one in data["recordings"]),
        message=str(data["message"]),
    )


DEFAULT_QUESTION = "What is the common name for the focal species in the audio?"
MOST_QUESTIONS = 10
_LONGEST_WINDOW = 10.0
_SHORTEST_WINDOW = 0.1
_SHORTEST_HOP = 0.1
_MOST_EXPANSION = 100.0
_MOST_CHANNELS = 1024


def make_settings(
    questions: str,
    alpha: Any,
    window: Any = 10.0,
    hop: Any = 10.0,
    channel: str = "mean",
    expansion: Any = 1.0,
    labels: Sequence[str] = (),
    sure: Any = 0.0,
    *,
    limits: Limits,
    longest_window: float = _LONGEST_WINDOW,
) -> JobSettings:
    """The settings of a job from the fields of its form.

    questions: one on each line
    labels: names that answers are chosen from; none for free answers
    sure: confidence below which an answer from `labels` is `None`
    longest_window: seconds that the model hears at once

    Raises JobError that names the field and what is allowed.
    """
    return JobSettings(
        queries=_questions(questions, limits),
        merging_alpha=_number("α", alpha, -10.0, 10.0),
        window_length_seconds=_number(
            "The length of a window", window, _SHORTEST_WINDOW, longest_window
        ),
        hop_length_seconds=_number("The step from window to window", hop, _SHORTEST_HOP, 3600.0),
        channel=_channel(channel),
        time_expansion=_number("The slowing down", expansion, 0.01, _MOST_EXPANSION),
        mode="score" if labels else "generate",
        labels=tuple(labels),
        min_confidence=_number("The least confidence", sure, 0.0, 1.0) if labels else 0.0,
    )


def _questions(text: str, limits: Limits) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
    if not found:
        raise JobError(f"There is no question yet, such as: {DEFAULT_QUESTION}")
    if len(found) > MOST_QUESTIONS:
        raise JobError(f"{len(found)} questions are more than the {MOST_QUESTIONS} of one job.")
    longest = max(map(len, found))
    if longest > limits.question_characters:
        raise JobError(
            f"A question has {longest:,} characters, and {limits.question_characters:,} are the "
            "most that are taken."
        )
    return found


def _number(name: str, value: Any, least: float, most: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        shown = "not filled in" if value in (None, "") else f"{value}"
        raise JobError(f"{name} is {shown}, and it must be a number from {least:g} to {most:g}.")
    return number


def _channel(value: str) -> str | int:
    if value == "mean":
        return value
    if str(value).isdecimal() and 1 <= int(value) <= _MOST_CHANNELS:
        return int(value)
    raise JobError(f"The channel is {value!r}, and it must be mean or a number from 1.")


JOBS_FOLDER = "jobs"
ANSWERS_FILE = "answers.jsonl"
_RECORDINGS = "recordings"
_ID_BYTES = 24
_ID = re.compile(r"[A-Za-z0-9_-]{32}")


@dataclass(frozen=True)
class NewRecording:
    """A file to put into a job: where it lies now, and what the user calls it."""

    path: Path
    name: str


class JobLibrary:
    """Makes, finds and removes jobs below `runs_dir`."""

    def __init__(self, runs_dir: Path, limits: Limits | None = None) -> None:
        self.folder = runs_dir.resolve() / JOBS_FOLDER
        self._limits = limits or Limits()

    def create(self, kind: Kind, files: Sequence[NewRecording], settings: JobSettings) -> Job:
        """A new job with recordings of its own; they are linked where that is possible.

        Raises JobError for too many or too large files, and where nothing can be written.
        """
        self._check(files)
        job_id = secrets.token_urlsafe(_ID_BYTES)
        folder = self.folder / job_id
        try:
            (folder / _RECORDINGS).mkdir(parents=True)
            recordings = tuple(
                self._take(file, folder / _RECORDINGS, number, settings)
                for number, file in enumerate(files, start=1)
            )
            self._check_length(kind, recordings)
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            job = Job(job_id, kind, "waiting", created, settings, recordings)
            write_job(folder, job)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise JobError(f"the recordings cannot be kept on disk: {error.strerror}") from None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return job

    def open(self, job_id: str) -> Job:
        """The job of this name, as it was last written. Raises JobError where there is none."""
        return read_job(self.folder_of(job_id))

    def save(self, job: Job) -> None:
        """Write the job's `job.json` anew."""
        write_job(self.folder_of(job.id), job)

    def remove(self, job_id: str) -> None:
        """Remove a job with its recordings and answers. Raises JobError."""
        folder = self.folder_of(job_id)
        try:
            # What tells the folder from any other goes last, so that a rest can be removed too.
            for child in folder.iterdir():
                if child.name == JOB_FILE:
                    continue
                if child.is_dir() and not child.is_symlink():
                    shutil.rmtree(child)
                else:
                    child.unlink()
            shutil.rmtree(folder)
        except OSError as error:
            raise JobError(f"the job cannot be removed: {error.strerror}") from None

    def folder_of(self, job_id: str) -> Path:
        """The folder of a job. Raises JobError for what is no name of a job that is there."""
        # The whole text has to be such a name, so nothing a visitor writes leads anywhere else.
        if not isinstance(job_id, str) or not _ID.fullmatch(job_id):
            raise JobError("this is no link to a job: check that it was copied whole")
        folder = self.folder / job_id
        if folder.is_symlink() or not (folder / JOB_FILE).is_file():
            raise JobError("there is no job of this name; it may have been removed")
        return folder

    def answers_path(self, job_id: str) -> Path:
        """The file of a job's answers, there or not."""
        return self.folder_of(job_id) / ANSWERS_FILE

    def recordings_folder(self, job_id: str) -> Path:
        """The folder of a job's recordings."""
        return self.folder_of(job_id) / _RECORDINGS

    def recording_paths(self, job: Job) -> list[Path]:
        """Where the recordings of a job lie, in their order."""
        folder = self.recordings_folder(job.id)
        return [folder / Path(one.file).name for one in job.recordings]

    def _check(self, files: Sequence[NewRecording]) -> None:
        limits = self._limits
        if not files:
            raise JobError("there is no recording yet: drop one or choose a file")
        if len(files) > limits.folder_files:
            raise JobError(
                f"{len(files):,} recordings are more than the {limits.folder_files:,} that one "
                "job takes: make several jobs of them, or use naturelm infer"
            )
        for file in files:
            try:
                size = file.path.stat().st_size
            except OSError as error:
                raise JobError(f"{file.name}: cannot be read: {error.strerror}") from None
            if size > limits.upload_bytes:
                raise JobError(
                    f"{file.name} has {format_bytes(size)}, and a recording may have at most "
                    f"{format_bytes(limits.upload_bytes)}: cut it, or use naturelm infer"
                )

    def _check_length(self, kind: Kind, recordings: Sequence[JobRecording]) -> None:
        longest = self._limits.long_seconds
        for one in recordings:
            if one.seconds is not None and one.seconds > longest:
                raise JobError(
                    f"{one.name} lasts {say_seconds(one.seconds)}, and at most "
                    f"{say_seconds(longest)} are taken: cut it, or use naturelm infer"
                )

    def _take(
        self, file: NewRecording, folder: Path, number: int, settings: JobSettings
    ) -> JobRecording:
        """Put a file into the folder of recordings."""
        name = shown_name(file.name)
        target = folder / safe_name(name, number)
        link_or_copy(file.path.resolve(strict=True), target)
        size = target.stat().st_size
        try:
            info = probe(target)
        except AudioError:
            return JobRecording(name, target.name, size, None, None, 0)
        windows = count_windows(
            info.duration,
            settings.window_length_seconds,
            settings.hop_length_seconds,
            settings.time_expansion,
        )
        return JobRecording(name, target.name, size, info.duration, info.sample_rate, windows)


def safe_name(name: str, number: int) -> str:
    """A name for a file on disk: a number, plain letters of the name, a known suffix."""
    stem, suffix = os.path.splitext(name)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40].strip("-")
    known = suffix.lower() if suffix.lower() in AUDIO_SUFFIXES else ".audio"
    return f"{number:05d}-{plain}{known}" if plain else f"{number:05d}{known}"

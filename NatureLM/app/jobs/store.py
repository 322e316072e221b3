"""The jobs of a folder: each has a folder of its own, under a name that nobody can guess.

jobs/<id>/job.json              what it is to do, and its state
jobs/<id>/recordings/           the recordings, under safe names
jobs/<id>/answers.jsonl         the answers, as `naturelm infer` writes them
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from NatureLM.app.clips import link_or_copy, shown_name
from NatureLM.app.settings import AppError, Limits
from NatureLM.audio import AUDIO_SUFFIXES, AudioError
from NatureLM.audio.decode import probe
from NatureLM.audio.windows import count_windows
from NatureLM.errors import UsageError
from NatureLM.inference.windows import AskOptions
from NatureLM.util import atomic_write, format_bytes, format_duration

JOBS_FOLDER = "jobs"
_JOB_FILE = "job.json"
_SCHEMA_VERSION = 1
_CHOOSING = ("mode", "labels", "several", "top_k", "min_confidence")
_CALIBRATED = {"normalize": "sum", "temperature": 1.0}
"""Keys of a job's file that stand for nothing: the model's calibration decides."""
_ID_BYTES = 24
_ID = re.compile(r"[A-Za-z0-9_-]{32}")

Kind: TypeAlias = Literal["long", "folder"]
State: TypeAlias = Literal["waiting", "working", "done", "stopped", "failed"]


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
    settings: AskOptions
    recordings: tuple[JobRecording, ...]
    message: str = ""

    def with_state(self, state: State, message: str = "") -> Job:
        """The same job in another state."""
        return replace(self, state=state, message=message)

    @property
    def expected(self) -> int:
        """How many answers there will be."""
        return sum(one.windows for one in self.recordings) * len(self.settings.queries)

    @property
    def when(self) -> str:
        """Date and time of its making, for people."""
        return self.created.replace("T", " ").removesuffix("+00:00")


class JobLibrary:
    """Makes, finds and removes jobs below `runs_dir`."""

    def __init__(self, runs_dir: Path, limits: Limits | None = None) -> None:
        self.folder = runs_dir.resolve() / JOBS_FOLDER
        self._limits = limits or Limits()

    def create(self, kind: Kind, files: Sequence[tuple[Path, str]], settings: AskOptions) -> Job:
        """A new job with recordings of its own; they are linked where that is possible.

        files: where each lies now, and what the user calls it

        Raises AppError for too many or too large files, and where nothing can be written.
        """
        self._check(files)
        job_id = secrets.token_urlsafe(_ID_BYTES)
        folder = self.folder / job_id
        try:
            (folder / "recordings").mkdir(parents=True)
            recordings = tuple(
                self._take(path, name, folder / "recordings", number, settings)
                for number, (path, name) in enumerate(files, start=1)
            )
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            job = Job(job_id, kind, "waiting", created, settings, recordings)
            _write(folder, job)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise AppError(f"the recordings cannot be kept on disk: {error.strerror}") from None
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return job

    def open(self, job_id: str) -> Job:
        """The job of this name, as it was last written. Raises AppError where there is none."""
        path = self.folder_of(job_id) / _JOB_FILE
        try:
            return _job(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, UsageError):
            raise AppError(
                "the job cannot be read: its job.json is damaged or of another version"
            ) from None

    def save(self, job: Job) -> None:
        """Write the job's `job.json` anew, whole or not at all. Raises AppError."""
        _write(self.folder_of(job.id), job)

    def remove(self, job_id: str) -> None:
        """Remove a job with its recordings and answers. Raises AppError."""
        folder = self.folder_of(job_id)
        try:
            # What tells the folder from any other goes last, so that a rest can be removed too.
            for child in folder.iterdir():
                if child.name == _JOB_FILE:
                    continue
                if child.is_dir() and not child.is_symlink():
                    shutil.rmtree(child)
                else:
                    child.unlink()
            shutil.rmtree(folder)
        except OSError as error:
            raise AppError(f"the job cannot be removed: {error.strerror}") from None

    def folder_of(self, job_id: str) -> Path:
        """The folder of a job. Raises AppError for what is no name of a job that is there."""
        # The whole text has to be such a name, so nothing a visitor writes leads anywhere else.
        if not isinstance(job_id, str) or not _ID.fullmatch(job_id):
            raise AppError("this is no link to a job: check that it was copied whole")
        folder = self.folder / job_id
        if folder.is_symlink() or not (folder / _JOB_FILE).is_file():
            raise AppError("there is no job of this name; it may have been removed")
        return folder

    def answers_path(self, job_id: str) -> Path:
        """The file of a job's answers, there or not."""
        return self.folder_of(job_id) / "answers.jsonl"

    def recording_paths(self, job: Job) -> list[Path]:
        """Where the recordings of a job lie, in their order."""
        folder = self.folder_of(job.id) / "recordings"
        return [folder / Path(one.file).name for one in job.recordings]

    def _check(self, files: Sequence[tuple[Path, str]]) -> None:
        limits = self._limits
        if not files:
            raise AppError("there is no recording yet: drop one or choose a file")
        if len(files) > limits.folder_files:
            raise AppError(
                f"{len(files):,} recordings are more than the {limits.folder_files:,} that one "
                "job takes: make several jobs of them, or use naturelm infer"
            )
        for path, name in files:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise AppError(f"{name}: cannot be read: {error.strerror}") from None
            if size > limits.upload_bytes:
                raise AppError(
                    f"{name} has {format_bytes(size)}, and a recording may have at most "
                    f"{format_bytes(limits.upload_bytes)}: cut it, or use naturelm infer"
                )

    def _take(
        self, path: Path, name: str, folder: Path, number: int, settings: AskOptions
    ) -> JobRecording:
        """Put a file into the folder of recordings."""
        name = shown_name(name)
        target = folder / safe_name(name, number)
        link_or_copy(path.resolve(strict=True), target)
        size = target.stat().st_size
        try:
            info = probe(target)
        except AudioError:
            return JobRecording(name, target.name, size, None, None, 0)
        if info.duration > self._limits.long_seconds:
            raise AppError(
                f"{name} lasts {format_duration(info.duration, short=True)}, and at most "
                f"{format_duration(self._limits.long_seconds, short=True)} are taken: cut it, or "
                "use naturelm infer"
            )
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


def _write(folder: Path, job: Job) -> None:
    data = {"schema_version": _SCHEMA_VERSION, **asdict(job)}
    settings = data["settings"]
    settings["choosing"] = {name: settings.pop(name) for name in _CHOOSING} | _CALIBRATED
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    try:
        with atomic_write(folder / _JOB_FILE) as unfinished:
            unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise AppError(f"the job cannot be kept on disk: {error.strerror}") from None


def _job(data: Mapping[str, Any]) -> Job:
    """The job of a `job.json`. Raises ValueError, KeyError, TypeError or UsageError for others."""
    if data["schema_version"] != _SCHEMA_VERSION:
        raise ValueError
    if data["kind"] not in get_args(Kind) or data["state"] not in get_args(State):
        raise ValueError
    settings = dict(data["settings"])
    choosing = settings.pop("choosing")
    settings |= {name: choosing[name] for name in _CHOOSING}
    for name in ("queries", "labels"):
        settings[name] = tuple(map(str, settings[name]))
    return Job(
        id=str(data["id"]),
        kind=data["kind"],
        state=data["state"],
        created=str(data["created"]),
        settings=AskOptions(**settings),
        recordings=tuple(JobRecording(**one) for one in data["recordings"]),
        message=str(data["message"]),
    )

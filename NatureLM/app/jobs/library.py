"""The jobs of a folder: each has a folder of its own, under a name that nobody can guess.

jobs/<id>/job.json              what it is to do, and its state
jobs/<id>/recordings/           the recordings, under safe names
jobs/<id>/answers.jsonl         the answers, as `naturelm infer` writes them
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from NatureLM.app.files import link_or_copy, shown_name
from NatureLM.app.jobs.errors import JobError
from NatureLM.app.jobs.record import (
    JOB_FILE,
    Job,
    JobRecording,
    JobSettings,
    Kind,
    read_job,
    write_job,
)
from NatureLM.app.limits import Limits, say_seconds
from NatureLM.audio import AUDIO_SUFFIXES, AudioError, count_windows, probe
from NatureLM.sizes import show_bytes

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
                    f"{file.name} has {show_bytes(size)}, and a recording may have at most "
                    f"{show_bytes(limits.upload_bytes)}: cut it, or use naturelm infer"
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

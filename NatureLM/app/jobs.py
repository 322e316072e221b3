"""Long work of the web app: it goes on when the page is closed, and its link opens it again.

Each job has a folder of its own, under a name that nobody can guess:

jobs/<id>/job.json              what it is to do, and its state
jobs/<id>/recordings/           the recordings, under safe names
jobs/<id>/answers.jsonl         the answers, as `naturelm infer` writes them
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from NatureLM.app.clips import link_or_copy, shown_name
from NatureLM.app.settings import Limits
from NatureLM.audio import AUDIO_SUFFIXES, AudioError
from NatureLM.audio.decode import probe
from NatureLM.audio.windows import count_windows
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import AskOptions, RecordingError
from NatureLM.results.rows import OutputError, RunSettings
from NatureLM.results.store import WindowStore
from NatureLM.util import atomic_write, format_bytes, format_duration

if TYPE_CHECKING:
    from NatureLM.inference.pipeline import Pipeline

logger = logging.getLogger(__name__)

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
    """A job as it stands in the `job.json` of its folder.

    kind: the tab that made it
    state: what was last written; a job that no queue has is stopped, whatever this says
    created: UTC, ISO 8601
    message: why it failed
    """

    folder: Path
    kind: Kind
    state: State
    created: str
    settings: AskOptions
    recordings: tuple[JobRecording, ...]
    message: str = ""

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job of a folder. Raises UsageError where its file is none."""
        try:
            data = json.loads((folder / _JOB_FILE).read_text(encoding="utf-8"))
            is_known = data["kind"] in get_args(Kind) and data["state"] in get_args(State)
            if data["schema_version"] != _SCHEMA_VERSION or not is_known:
                raise ValueError
            settings = dict(data["settings"])
            choosing = settings.pop("choosing")
            settings |= {name: choosing[name] for name in _CHOOSING}
            for name in ("queries", "labels"):
                settings[name] = tuple(map(str, settings[name]))
            return cls(
                folder=folder,
                kind=data["kind"],
                state=data["state"],
                created=str(data["created"]),
                settings=AskOptions(**settings),
                recordings=tuple(JobRecording(**one) for one in data["recordings"]),
                message=str(data["message"]),
            )
        except (OSError, ValueError, KeyError, TypeError, UsageError):
            raise UsageError(
                "the job cannot be read: its job.json is damaged or of another version"
            ) from None

    def write(self) -> None:
        """Write the job's `job.json` anew, whole or not at all. Raises UsageError."""
        data = {"schema_version": _SCHEMA_VERSION, "id": self.id, **asdict(self)}
        del data["folder"]
        settings = data["settings"]
        settings["choosing"] = {name: settings.pop(name) for name in _CHOOSING} | _CALIBRATED
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        try:
            with atomic_write(self.folder / _JOB_FILE) as unfinished:
                unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise UsageError(f"the job cannot be kept on disk: {error.strerror}") from None

    def with_state(self, state: State, message: str = "") -> Job:
        return replace(self, state=state, message=message)

    @property
    def id(self) -> str:
        """Unguessable; whoever knows it may open the job."""
        return self.folder.name

    @property
    def answers_path(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def recording_paths(self) -> list[Path]:
        """Where its recordings lie, in their order."""
        return [self.folder / "recordings" / Path(one.file).name for one in self.recordings]

    @property
    def expected(self) -> int:
        return sum(one.windows for one in self.recordings) * len(self.settings.queries)

    @property
    def when(self) -> str:
        """Date and time of its making, for people."""
        return self.created.replace("T", " ").removesuffix("+00:00")


class Jobs:
    """The jobs below `runs_dir`: those that wait, and the one that is worked on by one worker.

    pipeline: gives the pipeline once it is loaded; may wait for it
    model: how the model is called, as for `naturelm infer --model`
    """

    def __init__(
        self,
        runs_dir: Path,
        pipeline: Callable[[], Pipeline],
        *,
        model: str,
        limits: Limits | None = None,
    ) -> None:
        self.folder = runs_dir.resolve() / JOBS_FOLDER
        self._pipeline, self._model = pipeline, model
        self._limits = limits or Limits()
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[str] = deque()
        self._working: str | None = None
        self._stop = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def create(self, kind: Kind, files: Sequence[tuple[Path, str]], settings: AskOptions) -> Job:
        """A new job with recordings of its own; they are linked where that is possible.

        files: where each lies now, and what the user calls it

        Raises UsageError for too many or too large files, and where nothing can be written.
        """
        self._check(files)
        folder = self.folder / secrets.token_urlsafe(_ID_BYTES)
        try:
            (folder / "recordings").mkdir(parents=True)
            recordings = tuple(
                self._take(path, shown_name(name), folder / "recordings", number, settings)
                for number, (path, name) in enumerate(files, start=1)
            )
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            job = Job(folder, kind, "waiting", created, settings, recordings)
            job.write()
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise UsageError(f"the recordings cannot be kept on disk: {error.strerror}") from None
        return job

    def submit(self, job_id: str) -> None:
        """Put a job at the end of the queue, or resume one that was stopped.

        Raises UsageError, with the limit, where the queue is full; nothing has changed then.
        """
        job = self._stored(job_id)
        with self._changed:
            if self._has(job_id):
                return
            self.refuse_if_full()
            job.with_state("waiting").write()
            self._waiting.append(job_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def refuse_if_full(self) -> None:
        """Raise UsageError where no further job is taken: before its recordings are moved."""
        with self._changed:
            if self._closed:
                raise UsageError("the app is being closed, so no job is started")
            if len(self._waiting) >= self._limits.waiting_jobs:
                raise UsageError(
                    f"{len(self._waiting)} jobs are waiting already, and no more than "
                    f"{self._limits.waiting_jobs} may: try again when one of them is done"
                )

    def cancel(self, job_id: str) -> None:
        """Take a job off the queue, or stop it after the answer that it is at."""
        with self._changed:
            if job_id == self._working:
                self._stop.set()
            elif job_id in self._waiting:
                self._waiting.remove(job_id)
                self._stored(job_id).with_state("stopped").write()

    def remove(self, job_id: str) -> None:
        """Remove a job with all that belongs to it. Raises UsageError while it is worked on."""
        with self._changed:
            if job_id == self._working:
                raise UsageError("the job is being worked on: stop it before it is removed")
            if job_id in self._waiting:
                self._waiting.remove(job_id)
            folder = self._folder_of(job_id)
            try:
                # What tells the folder from any other goes last: a rest can be removed, too.
                for child in sorted(folder.iterdir(), key=lambda path: path.name == _JOB_FILE):
                    if child.is_dir() and not child.is_symlink():
                        shutil.rmtree(child)
                    else:
                        child.unlink()
                folder.rmdir()
            except OSError as error:
                raise UsageError(f"the job cannot be removed: {error.strerror}") from None

    def open(self, job_id: str) -> Job:
        """The job in its true state: one that says it works, but that nobody has, is stopped.

        Raises UsageError where there is none.
        """
        with self._changed:
            job = self._stored(job_id)
            if job_id == self._working:
                return job.with_state("working")
            if job_id in self._waiting:
                return job.with_state("waiting")
            return job.with_state("stopped") if job.state in ("waiting", "working") else job

    def ahead(self, job_id: str) -> int:
        """How many jobs come before this one."""
        with self._changed:
            if job_id not in self._waiting:
                return 0
            return self._waiting.index(job_id) + (self._working is not None)

    def is_stopping(self, job_id: str) -> bool:
        """Whether the job was told to stop and is at its last answer."""
        with self._changed:
            return job_id == self._working and self._stop.is_set()

    def close(self, timeout: float = 5.0) -> None:
        """Stop the worker after the answer that it is at. Waiting jobs can be resumed."""
        with self._changed:
            self._closed = True
            self._stop.set()
            for job_id in self._waiting:
                self._finish(job_id, "stopped")
            self._waiting.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def wait(self, job_id: str, timeout: float) -> bool:
        """Wait until a job is neither waiting nor worked on; whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._has(job_id), timeout)

    def _has(self, job_id: str) -> bool:
        return job_id == self._working or job_id in self._waiting

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
                if self._closed:
                    return
                job_id = self._working = self._waiting.popleft()
                self._stop.clear()
            state, message = self._do(job_id)
            with self._changed:
                self._working = None
                self._finish(job_id, state, message)
                self._changed.notify_all()

    def _do(self, job_id: str) -> tuple[State, str]:
        """Do a job; how it ended."""
        try:
            job = self._stored(job_id).with_state("working")
            job.write()
            finished = do_job(job, self._pipeline(), self._model, self._stop)
        except NatureLMError as error:
            return "failed", str(error)
        except Exception as error:
            logger.exception("job %s failed", job_id)
            kind = type(error).__name__
            return "failed", f"The work ended with an unforeseen error ({kind}); see the app's log."
        return ("done" if finished else "stopped"), ""

    def _finish(self, job_id: str, state: State, message: str = "") -> None:
        try:
            self._stored(job_id).with_state(state, message).write()
        except UsageError:
            logger.warning("job %s: its state cannot be written", job_id)

    def _stored(self, job_id: str) -> Job:
        """The job of this name, as it was last written. Raises UsageError where there is none."""
        return Job.read(self._folder_of(job_id))

    def _folder_of(self, job_id: str) -> Path:
        # The whole text has to be such a name, so nothing a visitor writes leads anywhere else.
        if not isinstance(job_id, str) or not _ID.fullmatch(job_id):
            raise UsageError("this is no link to a job: check that it was copied whole")
        folder = self.folder / job_id
        if folder.is_symlink() or not (folder / _JOB_FILE).is_file():
            raise UsageError("there is no job of this name; it may have been removed")
        return folder

    def _check(self, files: Sequence[tuple[Path, str]]) -> None:
        limits = self._limits
        if not files:
            raise UsageError("there is no recording yet: drop one or choose a file")
        if len(files) > limits.folder_files:
            raise UsageError(
                f"{len(files):,} recordings are more than the {limits.folder_files:,} that one "
                "job takes: make several jobs of them, or use naturelm infer"
            )
        for path, name in files:
            try:
                size = path.stat().st_size
            except OSError as error:
                raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
            if size > limits.upload_bytes:
                raise UsageError(
                    f"{name} has {format_bytes(size)}, and a recording may have at most "
                    f"{format_bytes(limits.upload_bytes)}: cut it, or use naturelm infer"
                )

    def _take(
        self, path: Path, name: str, folder: Path, number: int, settings: AskOptions
    ) -> JobRecording:
        target = folder / safe_name(name, number)
        link_or_copy(path.resolve(strict=True), target)
        size = target.stat().st_size
        try:
            info = probe(target)
        except AudioError:
            return JobRecording(name, target.name, size, None, None, 0)
        most = self._limits.long_seconds
        if info.duration > most:
            raise UsageError(
                f"{name} lasts {format_duration(info.duration, short=True)}, and at most "
                f"{format_duration(most, short=True)} are taken: cut it, or use naturelm infer"
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


def do_job(job: Job, pipeline: Pipeline, model: str, stop: threading.Event) -> bool:
    """Ask all that has no answer yet; whether it came to its end before `stop` was set.

    model: how the model is called, as for `naturelm infer --model`

    Raises UsageError where the answers that are there were made otherwise, and OutputError where
    they cannot be written.
    """
    recordings, asked = job.recording_paths, job.settings
    with WindowStore(job.answers_path) as store:
        settings = RunSettings(run_values(job, pipeline, model))
        try:
            store.begin(settings, recordings)
        except OutputError as error:
            raise UsageError(_other_answers(error)) from None
        results = pipeline.unanswered(recordings, asked, store, warn=lambda text: None)
        with closing(results):
            for result in results:
                if isinstance(result, RecordingError):
                    store.add_error(result.audio_path, result.error, asked.merging_alpha)
                else:
                    store.add_answer(result)
                if stop.is_set():
                    return False
    return not stop.is_set()


def run_values(job: Job, pipeline: Pipeline, model: str) -> dict[str, Any]:
    """All that changes the answers of a job, by the names that `naturelm infer` gives it."""
    known = job.settings.settings(model=model, adapter=None, generate=pipeline.cfg.generate)
    return {**known, **pipeline.settings(job.settings)}


def _other_answers(error: OutputError) -> str:
    """Why a job cannot be resumed, without the advice that is for the command line."""
    differences = [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]
    if not differences:
        return f"The job cannot be resumed: {error}"
    return (
        "The job cannot be resumed, because its answers were made with another model or "
        f"settings ({'; '.join(differences)}). Start a new job instead."
    )

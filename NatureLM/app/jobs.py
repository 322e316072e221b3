"""Long work of the web app: it goes on when the page is closed, and its link opens it again.

Jobs of one app take turns: after each recording, or after some hundred windows of a long one.
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from NatureLM.app.clips import check_free, link_or_copy, shown_name
from NatureLM.app.job import (
    JOB_FILE,
    Job,
    JobRecording,
    Kind,
    State,
    do_job,
    refuse_too_many,
    safe_name,
    windows_of,
)
from NatureLM.app.settings import Limits
from NatureLM.audio import AudioError
from NatureLM.audio.decode import SoundLimits, probe
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import AskOptions
from NatureLM.results.rows import OutputError
from NatureLM.results.store import lock_beside
from NatureLM.util import format_bytes

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from NatureLM.inference.pipeline import Pipeline

logger = logging.getLogger(__name__)

JOBS_FOLDER = "jobs"
_LOCK = "job"
_LOCK_FILE = f"{_LOCK}.lock"
_LINE_BYTES = 1500  # that an answer takes on disk, about, with its lines in the tables
_GLANCE_SECONDS = 0.3  # longer than somebody who only looks holds the lock of a job
_ID_BYTES = 24
_ID = re.compile(r"[A-Za-z0-9_-]{32}")


class Jobs:
    """The jobs below `runs_dir`: those that wait, and the one that is worked on by one worker.

    pipeline: gives the pipeline once it is loaded; may wait for it
    model: how the model is called, as for `naturelm infer --model`

    Other apps may have the same folder. A job that one of them has waits or is worked on there: it
    can be opened here, and is neither stopped nor resumed nor removed.
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
        self._begun: dict[str, Generator[None, None, bool]] = {}  # those that had a turn
        self._locks: dict[str, BaseFileLock] = {}  # of those that this app has
        self._unwritten: dict[str, tuple[State, str]] = {}  # states that the disk did not take
        self._stop = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def create(
        self,
        kind: Kind,
        files: Sequence[tuple[Path, str]],
        settings: AskOptions,
        questionnaire: str = "",
        classifier: Path | None = None,
    ) -> Job:
        """A new job with recordings of its own; they are linked where that is possible.

        files: where each lies now, and what the user calls it
        questionnaire: name of one that comes along
        classifier: folder of one that is asked in place of the language model; it is copied

        Raises UsageError for too many or too large files, for more answers than one job may have,
        and where nothing can be written.
        """
        sizes = self._check(files)
        recordings = tuple(
            self._heard(path, shown_name(name), sizes[number - 1], number, settings)
            for number, (path, name) in enumerate(files, start=1)
        )
        windows = sum(one.windows for one in recordings)
        refuse_too_many(windows, settings, self._limits)
        disk = next(one for one in self.folder.parents if one.exists()).stat().st_dev
        copied = sum(
            size for (path, _), size in zip(files, sizes, strict=True) if path.stat().st_dev != disk
        )
        self._refuse_full_disk(windows * len(settings.queries), copied)
        folder = self.folder / secrets.token_urlsafe(_ID_BYTES)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            for made in (self.folder, folder, folder / "recordings"):
                made.mkdir(mode=0o700, exist_ok=True)
            for (path, _), one in zip(files, recordings, strict=True):
                link_or_copy(path.resolve(strict=True), folder / "recordings" / one.file)
            if classifier is not None:
                shutil.copytree(classifier, folder / "classifier")
            created = datetime.now(timezone.utc).isoformat(timespec="seconds")
            job = Job(
                *(folder, kind, "waiting", created, settings, recordings),
                questionnaire=questionnaire,
            )
            job.write()
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise UsageError(f"the recordings cannot be kept on disk: {error.strerror}") from None
        return job

    def submit(self, job_id: str) -> None:
        """Put a job at the end of the queue, or resume one that was stopped.

        Raises UsageError, with the limit, where the queue is full, the disk is, or another app has
        the job; nothing has changed then.
        """
        folder = self._folder_of(job_id)
        with self._changed:
            if self.has(job_id):
                return
            self.refuse_if_full()
            self._hold(folder, "it goes on there, and this page shows how far it is")
            try:
                job = self._stored(job_id)
                self._refuse_full_disk(job.expected)
                job.with_state("waiting").write()
            except BaseException:
                self._let_go(job_id)
                raise
            self._unwritten.pop(job_id, None)
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
        """Take a job off the queue, or stop it after the answer that it is at.

        Raises UsageError where another app has it.
        """
        with self._changed:
            if job_id == self._working:
                self._stop.set()
            elif job_id in self._waiting:
                self._rest(job_id, "stopped")
            elif _is_locked(self._folder_of(job_id)):
                raise UsageError(_elsewhere("stop it there"))

    def remove(self, job_id: str) -> None:
        """Remove a job with all that belongs to it.

        Raises UsageError while it is worked on, or where another app has it.
        """
        folder = self._folder_of(job_id)
        with self._changed:
            if job_id == self._working:
                raise UsageError("the job is being worked on: stop it before it is removed")
            if job_id in self._waiting:
                self._rest(job_id, "stopped")
            self._hold(folder, "stop it there before it is removed")
            try:
                # What tells the folder from any other goes last: a rest can be removed, too.
                last = (_LOCK_FILE, JOB_FILE)
                for child in sorted(folder.iterdir(), key=lambda path: path.name in last):
                    if child.is_dir() and not child.is_symlink():
                        shutil.rmtree(child)
                    elif child.name != _LOCK_FILE:
                        child.unlink()
                self._let_go(job_id)
                self._unwritten.pop(job_id, None)
                (folder / _LOCK_FILE).unlink(missing_ok=True)
                folder.rmdir()
            except OSError as error:
                raise UsageError(f"the job cannot be removed: {error.strerror}") from None
            finally:
                self._let_go(job_id)

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
        if not job.is_settled and not _is_locked(job.folder):
            job = self._stored(job_id)  # which may have come to its end meanwhile, elsewhere
            if not job.is_settled:
                return job.with_state(*self._unwritten.get(job_id, ("stopped", "")))
        return job

    def has(self, job_id: str) -> bool:
        """Whether the job waits or is worked on in this app."""
        with self._changed:
            return job_id == self._working or job_id in self._waiting

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
            for job_id in list(self._waiting):
                self._rest(job_id, "stopped")
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)

    def wait(self, job_id: str, timeout: float) -> bool:
        """Wait until a job is neither waiting nor worked on; whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.has(job_id), timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
                if self._closed:
                    return
                job_id = self._working = self._waiting.popleft()
                self._stop.clear()
            ended = self._turn(job_id)
            with self._changed:
                self._working = None
                if ended is None and not self._stop.is_set():
                    self._set(job_id, "waiting")
                    self._waiting.append(job_id)
                else:
                    self._rest(job_id, *(ended or ("stopped", "")))
                self._changed.notify_all()

    def _turn(self, job_id: str) -> tuple[State, str] | None:
        """Give a job a turn; how it ended, or None where it has to go on."""
        try:
            job = self._stored(job_id)
        except UsageError as error:
            return "failed", str(error)
        try:
            self._set(job_id, "working")
            if job_id not in self._begun:
                work = do_job(
                    job, self._pipeline(), self._model, self._stop, lambda: bool(self._waiting)
                )
                self._begun[job_id] = work
            next(self._begun[job_id])
        except StopIteration as end:
            return ("done" if end.value else "stopped"), ""
        except NatureLMError as error:
            return "failed", job.told(str(error).replace(self._model, Path(self._model).name))
        except Exception as error:
            logger.exception("job %s failed", job_id)
            kind = type(error).__name__
            return "failed", f"The work ended with an unforeseen error ({kind}); see the app's log."
        return None

    def _rest(self, job_id: str, state: State, message: str = "") -> None:
        """A job comes to rest: its files are closed, its state is written, and nobody has it."""
        with suppress(ValueError):
            self._waiting.remove(job_id)
        if job_id in self._begun:
            self._begun.pop(job_id).close()
        self._set(job_id, state, message)
        self._let_go(job_id)

    def _set(self, job_id: str, state: State, message: str = "") -> None:
        """Write a state, or keep it in mind where the disk takes nothing."""
        try:
            self._stored(job_id).with_state(state, message).write()
            self._unwritten.pop(job_id, None)
        except UsageError as error:
            self._unwritten[job_id] = state, message
            logger.warning("job %s: its state cannot be written: %s", job_id, error)

    def _hold(self, folder: Path, otherwise: str) -> None:
        """Lock a job for this app. Raises UsageError, with what to do, where another has it."""
        with suppress(OSError):
            folder.chmod(0o700)  # those of older versions could be read by all of this computer
        lock = _lock(folder, _GLANCE_SECONDS)
        if lock is None:
            raise UsageError(_elsewhere(otherwise))
        self._locks[folder.name] = lock

    def _let_go(self, job_id: str) -> None:
        if job_id in self._locks:
            self._locks.pop(job_id).release()

    def _refuse_full_disk(self, answers: int, copied: int = 0) -> None:
        check_free(self.folder, self._limits, answers * _LINE_BYTES + copied)

    def _stored(self, job_id: str) -> Job:
        """The job of this name, as it was last written. Raises UsageError where there is none."""
        return Job.read(self._folder_of(job_id))

    def _folder_of(self, job_id: str) -> Path:
        # The whole text has to be such a name, so nothing a visitor writes leads anywhere else.
        if not isinstance(job_id, str) or not _ID.fullmatch(job_id):
            raise UsageError("this is no link to a job: check that it was copied whole")
        folder = self.folder / job_id
        if folder.is_symlink() or not (folder / JOB_FILE).is_file():
            raise UsageError("there is no job of this name; it may have been removed")
        return folder

    def _check(self, files: Sequence[tuple[Path, str]]) -> list[int]:
        """The sizes of files in bytes. Raises UsageError."""
        limits = self._limits
        if not files:
            raise UsageError("there is no recording yet: drop one or choose a file")
        if len(files) > limits.folder_files:
            raise UsageError(
                f"{len(files):,} recordings are more than the {limits.folder_files:,} that one "
                "job takes: make several jobs of them, or use naturelm infer"
            )
        sizes = []
        for path, name in files:
            try:
                sizes.append(path.stat().st_size)
            except OSError as error:
                raise UsageError(f"{name}: cannot be read: {error.strerror}") from None
            if sizes[-1] > limits.upload_bytes:
                raise UsageError(
                    f"{name} has {format_bytes(sizes[-1])}, and a recording may have at most "
                    f"{format_bytes(limits.upload_bytes)}: cut it, or use naturelm infer"
                )
        return sizes

    def _heard(
        self, path: Path, name: str, size: int, number: int, settings: AskOptions
    ) -> JobRecording:
        """What the header of a file says; nothing of one that is no recording."""
        file = safe_name(name, number)
        try:
            info = probe(path, SoundLimits(seconds=self._limits.long_seconds))
        except AudioError as error:
            if error.kind != "TooLongAudio":
                return JobRecording(name, file, size, None, None, 0)
            told = str(error.renamed(name)).removesuffix(".")
            raise UsageError(f"{told}, or use naturelm infer") from None
        windows = windows_of(info.duration, settings)
        return JobRecording(name, file, size, info.duration, info.sample_rate, windows)


def _lock(folder: Path, seconds: float = 0.0) -> BaseFileLock | None:
    """The lock of a job, waited for so long; None where another app has it.

    On a full disk there is no room for the file: nobody is kept out there.
    """
    try:
        return lock_beside(folder / _LOCK, _elsewhere(""), seconds)
    except OutputError:
        return None


def _is_locked(folder: Path) -> bool:
    """Whether an app has the job."""
    if not (folder / _LOCK_FILE).exists():
        return False
    lock = _lock(folder)
    if lock is not None:
        lock.release()
    return lock is None


def _elsewhere(otherwise: str) -> str:
    return f"another app that uses the same folder of runs has this job: {otherwise}"

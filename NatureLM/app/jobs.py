"""Long work of the web app: it goes on when the page is closed, and its link opens it again.

Each job has a folder of its own, under a name that nobody can guess:

jobs/<id>/job.json              what it is to do, and its state
jobs/<id>/recordings/           the recordings, under safe names
jobs/<id>/answers.jsonl         the answers, as `naturelm infer` writes them
jobs/<id>/classifier/           what is asked in place of the language model, where that is so
jobs/<id>/job.lock              locked by the app that has the job: there may be several

Jobs of one app take turns: after each recording, or after some hundred windows of a long one.
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
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from NatureLM.app.clips import check_free, link_or_copy, sentence, shown_name, without_paths
from NatureLM.app.job_work import do_job
from NatureLM.app.settings import Limits
from NatureLM.audio import AUDIO_SUFFIXES, AudioError
from NatureLM.audio.decode import SoundLimits, probe
from NatureLM.audio.windows import count_windows
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.windows import AskOptions
from NatureLM.util import atomic_write, format_bytes

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from NatureLM.inference.pipeline import Pipeline

logger = logging.getLogger(__name__)

JOBS_FOLDER = "jobs"
_JOB_FILE, _LOCK_FILE = "job.json", "job.lock"
_SCHEMA_VERSION = 1
_CHOOSING = ("mode", "labels", "several", "top_k", "min_confidence")
_CALIBRATED = {"normalize": "sum", "temperature": 1.0}
"""Keys of a job's file that stand for nothing: the model's calibration decides."""
_LINE_BYTES = 1500  # that an answer takes on disk, about, with its lines in the tables
_GLANCE_SECONDS = 0.3  # longer than somebody who only looks holds the lock of a job
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
    questionnaire: name of the one that is asked, whose columns are the queries; "" for none
    """

    folder: Path
    kind: Kind
    state: State
    created: str
    settings: AskOptions
    recordings: tuple[JobRecording, ...]
    message: str = ""
    questionnaire: str = ""

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
                questionnaire=str(data.get("questionnaire", "")),
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
    def is_settled(self) -> bool:
        """Whether nothing changes by itself."""
        return self.state not in ("waiting", "working")

    @property
    def answers_path(self) -> Path:
        return self.folder / "answers.jsonl"

    @property
    def classifier_path(self) -> Path:
        """Folder of the classifier that is asked, if there is one."""
        return self.folder / "classifier"

    @property
    def recording_paths(self) -> list[Path]:
        """Where its recordings lie, in their order."""
        return [self.folder / "recordings" / Path(one.file).name for one in self.recordings]

    @property
    def expected(self) -> int:
        """How many answers there will be, as far as the headers of the recordings tell."""
        return sum(one.windows for one in self.recordings) * len(self.settings.queries)

    def told(self, text: str) -> str:
        """The text for whoever sees the page: without folders of this computer, with their names.

        What to do on a command line becomes what to do on the page.
        """
        if str(self.folder) in text:
            for path, one in zip(self.recording_paths, self.recordings, strict=True):
                text = text.replace(str(path), one.name)
        for ours, shown in (
            (f"{self.folder}{os.sep}", ""),
            ("; give another --output-path", ""),
            ("the same command goes on from there", "Go on asks the rest"),
        ):
            text = text.replace(ours, shown)
        return without_paths(text)

    @property
    def when(self) -> str:
        """Date and time of its making, for people."""
        return self.created.replace("T", " ").removesuffix("+00:00")


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
                last = (_LOCK_FILE, _JOB_FILE)
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
        if folder.is_symlink() or not (folder / _JOB_FILE).is_file():
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
            raise UsageError(f"{sentence(name, error)[:-1]}, or use naturelm infer") from None
        windows = windows_of(info.duration, settings)
        return JobRecording(name, file, size, info.duration, info.sample_rate, windows)


def windows_of(seconds: float, settings: AskOptions) -> int:
    """How many windows a recording gives."""
    return count_windows(
        seconds,
        settings.window_length_seconds,
        settings.hop_length_seconds,
        settings.time_expansion,
    )


def refuse_too_many(windows: int, settings: AskOptions, limits: Limits) -> None:
    """Raise UsageError where so many windows give more answers than one job may have."""
    questions, most = len(settings.queries), limits.job_answers
    if windows * questions > most:
        asked = f" × {questions} questions" if questions > 1 else ""
        raise UsageError(
            f"This makes {windows * questions:,} answers ({windows:,} windows{asked}), and a job "
            f"may have {most:,}: take a longer step from window to window "
            f"({settings.hop_length_seconds:g} s now), fewer questions or fewer recordings, or use "
            "naturelm infer"
        )


def _lock(folder: Path, seconds: float = 0.0) -> BaseFileLock | None:
    """The lock of a job, waited for so long; None where another app has it.

    Of an app that was killed the system has freed it. Some file systems have no locks, and a full
    disk no room for the file: nobody is kept out there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / _LOCK_FILE, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=_GLANCE_SECONDS / 10)
    except Timeout:
        return None
    except (OSError, NotImplementedError):
        pass
    return lock


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


def safe_name(name: str, number: int) -> str:
    """A name for a file on disk: a number, plain letters of the name, a known suffix."""
    stem, suffix = os.path.splitext(name)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40].strip("-")
    known = suffix.lower() if suffix.lower() in AUDIO_SUFFIXES else ".audio"
    return f"{number:05d}-{plain}{known}" if plain else f"{number:05d}{known}"

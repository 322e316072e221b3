"""One worker does the jobs one after another: recordings through the pipeline into a result file.

A bounded number of jobs waits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from NatureLM.app.jobs.store import Job, JobLibrary, State
from NatureLM.app.settings import AppError
from NatureLM.errors import NatureLMError
from NatureLM.inference.windows import RecordingError
from NatureLM.results.rows import OutputError, RunSettings
from NatureLM.results.store import WindowStore

if TYPE_CHECKING:
    from NatureLM.inference.pipeline import Pipeline

logger = logging.getLogger(__name__)


class JobQueue:
    """Jobs that wait, and the one that is worked on.

    pipeline: gives the pipeline once it is loaded; may wait for it
    model: how the model is called, as for `naturelm infer --model`
    waiting: how many jobs may wait
    """

    def __init__(
        self,
        library: JobLibrary,
        pipeline: Callable[[], Pipeline],
        *,
        model: str,
        waiting: int = 8,
    ) -> None:
        self._library = library
        self._pipeline = pipeline
        self._model = model
        self._most = waiting
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[str] = deque()
        self._working: str | None = None
        self._stop = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, job_id: str) -> None:
        """Put a job at the end of the queue, or resume one that was stopped.

        Raises AppError, with the limit, where the queue is full; nothing has changed then.
        """
        job = self._library.open(job_id)
        with self._changed:
            if job_id == self._working or job_id in self._waiting:
                return
            self.refuse_if_full()
            self._library.save(job.with_state("waiting"))
            self._waiting.append(job_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def refuse_if_full(self) -> None:
        """Raise AppError where no further job is taken: before its recordings are moved."""
        with self._changed:
            if self._closed:
                raise AppError("the app is being closed, so no job is started")
            if len(self._waiting) >= self._most:
                raise AppError(
                    f"{len(self._waiting)} jobs are waiting already, and no more than "
                    f"{self._most} may: try again when one of them is done"
                )

    def cancel(self, job_id: str) -> None:
        """Take a job off the queue, or stop it after the answer that it is at."""
        with self._changed:
            if job_id == self._working:
                self._stop.set()
            elif job_id in self._waiting:
                self._waiting.remove(job_id)
                self._library.save(self._library.open(job_id).with_state("stopped"))

    def remove(self, job_id: str) -> None:
        """Remove a job with all that belongs to it. Raises AppError while it is worked on."""
        with self._changed:
            if job_id == self._working:
                raise AppError("the job is being worked on: stop it before it is removed")
            if job_id in self._waiting:
                self._waiting.remove(job_id)
            self._library.remove(job_id)

    def open(self, job_id: str) -> Job:
        """The job in its true state: one that says it works, but that nobody has, is stopped.

        Raises AppError where there is none.
        """
        with self._changed:
            job = self._library.open(job_id)
            if job.id == self._working:
                return job.with_state("working")
            if job.id in self._waiting:
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
            return self._changed.wait_for(
                lambda: job_id != self._working and job_id not in self._waiting, timeout
            )

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
            job = self._library.open(job_id).with_state("working")
            self._library.save(job)
            finished = do_job(self._library, job, self._pipeline(), self._model, self._stop)
        except NatureLMError as error:
            return "failed", str(error)
        except Exception as error:
            logger.exception("job %s failed", job_id)
            kind = type(error).__name__
            return "failed", f"The work ended with an unforeseen error ({kind}); see the app's log."
        return ("done" if finished else "stopped"), ""

    def _finish(self, job_id: str, state: State, message: str = "") -> None:
        try:
            self._library.save(self._library.open(job_id).with_state(state, message))
        except AppError:
            logger.warning("job %s: its state cannot be written", job_id)


def do_job(
    library: JobLibrary, job: Job, pipeline: Pipeline, model: str, stop: threading.Event
) -> bool:
    """Ask all that has no answer yet; whether it came to its end before `stop` was set.

    model: how the model is called, as for `naturelm infer --model`

    Raises AppError where the answers that are there were made otherwise, and OutputError where
    they cannot be written.
    """
    recordings = library.recording_paths(job)
    with WindowStore(library.answers_path(job.id)) as store:
        settings = RunSettings(run_values(job, pipeline, model))
        try:
            store.begin(settings, recordings)
        except OutputError as error:
            raise AppError(_other_answers(error)) from None
        results = pipeline.unanswered(recordings, job.settings, store, warn=lambda text: None)
        try:
            for result in results:
                if isinstance(result, RecordingError):
                    alpha = job.settings.merging_alpha
                    store.add_error(result.audio_path, result.error, alpha)
                else:
                    store.add_answer(result)
                if stop.is_set():
                    return False
        finally:
            results.close()
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

"""The work of a job: its recordings are asked about in turns, so that other jobs come to theirs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.errors import UsageError
from NatureLM.field.context import FieldClock
from NatureLM.inference.windows import RecordingError, WindowKey, WindowResult, recordings_of
from NatureLM.results.rows import OutputError, RunSettings, SurveyRow
from NatureLM.results.store import WindowStore
from NatureLM.survey import preset_names

if TYPE_CHECKING:
    from NatureLM.app.jobs import Job
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.survey.run import Survey
    from NatureLM.teach.classifier import TaughtPipeline

_TURN = (32, 360)
"""Answers of a turn: with so many it ends after a recording, or else within one."""


class _Turn:
    """Ends before a window where a job has had its turn and others wait.

    followed_by: path of the recording that it ended at; None while it has not ended
    """

    def __init__(self, others_wait: Callable[[], bool]) -> None:
        self.followed_by: str | None = None
        self._others_wait = others_wait
        self._answers, self._recording = 0, ""
        self._began = self._found = time.monotonic()

    def ends_before(self, key: WindowKey) -> bool:
        """Whether it ends here; else the window is asked about."""
        now = time.monotonic()
        if not self._answers:
            self._found = now
        enough = _TURN[key.audio_path == self._recording]
        # To go on within a long recording it is read from its beginning: that shall not be most.
        is_worth_it = now - self._found >= self._found - self._began
        if self._answers >= enough and is_worth_it and self._others_wait():
            self.followed_by = key.audio_path
            return True
        self._answers, self._recording = self._answers + 1, key.audio_path
        return False


def do_job(
    job: Job,
    pipeline: Pipeline,
    model: str,
    stop: threading.Event,
    others_wait: Callable[[], bool],
) -> Generator[None, None, bool]:
    """Ask all that has no answer yet, turn by turn, with a `yield` after each but the last.

    model: how the model is called, as for `naturelm infer --model`

    Returns whether it came to its end before `stop` was set. Answers are those of a job that
    nobody waits for, in the same order. Raises UsageError where the answers that are there were
    made otherwise, and NatureLMError where they cannot be written.
    """
    recordings = job.recording_paths
    survey = job_survey(job, pipeline) if job.questionnaire else None
    asked = taught_pipeline(job, pipeline) if job.classifier_path.is_dir() else pipeline
    clock = FieldClock()
    with WindowStore(job.answers_path) as store:
        settings = RunSettings(
            run_values(job, pipeline, model, survey, asked), revisions=pipeline.revisions
        )
        store.context_of = lambda path, seconds: clock.of(path).at(seconds) or None
        try:
            store.begin(settings, recordings)
        except OutputError as error:
            raise UsageError(_other_answers(error)) from None
        while True:
            turn = _Turn(others_wait)
            results = _results(job, asked, survey, recordings, store, turn)
            with closing(results):
                for result in results:
                    if isinstance(result, RecordingError):
                        alpha = job.settings.merging_alpha
                        store.add_error(result.audio_path, result.error, alpha)
                    elif isinstance(result, SurveyRow):
                        store.add_survey(result)
                    else:
                        store.add_answer(result)
                    if stop.is_set():
                        return False
            if turn.followed_by is None:
                return not stop.is_set()
            yield
            recordings = recordings[recordings.index(Path(turn.followed_by)) :]


def _results(
    job: Job,
    pipeline: Pipeline | TaughtPipeline,
    survey: Survey | None,
    recordings: Sequence[Path],
    store: WindowStore,
    turn: _Turn,
) -> Generator[WindowResult | SurveyRow | RecordingError, None, None]:
    """What is not answered yet, up to the end of the turn."""
    if survey is None:
        yield from pipeline.unanswered(
            recordings, job.settings, store, warn=lambda text: None, until=turn.ends_before
        )
        return
    yield from survey.rows(recordings_of(recordings, ()), store, until=turn.ends_before)


def taught_pipeline(job: Job, pipeline: Pipeline) -> TaughtPipeline:
    """The classifier of a job, on the encoder of the app's model. Raises UsageError."""
    from NatureLM.teach.classifier import TaughtPipeline, read_classifier

    return TaughtPipeline(pipeline.model, read_classifier(job.classifier_path))


def job_survey(job: Job, pipeline: Pipeline) -> Survey:
    """The questionnaire of a job, ready to be asked. Raises UsageError where it is not there."""
    from NatureLM.survey.questionnaire import read_questionnaire
    from NatureLM.survey.run import Survey

    if job.questionnaire not in preset_names():
        raise UsageError(f"there is no questionnaire {job.questionnaire!r} any more")
    return Survey(
        pipeline,
        read_questionnaire(job.questionnaire),
        replace(job.settings, queries=()),
        warn=lambda text: None,
    )


def run_values(
    job: Job,
    pipeline: Pipeline,
    model: str,
    survey: Survey | None = None,
    asked: Pipeline | TaughtPipeline | None = None,
) -> dict[str, Any]:
    """All that changes the answers of a job, by the names that the commands give it."""
    given: dict[str, Any] = {"model": model, "adapter": None, "generate": pipeline.cfg.generate}
    if survey is None:
        return {**job.settings.settings(**given), **(asked or pipeline).settings(job.settings)}
    from NatureLM.survey.run import known_settings

    options = replace(job.settings, queries=())
    return {**known_settings(survey.questionnaire, options, **given), **survey.settings()}


def _other_answers(error: OutputError) -> str:
    """Why a job cannot be resumed, without the advice that is for the command line."""
    differences = [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]
    if not differences:
        return f"The job cannot be resumed: {error}"
    return (
        "The job cannot be resumed, because its answers were made with another model or "
        f"settings ({'; '.join(differences)}). Start a new job instead."
    )

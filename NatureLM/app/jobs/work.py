"""The work of one job: its recordings through the pipeline into its result file."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from NatureLM.app.jobs.errors import JobError
from NatureLM.app.jobs.library import JobLibrary
from NatureLM.app.jobs.record import Job
from NatureLM.outputs import OutputError, ResultStore, RunSettings
from NatureLM.runs import keep, model_settings, question_settings, unanswered

if TYPE_CHECKING:
    from NatureLM.infer import Pipeline


def do_job(
    library: JobLibrary, job: Job, pipeline: Pipeline, model: str, stop: threading.Event
) -> bool:
    """Ask all that has no answer yet; whether it came to its end before `stop` was set.

    model: how the model is called, as for `naturelm infer --model`

    Raises JobError where the answers that are there were made otherwise, and OutputError where
    they cannot be written.
    """
    recordings = library.recording_paths(job)
    with ResultStore(library.answers_path(job.id)) as store:
        settings = RunSettings(run_values(job, pipeline, model))
        try:
            store.begin(settings, recordings)
        except OutputError as error:
            raise JobError(_other_answers(error)) from None
        results = unanswered(pipeline, recordings, job.settings, store, warn=lambda text: None)
        try:
            for result in results:
                keep(result, store, job.settings.merging_alpha)
                if stop.is_set():
                    return False
        finally:
            results.close()
    return not stop.is_set()


def run_values(job: Job, pipeline: Pipeline, model: str) -> dict[str, Any]:
    """All that changes the answers of a job, by the names that `naturelm infer` gives it."""
    generate = pipeline.cfg.generate.model_dump(mode="json", exclude={"merging_alpha"})
    return {
        **question_settings(job.settings, model=model, adapter=None, generate=generate),
        **model_settings(pipeline, job.settings),
    }


def _other_answers(error: OutputError) -> str:
    """Why a job cannot go on, without the advice that is for the command line."""
    differences = [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]
    if not differences:
        return f"The job cannot be gone on with: {error}"
    return (
        "The job cannot be gone on with, because its answers were made with another model or "
        f"settings ({'; '.join(differences)}). Start a new job instead."
    )

"""Jobs about the synthesised recordings, and what waits for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from web_app import ASSETS, until

from NatureLM.app.job import Job
from NatureLM.app.jobs import Jobs
from NatureLM.config import Config
from NatureLM.inference.windows import AskOptions
from NatureLM.results.rows import read_rows

CUCKOO = ASSETS / "synthetic_common_cuckoo.flac"
HEATH = ASSETS / "synthetic_heath_at_dusk.ogg"
OWL = ASSETS / "synthetic_barn_owl.flac"
SETTINGS = AskOptions(queries=("What is the common name?",))
QUERIES = ("What is the common name?", "Caption the audio")
HALF = AskOptions(QUERIES, merging_alpha=0.5, hop_length_seconds=5.0)
OPTIONS = {"max_new_tokens": 4, "num_beams": 1}
CONFIG = Config.model_validate({"generate": OPTIONS})
MakeJobs = Callable[..., Jobs]


def new_job(jobs: Jobs, *paths: Path, settings: AskOptions = SETTINGS) -> Job:
    return jobs.create("folder", [(path, path.name) for path in paths], settings)


def done_job(jobs: Jobs, *paths: Path, settings: AskOptions = SETTINGS) -> Job:
    """A new job that is begun and has come to rest."""
    return finished(jobs, new_job(jobs, *paths, settings=settings))


def finished(jobs: Jobs, job: Job) -> Job:
    """The job once it is begun and has come to rest."""
    jobs.submit(job.id)
    return rested(jobs, job)


def at_work(jobs: Jobs, job: Job) -> None:
    """Begin a job and wait until it is worked on."""
    jobs.submit(job.id)
    until(lambda: jobs.open(job.id).state == "working")


def rested(jobs: Jobs, job: Job) -> Job:
    assert jobs.wait(job.id, 120)
    return jobs.open(job.id)


def answers(job: Job) -> list[Any]:
    return list(read_rows(job.answers_path)) if job.answers_path.exists() else []


FINE = AskOptions(("What?",), window_length_seconds=0.5, hop_length_seconds=0.5)

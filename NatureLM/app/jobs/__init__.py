"""Long work of the web app: it goes on when the page is closed, and its link opens it again.

library = JobLibrary(Path("runs"))
queue = JobQueue(library, lambda: pipeline, model="naturelm-tiny")
job = library.create("folder", files, settings)
queue.submit(job.id)
"""

from __future__ import annotations

from NatureLM.app.jobs.errors import JobError
from NatureLM.app.jobs.library import JobLibrary, NewRecording
from NatureLM.app.jobs.queue import JobQueue
from NatureLM.app.jobs.record import Job, JobRecording, JobSettings

__all__ = [
    "Job",
    "JobError",
    "JobLibrary",
    "JobQueue",
    "JobRecording",
    "JobSettings",
    "NewRecording",
]

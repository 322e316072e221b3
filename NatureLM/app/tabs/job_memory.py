"""The jobs that a browser remembers: a link that was lost is no lost job."""

from __future__ import annotations

from typing import Any

from NatureLM.app.jobs import Job, JobError, JobQueue

MOST_REMEMBERED = 30


def remember(remembered: Any, job_id: str) -> list[str]:
    """The ids with a new one in front; what a browser gives is not trusted."""
    known = [one for one in ids(remembered) if one != job_id]
    return [job_id, *known][:MOST_REMEMBERED]


def ids(remembered: Any) -> list[str]:
    """The ids among what a browser gave."""
    if not isinstance(remembered, list):
        return []
    return [one for one in remembered if isinstance(one, str)][:MOST_REMEMBERED]


def choices(remembered: Any, queue: JobQueue, kind: str) -> list[tuple[str, str]]:
    """(label, id) of the remembered jobs that are still there, newest first."""
    found = []
    for job_id in ids(remembered):
        try:
            job = queue.open(job_id)
        except JobError:
            continue
        if job.kind == kind:
            found.append((label(job), job.id))
    return found


def label(job: Job) -> str:
    """What a job is called in the list."""
    first = job.recordings[0].name
    more = f" and {len(job.recordings) - 1} more" if len(job.recordings) > 1 else ""
    return f"{job.created.replace('T', ' ').removesuffix('+00:00')} · {first}{more} · {job.state}"

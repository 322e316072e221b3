"""`job.json`: what a job is to do and how far it is said to be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from NatureLM.app.jobs.errors import JobError
from NatureLM.errors import UsageError
from NatureLM.infer import Choosing
from NatureLM.runs import WindowQuestions
from NatureLM.whole import whole_file

JOB_FILE = "job.json"
SCHEMA_VERSION = 1

Kind: TypeAlias = Literal["long", "folder"]
State: TypeAlias = Literal["waiting", "working", "done", "stopped", "failed"]

JobSettings = WindowQuestions


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
    """A job as it stands in its `job.json`.

    id: unguessable; whoever knows it may open the job
    kind: the tab that made it
    state: what was last written; a job that no queue has is stopped, whatever this says
    message: why it failed
    created: UTC, ISO 8601
    """

    id: str
    kind: Kind
    state: State
    created: str
    settings: JobSettings
    recordings: tuple[JobRecording, ...]
    message: str = ""

    def with_state(self, state: State, message: str = "") -> Job:
        """The same job in another state."""
        return replace(self, state=state, message=message)

    @property
    def expected(self) -> int:
        """How many answers there will be."""
        return sum(one.windows for one in self.recordings) * len(self.settings.queries)


def write_job(folder: Path, job: Job) -> None:
    """Write `job.json`, whole or not at all. Raises JobError."""
    data = {"schema_version": SCHEMA_VERSION, **asdict(job)}
    try:
        with whole_file(folder / JOB_FILE) as unfinished:
            unfinished.write_text(
                json.dumps(data, indent=2, ensure_ascii=False) + "\n",
                encoding="utf-8",
                errors="backslashreplace",
            )
    except OSError as error:
        raise JobError(f"the job cannot be kept on disk: {error.strerror}") from None


def read_job(folder: Path) -> Job:
    """The job of a folder. Raises JobError where there is none or it is damaged."""
    try:
        data = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
        return _job(data)
    except FileNotFoundError:
        raise JobError("there is no job of this name; it may have been removed") from None
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        raise JobError(
            "the job cannot be read: its job.json is damaged or of another version"
        ) from None


def _job(data: Mapping[str, Any]) -> Job:
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError
    if data["kind"] not in get_args(Kind) or data["state"] not in get_args(State):
        raise ValueError
    settings = dict(data["settings"])
    settings["queries"] = tuple(map(str, settings["queries"]))
    choosing = dict(settings["choosing"])
    choosing["labels"] = tuple(map(str, choosing["labels"]))
    settings["choosing"] = Choosing(**choosing)
    return Job(
        id=str(data["id"]),
        kind=data["kind"],
        state=data["state"],
        created=str(data["created"]),
        settings=JobSettings(**settings),
        recordings=tuple(JobRecording(**one) for one in data["recordings"]),
        message=str(data["message"]),
    )

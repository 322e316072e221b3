"""A job of the web app: what is kept of it on disk, and its work.

Each job has a folder of its own, under a name that nobody can guess:

jobs/<id>/job.json              what it is to do, and its state
jobs/<id>/recordings/           the recordings, under safe names
jobs/<id>/answers.jsonl         the answers, as `naturelm infer` writes them
jobs/<id>/classifier/           what is asked in place of the language model, where that is so
jobs/<id>/job.lock              locked by the app that has the job: there may be several

Its recordings are asked about in turns, so that other jobs come to theirs.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from NatureLM.app.clips import without_paths
from NatureLM.app.settings import Limits
from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.audio.windows import count_windows
from NatureLM.errors import UsageError
from NatureLM.field.context import FieldClock
from NatureLM.inference.windows import (
    AskOptions,
    RecordingError,
    WindowKey,
    WindowResult,
    recordings_of,
)
from NatureLM.results.rows import OutputError, RunSettings, SurveyRow
from NatureLM.results.store import WindowStore
from NatureLM.survey import preset_names
from NatureLM.util import atomic_write

if TYPE_CHECKING:
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.survey.run import Survey
    from NatureLM.teach.classifier import TaughtPipeline

JOB_FILE = "job.json"
_SCHEMA_VERSION = 1
_CHOOSING = ("mode", "labels", "several", "top_k", "min_confidence")
_CALIBRATED = {"normalize": "sum", "temperature": 1.0}
"""Keys of a job's file that stand for nothing: the model's calibration decides."""
_TURN = (32, 360)
"""Answers of a turn: with so many it ends after a recording, or else within one."""

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
            data = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
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
            with atomic_write(self.folder / JOB_FILE) as unfinished:
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
        return list(map(self.path_of, self.recordings))

    def path_of(self, recording: JobRecording) -> Path:
        return self.folder / "recordings" / Path(recording.file).name

    @cached_property
    def names(self) -> dict[str, str]:
        """What the user calls the recordings, by `JobRecording.file`."""
        return {one.file: one.name for one in self.recordings}

    @property
    def title(self) -> str:
        """What a page calls it: by its recordings."""
        more = f" and {len(self.recordings) - 1} more" if len(self.recordings) > 1 else ""
        return f"{self.recordings[0].name}{more}"

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


def safe_name(name: str, number: int) -> str:
    """A name for a file on disk: a number, plain letters of the name, a known suffix."""
    stem, suffix = os.path.splitext(name)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-")[:40].strip("-")
    known = suffix.lower() if suffix.lower() in AUDIO_SUFFIXES else ".audio"
    return f"{number:05d}-{plain}{known}" if plain else f"{number:05d}{known}"


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
                    else:
                        store.add(result)
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

"""Jobs: what they keep on disk, how they run, stop, go on, and go away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.app.clips import shown_name
from NatureLM.app.jobs.queue import JobQueue
from NatureLM.app.jobs.store import Job, JobLibrary, safe_name
from NatureLM.app.settings import AppError, Limits
from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.config import Config
from NatureLM.inference.options import AskOptions
from NatureLM.inference.pipeline import Pipeline
from NatureLM.results.rows import ErrorRow, WindowRow, read_rows

ROOT = Path(__file__).resolve().parents[2]
CUCKOO = ROOT / "assets" / "synthetic_common_cuckoo.flac"
HEATH = ROOT / "assets" / "synthetic_heath_at_dusk.ogg"
SETTINGS = AskOptions(queries=("What is the common name?",))


@pytest.fixture(scope="module")
def pipeline(nano: Any) -> Pipeline:
    return Pipeline(nano, config=Config.model_validate({"generate": {"max_new_tokens": 4}}))


@pytest.fixture
def library(tmp_path: Path) -> JobLibrary:
    return JobLibrary(tmp_path / "runs")


MakeQueue = Callable[..., JobQueue]


@pytest.fixture
def make_queue(library: JobLibrary, pipeline: Pipeline) -> Iterator[MakeQueue]:
    made: list[JobQueue] = []

    def make(asked: Callable[[], Any] = lambda: pipeline, **options: Any) -> JobQueue:
        made.append(JobQueue(library, asked, model="nano", **options))
        return made[-1]

    yield make
    for queue in made:
        queue.close()


def new_job(library: JobLibrary, *paths: Path, settings: AskOptions = SETTINGS) -> Job:
    return library.create("folder", [(path, path.name) for path in paths], settings)


class SlowPipeline:
    """Gives its answers one by one, each only when it is allowed to."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.steps = threading.Semaphore(0)
        self._pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def unanswered(self, *args: Any, **options: Any) -> Iterator[Any]:
        for result in self._pipeline.unanswered(*args, **options):
            assert self.steps.acquire(timeout=30)
            yield result


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s in vain"
        time.sleep(0.01)


def answers(library: JobLibrary, job: Job) -> list[Any]:
    path = library.answers_path(job.id)
    return list(read_rows(path)) if path.exists() else []


def test_job_keeps_recordings_and_settings_on_disk(library: JobLibrary) -> None:
    job = new_job(library, CUCKOO, HEATH)
    folder = library.folder_of(job.id)
    assert library.open(job.id) == job
    assert [path.read_bytes() for path in library.recording_paths(job)] == [
        CUCKOO.read_bytes(),
        HEATH.read_bytes(),
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["job.json", "recordings"]
    assert job.expected == sum(one.windows for one in job.recordings) > 1
    assert CUCKOO.exists()


def test_ids_are_long_and_all_different(library: JobLibrary) -> None:
    ids = {new_job(library, CUCKOO).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(one) == 32 for one in ids)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../etc", "/etc/passwd", "x" * 32, "a" * 31 + "/", "..%2F" * 6, None, 7],
)
def test_what_is_no_id_opens_nothing(library: JobLibrary, name: Any) -> None:
    new_job(library, CUCKOO)
    for action in (library.open, library.remove, library.answers_path):
        with pytest.raises(AppError):
            action(name)


@given(st.text(max_size=300), st.integers(1, 99_999))
def test_names_on_disk_are_plain_whatever_the_user_calls_a_file(name: str, number: int) -> None:
    made = safe_name(shown_name(name), number)
    stem, _, suffix = made.rpartition(".")
    assert stem.startswith(f"{number:05d}")
    assert all(c.isascii() and (c.isalnum() or c == "-") for c in stem)
    assert f".{suffix}" in AUDIO_SUFFIXES | {".audio"}
    assert len(made) < 60
    assert shown_name(name).isprintable()


def test_names_that_lead_elsewhere_stay_in_the_folder(library: JobLibrary, tmp_path: Path) -> None:
    job = library.create("long", [(CUCKOO, "../../../up.flac")], SETTINGS)
    (path,) = library.recording_paths(job)
    assert path.parent == library.folder_of(job.id) / "recordings"
    assert job.recordings[0].name == "up.flac"
    assert not list(tmp_path.rglob("up.flac"))


def test_damaged_job_is_told_in_a_sentence(library: JobLibrary) -> None:
    job = new_job(library, CUCKOO)
    for text in ("", "{", "[]", json.dumps({"schema_version": 99}), "null"):
        (library.folder_of(job.id) / "job.json").write_text(text)
        with pytest.raises(AppError, match="damaged"):
            library.open(job.id)


def test_limits_are_said_and_nothing_is_left(tmp_path: Path) -> None:
    limits = Limits(upload_bytes=100_000, folder_files=2, long_seconds=10.0)
    library = JobLibrary(tmp_path, limits)
    with pytest.raises(AppError, match=r"3 recordings .* 2 "):
        new_job(library, CUCKOO, CUCKOO, CUCKOO)
    with pytest.raises(AppError, match=r"at most 100 kB"):
        new_job(library, HEATH)
    with pytest.raises(AppError, match="no recording"):
        new_job(library)
    with pytest.raises(AppError, match="at most 1 s"):
        new_job(JobLibrary(tmp_path, Limits(long_seconds=1.0)), CUCKOO)
    assert not list(tmp_path.rglob("job.json"))


def test_job_is_done_and_its_bad_recordings_are_named(
    library: JobLibrary, make_queue: MakeQueue, tmp_path: Path
) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("no sound at all")
    job, queue = new_job(library, CUCKOO, text, HEATH), make_queue()
    queue.submit(job.id)
    assert queue.wait(job.id, 60)
    assert queue.open(job.id).state == "done"
    rows = answers(library, job)
    assert sum(isinstance(row, WindowRow) for row in rows) == job.expected
    errors = [row for row in rows if isinstance(row, ErrorRow)]
    assert [Path(row.audio_path).name for row in errors] == [job.recordings[1].file]


def test_stopped_job_goes_on_and_asks_nothing_twice(
    library: JobLibrary, make_queue: MakeQueue, pipeline: Pipeline
) -> None:
    slow = SlowPipeline(pipeline)
    job, queue = new_job(library, HEATH, CUCKOO), make_queue(lambda: slow)
    queue.submit(job.id)
    slow.steps.release()
    wait_for(lambda: len(answers(library, job)) == 1)
    assert queue.open(job.id).state == "working"
    queue.cancel(job.id)
    assert queue.is_stopping(job.id)
    slow.steps.release()
    assert queue.wait(job.id, 30)
    assert queue.open(job.id).state == "stopped"
    before = answers(library, job)
    assert 0 < len(before) < job.expected
    slow.steps.release(100)
    queue.submit(job.id)
    assert queue.wait(job.id, 60)
    assert queue.open(job.id).state == "done"
    after = answers(library, job)
    assert after[: len(before)] == before
    assert len(after) == len({(row.audio_path, row.start) for row in after}) == job.expected


def test_job_of_an_app_that_ended_is_stopped_and_goes_on(
    library: JobLibrary, make_queue: MakeQueue
) -> None:
    job = new_job(library, CUCKOO)
    library.save(job.with_state("working"))
    queue = make_queue()
    assert queue.open(job.id).state == "stopped"
    queue.submit(job.id)
    assert queue.wait(job.id, 60)
    assert queue.open(job.id).state == "done"


def test_full_queue_says_so_and_takes_jobs_again(
    library: JobLibrary, make_queue: MakeQueue, pipeline: Pipeline
) -> None:
    slow = SlowPipeline(pipeline)
    queue = make_queue(lambda: slow, waiting=1)
    jobs = [new_job(library, CUCKOO) for _ in range(3)]
    queue.submit(jobs[0].id)
    wait_for(lambda: queue.open(jobs[0].id).state == "working")
    queue.submit(jobs[1].id)
    assert queue.open(jobs[1].id).state == "waiting"
    assert queue.ahead(jobs[1].id) == 1
    with pytest.raises(AppError, match="no more than 1 may"):
        queue.submit(jobs[2].id)
    queue.cancel(jobs[1].id)
    assert queue.open(jobs[1].id).state == "stopped"
    queue.submit(jobs[2].id)
    slow.steps.release(100)
    assert queue.wait(jobs[2].id, 60)
    assert queue.open(jobs[2].id).state == "done"
    assert not answers(library, jobs[1])


def test_job_that_is_submitted_twice_runs_once(library: JobLibrary, make_queue: MakeQueue) -> None:
    job, queue = new_job(library, CUCKOO), make_queue()
    queue.submit(job.id)
    queue.submit(job.id)
    assert queue.wait(job.id, 60)
    assert len(answers(library, job)) == job.expected


def test_closing_the_app_stops_jobs_that_can_be_gone_on_with(
    library: JobLibrary, make_queue: MakeQueue, pipeline: Pipeline
) -> None:
    slow = SlowPipeline(pipeline)
    queue = make_queue(lambda: slow)
    first, second = new_job(library, CUCKOO), new_job(library, CUCKOO)
    queue.submit(first.id)
    queue.submit(second.id)
    wait_for(lambda: queue.open(first.id).state == "working")
    slow.steps.release()
    queue.close()
    assert library.open(first.id).state == library.open(second.id).state == "stopped"
    with pytest.raises(AppError, match="being closed"):
        queue.submit(first.id)


def test_other_model_does_not_mix_answers(
    library: JobLibrary, pipeline: Pipeline, make_queue: MakeQueue
) -> None:
    job, queue = new_job(library, CUCKOO), make_queue()
    queue.submit(job.id)
    assert queue.wait(job.id, 60)
    before = answers(library, job)
    other = JobQueue(library, lambda: pipeline, model="another")
    other.submit(job.id)
    assert other.wait(job.id, 60)
    failed = other.open(job.id)
    assert failed.state == "failed"
    assert "another model" in failed.message
    assert "--" not in failed.message
    assert answers(library, job) == before
    other.close()


def test_model_that_does_not_load_fails_the_job_with_its_reason(
    library: JobLibrary, make_queue: MakeQueue
) -> None:
    def broken() -> Any:
        raise AppError("The model could not be loaded.")

    def crash() -> Any:
        raise ZeroDivisionError("secret of the machine")

    for asked, message in ((broken, "could not be loaded"), (crash, "ZeroDivisionError")):
        job, queue = new_job(library, CUCKOO), make_queue(asked)
        queue.submit(job.id)
        assert queue.wait(job.id, 30)
        found = queue.open(job.id)
        assert found.state == "failed"
        assert message in found.message
        assert "secret" not in found.message


def test_removed_job_leaves_nothing(
    library: JobLibrary, make_queue: MakeQueue, pipeline: Pipeline
) -> None:
    slow = SlowPipeline(pipeline)
    job, queue = new_job(library, CUCKOO), make_queue(lambda: slow)
    queue.submit(job.id)
    wait_for(lambda: queue.open(job.id).state == "working")
    with pytest.raises(AppError, match="stop it"):
        queue.remove(job.id)
    slow.steps.release(100)
    assert queue.wait(job.id, 60)
    queue.remove(job.id)
    with pytest.raises(AppError, match="removed"):
        queue.open(job.id)
    assert not list(library.folder.iterdir())

"""Jobs: what they keep on disk, how they wait, take turns, stop and are resumed."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from web_app import (
    CONFIG,
    CUCKOO,
    FINE,
    HALF,
    HEATH,
    OPTIONS,
    OWL,
    QUERIES,
    ROOT,
    SETTINGS,
    MakeJobs,
    answers,
    at_work,
    done_job,
    finished,
    new_job,
    rested,
    until,
)

from NatureLM.app import job as one_job
from NatureLM.app import jobs as work
from NatureLM.app.clips import shown_name
from NatureLM.app.job import Job, JobRecording, safe_name
from NatureLM.app.job_form import MOST_QUESTIONS
from NatureLM.app.job_view import progress_sentence, view_job, write_downloads
from NatureLM.app.jobs import Jobs
from NatureLM.app.settings import Limits
from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import AskOptions
from NatureLM.results import rows as rows_module
from NatureLM.results import store
from NatureLM.results.rows import OutputError


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


@pytest.fixture
def slow(pipeline: Pipeline) -> SlowPipeline:
    return SlowPipeline(pipeline)


def test_job_keeps_recordings_and_settings_on_disk(jobs: Jobs) -> None:
    job = new_job(jobs, CUCKOO, HEATH)
    assert Job.read(job.folder) == jobs.open(job.id).with_state("waiting") == job
    assert [path.read_bytes() for path in job.recording_paths] == [
        CUCKOO.read_bytes(),
        HEATH.read_bytes(),
    ]
    assert sorted(path.name for path in job.folder.iterdir()) == ["job.json", "recordings"]
    assert job.expected == sum(one.windows for one in job.recordings) > 1
    assert CUCKOO.exists()


def test_ids_are_long_and_all_different(jobs: Jobs) -> None:
    ids = {new_job(jobs, CUCKOO).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(one) == 32 for one in ids)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../../etc", "/etc/passwd", "x" * 32, "a" * 31 + "/", "..%2F" * 6, None, 7],
)
def test_what_is_no_id_opens_nothing(jobs: Jobs, name: Any) -> None:
    new_job(jobs, CUCKOO)
    for action in (jobs.open, jobs.submit, jobs.remove):
        with pytest.raises(UsageError):
            action(name)


@given(st.text(max_size=300), st.integers(1, 99_999))
def test_names_on_disk_are_plain_whatever_the_user_calls_a_file(name: str, number: int) -> None:
    made = safe_name(shown_name(name), number)
    stem, _, suffix = made.rpartition(".")
    assert stem.startswith(f"{number:05d}")
    assert all(c.isascii() and (c.isalnum() or c == "-") for c in stem)
    assert f".{suffix}" in AUDIO_SUFFIXES | {".audio"}
    assert len(made) < 60


def test_names_that_lead_elsewhere_stay_in_the_folder(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.create("long", [(CUCKOO, "../../../up.flac")], SETTINGS)
    (path,) = job.recording_paths
    assert path.parent == job.folder / "recordings"
    assert job.recordings[0].name == "up.flac"
    assert not list(tmp_path.rglob("up.flac"))


def test_damaged_job_is_told_in_a_sentence(jobs: Jobs) -> None:
    job = new_job(jobs, CUCKOO)
    for text in ("", "{", "[]", json.dumps({"schema_version": 99}), "null"):
        (job.folder / "job.json").write_text(text)
        with pytest.raises(UsageError, match="damaged"):
            jobs.open(job.id)


def test_limits_are_said_and_nothing_is_left(make_jobs: MakeJobs, tmp_path: Path) -> None:
    jobs = make_jobs(upload_bytes=100_000, folder_files=2, long_seconds=10)
    for paths, words in (
        ([CUCKOO] * 3, r"3 recordings .* 2 "),
        ([HEATH], r"at most 100 kB"),
        ([], "no recording"),
    ):
        with pytest.raises(UsageError, match=words):
            new_job(jobs, *paths)
    with pytest.raises(UsageError, match=r"At most 1\.0 s are taken: cut it, or use naturelm"):
        new_job(make_jobs(long_seconds=1), CUCKOO)
    assert not list(tmp_path.rglob("job.json"))


def test_stopped_job_goes_on_and_asks_nothing_twice(
    make_jobs: MakeJobs, slow: SlowPipeline
) -> None:
    jobs = make_jobs(lambda: slow)
    job = new_job(jobs, HEATH, CUCKOO)
    jobs.submit(job.id)
    slow.steps.release()
    until(lambda: len(answers(job)) == 1)
    assert jobs.open(job.id).state == "working"
    jobs.cancel(job.id)
    assert jobs.is_stopping(job.id)
    slow.steps.release()
    assert rested(jobs, job).state == "stopped"
    before = answers(job)
    assert 0 < len(before) < job.expected
    slow.steps.release(100)
    assert finished(jobs, job).state == "done"
    after = answers(job)
    assert after[: len(before)] == before
    assert len(after) == len({(row.audio_path, row.start) for row in after}) == job.expected


def test_job_of_an_app_that_ended_is_stopped_and_goes_on(jobs: Jobs) -> None:
    job = new_job(jobs, CUCKOO)
    job.with_state("working").write()
    assert jobs.open(job.id).state == "stopped"
    jobs.submit(job.id)
    jobs.submit(job.id)  # which changes nothing
    assert rested(jobs, job).state == "done"
    assert len(answers(job)) == job.expected


def test_full_queue_says_so_and_takes_jobs_again(make_jobs: MakeJobs, slow: SlowPipeline) -> None:
    jobs = make_jobs(lambda: slow, waiting_jobs=1)
    first, second, third = (new_job(jobs, CUCKOO) for _ in range(3))
    at_work(jobs, first)
    jobs.submit(second.id)
    assert jobs.open(second.id).state == "waiting"
    assert jobs.ahead(second.id) == 1
    with pytest.raises(UsageError, match="no more than 1 may"):
        jobs.submit(third.id)
    jobs.cancel(second.id)
    assert jobs.open(second.id).state == "stopped"
    jobs.submit(third.id)
    slow.steps.release(100)
    assert rested(jobs, third).state == "done"
    assert not answers(second)


def test_closing_the_app_stops_jobs_that_can_be_gone_on_with(
    make_jobs: MakeJobs, slow: SlowPipeline
) -> None:
    jobs = make_jobs(lambda: slow)
    first, second = new_job(jobs, CUCKOO), new_job(jobs, CUCKOO)
    jobs.submit(first.id)
    jobs.submit(second.id)
    until(lambda: jobs.open(first.id).state == "working")
    slow.steps.release()
    jobs.close()
    assert Job.read(first.folder).state == Job.read(second.folder).state == "stopped"
    with pytest.raises(UsageError, match="being closed"):
        jobs.submit(first.id)


def test_other_model_does_not_mix_answers(make_jobs: MakeJobs) -> None:
    job = done_job(make_jobs(), CUCKOO)
    before = answers(job)
    other = make_jobs(model="another")
    failed = finished(other, job)
    assert failed.state == "failed"
    assert "another model" in failed.message
    assert "--" not in failed.message
    assert answers(job) == before


def test_model_that_does_not_load_fails_the_job_with_its_reason(make_jobs: MakeJobs) -> None:
    def broken() -> Any:
        raise NatureLMError("The model could not be loaded.")

    def crash() -> Any:
        raise ZeroDivisionError("secret of the machine")

    for asked, message in ((broken, "could not be loaded"), (crash, "ZeroDivisionError")):
        found = done_job(make_jobs(asked), CUCKOO)
        assert found.state == "failed"
        assert message in found.message
        assert "secret" not in found.message


def test_removed_job_leaves_nothing(make_jobs: MakeJobs, slow: SlowPipeline) -> None:
    jobs = make_jobs(lambda: slow)
    job = new_job(jobs, CUCKOO)
    at_work(jobs, job)
    with pytest.raises(UsageError, match="stop it"):
        jobs.remove(job.id)
    slow.steps.release(100)
    rested(jobs, job)
    jobs.remove(job.id)
    with pytest.raises(UsageError, match="removed"):
        jobs.open(job.id)
    assert not list(jobs.folder.iterdir())


def test_rows_are_those_of_naturelm_infer(
    make_jobs: MakeJobs, tmp_path: Path, nano_folder: Path
) -> None:
    """To the last key: the same model, recordings and settings through both doors.

    `naturelm infer` writes α into the weights and the app, whose model others use meanwhile, does
    not: confidences may differ in their last digits.
    """
    model = str(nano_folder / "checkpoint")
    pipeline = Pipeline(model, config=CONFIG, device="cpu")
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    job = done_job(make_jobs(lambda: pipeline, model=model), OWL, bad, HEATH, settings=HALF)
    arguments = ["infer", "--model", model, "--merging-alpha", "0.5", "--hop-length-seconds", "5"]
    for query in QUERIES:
        arguments += ["--query", query]
    for name, value in OPTIONS.items():
        arguments += ["--options", f"generate.{name}={value}"]
    for path in job.recording_paths:
        arguments += ["--audio-path", str(path)]
    output = tmp_path / "infer.jsonl"
    result = commands.naturelm(*arguments, "--device", "cpu", "--output-path", output)
    assert result.exit_code == 3, result.output
    rows, expected = commands.rows(job.answers_path), commands.rows(output)
    for row, other in zip(rows, expected, strict=True):
        assert row.pop("confidence", None) == pytest.approx(other.pop("confidence", None), abs=1e-5)
        assert row == other


ELSEWHERE = "another app that uses the same folder of runs has this job: "


def test_a_job_of_another_app_is_seen_and_left_alone(
    make_jobs: MakeJobs, slow: SlowPipeline
) -> None:
    here, there = make_jobs(), make_jobs(lambda: slow)
    job, second = (new_job(there, HEATH) for _ in range(2))
    there.submit(job.id)
    there.submit(second.id)
    slow.steps.release()
    until(lambda: len(answers(job)) == 1)
    for one, state, done in ((job, "working", 1), (second, "waiting", 0)):
        view = view_job(here, one.id)
        assert (view.job.state, len(view.answers), view.is_elsewhere) == (state, done, True)
        assert progress_sentence(view) == (
            "Another app that uses the same folder of runs has it: "
            f"{done} of {one.expected} answers so far."
        )
        assert not view_job(there, one.id).is_elsewhere
        for act, advice in (
            (here.cancel, "stop it there"),
            (here.submit, "it goes on there, and this page shows how far it is"),
            (here.remove, "stop it there before it is removed"),
        ):
            with pytest.raises(UsageError) as refused:
                act(one.id)
            assert str(refused.value) == ELSEWHERE + advice
    assert there.ahead(second.id) == 1
    there.cancel(second.id)
    assert here.open(second.id).state == "stopped"
    assert finished(here, second).state == "done"
    slow.steps.release(100)
    assert rested(there, job).state == "done"
    assert here.open(job.id).state == "done"
    for jobs, one in ((here, job), (there, second)):
        jobs.remove(one.id)
    assert not list(here.folder.iterdir())


OTHER_APP = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from commands import FakePipeline
from NatureLM.app.jobs import Jobs
from NatureLM.config import Config

pipeline = FakePipeline(seconds=0.05)
pipeline.cfg = Config.model_validate({"generate": {"max_new_tokens": 4, "num_beams": 1}})
jobs = Jobs(Path(sys.argv[1]), lambda: pipeline, model="fake")
jobs.submit(sys.argv[2])
print("begun", flush=True)
jobs.wait(sys.argv[2], 60)
print(jobs.open(sys.argv[2]).state, flush=True)
"""


def named(jobs: Jobs, job: Job) -> tuple[str, str]:
    return str(jobs.folder.parent), job.id


def other_app(jobs: Jobs, job: Job) -> subprocess.Popen[str]:
    """A process of its own that works on the job, an answer in 50 ms."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_APP, *named(jobs, job)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.fixture
def fake_jobs(make_jobs: MakeJobs) -> Jobs:
    pipeline = commands.FakePipeline()
    pipeline.cfg = CONFIG  # type: ignore[attr-defined]
    return make_jobs(lambda: pipeline, model="fake")


def test_the_job_of_a_killed_app_is_free_again(fake_jobs: Jobs) -> None:
    job = new_job(fake_jobs, HEATH, settings=FINE)
    process = other_app(fake_jobs, job)
    until(lambda: len(view_job(fake_jobs, job.id).answers) > 2)
    assert view_job(fake_jobs, job.id).is_elsewhere
    with pytest.raises(UsageError, match="another app"):
        fake_jobs.submit(job.id)
    process.kill()
    process.wait()
    view = view_job(fake_jobs, job.id)
    before = view.answers
    assert (view.job.state, view.is_elsewhere) == ("stopped", False)
    assert 2 < len(before) < job.expected
    assert finished(fake_jobs, job).state == "done"
    after = view_job(fake_jobs, job.id).answers
    assert after[: len(before)] == before
    assert len(after) == len({one.start for one in after}) == job.expected


def test_a_job_that_ends_elsewhere_while_one_looks_is_done(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(jobs, CUCKOO)
    job.with_state("working").write()

    def ends(folder: Path) -> bool:
        job.with_state("done").write()
        return False

    monkeypatch.setattr(work, "_is_locked", ends)
    assert jobs.open(job.id).state == "done"


def test_the_job_of_another_process_comes_to_its_end_there(fake_jobs: Jobs) -> None:
    job = new_job(fake_jobs, CUCKOO, settings=FINE)
    process = other_app(fake_jobs, job)
    assert process.communicate(timeout=60)[0] == "done\n"
    assert fake_jobs.open(job.id).state == "done"
    assert len(view_job(fake_jobs, job.id).answers) == job.expected
    fake_jobs.remove(job.id)


def test_jobs_take_turns_and_answers_are_the_same(
    make_jobs: MakeJobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By recording, and within a long one; bad recordings are named once, in their place."""
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    recordings = (CUCKOO, bad, HEATH, OWL, bad)
    jobs = make_jobs()
    alone = done_job(jobs, *recordings, settings=HALF)
    monkeypatch.setattr(one_job, "_TURN", (1, 2))
    monkeypatch.setattr(one_job, "time", SimpleNamespace(monotonic=lambda: 0.0))
    turns: list[str] = []
    turn = Jobs._turn

    def watched(self: Jobs, job_id: str) -> Any:
        turns.append(job_id)
        return turn(self, job_id)

    monkeypatch.setattr(Jobs, "_turn", watched)
    others = make_jobs()
    gate = threading.Event()
    others._pipeline = lambda: gate.wait(30) and jobs._pipeline()  # type: ignore[assignment]
    long, short = new_job(others, *recordings, settings=HALF), new_job(others, CUCKOO)
    others.submit(long.id)
    until(lambda: bool(turns))
    others.submit(short.id)
    third = new_job(others, HEATH, settings=HALF)
    others.submit(third.id)
    gate.set()
    for job in (long, short, third):
        assert others.wait(job.id, 60)
        assert others.open(job.id).state == "done"
    assert turns[:4] == [long.id, short.id, third.id, long.id]
    assert turns.count(long.id) > 3

    def content(job: Job) -> list[dict[str, Any]]:
        lines = job.answers_path.read_text().replace(job.id, "").splitlines()
        return [json.loads(line) for line in lines]

    # Other windows beside it in a batch change the last digit of how sure an answer is.
    assert [approximate(row) for row in content(long)] == content(alone)
    assert len(view_job(others, third.id).answers) == third.expected


def approximate(row: dict[str, Any]) -> dict[str, Any]:
    return (
        row | {"confidence": pytest.approx(row["confidence"], abs=2e-6)} if "text" in row else row
    )


def test_a_job_that_lets_others_go_first_can_be_stopped_and_says_so(
    make_jobs: MakeJobs, slow: SlowPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_job, "_TURN", (1, 1))
    monkeypatch.setattr(one_job, "time", SimpleNamespace(monotonic=lambda: 0.0))
    gate = threading.Event()
    jobs = make_jobs(lambda: gate.wait(30) and slow)
    first, second = (new_job(jobs, HEATH, CUCKOO, settings=FINE) for _ in range(2))
    jobs.submit(first.id)
    jobs.submit(second.id)
    gate.set()
    slow.steps.release(3)  # first, second, first
    until(lambda: len(answers(first)) == 2 and jobs.open(second.id).state == "working")
    assert progress_sentence(view_job(jobs, first.id)) == (
        "Has had a turn and lets others have theirs, 1 job before it: "
        f"2 of {first.expected} answers so far."
    )
    jobs.cancel(first.id)
    assert jobs.open(first.id).state == Job.read(first.folder).state == "stopped"
    jobs.remove(first.id)
    slow.steps.release(200)
    assert rested(jobs, second).state == "done"


def test_more_answers_than_a_job_may_have_are_refused(make_jobs: MakeJobs, tmp_path: Path) -> None:
    some = AskOptions(QUERIES, hop_length_seconds=1.0)
    windows = one_job.windows_of(soundfile.info(HEATH).duration, some)
    jobs = make_jobs(job_answers=4 * windows - 1)
    with pytest.raises(UsageError) as refused:
        new_job(jobs, HEATH, HEATH, settings=some)
    assert str(refused.value) == (
        f"This makes {4 * windows} answers ({2 * windows} windows × 2 questions), and a job may "
        f"have {4 * windows - 1}: take a longer step from window to window (1 s now), fewer "
        "questions or fewer recordings, or use naturelm infer"
    )
    assert not list(tmp_path.rglob("recordings"))
    assert new_job(jobs, HEATH, settings=some).expected == 2 * windows
    day = JobRecording("day.wav", "1.wav", 1, 86_400.0, 16_000, 864_000)
    assert day.windows * MOST_QUESTIONS > Limits().job_answers == 200_000


def test_folders_of_jobs_are_the_owners_alone(jobs: Jobs) -> None:
    before = os.umask(0)
    try:
        job = done_job(jobs, CUCKOO)
    finally:
        os.umask(before)
    for folder in (jobs.folder, job.folder, job.folder / "recordings"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    job.folder.chmod(0o755)  # as older versions made it
    finished(jobs, job)
    assert stat.S_IMODE(job.folder.stat().st_mode) == 0o700


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_a_job_says_so_is_opened_and_removed(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its state nor its tables can be written; the answers end in the middle."""
    job = new_job(jobs, HEATH, settings=FINE)
    append, written = store.JsonlAppender.append, 0

    def until_full(self: Any, line: bytes) -> None:
        nonlocal written
        written += 1
        if written > 3:
            monkeypatch.setattr(os, "write", full)
            monkeypatch.setattr(one_job, "atomic_write", full)
            monkeypatch.setattr(rows_module, "atomic_write", full)
        append(self, line)

    monkeypatch.setattr(store.JsonlAppender, "append", until_full)
    failed = finished(jobs, job)
    said = (
        "answers.jsonl: the results cannot be written further: No space left on device. What is "
        "there is whole; when this is fixed, Go on asks the rest."
    )
    assert (failed.state, failed.message) == ("failed", said)
    assert Job.read(job.folder).state == "working"
    view = view_job(jobs, job.id)
    assert len(view.answers) == 3
    assert progress_sentence(view) == said
    with pytest.raises(OutputError) as refused:
        write_downloads(view)
    assert job.told(str(refused.value)) == (
        "downloads/answers.jsonl: cannot be written: No space left on device"
    )
    with pytest.raises(UsageError, match="cannot be kept on disk: No space left on device"):
        jobs.submit(job.id)
    assert jobs.open(job.id).message == said
    # An app that is started anew knows of no reason, but of the answers.
    anew = Jobs(jobs.folder.parent, jobs._pipeline, model="nano")
    assert anew.open(job.id).state == "stopped"
    monkeypatch.undo()
    assert finished(jobs, job).state == "done"
    assert len(answers(job)) == job.expected
    monkeypatch.setattr(one_job, "atomic_write", full)
    jobs.remove(job.id)
    assert not list(jobs.folder.iterdir())


def test_a_waiting_job_is_stopped_and_removed_on_a_full_disk(
    make_jobs: MakeJobs, slow: SlowPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(lambda: slow)
    first, second = new_job(jobs, CUCKOO), new_job(jobs, CUCKOO)
    at_work(jobs, first)
    jobs.submit(second.id)
    monkeypatch.setattr(one_job, "atomic_write", full)
    jobs.cancel(second.id)
    assert Job.read(second.folder).state == "waiting"
    assert jobs.open(second.id).state == "stopped"
    jobs.remove(second.id)
    monkeypatch.undo()
    slow.steps.release(100)
    assert rested(jobs, first).state == "done"


QUOTA = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
"""


def test_a_file_that_may_not_grow_ends_a_job_with_the_reason(fake_jobs: Jobs) -> None:
    job = new_job(fake_jobs, HEATH, settings=FINE)
    done = subprocess.run(
        [sys.executable, "-c", QUOTA + OTHER_APP.replace("0.05", "0"), *named(fake_jobs, job)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["begun", "failed"], done.stderr
    view = view_job(fake_jobs, job.id)
    assert progress_sentence(view).startswith(
        "answers.jsonl: the results cannot be written further: File too large."
    )
    before = view.answers
    assert 0 < len(before) < job.expected
    assert finished(fake_jobs, job).state == "done"
    assert view_job(fake_jobs, job.id).answers[: len(before)] == before


def test_a_job_is_not_begun_where_the_disk_is_nearly_full(
    make_jobs: MakeJobs, tmp_path: Path
) -> None:
    jobs = make_jobs()
    job = new_job(jobs, CUCKOO)
    nearly = make_jobs(free_bytes=10**18)
    with pytest.raises(UsageError, match=r"The disk of this computer is full: .* 1000000000 GB"):
        new_job(nearly, CUCKOO)
    with pytest.raises(UsageError, match=r"are to stay free, and .* more are needed"):
        nearly.submit(job.id)
    assert jobs.open(job.id).state == "stopped"
    nearly.remove(job.id)
    assert not list(jobs.folder.iterdir())


# questionnaires

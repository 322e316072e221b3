"""Jobs: what they keep on disk, how they run and stop; what the page shows and gives of them."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from web_app import ASSETS, ROOT

from NatureLM.app import job_view
from NatureLM.app import jobs as work
from NatureLM.app.clips import shown_name
from NatureLM.app.job_form import MOST_QUESTIONS, lengths_of, makes_html, settings_of
from NatureLM.app.job_sound import OVERVIEW_COLUMNS, JobSound
from NatureLM.app.job_tabs import MOST_REMEMBERED, choices, remember
from NatureLM.app.job_view import (
    MOST_MARKS,
    NAMED,
    PAGE_ROWS,
    Answer,
    JobView,
    count_html,
    progress_sentence,
    recordings_html,
    status_html,
    timeline,
    view_job,
    write_download,
    write_downloads,
)
from NatureLM.app.jobs import Job, JobRecording, Jobs, safe_name
from NatureLM.app.settings import Limits
from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.cli.main import naturelm_app
from NatureLM.config import Config
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.formats import FORMATS
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import AskOptions
from NatureLM.reports.spectrogram import BINS, pooled
from NatureLM.results import store, tables
from NatureLM.results.rows import OutputError, WindowRow, from_line, read_rows, to_line
from NatureLM.survey.questionnaire import read_questionnaire

CUCKOO = ASSETS / "synthetic_common_cuckoo.flac"
HEATH = ASSETS / "synthetic_heath_at_dusk.ogg"
OWL = ASSETS / "synthetic_barn_owl.flac"
SETTINGS = AskOptions(queries=("What is the common name?",))
QUERIES = ("What is the common name?", "Caption the audio")
HALF = AskOptions(QUERIES, merging_alpha=0.5, hop_length_seconds=5.0)
OPTIONS = {"max_new_tokens": 4, "num_beams": 1}
CONFIG = Config.model_validate({"generate": OPTIONS})


@pytest.fixture(scope="module")
def pipeline(nano: Any) -> Pipeline:
    return Pipeline(nano, config=CONFIG)


MakeJobs = Callable[..., Jobs]


@pytest.fixture
def make_jobs(tmp_path: Path, pipeline: Pipeline) -> Iterator[MakeJobs]:
    made: list[Jobs] = []

    def make(asked: Callable[[], Any] = lambda: pipeline, model: str = "nano", **some: int) -> Jobs:
        made.append(Jobs(tmp_path / "runs", asked, model=model, limits=Limits(**some)))
        return made[-1]

    yield make
    for jobs in made:
        jobs.close()


@pytest.fixture
def jobs(make_jobs: MakeJobs) -> Jobs:
    return make_jobs()


def new_job(jobs: Jobs, *paths: Path, settings: AskOptions = SETTINGS) -> Job:
    return jobs.create("folder", [(path, path.name) for path in paths], settings)


def done_job(jobs: Jobs, *paths: Path, settings: AskOptions = SETTINGS) -> Job:
    """A new job that is begun and has come to rest."""
    job = new_job(jobs, *paths, settings=settings)
    jobs.submit(job.id)
    return rested(jobs, job)


def rested(jobs: Jobs, job: Job) -> Job:
    assert jobs.wait(job.id, 120)
    return jobs.open(job.id)


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


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 s in vain"
        time.sleep(0.01)


def answers(job: Job) -> list[Any]:
    return list(read_rows(job.answers_path)) if job.answers_path.exists() else []


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
    wait_for(lambda: len(answers(job)) == 1)
    assert jobs.open(job.id).state == "working"
    jobs.cancel(job.id)
    assert jobs.is_stopping(job.id)
    slow.steps.release()
    assert rested(jobs, job).state == "stopped"
    before = answers(job)
    assert 0 < len(before) < job.expected
    slow.steps.release(100)
    jobs.submit(job.id)
    assert rested(jobs, job).state == "done"
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
    jobs.submit(first.id)
    wait_for(lambda: jobs.open(first.id).state == "working")
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
    wait_for(lambda: jobs.open(first.id).state == "working")
    slow.steps.release()
    jobs.close()
    assert Job.read(first.folder).state == Job.read(second.folder).state == "stopped"
    with pytest.raises(UsageError, match="being closed"):
        jobs.submit(first.id)


def test_other_model_does_not_mix_answers(make_jobs: MakeJobs) -> None:
    job = done_job(make_jobs(), CUCKOO)
    before = answers(job)
    other = make_jobs(model="another")
    other.submit(job.id)
    failed = rested(other, job)
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
    jobs.submit(job.id)
    wait_for(lambda: jobs.open(job.id).state == "working")
    with pytest.raises(UsageError, match="stop it"):
        jobs.remove(job.id)
    slow.steps.release(100)
    rested(jobs, job)
    jobs.remove(job.id)
    with pytest.raises(UsageError, match="removed"):
        jobs.open(job.id)
    assert not list(jobs.folder.iterdir())


@pytest.fixture(scope="module")
def done(
    tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline
) -> Iterator[tuple[Jobs, Job]]:
    """A finished job about two recordings and one file that is none."""
    folder = tmp_path_factory.mktemp("jobs")
    text = folder / "=notes.wav"
    text.write_text("no sound")
    jobs = Jobs(folder / "runs", lambda: pipeline, model=str(ROOT / "nano"))
    job = done_job(jobs, OWL, text, HEATH, settings=HALF)
    assert job.state == "done"
    yield jobs, job
    jobs.close()


@pytest.fixture
def view(done: tuple[Jobs, Job]) -> JobView:
    jobs, job = done
    return view_job(jobs, job.id)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
    result = CliRunner().invoke(
        naturelm_app, [*arguments, "--device", "cpu", "--output-path", str(output)]
    )
    assert result.exit_code == 3, result.output
    rows, expected = rows_of(job.answers_path), rows_of(output)
    for row, other in zip(rows, expected, strict=True):
        assert row.pop("confidence", None) == pytest.approx(other.pop("confidence", None), abs=1e-5)
        assert row == other


def test_downloads_hold_the_answers_under_the_names_of_the_user(view: JobView) -> None:
    table_path, raven_path, jsonl_path = write_downloads(view)
    rows = rows_of(jsonl_path)
    assert [row["audio_path"] for row in rows if "error" in row] == ["=notes.wav"]
    assert {row["audio_path"] for row in rows} == {OWL.name, HEATH.name, "=notes.wav"}
    table = list(csv.DictReader(io.StringIO(table_path.read_text("utf-8-sig"), newline="")))
    assert [(row["recording"], row["text"]) for row in table if not row["error"]] == [
        (row["audio_path"], row["text"]) for row in rows if "error" not in row
    ]
    assert [row["recording"] for row in table if row["error"]] == ["'=notes.wav"]
    for path in (table_path, raven_path, jsonl_path):
        text = path.read_text("utf-8")
        assert "00001-" not in text.replace(str(view.job.folder.parent), "")
    raven = list(csv.DictReader(raven_path.open(), delimiter="\t", quoting=csv.QUOTE_NONE))
    heath = [row for row in raven if row["Begin File"] == HEATH.name]
    owl_seconds = soundfile.info(OWL).duration
    for row in heath:
        begin, offset = float(row["Begin Time (s)"]), float(row["File Offset (s)"])
        assert begin == pytest.approx(owl_seconds + offset, abs=1e-6)
    said = [row for row in rows if row.get("text") and row["audio_path"] == HEATH.name]
    assert [row["Annotation"] for row in heath] == [
        row["text"] for row in said if row["text"] != "None"
    ]
    assert {row["Begin Path"] for row in raven} <= {OWL.name, HEATH.name}


def test_view_says_how_far_every_recording_is(view: JobView) -> None:
    owl, notes, heath = recordings_html(view).split("<tr ")[1:]
    assert [re.findall('data-state="(.*?)"', one) for one in (owl, notes, heath)] == [
        ["done"],
        ["error"],
        ["done"],
    ]
    answers = 2 * view.job.recordings[0].windows
    assert f'max="{answers}" value="{answers}"' in owl
    assert "<td>=notes.wav: this is not an audio file" in notes
    assert view.share == 1.0
    assert progress_sentence(view) == f"Done: {view.job.expected} answers, 1 recording with errors."


def test_timeline_holds_the_windows_in_order(view: JobView) -> None:
    heath = view.job.recordings[2]
    data = timeline(view, heath, QUERIES[1])
    starts = [one["start"] for one in data["windows"]]
    assert starts == [5.0 * n for n in range(heath.windows)]
    assert data["windows"][-1]["end"] == pytest.approx(heath.seconds)
    assert sum(one["count"] for one in data["legend"]) == heath.windows
    by_start = {
        row.start: row.text
        for row in view.answers
        if row.query == QUERIES[1] and row.file == heath.file
    }
    for one in data["windows"]:
        assert one["text"] == by_start[one["start"]]
        assert data["legend"][one["colour"]]["label"] in (one["text"], "(nothing)")
    json.dumps(data)


@given(st.lists(st.text(max_size=3), max_size=40))
def test_every_answer_has_the_colour_of_its_name(texts: list[str]) -> None:
    rows = [Answer("f", 10.0 * n, 10.0 * n + 10, "q", text) for n, text in enumerate(texts)]
    library_job = Job(
        Path("x"), "long", "done", "", AskOptions(("q",)), (_recording("f", 10.0 * len(texts)),)
    )
    data = timeline(JobView(library_job, tuple(rows), {}), library_job.recordings[0], "q")
    assert [one["text"] for one in data["windows"]] == texts
    assert len(data["legend"]) <= NAMED + 1
    assert sum(one["count"] for one in data["legend"]) == len(texts)
    counts = [one["count"] for one in data["legend"][:NAMED]]
    assert counts == sorted(counts, reverse=True)
    styles = {one["text"]: one["colour"] for one in data["windows"]}
    for one in data["windows"]:
        assert one["colour"] == styles[one["text"]] < len(data["legend"])


def _recording(file: str, seconds: float) -> JobRecording:
    return JobRecording(f"{file}.wav", file, 1, seconds, 16_000, round(seconds / 10))


MARKUP = "<img src=x onerror=alert(1)>{{evil}}${1+1}"


def test_markup_is_shown_as_text(view: JobView) -> None:
    job = view.job
    shown = JobView(
        Job(
            Path("x"), "folder", "failed", MARKUP, job.settings, (_recording(MARKUP, 10.0),), MARKUP
        ),
        (),
        {MARKUP: MARKUP},
    )
    for html in (status_html(shown), recordings_html(shown)):
        assert "<img" not in html
    assert "&lt;img" in status_html(shown)


def test_table_has_the_columns_that_differ(view: JobView) -> None:
    table = view.table(view.answers)
    headers = ["Recording", "From (s)", "To (s)", "Answer", "Confidence", "Question"]
    assert table["headers"] == view.headers == headers
    assert len(table["data"]) == len(view.answers)
    first = dict(zip(headers, table["data"][0], strict=True))
    assert first["Recording"] == OWL.name
    assert first["Answer"] == view.answers[0].text


def test_windows_without_sound_are_shown_as_such(view: JobView) -> None:
    job, first = view.job, view.answers[0]
    silent = first._replace(text="silent, not asked", confidence=None, others="", note="silent")
    shown = JobView(job, (*[silent] * 101, first), {})
    assert shown.has_confidence
    assert "silent, not asked" in shown.table([silent])["data"][0]
    assert shown.filtered("silent", 0.0) == [silent] * 101
    assert shown.filtered("", 1e-9) == [first]
    recording = next(one for one in job.recordings if first.file == one.file)
    data = timeline(shown, recording, first.query)
    assert data["legend"][0]["label"] == "silent, not asked"
    assert "102 answers, 101 of them without sound and not asked" in progress_sentence(shown)


def test_filter_finds_all_words_anywhere(view: JobView) -> None:
    assert view.filtered("HEATH caption", 0.0) == [
        row for row in view.answers if row.query == QUERIES[1] and "heath" in view.name_of(row)
    ]
    assert view.filtered("", 0.0) == view.answers
    sure = view.filtered("", 0.02)
    assert sure == [row for row in view.answers if (row.confidence or 0.0) >= 0.02]
    assert view.filtered("heath zebra", 0.0) == []


def fields(**changes: Any) -> list[Any]:
    """Values of the form of a job."""
    values: dict[str, Any] = {
        **{"questions": "What?", "alpha": 1.0, "window": 10, "hop": 10, "channel": "mean"},
        **{"expansion": 1.0, "names": "", "preset": None, "sure": 0.0},
    }
    return list({**values, **changes}.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"questions": " \n"}, "no question"),
        ({"questions": "\n".join(f"q{n}" for n in range(MOST_QUESTIONS + 1))}, "questions"),
        ({"questions": "x" * 3000}, "2,000"),
        ({"alpha": None}, "not filled in"),
        ({"alpha": float("nan")}, "α"),
        ({"window": 0}, "0.1 to 10"),
        ({"window": 11}, "0.1 to 10"),
        ({"hop": -1}, "step"),
        ({"channel": "../1"}, "channel"),
        ({"channel": "0"}, "channel"),
        ({"expansion": 0}, "slowing"),
        ({"names": "Barn Owl", "sure": 2}, "least confidence"),
    ],
)
def test_fields_that_cannot_be_are_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        settings_of(fields(**change), tmp_path, Limits())


def test_questions_are_one_on_each_line(tmp_path: Path) -> None:
    made = settings_of(fields(questions=" a \n\nb\na", channel="2"), tmp_path, Limits())
    assert made.queries == ("a", "b")
    assert made.channel == 2


@given(st.lists(st.text(max_size=4)), st.text(min_size=1, max_size=4))
def test_newest_job_is_remembered_first_and_once(before: list[str], job: str) -> None:
    after = remember(before, job)
    assert after[0] == job
    assert after.count(job) == 1
    assert len(after) <= MOST_REMEMBERED


def test_what_a_browser_remembers_is_not_trusted(done: tuple[Jobs, Job]) -> None:
    jobs, job = done
    for odd in (None, "x", 7, {"a": 1}, [None, 7, "../..", "x" * 32]):
        assert choices(odd, jobs, "folder") == []
    ((label, found),) = choices([job.id, "gone"], jobs, "folder")
    assert found == job.id
    assert "synthetic_barn_owl.flac and 2 more" in label
    assert choices([job.id], jobs, "long") == []


def drawn(jobs: Jobs, samples: Any, rate: int, **settings: Any) -> tuple[Job, JobSound]:
    """A job about samples, and what draws it."""
    path = jobs.folder.parent / "sound.wav"
    path.parent.mkdir()
    soundfile.write(path, samples, rate)
    job = new_job(jobs, path, settings=AskOptions(("q",), **settings))
    return job, JobSound(jobs, lambda: 16_000)


def tone(hertz: float, seconds: float, rate: int, from_second: float = 0.0) -> Any:
    times = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * times) * (times >= from_second)).astype(np.float32)


def test_overview_shows_the_sound_where_it_is(jobs: Jobs) -> None:
    job, sound = drawn(jobs, tone(2000, 65.0, 16_000, from_second=40.0), 16_000)
    overview = sound.overview(job, job.recordings[0])
    assert overview.levels_FT.shape[1] <= OVERVIEW_COLUMNS
    assert overview.levels_FT.shape[1] * overview.column == pytest.approx(65.0, abs=overview.column)
    row = overview.levels_FT[round(2000 / 8000 * BINS)]
    first_loud = int((row > 200).argmax()) * overview.column
    assert first_loud == pytest.approx(40.0, abs=0.05)
    assert (row[int(41 / overview.column) : int(64 / overview.column)] > 200).all()


def test_overview_of_slowed_down_sound_keeps_the_times(jobs: Jobs) -> None:
    samples = tone(40_000, 4.0, 192_000, from_second=3.0)
    job, sound = drawn(jobs, samples, 192_000, time_expansion=10.0)
    overview = sound.overview(job, job.recordings[0])
    row = overview.levels_FT[round(4000 / 8000 * BINS)]
    assert int((row > 200).argmax()) * overview.column == pytest.approx(3.0, abs=0.01)
    wav = sound.heard(job, job.recordings[0], 3.0, 4.0)
    samples, rate = soundfile.read(io.BytesIO(wav))
    assert rate == 16_000
    assert len(samples) == 160_000
    peak = int(np.abs(np.fft.rfft(samples)).argmax()) / 10
    assert peak == pytest.approx(4000, abs=1)


def test_pictures_of_any_stretch_are_pictures(done: tuple[Jobs, Job]) -> None:
    jobs, job = done
    looking = JobSound(jobs, lambda: 16_000)
    heath = job.recordings[2]
    for start, end, columns in ((0, 1e9, 800), (3, 3, 800), (-5, 2, 10**9), (1e9, 2e9, 1)):
        assert looking.stretch(job, heath, start, end, columns).startswith(b"\x89PNG")
    assert list((job.folder / "pictures").glob("*.npy"))
    with pytest.raises(UsageError, match="start and an end"):
        looking.stretch(job, heath, float("nan"), 1.0, 10)
    with pytest.raises(UsageError, match="cannot be read"):
        looking.stretch(job, job.recordings[1], 0.0, 1.0, 10)


@given(st.integers(1, 300), st.integers(1, 100))
def test_pooling_keeps_the_loudest(columns: int, wanted: int) -> None:
    levels = np.random.default_rng(columns).integers(0, 255, (3, columns), dtype=np.uint8)
    made = pooled(levels, wanted)
    assert made.shape == (3, min(columns, wanted))
    np.testing.assert_array_equal(made.max(axis=1), levels.max(axis=1))


FINE = AskOptions(("What?",), window_length_seconds=0.5, hop_length_seconds=0.5)
ELSEWHERE = "another app that uses the same folder of runs has this job: "


def test_a_job_of_another_app_is_seen_and_left_alone(
    make_jobs: MakeJobs, slow: SlowPipeline
) -> None:
    here, there = make_jobs(), make_jobs(lambda: slow)
    job, second = (new_job(there, HEATH) for _ in range(2))
    there.submit(job.id)
    there.submit(second.id)
    slow.steps.release()
    wait_for(lambda: len(answers(job)) == 1)
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
    here.submit(second.id)
    assert rested(here, second).state == "done"
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


def other_app(jobs: Jobs, job: Job) -> subprocess.Popen[str]:
    """A process of its own that works on the job, an answer in 50 ms."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_APP, str(jobs.folder.parent), job.id],
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
    wait_for(lambda: len(view_job(fake_jobs, job.id).answers) > 2)
    assert view_job(fake_jobs, job.id).is_elsewhere
    with pytest.raises(UsageError, match="another app"):
        fake_jobs.submit(job.id)
    process.kill()
    process.wait()
    view = view_job(fake_jobs, job.id)
    before = view.answers
    assert (view.job.state, view.is_elsewhere) == ("stopped", False)
    assert 2 < len(before) < job.expected
    fake_jobs.submit(job.id)
    assert rested(fake_jobs, job).state == "done"
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
    monkeypatch.setattr(work, "_TURN", (1, 2))
    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: 0.0))
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
    wait_for(lambda: bool(turns))
    others.submit(short.id)
    third = new_job(others, HEATH, settings=HALF)
    others.submit(third.id)
    gate.set()
    for job in (long, short, third):
        assert others.wait(job.id, 60)
        assert others.open(job.id).state == "done"
    assert turns[:4] == [long.id, short.id, third.id, long.id]
    assert turns.count(long.id) > 3

    def content(job: Job) -> str:
        return job.answers_path.read_text().replace(job.id, "")

    assert content(long) == content(alone)
    assert len(view_job(others, third.id).answers) == third.expected


def test_a_job_that_lets_others_go_first_can_be_stopped_and_says_so(
    make_jobs: MakeJobs, slow: SlowPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_TURN", (1, 1))
    monkeypatch.setattr(work, "time", SimpleNamespace(monotonic=lambda: 0.0))
    gate = threading.Event()
    jobs = make_jobs(lambda: gate.wait(30) and slow)
    first, second = (new_job(jobs, HEATH, CUCKOO, settings=FINE) for _ in range(2))
    jobs.submit(first.id)
    jobs.submit(second.id)
    gate.set()
    slow.steps.release(3)  # first, second, first
    wait_for(lambda: len(answers(first)) == 2 and jobs.open(second.id).state == "working")
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
    windows = work.windows_of(soundfile.info(HEATH).duration, some)
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


@pytest.mark.parametrize(
    ("lengths", "changes", "said"),
    [
        ([], {}, ""),
        ([None], {}, ""),
        ([10.0], {}, "About 1 answer: 1 window."),
        ([86_400.0], {}, "About 8,640 answers: 8,640 windows."),
        (
            [100.0, None, 50.0],
            {"questions": "a\nb", "hop": 5},
            "About 56 answers: 28 windows, 2 questions about each.",
        ),
        ([10.0], {"expansion": 10}, "About 10 answers: 10 windows."),
        ([10.0], {"hop": 0}, "The step from window to window is 0, and it must be"),
        ([], {"hop": 0}, ""),
        (
            [86_400.0],
            {"questions": "\n".join("abcdefghij"), "hop": 0.1},
            "This makes 8,639,010 answers (863,901 windows × 10 questions), and a job may have "
            "200,000: take a longer step from window to window (0.1 s now)",
        ),
    ],
)
def test_how_many_answers_there_will_be_is_said_before(
    lengths: list[float | None], changes: dict[str, Any], said: str
) -> None:
    html = makes_html(lengths, fields(**changes), Limits())
    assert said in html
    assert bool(html) == bool(said)


def test_lengths_are_those_of_headers_and_not_of_more_files_than_a_job_takes(
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    files = [CUCKOO, bad, tmp_path / "gone.wav", OWL]
    assert lengths_of(files, Limits(folder_files=3)) == [
        pytest.approx(soundfile.info(CUCKOO).duration),
        None,
        None,
    ]


def test_folders_of_jobs_are_the_owners_alone(jobs: Jobs) -> None:
    before = os.umask(0)
    try:
        job = done_job(jobs, CUCKOO)
    finally:
        os.umask(before)
    for folder in (jobs.folder, job.folder, job.folder / "recordings"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    job.folder.chmod(0o755)  # as older versions made it
    jobs.submit(job.id)
    rested(jobs, job)
    assert stat.S_IMODE(job.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{recording}: is damaged", "=notes.wav: is damaged"),
        ("{folder}/answers.jsonl: cannot be written", "answers.jsonl: cannot be written"),
        ('model: "/srv/my models/x" there', None),
        ('model: "/srv/models/tiny" there, "nano" now', 'model: "tiny" there, "nano" now'),
        ("C:\\data\\secret\\x.wav: gone", "x.wav: gone"),
        ("see https://example.org/a/b and and/or 1/2", None),
        (
            "{folder}/answers.jsonl: the results cannot be written further: No space left on "
            "device. What is there is whole; when this is fixed, the same command goes on from "
            "there.",
            "answers.jsonl: the results cannot be written further: No space left on device. What "
            "is there is whole; when this is fixed, Go on asks the rest.",
        ),
    ],
)
def test_messages_hold_no_folders_of_the_computer(view: JobView, text: str, told: str) -> None:
    job = view.job
    text = text.format(folder=job.folder, recording=job.recording_paths[1])
    shown = job.told(text)
    if told is None:
        assert "/srv" not in shown
        assert shown == text or "srv" in text
    else:
        assert shown == told


def test_nothing_that_is_shown_or_given_holds_a_path(
    done: tuple[Jobs, Job], tmp_path: Path
) -> None:
    """Neither after the folder of jobs was moved, whose rows name where they were."""
    jobs, job = done
    moved = Jobs(tmp_path / "moved", lambda: None, model="m")  # type: ignore[arg-type, return-value]
    shutil.copytree(jobs.folder, moved.folder)
    for one in (jobs, moved):
        view = view_job(one, job.id)
        shown = [status_html(view), recordings_html(view), json.dumps(view.table(view.answers))]
        shown += [path.read_text("utf-8-sig") for path in write_downloads(view)]
        shown.append(json.dumps(timeline(view, job.recordings[0], QUERIES[0])))
        for text in shown:
            for path in (jobs.folder, jobs.folder.parent, tmp_path, ROOT):
                assert str(path) not in text
        assert "=notes.wav: this is not an audio file" in view.errors[job.recordings[1].file]


def grown_job(jobs: Jobs, count: int, recordings: int = 1) -> tuple[Job, Callable[[int], None]]:
    """A stopped job, and what adds so many answers to its file, from `count` on."""
    job = new_job(jobs, *[CUCKOO] * recordings, settings=AskOptions(("q",)))
    path = str(job.recording_paths[0])
    row = WindowRow(
        *(path, 12345.0, 12355.0, "q", "Barn Owl 54321", 1.0, 0.5, (("Dog", 0.01),)),
        model="m",
        run="r",
    )
    line = to_line(row).decode()
    written = 0

    def add(many: int) -> None:
        nonlocal written
        with job.answers_path.open("a") as file:
            for n in range(written, written + many):
                at = line.replace("12345.0", f"{10 * n}.0").replace("12355.0", f"{10 * n + 10}.0")
                file.write(at.replace("54321", str(n % 7)))
        written += many

    add(count)
    job.with_state("stopped").write()
    return job, add


def test_answers_are_read_on_from_where_they_ended(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, add = grown_job(jobs, 1000)
    read: list[int] = []

    def counted(line: bytes, name: str, number: int) -> Any:
        read.append(number)
        return from_line(line, name, number)

    monkeypatch.setattr(job_view, "from_line", counted)
    first = view_job(jobs, job.id).answers
    assert read == list(range(1, 1001))
    read.clear()
    assert view_job(jobs, job.id).answers is first
    add(3)
    with job.answers_path.open("a") as file:
        file.write('{"audio_path": "torn')
    assert len(view_job(jobs, job.id).answers) == 1003
    assert read == [1001, 1002, 1003]
    lines = job.answers_path.read_bytes().splitlines(keepends=True)
    job.answers_path.unlink()
    job.answers_path.write_bytes(b"".join(lines[:5]))  # as where rows of errors are taken out
    assert view_job(jobs, job.id).answers == first[:5]
    add(1)
    with job.answers_path.open("a") as file:
        file.write("no row\n")
    view = view_job(jobs, job.id)
    assert len(view.answers) == 6
    assert view.problem == "The answers cannot be read: answers.jsonl, line 7: this is not JSON."


def test_long_lists_come_in_pages_and_the_filter_is_over_all(jobs: Jobs) -> None:
    job, _ = grown_job(jobs, 2 * PAGE_ROWS + 5)
    view = view_job(jobs, job.id)
    pages = [view.table(view.answers, page)["data"] for page in range(4)]
    assert [len(page) for page in pages] == [PAGE_ROWS, PAGE_ROWS, 5, 0]
    assert [row[0] for page in pages for row in page] == [one.start for one in view.answers]
    found = view.filtered("owl 6", 0.0)
    assert len(found) == (2 * PAGE_ROWS + 5) // 7
    assert "The table shows 2,001 to 2,005." in count_html(2005, 2005, 2)
    assert count_html(7, 2005) == '<p class="about" role="status">7 of 2,005 answers.</p>'


@pytest.mark.parametrize("count", [1, MOST_MARKS, MOST_MARKS + 1, 3 * MOST_MARKS])
def test_a_timeline_is_complete_and_bounded(count: int) -> None:
    answers = [
        Answer("f", 10.0 * n, 10.0 * n + 10, "q", "owl" if n % 3 else "dog") for n in range(count)
    ]
    recording = _recording("f", 10.0 * count)
    job = Job(Path("x"), "long", "done", "", AskOptions(("q",)), (recording,))
    data = timeline(JobView(job, answers, {}), recording, "q")
    marks = data["windows"]
    assert len(marks) <= MOST_MARKS
    assert len(marks) == count or count > MOST_MARKS
    assert marks[0]["start"] == 0
    assert marks[-1]["end"] == 10.0 * count
    assert all(one["end"] == two["start"] for one, two in pairwise(marks))
    assert sum(one["count"] for one in data["legend"]) == count
    if count == 3 * MOST_MARKS:
        assert {one["text"] for one in marks} == {"owl (2 of 3 windows)"}
        assert data["legend"][marks[0]["colour"]]["label"] == "owl"


MEASURE = """
import resource, sys, time
from pathlib import Path
from NatureLM.app.job_view import *
from NatureLM.app.jobs import Jobs

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

jobs, before = Jobs(Path(sys.argv[1]), None, model="m"), peak()
view = view_job(jobs, sys.argv[2])
line = view.job.answers_path.read_bytes().splitlines(keepends=True)[-1]
first = time.process_time()
for _ in range(10):
    with open(view.job.answers_path, "ab") as file:
        file.write(line)
    view = view_job(jobs, sys.argv[2])
    status_html(view), recordings_html(view), view.table(view.filtered("owl", 0.2))
    timeline(view, view.job.recordings[0], "q")
looks = (time.process_time() - first) / 10
write_downloads(view)
print(len(view.answers), peak() - before, looks)
"""


def test_a_page_of_many_answers_takes_little_memory_and_time(jobs: Jobs) -> None:
    """20,000 took 240 MB and 0.6 s a look when all rows were read again and kept."""
    job, _ = grown_job(jobs, 8_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(jobs.folder.parent), job.id],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, megabytes, seconds = map(float, done.stdout.split())
    assert count == 8_010
    assert megabytes < 25
    assert seconds < 0.2


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
            monkeypatch.setattr(work, "atomic_write", full)
            monkeypatch.setattr(tables, "atomic_write", full)
        append(self, line)

    monkeypatch.setattr(store.JsonlAppender, "append", until_full)
    jobs.submit(job.id)
    failed = rested(jobs, job)
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
    jobs.submit(job.id)
    assert rested(jobs, job).state == "done"
    assert len(answers(job)) == job.expected
    monkeypatch.setattr(work, "atomic_write", full)
    jobs.remove(job.id)
    assert not list(jobs.folder.iterdir())


def test_a_waiting_job_is_stopped_and_removed_on_a_full_disk(
    make_jobs: MakeJobs, slow: SlowPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs(lambda: slow)
    first, second = new_job(jobs, CUCKOO), new_job(jobs, CUCKOO)
    jobs.submit(first.id)
    wait_for(lambda: jobs.open(first.id).state == "working")
    jobs.submit(second.id)
    monkeypatch.setattr(work, "atomic_write", full)
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
        [sys.executable, "-c", QUOTA + OTHER_APP.replace("0.05", "0"), *_named(fake_jobs, job)],
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
    fake_jobs.submit(job.id)
    assert rested(fake_jobs, job).state == "done"
    assert view_job(fake_jobs, job.id).answers[: len(before)] == before


def _named(jobs: Jobs, job: Job) -> tuple[str, str]:
    return str(jobs.folder.parent), job.id


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


def test_a_questionnaire_is_a_job_whose_columns_are_questions(jobs: Jobs, tmp_path: Path) -> None:
    values = [*fields(), "frog-chorus"]
    settings = settings_of(values, tmp_path, Limits())
    names = [column.name for column in read_questionnaire("frog-chorus").columns]
    assert list(settings.queries) == names
    job = jobs.create("folder", [(OWL, OWL.name), (OWL, OWL.name)], settings, "frog-chorus")
    assert Job.read(job.folder).questionnaire == "frog-chorus"
    jobs.submit(job.id)
    assert rested(jobs, job).state == "done"
    view = view_job(jobs, job.id)
    assert {one.query for one in view.answers} <= set(names)
    assert timeline(view, job.recordings[0], names[0])["windows"]
    table = write_download(view, "csv").read_text("utf-8-sig")
    assert {names[0], f"{names[0]}_confidence"} <= set(table.splitlines()[0].split(","))
    assert f"1/{OWL.name}" in table  # two recordings have one name
    before = job.answers_path.read_bytes()
    jobs.submit(job.id)
    assert rested(jobs, job).state == "done"
    assert job.answers_path.read_bytes() == before


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_is_offered(view: JobView, name: str) -> None:
    if name == "camtrap-dp":  # it needs times and places
        with pytest.raises(UsageError, match="--deployments"):
            write_download(view, name)
        return
    made = write_download(view, name)
    assert made.stat().st_size > 0
    again = made.stat().st_mtime_ns
    assert write_download(view, name).stat().st_mtime_ns == again


def test_a_questionnaire_that_is_not_there_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no questionnaire"):
        settings_of([*fields(), "../x"], tmp_path, Limits())
    job = jobs.create("folder", [(OWL, OWL.name)], FINE, "gone")
    jobs.submit(job.id)
    failed = rested(jobs, job)
    assert (failed.state, failed.message) == (
        "failed", "there is no questionnaire 'gone' any more"
    )  # fmt: skip

"""What the page shows and gives of a job: progress, timeline, tables, sound; and its form."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from web_app import CUCKOO, FINE, HALF, HEATH, OWL, QUERIES, ROOT, done_job, finished, new_job

from NatureLM.app import job_view
from NatureLM.app.job import Job, JobRecording
from NatureLM.app.job_form import MOST_QUESTIONS, lengths_of, makes_html, settings_of
from NatureLM.app.job_tabs import MOST_REMEMBERED, choices, remember
from NatureLM.app.job_view import (
    PAGE_ROWS,
    Answer,
    JobView,
    count_html,
    progress_sentence,
    recordings_html,
    status_html,
    view_job,
    write_download,
    write_downloads,
)
from NatureLM.app.jobs import Jobs
from NatureLM.app.settings import Limits
from NatureLM.app.timeline import MOST_MARKS, NAMED, OVERVIEW_COLUMNS, JobSound, timeline
from NatureLM.errors import UsageError
from NatureLM.formats import FORMATS
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import AskOptions
from NatureLM.reports.clips import BINS, pooled
from NatureLM.results.rows import WindowRow, from_line, to_line
from NatureLM.survey.questionnaire import read_questionnaire


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


def test_downloads_hold_the_answers_under_the_names_of_the_user(view: JobView) -> None:
    table_path, raven_path, jsonl_path = write_downloads(view)
    rows = commands.rows(jsonl_path)
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
from NatureLM.app.timeline import timeline
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


def test_a_questionnaire_is_a_job_whose_columns_are_questions(jobs: Jobs, tmp_path: Path) -> None:
    values = [*fields(), "frog-chorus"]
    settings = settings_of(values, tmp_path, Limits())
    names = [column.name for column in read_questionnaire("frog-chorus").columns]
    assert list(settings.queries) == names
    job = jobs.create("folder", [(OWL, OWL.name), (OWL, OWL.name)], settings, "frog-chorus")
    assert Job.read(job.folder).questionnaire == "frog-chorus"
    assert finished(jobs, job).state == "done"
    view = view_job(jobs, job.id)
    assert {one.query for one in view.answers} <= set(names)
    assert timeline(view, job.recordings[0], names[0])["windows"]
    table = write_download(view, "csv").read_text("utf-8-sig")
    assert {names[0], f"{names[0]}_confidence"} <= set(table.splitlines()[0].split(","))
    assert f"1/{OWL.name}" in table  # two recordings have one name
    before = job.answers_path.read_bytes()
    assert finished(jobs, job).state == "done"
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
    failed = finished(jobs, job)
    assert (failed.state, failed.message) == (
        "failed", "there is no questionnaire 'gone' any more"
    )  # fmt: skip

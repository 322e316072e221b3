"""Files that visitors give: names, limits, clips, pictures, what is said of bad ones; clips of jobs
are reviewed by whoever has the link of the job.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from review_folders import make_clips
from web_app import ASSETS, RunningApp, call, go_to

from NatureLM.app.clips import ClipList, check_free, shown_name, take
from NatureLM.app.job_form import lengths_of
from NatureLM.app.jobs import Jobs
from NatureLM.app.reviews import clips_folder, reviews_html
from NatureLM.app.settings import Limits
from NatureLM.app.ui import player
from NatureLM.errors import UsageError
from NatureLM.inference.windows import AskOptions
from NatureLM.results.rows import Prediction, RunSettings
from NatureLM.results.store import WindowStore
from NatureLM.review.folder import VerdictStore, read_verdicts
from NatureLM.util import format_bytes, format_duration

Sounds = dict[str, Path]


@pytest.fixture
def shelf(tmp_path: Path, limits: Limits) -> ClipList:
    """A place for two clips."""
    return ClipList(tmp_path, limits, most=2)


@given(st.text())
def test_names_are_shown_without_folders_or_control_characters(name: str) -> None:
    shown = shown_name(name)
    assert shown
    assert shown.isprintable()
    assert not {"/", "\\"} & set(shown)
    assert len(shown) <= 120


@pytest.mark.parametrize("name", ["a/../../etc/passwd.wav", "..wav", "x.w/../av", "ü ß.flac"])
def test_kept_files_have_names_of_the_app(name: str, tmp_path: Path, limits: Limits) -> None:
    given_file = tmp_path / "given" / name.replace("/", "_")
    given_file.parent.mkdir()
    given_file.write_bytes(b"sound")
    kept = take(given_file, tmp_path / "kept", limits)
    assert kept.parent == tmp_path / "kept"
    assert kept.read_bytes() == b"sound"
    assert len(kept.stem) == 16
    assert kept.suffix in ("", ".wav", ".flac")


def test_files_that_are_too_large_are_refused(tmp_path: Path, limits: Limits) -> None:
    (tmp_path / "big.wav").write_bytes(bytes(3000))
    with pytest.raises(UsageError, match=r"big\.wav has 3 kB, and a file may have 2 kB"):
        take(tmp_path / "big.wav", tmp_path, replace(limits, upload_bytes=2048))


@pytest.mark.parametrize(
    ("free", "needed", "said"),
    [
        (3000, 0, None),
        (3000, 2000, None),
        (2999, 2000, "3 kB are free, 1 kB are to stay free, and 2 kB more are needed."),
        (999, 0, "999 bytes are free, 1 kB are to stay free, and nothing more is taken."),
    ],
)
def test_a_full_disk_takes_nothing_and_is_named_in_the_log_alone(
    free: int,
    needed: int,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    limits, folder = Limits(free_bytes=1000), tmp_path / "not" / "yet"
    if said is None:
        check_free(folder, limits, needed)
        return
    with pytest.raises(UsageError) as refused:
        check_free(folder, limits, needed)
    assert str(refused.value) == (
        f"The disk of this computer is full: {said} Remove jobs that are done, or ask whoever "
        "runs this page to make room."
    )
    assert str(tmp_path) in caplog.text
    if not needed:
        (tmp_path / "sound.wav").write_bytes(b"sound")
        with pytest.raises(UsageError, match="is full: 999 bytes are free"):
            take(tmp_path / "sound.wav", folder, limits)
        assert not folder.exists()


def test_sizes_and_durations_in_words() -> None:
    limits = Limits()
    assert format_bytes(limits.upload_bytes) == "4 GB"
    assert format_bytes(limits.list_bytes) == "1 MB"
    seconds = (0.1, 6.4, 60, 200, 3600, 7500)
    said = ["0.1 s", "6.4 s", "1 min", "3 min 20 s", "1 h", "2 h 5 min"]
    assert [format_duration(n, short=True) for n in seconds] == said


def test_a_clip_has_the_windows_and_samples_that_the_model_hears(
    sounds: Sounds, shelf: ClipList
) -> None:
    clip = shelf.open(sounds["long"])
    assert clip.spans == ((0.0, 10.0), (10.0, 20.0), (20.0, 25.0))
    heard, rate = soundfile.read(clip.sound, dtype="float32")
    assert (rate, len(heard)) == (16_000, 400_000)
    part = replace(clip, chosen=2).samples()
    np.testing.assert_allclose(part, heard[320_000:], atol=1e-4)
    assert clip.image.stat().st_size < 200_000


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("empty", "empty.wav: the file is empty"),
        ("text", "notes.txt: "),
        ("corrupt", "corrupt.flac: "),
        ("tiny", "tiny.wav: the sound lasts 0.0100 s"),
    ],
)
def test_bad_files_are_named_as_their_owner_knows_them(
    kind: str, said: str, sounds: Sounds, shelf: ClipList, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        shelf.open(sounds[kind])
    assert str(caught.value).startswith(said)
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_hour_belongs_elsewhere_and_is_kept_for_that(sounds: Sounds, shelf: ClipList) -> None:
    (problem,) = shelf.put([(sounds["hour"], None)], add=False)
    assert problem.startswith("hour.flac lasts 1 h. A clip may last 5 min at most")
    assert shelf.clips == []
    assert shelf.too_long is not None
    kept, name = shelf.too_long
    assert Path(kept).is_file()
    assert name == "hour.flac"


def test_unusual_clips_say_what_is_unusual(sounds: Sounds, shelf: ClipList) -> None:
    def notes(kind: str, slowed: float = 1.0) -> str:
        clip = shelf.open(sounds[kind], slowed=slowed)
        assert all(f"<li>{note}</li>" in player(clip) for note in clip.notes)
        return " ".join(clip.notes)

    assert notes("tone") == ""
    assert notes("short") == ""
    assert "silent" in notes("silent")
    assert "2 channels" in notes("stereo")
    assert "above 8 kHz" in notes("bat")
    assert notes("bat", slowed=10) == ""


def test_a_slowed_clip_keeps_its_own_times(sounds: Sounds, shelf: ClipList) -> None:
    clip = shelf.open(sounds["bat"], slowed=10)
    assert clip.seconds == pytest.approx(0.5)
    assert len(clip.samples()) == 80_000
    assert "80 kHz" in player(clip)


def test_names_and_labels_are_escaped(sounds: Sounds, shelf: ClipList) -> None:
    clip = shelf.open(sounds["tone"], name='"><script>x</script>')
    html = player(replace(clip, label="<b>"), 1)
    assert "<script" not in html
    assert "<b>" not in html


def test_a_shelf_keeps_what_it_has_when_nothing_comes(sounds: Sounds, shelf: ClipList) -> None:
    assert shelf.put([(sounds["tone"], None)], add=False) == []
    assert len(shelf.put([(sounds["text"], None)], add=False)) == 1
    assert [clip.name for clip in shelf.clips] == ["tone.wav"]
    problems = shelf.put([(sounds["short"], None), (sounds["tone"], None)], add=True)
    assert [clip.name for clip in shelf.clips] == ["tone.wav", "short.wav"]
    assert "2 clips fit" in problems[0]
    shelf.put([(sounds["silent"], None)], add=False)
    assert [clip.name for clip in shelf.clips] == ["silent.wav"]
    shelf.choose(shelf.clips[0].id, 5)
    assert shelf.clips[0].chosen == 0
    for _ in range(6):
        shelf.put([(sounds["short"], None)], add=False)
    assert len(list(shelf.folder.iterdir())) <= 3 * 5


@pytest.mark.parametrize("door", ["clip", "job", "lengths"])
def test_a_recording_without_a_length_is_decoded_no_further_than_the_longest(
    tmp_path: Path, door: str
) -> None:
    whole = io.BytesIO()
    soundfile.write(whole, np.zeros(16000 * 60, np.float32), 16000, format="FLAC")
    content = whole.getvalue()
    total = (int.from_bytes(content[18:26], "big") >> 36 << 36).to_bytes(8, "big")
    given = tmp_path / "meadow.flac"
    given.write_bytes(content[:18] + total + content[26:-7])  # nor has it a last frame
    limits = Limits(long_seconds=30)
    if door == "lengths":
        assert lengths_of([given], limits) == [None]
        return
    clips = ClipList(tmp_path / "kept", limits, most=2)
    jobs = Jobs(tmp_path, lambda: None, model="m", limits=limits)  # type: ignore
    asked = AskOptions(("q",))
    doors = {
        "clip": clips.open,
        "job": lambda path: jobs.create("long", [(path, path.name)], asked),
    }
    with pytest.raises(
        UsageError, match=r"^meadow\.flac: the sound lasts more than 30\.0 s\. At m"
    ):
        doors[door](given)
    assert not list(tmp_path.glob("*/*"))


COW = ASSETS / "synthetic_cow.flac"


def make_job(app: RunningApp, clips: int = 2) -> Any:
    """A job that was made and not begun, with clips of it."""
    job = app.context.jobs.create("folder", [(COW, "cow.flac")], AskOptions(queries=("Which?",)))
    if clips:
        make_clips(clips_folder(job), clips)
    return job


def test_a_verdict_lands_in_the_folder_of_the_job(app: RunningApp) -> None:
    job = make_job(app)
    place = f"{app.address}review/{job.id}/"
    status, page = call(place)
    assert status == 200
    assert b"review.js" in page
    told = json.loads(call(f"{place}api/clips")[1])
    assert told["folder"] == f"runs/jobs/{job.id}/clips"
    assert str(app.context.runs_dir) not in str(told)
    sent = {"clip": told["clips"][1]["clip"], "reviewer": "Ann", "verdict": "no"}
    status, _ = call(f"{place}api/verdicts", json.dumps(sent).encode(), "application/json")
    assert status == 200
    (kept,) = read_verdicts(clips_folder(job))
    assert (kept.clip, kept.reviewer, kept.verdict) == (sent["clip"], "Ann", "no")
    assert call(f"{place}api/clips/0/sound")[1].startswith(b"RIFF")
    assert "Review 2 clips of cow.flac" in reviews_html(app.context, [job.id, job.id, "none"])
    assert "1 reviewed so far" in reviews_html(app.context, [job.id])


@pytest.mark.parametrize("job_id", ["x" * 32, "x", "..", "%2e%2e", "../jobs"])
def test_who_has_no_link_sees_nothing(app: RunningApp, job_id: str) -> None:
    make_job(app)
    assert call(f"{app.address}review/{job_id}/api/clips")[0] in (400, 404)
    assert call(f"{app.address}review/")[0] == 404


def test_a_job_that_is_removed_takes_its_review_along(app: RunningApp) -> None:
    job = make_job(app)
    assert app.context.reviews.count(job.id) == (2, 0)
    app.context.reviews.forget(job.id)
    app.context.jobs.remove(job.id)
    status, said = call(f"{app.address}review/{job.id}/api/clips")
    assert status == 400
    assert b"there are no clips of this job" in said
    assert not job.folder.exists()


def test_clips_that_are_made_anew_are_seen(app: RunningApp) -> None:
    job = make_job(app)
    assert app.context.reviews.count(job.id) == (2, 0)
    make_clips(clips_folder(job), 4)
    assert app.context.reviews.count(job.id) == (4, 0)


def test_a_review_that_another_program_has_is_named_without_paths(app: RunningApp) -> None:
    job = make_job(app)
    with VerdictStore(clips_folder(job)), pytest.raises(UsageError) as refused:
        app.context.reviews.clips(job.id)
    assert str(refused.value) == "another program has this review open: close it there"


@pytest.mark.browser
def test_a_browser_finds_the_clips_of_its_jobs(open_page: Any, app: RunningApp) -> None:
    job = make_job(app)
    page = open_page(app, None, f"?job={job.id}")
    page.wait_for_selector("#folder-panel")  # whoever has the link sees the job at once
    assert page.get_by_role("tab", name="Folder").get_attribute("aria-selected") == "true"
    page.locator("#folder-clips-made").get_by_text("Review 2 clips of cow.flac").wait_for()
    go_to(page, "Review")
    link = page.locator("#review-list").get_by_text("Review 2 clips of cow.flac")
    with page.context.expect_page() as opened:
        link.click()
    review = opened.value
    review.fill("#reviewer", "Ann")
    review.keyboard.press("Enter")
    review.wait_for_selector("#figure:not(.waits)")
    review.keyboard.press("y")
    review.get_by_text("1 of 2 reviewed, 1 to go").wait_for()
    review.keyboard.press("n")
    review.wait_for_selector("#done:not([hidden])")
    assert f"naturelm calibrate runs/jobs/{job.id}/clips" in review.inner_text("#done-text")


def test_clips_are_made_of_the_answers_of_a_job(app: RunningApp) -> None:
    job = make_job(app, clips=0)
    with pytest.raises(UsageError, match="Clips are made of a job that is done"):
        app.context.reviews.make(job)
    asked = job.settings
    with WindowStore(job.answers_path) as store:
        values = {"model": "fake", "merging_alpha": asked.merging_alpha, "queries": ["Which?"]}
        store.begin(RunSettings(values), job.recording_paths)
        store.add(Prediction(str(job.recording_paths[0]), 0, 2, "Which?", "Cow", 1.0, 0.8))
    job = job.with_state("done")
    assert app.context.reviews.make(job) == ""
    assert app.context.reviews.count(job.id) == (1, 0)
    (clip,) = app.context.reviews.clips(job.id).segments
    assert (clip.label, clip.recording) == ("Cow", "cow.flac")
    app.context.reviews.clips(job.id).store.add(clip.clip, "Ann", "yes")
    assert app.context.reviews.make(job) == ""  # verdicts stay
    assert app.context.reviews.count(job.id) == (1, 1)
    with WindowStore(job.answers_path) as store:
        store.begin(RunSettings(values), job.recording_paths)
        store.add(Prediction(str(job.recording_paths[0]), 2, 4, "Which?", "Cow", 1.0, 0.7))
    with pytest.raises(UsageError) as refused:
        app.context.reviews.make(job)
    assert "the answers are others" in str(refused.value)
    assert str(app.context.runs_dir) not in str(refused.value)
    assert "--output-path" not in str(refused.value)

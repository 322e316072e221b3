"""Clips of jobs are reviewed in the app by whoever has the link of the job."""

from __future__ import annotations

import json
from typing import Any

import pytest
from review_folders import make_clips
from web_app import ASSETS, RunningApp, call, go_to

from NatureLM.app.reviews import clips_folder, reviews_html
from NatureLM.errors import UsageError
from NatureLM.inference.windows import AskOptions
from NatureLM.results.rows import Prediction, RunSettings
from NatureLM.results.store import WindowStore
from NatureLM.review.folder import VerdictStore, read_verdicts

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
    page.wait_for_selector("#folder-panel")
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
        store.add_answer(Prediction(str(job.recording_paths[0]), 0, 2, "Which?", "Cow", 1.0, 0.8))
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
        store.add_answer(Prediction(str(job.recording_paths[0]), 2, 4, "Which?", "Cow", 1.0, 0.7))
    with pytest.raises(UsageError) as refused:
        app.context.reviews.make(job)
    assert "the answers are others" in str(refused.value)
    assert str(app.context.runs_dir) not in str(refused.value)
    assert "--output-path" not in str(refused.value)

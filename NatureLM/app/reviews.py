"""Clips of jobs that people review: the tab Review, and the part of a job's panel that leads there.

Who has the link of a job may review its clips. The page of `naturelm review` is mounted at
/review/<id of the job>/; clips and verdicts lie in `clips/` in the job's folder.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import OrderedDict
from contextlib import suppress
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from NatureLM.app.clips import check_free, without_paths
from NatureLM.app.job import Job
from NatureLM.app.job_view import counted
from NatureLM.app.jobs import Jobs
from NatureLM.app.settings import Limits
from NatureLM.app.ui import QUIET, html, notice, on_page_load
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.results.detections import ResultFile
from NatureLM.results.rows import OutputError
from NatureLM.review.folder import index_path, review_path
from NatureLM.review.server import Clips, review_app

if TYPE_CHECKING:
    from NatureLM.app.context import AppContext

CLIPS_FOLDER = "clips"
MOUNTED = "/review/{job}"
_MOST_OPEN = 32  # folders; those that were asked for longest ago are closed
_ABOUT = (
    "<p>A confidence is no chance of being right until somebody has listened. Make clips of the "
    "answers of a job, listen to them, and say yes, no or unsure by keyboard: from the verdicts "
    "<code>naturelm calibrate</code> finds out from which confidence on answers are right as "
    "often as you need.</p>"
)
_EMPTY = (
    "<p>There are no clips yet. Open a job in <em>Folder</em> or <em>Long recording</em>, wait "
    "until it is done, and press <em>Make clips for review</em> below its answers.</p>"
)


class Reviews:
    """The folders of clips that are open for review."""

    def __init__(self, jobs: Jobs, limits: Limits) -> None:
        self._jobs, self._limits = jobs, limits
        self._open: OrderedDict[str, tuple[int, Clips]] = OrderedDict()
        self._lock = threading.Lock()
        self._cutting = threading.Lock()  # one after the other, as each reads whole recordings

    def app(self) -> Any:
        """The application that is mounted at `MOUNTED`."""
        return review_app(lambda request: self.clips(request.path_params["job"]))

    def clips(self, job_id: str) -> Clips:
        """The clips of a job, as they are by now. Raises UsageError where there are none."""
        try:
            folder = clips_folder(self._jobs.open(job_id))
            made = os.stat(index_path(folder)).st_mtime_ns
        except (UsageError, OSError):
            self.forget(job_id)
            raise UsageError("there are no clips of this job: make them in its tab") from None
        with self._lock:
            made_then, found = self._open.get(job_id, (0, None))
            if found is None or made_then != made:
                self._close(job_id)
                found = self._opened(folder, job_id)
                self._open[job_id] = made, found
            self._open.move_to_end(job_id)
            while len(self._open) > _MOST_OPEN:
                self._close(next(iter(self._open)))
        return found

    def make(self, job: Job) -> str:
        """Cut clips out of the recordings of a job; what is missing, in a sentence, or "".

        Raises NatureLMError that says why nothing can be cut.
        """
        from NatureLM.review.cutting import CutOptions, cut_clips

        if not job.is_settled:
            raise UsageError("Clips are made of a job that is done: wait for it, or stop it.")
        check_free(job.folder, self._limits)
        folder, lost = clips_folder(job), list[str]()
        with self._cutting:
            self.forget(job.id)
            if not review_path(folder).exists():  # answers may be others by now
                shutil.rmtree(folder, ignore_errors=True)
            try:
                cut_clips(
                    ResultFile(job.answers_path),
                    folder,
                    CutOptions(),
                    failed=lambda error: lost.append(str(error)),
                )
            except NatureLMError as error:
                said = str(error).replace("Give another --output-path: verdicts", "Verdicts")
                raise UsageError(job.told(said)) from None
        return job.told(" ".join(lost))

    def count(self, job_id: str) -> tuple[int, int]:
        """How many clips of a job there are, and how many of them somebody has reviewed.

        Raises UsageError where there are none.
        """
        clips = self.clips(job_id)
        reviewed = {one.clip for one in clips.store.verdicts()} & clips.numbers.keys()
        return len(clips.segments), len(reviewed)

    def forget(self, job_id: str) -> None:
        """Close the clips of a job, which is about to be removed or has been."""
        with self._lock:
            self._close(job_id)

    def close(self) -> None:
        with self._lock:
            for job_id in list(self._open):
                self._close(job_id)

    def _opened(self, folder: Path, job_id: str) -> Clips:
        shown = "/".join(folder.parts[-4:])  # as it is called below the folder that the app runs in
        try:
            job = self._jobs.open(job_id)
            clips = Clips(folder, shown, job.title)
        except OutputError:
            raise UsageError("another program has this review open: close it there") from None
        except NatureLMError as error:
            raise UsageError(without_paths(str(error))) from None
        clips.segments = [
            replace(one, recording=job.names.get(Path(one.recording).name, one.recording))
            for one in clips.segments
        ]
        return clips

    def _close(self, job_id: str) -> None:
        if job_id in self._open:
            with suppress(OSError):
                self._open.pop(job_id)[1].close()


def clips_folder(job: Job) -> Path:
    """Where the clips of a job lie, if there are any."""
    return job.folder / CLIPS_FOLDER


def build_review(context: AppContext) -> None:
    """Put the tab into the page: the reviews of the jobs that this browser remembers."""
    html(_ABOUT, elem_id="review-about")
    listed = html(_EMPTY, elem_id="review-list")

    def look(*remembered: Any) -> str:
        ids = [one for some in remembered for one in (some if isinstance(some, list) else [])]
        return reviews_html(context, [one for one in ids if isinstance(one, str)])

    for state in context.remembered:
        state.change(look, context.remembered, [listed], **QUIET)
    context.tabs.select(look, context.remembered, [listed], **QUIET)
    on_page_load(lambda: _EMPTY, [listed])


def reviews_html(context: AppContext, job_ids: list[str]) -> str:
    """Links to the reviews of those jobs that have clips."""
    items = []
    for job_id in dict.fromkeys(job_ids):
        try:
            items.append(f"<li>{_link(context, context.jobs.open(job_id))}</li>")
        except UsageError:
            continue
    return f'<ul class="reviews">{"".join(items)}</ul>' if items else _EMPTY


def build_review_part(context: AppContext, job: gr.State, name: str) -> None:
    """Put a button that makes clips of the job that is shown, and the way to them, into a page."""
    with gr.Row(elem_classes=["job-buttons"]):
        make = gr.Button("Make clips for review", elem_id=f"{name}-make-clips", min_width=150)
        said = html(elem_id=f"{name}-clips-made", elem_classes=["quiet"])

    def show(job_id: str) -> str:
        try:
            return _link(context, context.jobs.open(job_id))
        except UsageError:
            return ""

    def made(job_id: str) -> str:
        try:
            shown = context.jobs.open(job_id)
            told = context.reviews.make(shown)
        except NatureLMError as error:
            return notice(str(error))
        return f'<div role="status">{_link(context, shown)}{escape(told)}</div>'

    job.change(show, [job], [said], **QUIET)
    make.click(made, [job], [said], api_visibility="private", show_progress="minimal")


def _link(context: AppContext, job: Job) -> str:
    """The way to the clips of a job. Raises UsageError where it has none."""
    clips, reviewed = context.reviews.count(job.id)
    return (
        f'<p><a href="review/{job.id}/" target="_blank" rel="noopener">Review '
        f"{counted(clips, 'clip')} of {escape(job.title)}</a> "
        f"({escape(job.when)}; {reviewed} reviewed so far)</p>"
    )

"""The tab Review, and the part of a job's panel that leads to it."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from NatureLM.app.context import AppContext
from NatureLM.app.job import Job
from NatureLM.app.job_view import counted
from NatureLM.app.reviews import titled
from NatureLM.app.ui import QUIET, html, notice, on_page_load
from NatureLM.errors import NatureLMError, UsageError

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
        f"{counted(clips, 'clip')} of {escape(titled(job))}</a> "
        f"({escape(job.when)}; {reviewed} reviewed so far)</p>"
    )

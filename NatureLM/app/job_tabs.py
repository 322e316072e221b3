"""The tabs Long recording and Folder: a form that begins a job, and the panel that shows one.

A job goes on when the page is closed; its link opens it again, and the browser remembers it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from NatureLM.app.clips import shown_name, without_paths
from NatureLM.app.context import AppContext
from NatureLM.app.job import JobRecording, Kind
from NatureLM.app.job_form import JobForm
from NatureLM.app.job_view import (
    ANSWER,
    DOWNLOADS,
    FROM,
    PAGE_ROWS,
    QUESTION,
    RECORDING,
    TO,
    Answer,
    JobView,
    count_html,
    recordings_html,
    status_html,
    view_job,
    write_download,
    write_downloads,
)
from NatureLM.app.jobs import Jobs
from NatureLM.app.reviews import build_review_part
from NatureLM.app.timeline import JobSound, timeline
from NatureLM.app.ui import (
    QUIET,
    answers_table,
    html,
    notice,
    on_page_load,
    share_slider,
    static,
)
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.formats import FORMATS

MOST_REMEMBERED = 30
_COLOURS = [("by answer", "answer"), ("by confidence", "confidence")]
_POLL_SECONDS = 1.0
_NO_SECRET = "naturelm"
"""What a browser remembers is its own; a secret that changes would make it forget."""
_EMPTY = {
    "long": "The timeline of the recording appears here, and below it what was heard when.",
    "folder": "Progress and answers of the recordings appear here.",
}
_KEEP_LINK = """() => {
  const job = document.querySelector('#%s-status [data-job]');
  if (job) history.replaceState(null, '', `?job=${job.dataset.job}`);
}"""
_FORGET_LINK = "() => history.replaceState(null, '', location.pathname)"


class JobTab:
    """A tab that begins jobs of one kind and shows one, put into the page where this is made.

    kind: of the jobs; the ids of components begin with it

    Handlers of the panel give a dictionary with the values of some components.
    """

    def __init__(self, context: AppContext, kind: Kind) -> None:
        self._context, self._kind = context, kind
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                self._form = JobForm(context, kind)
            with gr.Column(scale=7, min_width=300):
                self._build_panel()
        # All that changes with a job.
        self._outputs = [
            *(self._problem, self._empty, self._panel, self._status),
            *(self._stop, self._go_on, self._remove),
            *(self._files, self._recording, self._question, self._colouring, self._timeline),
            *(self._least, self._count, self._table, *self._downloads, self._timer, self._drawn),
            *(self._page, self._earlier_rows, self._later_rows),
        ]
        self._wire_panel()
        self._wire_removal()
        self._table.select(
            self._choose_row,
            [self._job, self._question, self._colouring],
            [self._timeline, self._recording, self._question, self._drawn],
            **QUIET,
        )
        on_page_load(self._open_link, [self._job, *self._outputs, context.tabs])
        self._wire_memory()
        self._wire_start()
        self._form.wire()

    def _build_panel(self) -> None:
        name = self._kind
        self._job = gr.State("")
        self._drawn = gr.State(None)
        self._remembered = gr.BrowserState(
            [], storage_key=f"naturelm-{name}-jobs", secret=_NO_SECRET
        )
        self._context.remembered.append(self._remembered)
        self._earlier = gr.Dropdown(
            [], label="Earlier jobs of this browser", visible=False, elem_id=f"{name}-earlier"
        )
        self._problem = html(elem_id=f"{name}-problem", elem_classes=["quiet"])
        self._empty = html(f'<p class="job-empty">{_EMPTY[name]}</p>', elem_id=f"{name}-empty")
        with gr.Column(visible=False, elem_id=f"{name}-panel") as self._panel:
            self._status = html(elem_id=f"{name}-status")
            with gr.Row(elem_classes=["job-buttons"]):
                self._stop = gr.Button("Stop", elem_id=f"{name}-stop", min_width=90)
                self._go_on = gr.Button("Go on", elem_id=f"{name}-go-on", min_width=90)
                self._remove = gr.Button("Remove …", elem_id=f"{name}-remove", min_width=90)
            with gr.Row(visible=False, elem_classes=["job-buttons"]) as self._sure:
                html("<p>Remove the job with its recordings and answers?</p>")
                self._gone = gr.Button(
                    "Remove for good", variant="stop", elem_id=f"{name}-remove-sure", min_width=130
                )
                self._kept = gr.Button("Keep it", elem_id=f"{name}-keep", min_width=90)
            self._files = html(elem_id=f"{name}-files", visible=name == "folder")
            self._build_timeline()
            self._build_table()
            with gr.Row(elem_classes=["job-buttons"], elem_id=f"{name}-downloads"):
                self._downloads = [
                    gr.DownloadButton(label, elem_id=f"{name}-{key}", min_width=150)
                    for label, key in (
                        ("Table (CSV)", "csv"),
                        ("Raven selection table", "raven"),
                        ("JSON lines", "jsonl"),
                    )
                ]
            with gr.Row(elem_classes=["job-buttons"], elem_id=f"{name}-formats"):
                self._format = gr.Dropdown(
                    [(_format_label(one), one) for one in FORMATS if one not in DOWNLOADS],
                    value=None,
                    label="Table for another program",
                    elem_id=f"{name}-format",
                    min_width=220,
                )
                self._other = gr.DownloadButton(
                    "Take it away", elem_id=f"{name}-other", interactive=False, min_width=150
                )
            build_review_part(self._context, self._job, name)
        self._timer = gr.Timer(_POLL_SECONDS, active=False)

    def _build_timeline(self) -> None:
        name, context = self._kind, self._context
        with gr.Row():
            self._recording = gr.Dropdown(
                [], label="Recording", elem_id=f"{name}-recording", visible=False, min_width=160
            )
            self._question = gr.Dropdown(
                [], label="Question", elem_id=f"{name}-which", visible=False, min_width=160
            )
            self._colouring = gr.Radio(
                _COLOURS,
                value="answer",
                label="Colours",
                elem_id=f"{name}-colours",
                visible=False,
                min_width=160,
            )
        sound = JobSound(context.jobs, lambda: context.sample_rate)
        self._timeline = gr.HTML(
            "",
            html_template='<div class="tl timeline" hidden></div>',
            css_template=static("timeline.css"),
            js_on_load=static("timeline.js"),
            server_functions=sound.server_functions(),
            apply_default_css=False,
            elem_id=f"{name}-timeline",
            focus=-1,
        )

    def _build_table(self) -> None:
        name = self._kind
        with gr.Row():
            self._words = gr.Textbox(
                "",
                label="Filter",
                placeholder="owl",
                info="Shows answers with all of these words in them.",
                elem_id=f"{name}-filter",
                min_width=160,
            )
            self._least = share_slider(
                label="Least confidence", elem_id=f"{name}-least", visible=False, min_width=160
            )
        self._count = html(elem_id=f"{name}-count")
        self._table = answers_table(f"{name}-table", [FROM, TO, ANSWER], 420)
        self._page = gr.State(0)
        with gr.Row(elem_classes=["job-buttons"]):
            self._earlier_rows, self._later_rows = (
                gr.Button(label, visible=False, elem_id=f"{name}-{key}", min_width=150)
                for label, key in (
                    (f"Earlier {PAGE_ROWS:,}", "earlier-rows"),
                    (f"Next {PAGE_ROWS:,}", "later-rows"),
                )
            )

    # what happens on the page

    def _wire_start(self) -> None:
        form, handed_over = self._form, self._context.handed_over

        def begin_long(file: Any, handed: Any, *values: Any) -> dict[Any, Any]:
            if file:
                handed = (file, shown_name(file))
            begun = self._begin([(Path(handed[0]), handed[1])] if handed else [], values)
            return begun | ({handed_over: None} if self._job in begun else {})

        def begin_folder(files: Any, *values: Any) -> dict[Any, Any]:
            return self._begin([(Path(file), shown_name(file)) for file in files or []], values)

        form.start.click(
            begin_long if self._kind == "long" else begin_folder,
            [*form.inputs, *form.fields],
            [self._job, *form.inputs, *self._outputs],
            api_name=f"{self._kind}_start",
            show_progress="minimal",
            show_progress_on=[form.start],
        ).then(None, None, None, js=_KEEP_LINK % self._kind, api_visibility="private")

    def _begin(self, files: Sequence[tuple[Path, str]], values: Sequence[Any]) -> dict[Any, Any]:
        try:
            job = self._form.begin(files, values)
        except NatureLMError as error:
            return {self._problem: notice(str(error))}
        return {self._job: job.id, self._form.drop: None, **self._look(job.id)}

    def _wire_panel(self) -> None:
        seen = [self._job, self._recording, self._question, self._colouring]
        seen += [self._words, self._least, self._drawn, self._page]
        jobs, outputs = self._context.jobs, self._outputs

        def told(act: Callable[[str], None]) -> Callable[..., dict[Any, Any]]:
            def acted(job_id: str, *rest: Any) -> dict[Any, Any]:
                try:
                    act(job_id)
                except UsageError as error:
                    return self._look(job_id, *rest) | {self._problem: notice(str(error))}
                return self._look(job_id, *rest)

            return acted

        def turn(by: int) -> Callable[..., dict[Any, Any]]:
            return lambda *values: self._look(*[*values[:-1], values[-1] + by])

        self._timer.tick(self._look, seen, outputs, **QUIET)
        for component in (self._recording, self._question, self._colouring):
            component.input(self._look, seen, outputs, **QUIET)
        self._words.change(self._look, seen, outputs, trigger_mode="always_last", **QUIET)
        self._least.release(self._look, seen, outputs, **QUIET)
        self._stop.click(told(jobs.cancel), seen, outputs, **QUIET)
        self._go_on.click(told(jobs.submit), seen, outputs, **QUIET)
        self._format.input(
            self._write_format,
            [self._job, self._format],
            [self._problem, self._other],
            show_progress_on=[self._other],
            api_visibility="private",
        )
        self._job.change(
            lambda: [gr.Dropdown(value=None), gr.DownloadButton(value=None, interactive=False)],
            None,
            [self._format, self._other],
            **QUIET,
        )
        self._earlier_rows.click(turn(-1), seen, outputs, **QUIET)
        self._later_rows.click(turn(1), seen, outputs, **QUIET)

    def _wire_removal(self) -> None:
        """Removing takes a second click, because nothing brings a job back."""

        def remove(job_id: str) -> dict[Any, Any]:
            hidden = {self._sure: gr.Row(visible=False)}
            try:
                self._context.reviews.forget(job_id)
                self._context.jobs.remove(job_id)
            except UsageError as error:
                return hidden | {self._problem: notice(str(error))}
            return hidden | self._closed("The job is removed, with recordings and answers.")

        self._remove.click(lambda: gr.Row(visible=True), None, [self._sure], **QUIET)
        self._kept.click(lambda: gr.Row(visible=False), None, [self._sure], **QUIET)
        self._gone.click(remove, [self._job], [self._sure, *self._outputs], **QUIET).then(
            None, None, None, js=_FORGET_LINK, api_visibility="private"
        )

    def _choose_row(
        self, job_id: str, question: str, colouring: str, select: gr.SelectData
    ) -> list[Any]:
        """A row of the table shows its window in the timeline."""
        try:
            view = view_job(self._context.jobs, job_id)
            row = dict(zip(view.headers, select.row_value or [], strict=False))
            start = float(row[FROM])
        except (NatureLMError, KeyError, TypeError, ValueError):
            return [gr.skip() for _ in range(4)]
        # Where there is only one recording, or question, the row names none.
        recording = _found(view.job.recordings, "name", row.get(RECORDING))
        query = _one_of(row.get(QUESTION, question), view.job.settings.queries)
        shown = json.dumps(timeline(view, recording, query, colouring))
        return [gr.HTML(value=shown, focus=start), recording.file, query, None]

    def _open_link(self, request: gr.Request) -> dict[Any, Any]:
        """A page whose address names a job of this kind opens it."""
        job_id, tabs = request.query_params.get("job", ""), self._context.tabs
        kind = "none"
        try:
            if job_id:
                kind = self._context.jobs.open(job_id).kind
        except UsageError as error:
            if self._kind == "long":
                shown = self._closed(f"The job of this link cannot be opened: {error}.")
                return {self._job: "", **shown, tabs: gr.Tabs(selected="long")}
        if kind != self._kind:
            return {self._job: gr.skip()}
        return {self._job: job_id, **self._look(job_id), tabs: gr.Tabs(selected=kind)}

    def _wire_memory(self) -> None:
        """The browser remembers its jobs and offers them again."""

        def listed(remembered: Any) -> Any:
            found = choices(remembered, self._context.jobs, self._kind)
            return gr.Dropdown(choices=found, value=None, visible=bool(found))

        def begun(job_id: str, remembered: Any) -> Any:
            return remember(remembered, job_id) if job_id else gr.skip()

        def chosen(job_id: str | None) -> dict[Any, Any]:
            return {self._job: job_id, **self._look(job_id)} if job_id else {self._job: gr.skip()}

        # The browser gives what it remembers a moment after the page is there.
        self._remembered.change(listed, [self._remembered], [self._earlier], **QUIET)
        self._job.change(begun, [self._job, self._remembered], [self._remembered], **QUIET)
        self._earlier.input(chosen, [self._earlier], [self._job, *self._outputs], **QUIET).then(
            None, None, None, js=_KEEP_LINK % self._kind, api_visibility="private"
        )
        self._earlier.focus(listed, [self._remembered], [self._earlier], **QUIET)

    # values of components

    def _closed(self, sentence: str) -> dict[Any, Any]:
        """Without a job."""
        return {
            self._problem: notice(sentence, "hint"),
            self._empty: gr.HTML(visible=True),
            self._panel: gr.Column(visible=False),
            self._timer: gr.Timer(active=False),
            self._drawn: None,
        }

    def _look(
        self,
        job_id: str,
        file: str | None = None,
        question: str | None = None,
        colouring: str = "answer",
        words: str | None = "",
        least: float | None = 0.0,
        drawn: Any = None,
        page: int = 0,
    ) -> dict[Any, Any]:
        """The job as it is now; what has not changed is left alone.

        file, question, colouring, words, least, page: what the visitor chose
        drawn: what the page shows, as this gave it the last time
        """
        if not job_id:
            return {self._timer: gr.Timer(active=False)}
        try:
            view = view_job(self._context.jobs, job_id)
        except NatureLMError as error:
            return self._closed(str(error))
        job = view.job
        recording = _found(job.recordings, "file", file)
        query = _one_of(question, job.settings.queries)
        there = len(view.answers)
        if job.state == "working":  # a long list is drawn anew for each hundredth
            there -= there % max(1, there // 100)
        now: list[Any] = [job.id, job.state, there, len(view.errors)]
        files: dict[Any, Any] = {}
        if drawn and drawn[:4] == now:
            problem = drawn[4]
        else:
            files, problem = self._download_files(view)
        now += [view.problem or problem, recording.file, query, colouring]
        if not drawn or drawn[:8] != now:
            files |= self._timeline_of(view, recording, query, colouring)
        now += [words, least]
        if not (drawn and drawn[0] == job.id and drawn[8:10] == [words, least]):
            page = 0
        found = view.filtered(words or "", float(least or 0.0))
        last_page = max(0, len(found) - 1) // PAGE_ROWS
        now += [min(max(page, 0), last_page)]
        if drawn != now:
            files |= self._table_of(view, found, now[-1], last_page)
        can_go_on = view.job.is_settled and (job.state != "done" or bool(view.errors))
        return {
            self._problem: notice(now[4]),
            self._empty: gr.HTML(visible=False),
            self._panel: gr.Column(visible=True),
            self._status: status_html(view),
            self._stop: gr.Button(
                visible=not (view.job.is_settled or view.is_elsewhere),
                interactive=not view.is_stopping,
            ),
            self._go_on: gr.Button(
                "Try again" if job.state == "done" else "Go on", visible=can_go_on
            ),
            self._remove: gr.Button(visible=view.job.is_settled),
            **files,
            self._timer: gr.Timer(active=not view.job.is_settled),
            self._drawn: now,
        }

    def _timeline_of(
        self, view: JobView, recording: JobRecording, query: str, colouring: str
    ) -> dict[Any, Any]:
        """The recordings of a job, the timeline of one, and what can be chosen."""
        recordings, queries = view.job.recordings, view.job.settings.queries
        return {
            self._files: gr.HTML(
                recordings_html(view), visible=self._kind == "folder" or bool(view.errors)
            ),
            self._recording: gr.Dropdown(
                [(one.name, one.file) for one in recordings],
                value=recording.file,
                visible=len(recordings) > 1,
            ),
            self._question: gr.Dropdown(list(queries), value=query, visible=len(queries) > 1),
            self._colouring: gr.Radio(visible=view.has_confidence),
            self._timeline: json.dumps(timeline(view, recording, query, colouring)),
            self._least: gr.Slider(visible=view.has_confidence),
        }

    def _table_of(
        self, view: JobView, found: Sequence[Answer], page: int, last_page: int
    ) -> dict[Any, Any]:
        """A page of the answers that the filter leaves."""
        return {
            self._count: count_html(len(found), len(view.answers), page),
            self._table: view.table(found, page),
            self._page: page,
            self._earlier_rows: gr.Button(visible=last_page > 0, interactive=page > 0),
            self._later_rows: gr.Button(visible=last_page > 0, interactive=page < last_page),
        }

    def _write_format(self, job_id: str, name: str | None) -> list[Any]:
        """The table for the program that was chosen, or why there is none."""
        none = gr.DownloadButton(value=None, interactive=False)
        if name not in FORMATS:
            return ["", none]
        try:
            view = view_job(self._context.jobs, job_id)
            if not view.job.is_settled:
                raise UsageError("the job is not done yet")
            made = write_download(view, name)
        except (NatureLMError, OSError) as error:
            said = str(error).replace("--deployments", "a table of deployments")
            try:
                said = self._context.jobs.open(job_id).told(said)
            except UsageError:
                said = without_paths(said)
            return [notice(f"There is no such table: {said}."), none]
        return ["", gr.DownloadButton(value=str(made), interactive=True)]

    def _download_files(self, view: JobView) -> tuple[dict[Any, Any], str]:
        """The three buttons, and what is wrong with their files.

        They are written when the job has come to rest.
        """
        made: Sequence[Path | None] = [None] * 3
        problem = ""
        if view.job.is_settled and not view.problem and (view.answers or view.errors):
            try:
                made = write_downloads(view)
            except (NatureLMError, OSError) as error:
                problem = f"There are no tables to take away: {view.job.told(str(error))}."
        buttons = {
            button: gr.DownloadButton(value=path and str(path), interactive=path is not None)
            for button, path in zip(self._downloads, made, strict=True)
        }
        return buttons, problem


def _format_label(name: str) -> str:
    return f"{name}: {FORMATS[name].about}"


def remember(remembered: Any, job_id: str) -> list[str]:
    """The ids with a new one in front; what a browser gives is not trusted."""
    known = [one for one in _ids(remembered) if one != job_id]
    return [job_id, *known][:MOST_REMEMBERED]


def choices(remembered: Any, jobs: Jobs, kind: Kind) -> list[tuple[str, str]]:
    """(label, id) of the remembered jobs that are still there, newest first."""
    found = []
    for job_id in _ids(remembered):
        try:
            job = jobs.open(job_id)
        except UsageError:
            continue
        if job.kind == kind:
            found.append((f"{job.when} · {job.title} · {job.state}", job.id))
    return found


def _ids(remembered: Any) -> list[str]:
    if not isinstance(remembered, list):
        return []
    return [one for one in remembered if isinstance(one, str)][:MOST_REMEMBERED]


def _found(
    recordings: Sequence[JobRecording], by: Literal["name", "file"], wanted: str | None
) -> JobRecording:
    """The recording with this name or file; the first one where none has it."""
    return next((one for one in recordings if getattr(one, by) == wanted), recordings[0])


def _one_of(question: str | None, queries: Sequence[str]) -> str:
    return next((one for one in queries if one == question), queries[0])

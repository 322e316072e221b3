"""The tabs Long recording and Folder: a form that begins a job, and the panel that shows one.

A job goes on when the page is closed; its link opens it again, and the browser remembers it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from NatureLM.app.clips import sentence, shown_name
from NatureLM.app.context import AppContext
from NatureLM.app.jobs.queue import JobQueue
from NatureLM.app.jobs.sound import JobSound
from NatureLM.app.jobs.store import Job, JobRecording, Kind
from NatureLM.app.jobs.view import (
    ANSWER,
    FROM,
    QUESTION,
    RECORDING,
    TO,
    JobView,
    count_html,
    recordings_html,
    status_html,
    timeline,
    view_job,
    write_downloads,
)
from NatureLM.app.settings import AppError
from NatureLM.app.tabs.job_form import job_fields, settings_of
from NatureLM.app.ui import handler, html, notice, on_page_load, static
from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.errors import NatureLMError
from NatureLM.util import format_bytes, format_duration

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
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_long(context: AppContext) -> None:
    """Put the components of Long recording into the page."""
    drop, given, fields, start, panel = _lay_out(context, "long")
    handed_over = context.handed_over

    def begin(file: Any, handed: Any, *values: Any) -> dict[Any, Any]:
        if file:
            handed = (file, shown_name(file))
        return panel.begin([(Path(handed[0]), handed[1])] if handed else [], values)

    panel.wire_start(start, begin, [drop, handed_over], fields)

    def show_given(handed: Any) -> str:
        return notice(f"{handed[1]} is here and waits for its question.", "hint") if handed else ""

    handed_over.change(
        show_given, [handed_over], [given], show_progress="hidden", api_visibility="private"
    )


def build_folder(context: AppContext) -> None:
    """Put the components of Folder into the page."""
    drop, _, fields, start, panel = _lay_out(context, "folder")

    def begin(files: Any, *values: Any) -> dict[Any, Any]:
        return panel.begin([(Path(file), shown_name(file)) for file in files or []], values)

    panel.wire_start(start, begin, [drop], fields)


def _lay_out(context: AppContext, kind: Kind) -> tuple[Any, Any, list[Any], Any, JobPanel]:
    """The input of files, the notice of one handed over, the form, its button, and the panel."""
    import gradio as gr

    is_long, limits = kind == "long", context.limits
    size = format_bytes(limits.upload_bytes)
    about = (
        f"Up to {format_duration(limits.long_seconds, short=True)} and {size}. The question is "
        "asked of every window of 10 s; the answers come one after the other."
        if is_long
        else f"Up to {limits.folder_files:,} recordings of at most {size} each. What cannot be "
        "read is named, and the others go on."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            drop = gr.File(
                label=f"Drop {'a long recording' if is_long else 'recordings'} here, or choose",
                file_count="single" if is_long else "multiple",
                height=150 if is_long else 160,
                elem_id=f"{kind}-drop",
                elem_classes=["drop"],
            )
            html(f'<p class="about">{about}</p>')
            given = html(elem_id="long-given", elem_classes=["quiet"]) if is_long else None
            fields = job_fields(context, kind)
            start = gr.Button("Start", variant="primary", elem_id=f"{kind}-start")
        with gr.Column(scale=7, min_width=300):
            panel = JobPanel(context, kind)
    return drop, given, fields, start, panel


class JobPanel:
    """The part of a tab that shows one job, put into the page where this is made.

    kind: of the jobs that it shows; the ids of components begin with it
    """

    def __init__(self, context: AppContext, kind: Kind) -> None:
        self._context, self._kind = context, kind
        self._inputs: Sequence[Any] = ()
        self._build()
        self._wire()

    def _build(self) -> None:
        import gradio as gr

        name = self._kind
        self._job = gr.State("")
        self._drawn = gr.State(None)
        self._remembered = gr.BrowserState(
            [], storage_key=f"naturelm-{name}-jobs", secret=_NO_SECRET
        )
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
        self._timer = gr.Timer(_POLL_SECONDS, active=False)

    def _build_timeline(self) -> None:
        import gradio as gr

        name = self._kind
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
        self._timeline = gr.HTML(
            "",
            html_template='<div class="tl timeline" hidden></div>',
            css_template=static("timeline.css"),
            js_on_load=static("timeline.js"),
            server_functions=JobSound(
                self._context.library, lambda: self._context.sample_rate
            ).server_functions(),
            apply_default_css=False,
            elem_id=f"{name}-timeline",
            focus=-1,
        )

    def _build_table(self) -> None:
        import gradio as gr

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
            self._least = gr.Slider(
                0.0,
                1.0,
                value=0.0,
                step=0.05,
                label="Least confidence",
                elem_id=f"{name}-least",
                visible=False,
                min_width=160,
            )
        self._count = html(elem_id=f"{name}-count")
        self._table = gr.Dataframe(
            headers=[FROM, TO, ANSWER],
            interactive=False,
            wrap=True,
            max_height=420,
            show_label=False,
            elem_id=f"{name}-table",
            elem_classes=["answers-table"],
            buttons=[],
        )

    @property
    def _outputs(self) -> list[Any]:
        """All that changes with a job. Handlers give a dictionary with the values of some."""
        return [
            *(self._problem, self._empty, self._panel, self._status),
            *(self._stop, self._go_on, self._remove),
            *(self._files, self._recording, self._question, self._colouring, self._timeline),
            *(self._least, self._count, self._table, *self._downloads, self._timer, self._drawn),
        ]

    # what happens on the page

    def wire_start(
        self, start: Any, begin: Callable[..., Any], inputs: Sequence[Any], fields: Sequence[Any]
    ) -> None:
        """Let a button begin a job. `begin` takes the values of `inputs` and `fields`.

        `inputs` hold recordings and are emptied when the job has begun.
        """
        self._inputs = inputs
        start.click(
            begin,
            [*inputs, *fields],
            [self._job, *inputs, *self._outputs],
            api_name=f"{self._kind}_start",
            show_progress="minimal",
            show_progress_on=[start],
        ).then(None, None, None, js=_KEEP_LINK % self._kind, api_visibility="private")

    def begin(self, files: Sequence[tuple[Path, str]], fields: Sequence[Any]) -> dict[Any, Any]:
        """Begin a job about files, each (path, name), with the values of `job_fields`."""
        context = self._context
        try:
            if self._kind == "long" and not files:
                raise AppError("There is no recording yet: drop one, or choose a file.")
            settings = settings_of(fields, context.folder, context.limits)
            context.jobs.refuse_if_full()
            if self._kind == "long":
                probe(files[0][0])
            job = context.library.create(self._kind, files, settings)
            context.jobs.submit(job.id)
        except AudioError as error:
            return self._said(sentence(files[0][1], error))
        except NatureLMError as error:
            return self._said(str(error))
        emptied = dict.fromkeys(self._inputs)
        return {self._job: job.id, **emptied, **self._show(job.id)}

    def _wire(self) -> None:
        seen = [self._job, self._recording, self._question, self._colouring]
        seen += [self._words, self._least, self._drawn]
        outputs = self._outputs

        def stop(job_id: str, *rest: Any) -> dict[Any, Any]:
            self._context.jobs.cancel(job_id)
            return self._look(job_id, *rest)

        def go_on(job_id: str, *rest: Any) -> dict[Any, Any]:
            try:
                self._context.jobs.submit(job_id)
            except AppError as error:
                return self._said(str(error))
            return self._look(job_id, *rest)

        self._timer.tick(self._look, seen, outputs, **_QUIET)
        for component in (self._recording, self._question, self._colouring):
            component.input(self._look, seen, outputs, **_QUIET)
        self._words.change(self._look, seen, outputs, trigger_mode="always_last", **_QUIET)
        self._least.release(self._look, seen, outputs, **_QUIET)
        self._stop.click(stop, seen, outputs, **_QUIET)
        self._go_on.click(go_on, seen, outputs, **_QUIET)
        self._wire_removal()
        self._wire_rows()
        self._wire_link()
        self._wire_memory()

    def _wire_removal(self) -> None:
        """Removing takes a second click, because nothing brings a job back."""
        import gradio as gr

        def remove(job_id: str) -> dict[Any, Any]:
            hidden = {self._sure: gr.Row(visible=False)}
            try:
                self._context.jobs.remove(job_id)
            except AppError as error:
                return hidden | self._said(str(error))
            return hidden | self._closed("The job is removed, with recordings and answers.")

        self._remove.click(lambda: gr.Row(visible=True), None, [self._sure], **_QUIET)
        self._kept.click(lambda: gr.Row(visible=False), None, [self._sure], **_QUIET)
        self._gone.click(remove, [self._job], [self._sure, *self._outputs], **_QUIET).then(
            None, None, None, js=_FORGET_LINK, api_visibility="private"
        )

    def _wire_rows(self) -> None:
        """A row of the table shows its window in the timeline."""
        import gradio as gr

        outputs = [self._timeline, self._recording, self._question, self._drawn]

        @handler
        def chosen(job_id: str, question: str, colouring: str, select: Any) -> list[Any]:
            try:
                view = self._view(job_id)
                row = dict(zip(view.headers, select.row_value or [], strict=False))
                start = float(row[FROM])
            except (NatureLMError, KeyError, TypeError, ValueError):
                return [gr.skip() for _ in outputs]
            # Where there is only one recording, or question, the row names none.
            name, recordings = row.get(RECORDING), view.job.recordings
            recording = next((one for one in recordings if one.name == name), recordings[0])
            query = _one_of(row.get(QUESTION, question), view.job.settings.queries)
            shown = json.dumps(timeline(view, recording, query, colouring))
            return [gr.HTML(value=shown, focus=start), recording.file, query, None]

        self._table.select(chosen, [self._job, self._question, self._colouring], outputs, **_QUIET)

    def _wire_link(self) -> None:
        """A page whose address names a job of this kind opens it."""
        import gradio as gr

        tabs = self._context.tabs

        @handler
        def opened(request: Any) -> dict[Any, Any]:
            job_id = request.query_params.get("job", "")
            nothing = {self._job: gr.skip()}
            if not job_id:
                return nothing
            try:
                job = self._context.jobs.open(job_id)
            except AppError as error:
                if self._kind != "long":
                    return nothing
                shown = self._closed(f"The job of this link cannot be opened: {error}.")
                return {self._job: "", **shown, tabs: gr.Tabs(selected="long")}
            if job.kind != self._kind:
                return nothing
            return {self._job: job_id, **self._show(job_id), tabs: gr.Tabs(selected=self._kind)}

        on_page_load(opened, [self._job, *self._outputs, tabs])

    def _wire_memory(self) -> None:
        """The browser remembers its jobs and offers them again."""
        import gradio as gr

        def listed(remembered: Any) -> Any:
            found = choices(remembered, self._context.jobs, self._kind)
            return gr.Dropdown(choices=found, value=None, visible=bool(found))

        def begun(job_id: str, remembered: Any) -> Any:
            return remember(remembered, job_id) if job_id else gr.skip()

        def chosen(job_id: str | None) -> dict[Any, Any]:
            return {self._job: job_id or gr.skip()} | (self._show(job_id) if job_id else {})

        # The browser gives what it remembers a moment after the page is there.
        self._remembered.change(listed, [self._remembered], [self._earlier], **_QUIET)
        self._job.change(begun, [self._job, self._remembered], [self._remembered], **_QUIET)
        self._earlier.input(chosen, [self._earlier], [self._job, *self._outputs], **_QUIET).then(
            None, None, None, js=_KEEP_LINK % self._kind, api_visibility="private"
        )
        self._earlier.focus(listed, [self._remembered], [self._earlier], **_QUIET)

    # values of components

    def _said(self, sentence: str) -> dict[Any, Any]:
        """Say what is wrong and leave the rest as it is."""
        return {self._problem: notice(sentence)}

    def _closed(self, sentence: str) -> dict[Any, Any]:
        """Without a job."""
        import gradio as gr

        return {
            self._problem: notice(sentence, "hint"),
            self._empty: gr.HTML(visible=True),
            self._panel: gr.Column(visible=False),
            self._timer: gr.Timer(active=False),
            self._drawn: None,
        }

    def _show(self, job_id: str) -> dict[Any, Any]:
        """A job that was just opened."""
        return self._look(job_id, None, None, "answer", "", 0.0, None)

    def _look(
        self,
        job_id: str,
        file: str | None,
        question: str | None,
        colouring: str,
        words: str,
        least: float,
        drawn: Any,
    ) -> dict[Any, Any]:
        """The job as it is now; what has not changed is left alone.

        file, question, colouring, words, least: what the visitor chose
        drawn: what the page shows, as this gave it the last time
        """
        import gradio as gr

        if not job_id:
            return {self._timer: gr.Timer(active=False)}
        try:
            view = self._view(job_id)
            now = [view.job.id, len(view.rows), view.job.state]
            is_as_drawn = bool(drawn) and drawn[:3] == now
            files = {} if is_as_drawn else self._download_files(view)
        except NatureLMError as error:
            return self._closed(str(error))
        job = view.job
        recording = next((one for one in job.recordings if one.file == file), job.recordings[0])
        query = _one_of(question, job.settings.queries)
        now += [recording.file, query, colouring, words, least]
        can_go_on = view.is_settled and (job.state != "done" or bool(view.errors))
        return {
            self._problem: "",
            self._empty: gr.HTML(visible=False),
            self._panel: gr.Column(visible=True),
            self._status: status_html(view),
            self._stop: gr.Button(visible=not view.is_settled, interactive=not view.is_stopping),
            self._go_on: gr.Button(
                "Try again" if job.state == "done" else "Go on", visible=can_go_on
            ),
            self._remove: gr.Button(visible=view.is_settled),
            **({} if drawn == now else self._answers(view, recording, query, colouring)),
            **({} if drawn == now else self._rows(view, words or "", float(least or 0.0))),
            **files,
            self._timer: gr.Timer(active=not view.is_settled),
            self._drawn: now,
        }

    def _answers(
        self, view: JobView, recording: JobRecording, query: str, colouring: str
    ) -> dict[Any, Any]:
        """The recordings of a job and the timeline of one."""
        import gradio as gr

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
        }

    def _rows(self, view: JobView, words: str, least: float) -> dict[Any, Any]:
        """The table of answers."""
        import gradio as gr

        rows = view.filtered(words, least)
        return {
            self._least: gr.Slider(visible=view.has_confidence),
            self._count: count_html(len(rows), len(view.answers)),
            self._table: view.table(rows),
        }

    def _download_files(self, view: JobView) -> dict[Any, Any]:
        """The three buttons; files are written when the job has come to rest."""
        import gradio as gr

        if not view.is_settled or not view.rows:
            return {
                button: gr.DownloadButton(value=None, interactive=False)
                for button in self._downloads
            }
        made = write_downloads(self._context.library, view, self._context.sample_rate)
        return {
            button: gr.DownloadButton(value=str(path), interactive=True)
            for button, path in zip(self._downloads, made, strict=True)
        }

    def _view(self, job_id: str) -> JobView:
        return view_job(self._context.library, self._context.jobs, job_id)


def remember(remembered: Any, job_id: str) -> list[str]:
    """The ids with a new one in front; what a browser gives is not trusted."""
    known = [one for one in _ids(remembered) if one != job_id]
    return [job_id, *known][:MOST_REMEMBERED]


def choices(remembered: Any, queue: JobQueue, kind: Kind) -> list[tuple[str, str]]:
    """(label, id) of the remembered jobs that are still there, newest first."""
    found = []
    for job_id in _ids(remembered):
        try:
            job = queue.open(job_id)
        except AppError:
            continue
        if job.kind == kind:
            found.append((_label(job), job.id))
    return found


def _ids(remembered: Any) -> list[str]:
    """The ids among what a browser gave."""
    if not isinstance(remembered, list):
        return []
    return [one for one in remembered if isinstance(one, str)][:MOST_REMEMBERED]


def _label(job: Job) -> str:
    """What a job is called in the list."""
    more = f" and {len(job.recordings) - 1} more" if len(job.recordings) > 1 else ""
    return f"{job.when} · {job.recordings[0].name}{more} · {job.state}"


def _one_of(question: str | None, queries: Sequence[str]) -> str:
    return next((one for one in queries if one == question), queries[0])

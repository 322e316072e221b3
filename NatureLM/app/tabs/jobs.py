"""What is seen of a job: progress, timeline, answers, downloads, and what can be done with it."""

from __future__ import annotations

import json
from typing import Any

from NatureLM.app.jobs.store import JobError, JobRecording
from NatureLM.app.jobs.view import Colouring, JobView, timeline, view_job, write_downloads
from NatureLM.app.player import handler, notice
from NatureLM.app.settings import AppContext
from NatureLM.app.tabs.job_form import (
    FROM,
    MOST_ROWS,
    QUESTION,
    RECORDING,
    AnswerTable,
    JobParts,
    choices,
    filtered,
    has_confidence,
    on_page_load,
    recordings_html,
    remember,
    status_html,
)
from NatureLM.errors import NatureLMError

_KEEP_LINK = """() => {
  const job = document.querySelector('#%s-status [data-job]');
  if (job) history.replaceState(null, '', `?job=${job.dataset.job}`);
}"""
_FORGET_LINK = "() => history.replaceState(null, '', location.pathname)"


class JobPanel:
    """The part of a tab that shows one job. `build` puts it into the page.

    kind: of the jobs that it shows; the names of components begin with it
    """

    def __init__(self, context: AppContext, kind: str) -> None:
        self._context = context
        self._kind = kind

    def build(self) -> None:
        """Put the components into the page and let them act."""
        self._parts = JobParts(self._context, self._kind)
        self.job, self.problem = self._parts.job, self._parts.problem
        self._wire()

    # what happens on the page

    def _wire(self) -> None:
        quiet: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        seen = [self.job, self._parts.recording, self._parts.question, self._parts.colouring]
        seen += [self._parts.words, self._parts.least, self._parts.drawn]

        def look(*values: Any) -> list[Any]:
            return self._look(*values)

        def stop(job_id: str, *rest: Any) -> list[Any]:
            self._context.jobs.cancel(job_id)
            return self._look(job_id, *rest)

        def go_on(job_id: str, *rest: Any) -> list[Any]:
            try:
                self._context.jobs.submit(job_id)
            except JobError as error:
                return self.said(str(error))
            return self._look(job_id, *rest)

        outputs = self.outputs
        self._parts.timer.tick(look, seen, outputs, **quiet)
        for component in (self._parts.recording, self._parts.question, self._parts.colouring):
            component.input(look, seen, outputs, **quiet)
        self._parts.words.change(look, seen, outputs, trigger_mode="always_last", **quiet)
        self._parts.least.release(look, seen, outputs, **quiet)
        self._parts.stop.click(stop, seen, outputs, **quiet)
        self._parts.go_on.click(go_on, seen, outputs, **quiet)
        self._wire_removal(quiet)
        self._wire_rows(quiet)
        self._wire_link()
        self._wire_memory(quiet)

    def _wire_removal(self, quiet: dict[str, Any]) -> None:
        """Removing takes a second click, because nothing brings a job back."""
        import gradio as gr

        def remove(job_id: str) -> list[Any]:
            hidden = gr.Row(visible=False)
            try:
                self._context.jobs.remove(job_id)
            except JobError as error:
                return [hidden, *self.said(str(error))]
            return [hidden, *self.closed("The job is removed, with recordings and answers.")]

        def ask_first() -> Any:
            return gr.Row(visible=True)

        def keep() -> Any:
            return gr.Row(visible=False)

        self._parts.remove.click(ask_first, None, [self._parts.sure], **quiet)
        self._parts.kept.click(keep, None, [self._parts.sure], **quiet)
        self._parts.gone.click(remove, [self.job], [self._parts.sure, *self.outputs], **quiet).then(
            None, None, None, js=_FORGET_LINK, api_visibility="private"
        )

    def _wire_rows(self, quiet: dict[str, Any]) -> None:
        """A row of the table shows its window in the timeline."""
        import gradio as gr

        @handler
        def chosen(job_id: str, question: str, colouring: str, select: Any) -> list[Any]:
            try:
                view = self._view(job_id)
                row = AnswerTable.of(view).named(select.row_value or [])
                start = float(row[FROM])
                recording = _named(view, row.get(RECORDING))
            except (NatureLMError, KeyError, TypeError, ValueError):
                return [gr.skip(), gr.skip(), gr.skip(), gr.skip()]
            queries = view.job.settings.queries
            asked = row.get(QUESTION, question)
            query = asked if asked in queries else queries[0]
            kind: Colouring = "confidence" if colouring == "confidence" else "answer"
            shown = json.dumps(timeline(view, recording, query, kind))
            return [gr.HTML(value=shown, focus=start), recording.file, query, None]

        self._parts.table.select(
            chosen,
            [self.job, self._parts.question, self._parts.colouring],
            [self._parts.timeline, self._parts.recording, self._parts.question, self._parts.drawn],
            **quiet,
        )

    def _wire_link(self) -> None:
        """A page whose address names a job of this kind opens it."""
        import gradio as gr

        @handler
        def opened(request: Any) -> list[Any]:
            job_id = request.query_params.get("job", "")
            if not job_id:
                return [gr.skip(), *self.nothing(), gr.skip()]
            try:
                job = self._context.jobs.open(job_id)
            except JobError as error:
                if self._kind != "long":
                    return [gr.skip(), *self.nothing(), gr.skip()]
                shown = f"The job of this link cannot be opened: {error}."
                return ["", *self.closed(shown), gr.Tabs(selected="long")]
            if job.kind != self._kind:
                return [gr.skip(), *self.nothing(), gr.skip()]
            return [job_id, *self.show(job_id), gr.Tabs(selected=self._kind)]

        on_page_load(opened, [self.job, *self.outputs, self._context.parts.tabs])

    def _wire_memory(self, quiet: dict[str, Any]) -> None:
        """The browser remembers its jobs and offers them again."""
        import gradio as gr

        parts = self._parts

        def listed(remembered: Any) -> Any:
            found = choices(remembered, self._context.jobs, self._kind)
            return gr.Dropdown(choices=found, value=None, visible=bool(found))

        def begun(job_id: str, remembered: Any) -> Any:
            return remember(remembered, job_id) if job_id else gr.skip()

        def chosen(job_id: str | None) -> list[Any]:
            return [job_id, *self.show(job_id)] if job_id else [gr.skip(), *self.nothing()]

        # The browser gives what it remembers a moment after the page is there.
        parts.remembered.change(listed, [parts.remembered], [parts.earlier], **quiet)
        self.job.change(begun, [self.job, parts.remembered], [parts.remembered], **quiet)
        parts.earlier.input(chosen, [parts.earlier], [self.job, *self.outputs], **quiet).then(
            None, None, None, js=self.keep_link, api_visibility="private"
        )
        parts.earlier.focus(listed, [parts.remembered], [parts.earlier], **quiet)

    @property
    def outputs(self) -> list[Any]:
        """The components that `show`, `said` and `closed` give values for."""
        return self._parts.outputs

    @property
    def keep_link(self) -> str:
        """JavaScript that puts the job into the address of the page."""
        return _KEEP_LINK % self._kind

    def show(self, job_id: str) -> list[Any]:
        """Values of `outputs` for a job that was just opened."""
        return self._look(job_id, None, None, "answer", "", 0.0, None)

    def said(self, sentence: str) -> list[Any]:
        """Values of `outputs` that say what is wrong and leave the rest as it is."""
        return [notice(sentence), *self.nothing()[1:]]

    def closed(self, sentence: str) -> list[Any]:
        """Values of `outputs` without a job."""
        import gradio as gr

        values = self.nothing()
        values[:3] = [notice(sentence, "hint"), gr.HTML(visible=True), gr.Column(visible=False)]
        values[-2:] = [gr.Timer(active=False), None]
        return values

    def nothing(self) -> list[Any]:
        """Values of `outputs` that change nothing."""
        import gradio as gr

        return [gr.skip() for _ in self.outputs]

    def _view(self, job_id: str) -> JobView:
        return view_job(self._context.library, self._context.jobs, job_id)

    def _look(
        self,
        job_id: str,
        file: str | None,
        question: str | None,
        colouring: str,
        words: str,
        least: float,
        drawn: Any,
    ) -> list[Any]:
        """Values of `outputs` as the job is now; what has not changed is left alone."""
        import gradio as gr

        if not job_id:
            return [*self.nothing()[:-2], gr.Timer(active=False), gr.skip()]
        try:
            view = self._view(job_id)
            now = [view.job.id, len(view.rows), view.job.state]
            is_as_drawn = bool(drawn) and drawn[:3] == now
            files = [gr.skip()] * 3 if is_as_drawn else self._download_files(view)
        except NatureLMError as error:
            return self.closed(str(error))
        job = view.job
        can_go_on = view.is_settled and (job.state != "done" or bool(view.errors))
        head = [
            "",
            gr.HTML(visible=False),
            gr.Column(visible=True),
            status_html(view),
            gr.Button(visible=not view.is_settled, interactive=not view.is_stopping),
            gr.Button("Try again" if job.state == "done" else "Go on", visible=can_go_on),
            gr.Button(visible=view.is_settled),
        ]
        recording = next((one for one in job.recordings if one.file == file), job.recordings[0])
        query = question if question in job.settings.queries else job.settings.queries[0]
        now += [recording.file, query, colouring, words, least]
        body = (
            [gr.skip() for _ in range(8)]
            if drawn == now
            else self._body(view, recording, query, colouring, words, least)
        )
        return [*head, *body, *files, gr.Timer(active=not view.is_settled), now]

    def _body(
        self,
        view: JobView,
        recording: JobRecording,
        query: str,
        colouring: str,
        words: str,
        least: float,
    ) -> list[Any]:
        """Values of the components that show answers."""
        import gradio as gr

        job, names = view.job, view.names()
        is_sure, table = has_confidence(view), AnswerTable.of(view)
        rows = filtered(view.answers, names, words or "", float(least or 0.0))
        drawing = timeline(
            view, recording, query, "confidence" if colouring == "confidence" else "answer"
        )
        return [
            gr.HTML(recordings_html(view), visible=self._kind == "folder" or bool(view.errors)),
            gr.Dropdown(
                [(one.name, one.file) for one in job.recordings],
                value=recording.file,
                visible=len(job.recordings) > 1,
            ),
            gr.Dropdown(
                list(job.settings.queries), value=query, visible=len(job.settings.queries) > 1
            ),
            gr.Radio(visible=is_sure),
            json.dumps(drawing),
            gr.Slider(visible=is_sure),
            _count_html(len(rows), len(view.answers)),
            table.value(rows, names),
        ]

    def _download_files(self, view: JobView) -> list[Any]:
        """The three buttons; files are written when the job has come to rest."""
        import gradio as gr

        if not view.is_settled or not view.rows:
            return [gr.DownloadButton(value=None, interactive=False) for _ in range(3)]
        made = write_downloads(self._context.library, view, self._context.sample_rate)
        return [
            gr.DownloadButton(value=str(path), interactive=True)
            for path in (made.csv, made.raven, made.jsonl)
        ]


def _named(view: JobView, name: str | None) -> JobRecording:
    """The recording that a row of the table names; it names none where there is only one."""
    found = [one for one in view.job.recordings if name in (None, one.name)]
    return found[0] if found else view.job.recordings[0]


def _count_html(shown: int, of: int) -> str:
    if not of:
        return ""
    more = f" The first {MOST_ROWS:,} are shown." if shown > MOST_ROWS else ""
    return f'<p class="about" role="status">{shown:,} of {of:,} answers.{more}</p>'

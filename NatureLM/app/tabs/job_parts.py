"""The components that show one job."""

from __future__ import annotations

from typing import Any

from NatureLM.app.context import AppContext
from NatureLM.app.tabs.job_shown import ANSWER, FROM, TO
from NatureLM.app.tabs.job_sound import server_functions
from NatureLM.app.theme import static

_POLL_SECONDS = 1.0
_NO_SECRET = "naturelm"
"""What a browser remembers is its own; a secret that changes would make it forget."""
_COLOURS = [("by answer", "answer"), ("by confidence", "confidence")]
_EMPTY = {
    "long": "The timeline of the recording appears here, and below it what was heard when.",
    "folder": "Progress and answers of the recordings appear here.",
}


class JobParts:
    """Components of a panel, put into the page where this is made.

    kind: of the jobs that are shown; the ids of components begin with it
    """

    def __init__(self, context: AppContext, kind: str) -> None:
        import gradio as gr

        self._context, self._kind = context, kind
        name = kind
        self.job = gr.State("")
        self.drawn = gr.State(None)
        self.remembered = gr.BrowserState(
            [], storage_key=f"naturelm-{name}-jobs", secret=_NO_SECRET
        )
        self.earlier = gr.Dropdown(
            [], label="Earlier jobs of this browser", visible=False, elem_id=f"{name}-earlier"
        )
        self.problem = gr.HTML(
            "", elem_id=f"{name}-problem", elem_classes=["quiet"], js_on_load=None
        )
        self.empty = gr.HTML(
            f'<p class="job-empty">{_EMPTY[name]}</p>', elem_id=f"{name}-empty", js_on_load=None
        )
        with gr.Column(visible=False, elem_id=f"{name}-panel") as self.panel:
            self.status = gr.HTML("", elem_id=f"{name}-status", js_on_load=None)
            with gr.Row(elem_classes=["job-buttons"]):
                self.stop = gr.Button("Stop", elem_id=f"{name}-stop", min_width=90)
                self.go_on = gr.Button("Go on", elem_id=f"{name}-go-on", min_width=90)
                self.remove = gr.Button("Remove …", elem_id=f"{name}-remove", min_width=90)
            with gr.Row(visible=False, elem_classes=["job-buttons"]) as self.sure:
                gr.HTML("<p>Remove the job with its recordings and answers?</p>", js_on_load=None)
                self.gone = gr.Button(
                    "Remove for good", variant="stop", elem_id=f"{name}-remove-sure", min_width=130
                )
                self.kept = gr.Button("Keep it", elem_id=f"{name}-keep", min_width=90)
            self.files = gr.HTML(
                "", elem_id=f"{name}-files", js_on_load=None, visible=name == "folder"
            )
            self._build_timeline()
            self._build_table()
            with gr.Row(elem_classes=["job-buttons"], elem_id=f"{name}-downloads"):
                self.downloads = [
                    gr.DownloadButton(label, elem_id=f"{name}-{key}", min_width=150)
                    for label, key in (
                        ("Table (CSV)", "csv"),
                        ("Raven selection table", "raven"),
                        ("JSON lines", "jsonl"),
                    )
                ]
        self.timer = gr.Timer(_POLL_SECONDS, active=False)

    def _build_timeline(self) -> None:
        import gradio as gr

        name = self._kind
        with gr.Row():
            self.recording = gr.Dropdown(
                [], label="Recording", elem_id=f"{name}-recording", visible=False, min_width=160
            )
            self.question = gr.Dropdown(
                [], label="Question", elem_id=f"{name}-which", visible=False, min_width=160
            )
            self.colouring = gr.Radio(
                _COLOURS,
                value="answer",
                label="Colours",
                elem_id=f"{name}-colours",
                visible=False,
                min_width=160,
            )
        self.timeline = gr.HTML(
            "",
            html_template='<div class="tl timeline" hidden></div>',
            css_template=static("timeline.css"),
            js_on_load=static("timeline.js"),
            server_functions=server_functions(self._context),
            apply_default_css=False,
            elem_id=f"{name}-timeline",
            focus=-1,
        )

    def _build_table(self) -> None:
        import gradio as gr

        name = self._kind
        with gr.Row():
            self.words = gr.Textbox(
                "",
                label="Filter",
                placeholder="owl",
                info="Shows answers with all of these words in them.",
                elem_id=f"{name}-filter",
                min_width=160,
            )
            self.least = gr.Slider(
                0.0,
                1.0,
                value=0.0,
                step=0.05,
                label="Least confidence",
                elem_id=f"{name}-least",
                visible=False,
                min_width=160,
            )
        self.count = gr.HTML("", elem_id=f"{name}-count", js_on_load=None)
        self.table = gr.Dataframe(
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
    def outputs(self) -> list[Any]:
        """All that changes with a job, in the order of the values that `JobPanel` gives."""
        return [
            *(self.problem, self.empty, self.panel, self.status),
            *(self.stop, self.go_on, self.remove),
            *(self.files, self.recording, self.question, self.colouring, self.timeline),
            *(self.least, self.count, self.table, *self.downloads, self.timer, self.drawn),
        ]

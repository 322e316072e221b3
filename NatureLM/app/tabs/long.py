"""The tab Long recording: minutes to hours of sound as a timeline of answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from NatureLM.app.clips import sentence
from NatureLM.app.jobs.store import JobError, NewRecording
from NatureLM.app.limits import say_seconds, shown_name
from NatureLM.app.player import notice
from NatureLM.app.settings import AppContext
from NatureLM.app.tabs.job_form import job_fields, settings_of
from NatureLM.app.tabs.jobs import JobPanel
from NatureLM.audio import AudioError, probe
from NatureLM.errors import NatureLMError
from NatureLM.util import format_bytes


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

    limits = context.limits
    panel = JobPanel(context, "long")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            drop = gr.File(
                label="Drop a long recording here, or choose",
                file_count="single",
                height=150,
                elem_id="long-drop",
                elem_classes=["drop"],
            )
            gr.HTML(
                f'<p class="about">Up to {say_seconds(limits.long_seconds)} and '
                f"{format_bytes(limits.upload_bytes)}. The question is asked of every window of "
                "10 s; the answers come one after the other.</p>",
                js_on_load=None,
            )
            given = gr.HTML("", elem_id="long-given", elem_classes=["quiet"], js_on_load=None)
            fields = job_fields(context, "long")
            start = gr.Button("Start", variant="primary", elem_id="long-start")
        with gr.Column(scale=7, min_width=300):
            panel.build()

    handed_over = context.parts.handed_over

    def begin(file: Any, handed: Any, *values: Any) -> list[Any]:
        try:
            if file:
                recording = NewRecording(Path(file), shown_name(file))
            elif handed:
                recording = NewRecording(Path(handed[0]), handed[1])
            else:
                raise JobError("There is no recording yet: drop one, or choose a file.")
            settings = settings_of(context, values)
            context.jobs.refuse_if_full()
            probe(recording.path)
            job = context.library.create("long", [recording], settings)
            context.jobs.submit(job.id)
        except AudioError as error:
            return [gr.skip(), gr.skip(), gr.skip(), *panel.said(sentence(recording.name, error))]
        except NatureLMError as error:
            return [gr.skip(), gr.skip(), gr.skip(), *panel.said(str(error))]
        return [job.id, None, None, *panel.show(job.id)]

    start.click(
        begin,
        [drop, handed_over, *fields],
        [panel.job, drop, handed_over, *panel.outputs],
        api_name="long_start",
        show_progress="minimal",
        show_progress_on=[start],
    ).then(None, None, None, js=panel.keep_link, api_visibility="private")

    def show_given(handed: Any) -> str:
        return notice(f"{handed[1]} is here and waits for its question.", "hint") if handed else ""

    handed_over.change(
        show_given, [handed_over], [given], show_progress="hidden", api_visibility="private"
    )

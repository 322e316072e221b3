"""The tab Folder: many recordings in one job, with what became of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from NatureLM.app.jobs.store import NewRecording
from NatureLM.app.limits import shown_name
from NatureLM.app.settings import AppContext
from NatureLM.app.tabs.job_form import job_fields, settings_of
from NatureLM.app.tabs.jobs import JobPanel
from NatureLM.errors import NatureLMError
from NatureLM.util import format_bytes


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

    limits = context.limits
    panel = JobPanel(context, "folder")
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            drop = gr.File(
                label="Drop recordings here, or choose",
                file_count="multiple",
                height=160,
                elem_id="folder-drop",
                elem_classes=["drop"],
            )
            gr.HTML(
                f'<p class="about">Up to {limits.folder_files:,} recordings of at most '
                f"{format_bytes(limits.upload_bytes)} each. What cannot be read is named, and the "
                "others go on.</p>",
                js_on_load=None,
            )
            fields = job_fields(context, "folder")
            start = gr.Button("Start", variant="primary", elem_id="folder-start")
        with gr.Column(scale=7, min_width=300):
            panel.build()

    def begin(files: Any, *values: Any) -> list[Any]:
        try:
            settings = settings_of(context, values)
            context.jobs.refuse_if_full()
            given = [NewRecording(Path(file), shown_name(file)) for file in files or []]
            job = context.library.create("folder", given, settings)
            context.jobs.submit(job.id)
        except NatureLMError as error:
            return [gr.skip(), gr.skip(), *panel.said(str(error))]
        return [job.id, None, *panel.show(job.id)]

    start.click(
        begin,
        [drop, *fields],
        [panel.job, drop, *panel.outputs],
        api_name="folder_start",
        show_progress="minimal",
        show_progress_on=[start],
    ).then(None, None, None, js=panel.keep_link, api_visibility="private")

"""The tab Identify: which name of a list fits a clip, and how sure the model is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from NatureLM.app.chat import average_rankings, identify
from NatureLM.app.intake import ClipInput, list_of, unknown_names
from NatureLM.app.page import rankings
from NatureLM.app.player import handler, notice, what_went_wrong
from NatureLM.app.settings import AppContext
from NatureLM.app.tabs.ask import alpha_slider
from NatureLM.errors import UsageError
from NatureLM.models.registry import EMBEDDED
from NatureLM.species import known_names, presets

_NO_PRESET = "—"


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

    ready_made = list(presets())
    first = EMBEDDED if EMBEDDED in ready_made else _NO_PRESET
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            intake = ClipInput(context, "identify", 1, choosing=False).build()
        with gr.Column(scale=6, min_width=320):
            with gr.Group():
                preset = gr.Dropdown(
                    [_NO_PRESET, *ready_made],
                    value=first,
                    label="Which names may be right? A ready-made list",
                    info="naturelm-tiny: the animals of the embedded model. The others are those "
                    "of BEANS-Zero.",
                    elem_id="identify-preset",
                )
                pasted = gr.Textbox(
                    label="or names of your own",
                    info="One a line, or with commas between them. They go before the list above.",
                    placeholder="Barn Owl, Common Cuckoo, European Nightjar",
                    lines=2,
                    max_lines=8,
                    elem_id="identify-names",
                )
            file = gr.File(
                label="or a file: names by line, CSV, BirdNET list or Raven table",
                height=130,
                elem_id="identify-list",
                elem_classes=["drop"],
            )
            none = gr.Checkbox(True, label="It may be none of these", elem_id="identify-none")
            alpha = alpha_slider(context, "identify")
            send = gr.Button("Identify", variant="primary", elem_id="identify-send")
            problem = gr.HTML("", elem_id="identify-problem", js_on_load=None)
            found = gr.HTML("", elem_id="identify-found", js_on_load=None)

    @handler
    def identify_clip(
        chosen: str, names: str, listed: Any, may_be_none: bool, share: float, request: Any
    ) -> Iterator[Any]:
        visitor = context.visitor(request)
        try:
            clips = intake.shelf(visitor).clips
            if not clips:
                raise UsageError(
                    "There is no sound yet: drop a recording, record one, or pick a sample."
                )
            named = None if chosen == _NO_PRESET else chosen
            species = list_of(names, listed, named, visitor.folder, context.limits)
            notes = [*species.notes]
            if named is None or names.strip() or listed:
                notes += unknown_names(species, known_names(context.model_name))
            yield notice("\n".join(notes), "hint"), ""
            windows = identify(context.pipeline(), clips[0], species, share, none=may_be_none)
            yield notice("\n".join(notes), "hint"), rankings(average_rankings(windows), windows)
        except Exception as error:
            yield notice(what_went_wrong(error)), ""

    send.click(
        identify_clip,
        [preset, pasted, file, none, alpha],
        [problem, found],
        api_name="identify",
        show_progress_on=[found],
    )
    for changed in intake.changed:
        changed.then(lambda: "", None, [found], show_progress="hidden", api_visibility="private")

"""The tab Identify: which name of a list fits a clip, and how sure the model is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from NatureLM.app.chat import NO_SOUND, LabelRanking, average_rankings, identify, list_of
from NatureLM.app.context import AppContext
from NatureLM.app.settings import AppError
from NatureLM.app.ui import (
    ClipInput,
    alpha_slider,
    handler,
    html,
    names_box,
    notice,
    span,
    what_went_wrong,
)
from NatureLM.generation.labels import NOTHING
from NatureLM.models.registry import EMBEDDED
from NatureLM.species import hints, known_names, presets

_NO_PRESET = "—"


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

    ready_made = list(presets())
    first = EMBEDDED if EMBEDDED in ready_made else _NO_PRESET
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            clip_input = ClipInput(context, "identify", 1, choosing=False)
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
                pasted = names_box("identify")
            file = gr.File(
                label="or a file: names by line, CSV, BirdNET list or Raven table",
                height=130,
                elem_id="identify-list",
                elem_classes=["drop"],
            )
            none = gr.Checkbox(True, label="It may be none of these", elem_id="identify-none")
            alpha = alpha_slider(context, "identify")
            send = gr.Button("Identify", variant="primary", elem_id="identify-send")
            problem = html(elem_id="identify-problem")
            found = html(elem_id="identify-found")

    @handler
    def identify_clip(
        chosen: str, names: str, listed: Any, may_be_none: bool, share: float, request: Any
    ) -> Iterator[Any]:
        visitor = context.visitor(request)
        try:
            clips = clip_input.clips(visitor).clips
            if not clips:
                raise AppError(NO_SOUND)
            named = None if chosen == _NO_PRESET else chosen
            species = list_of(names, listed, named, visitor.folder, context.limits)
            notes = [*species.notes]
            if named is None or names.strip() or listed:
                notes += hints(species.names, known_names(context.model_name))
            yield notice("\n".join(notes), "hint"), ""
            windows = identify(context.pipeline(), clips[0], species, share, none=may_be_none)
            yield notice("\n".join(notes), "hint"), rankings(average_rankings(windows), windows)
        except Exception as error:
            yield what_went_wrong(error), ""

    send.click(
        identify_clip,
        [preset, pasted, file, none, alpha],
        [problem, found],
        api_name="identify",
        show_progress_on=[found],
    )
    for changed in clip_input.changed:
        changed.then(lambda: "", None, [found], show_progress="hidden", api_visibility="private")


def rankings(whole: LabelRanking, windows: Sequence[LabelRanking]) -> str:
    """The whole clip, and its windows where it has several."""
    parts = [bars(whole, "The whole clip" if len(windows) > 1 else "The clip", headline=True)]
    if len(windows) > 1:
        each = "".join(bars(one, span(one.start, one.end), shown=3) for one in windows)
        parts.append(f'<div class="per-window">{each}</div>')
    return "".join(parts)


def bars(ranked: LabelRanking, title: str, shown: int = 5, *, headline: bool = False) -> str:
    """The likeliest names of a stretch of sound."""
    rows = "".join(_row(label, share) for label, share in ranked.labels[:shown])
    rest = len(ranked.labels) - shown
    more = f'<p class="about">{rest} other names are less likely.</p>' if rest > 0 else ""
    best = f'<p class="best">{escape(_in_words(ranked.labels[0][0]))}</p>' if headline else ""
    return (
        f'<section class="ranking" data-start="{ranked.start:.6g}" data-end="{ranked.end:.6g}">'
        f"<h3>{escape(title)}</h3>{best}<ol>{rows}</ol>{more}</section>"
    )


def _in_words(label: str) -> str:
    """A label in the words of the page."""
    return "None of these" if label == NOTHING else label


def _row(label: str, share: float) -> str:
    percent = "&lt;1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")
    return (
        f'<li data-label="{escape(label)}" data-share="{share:.6f}">'
        f'<span class="label">{escape(_in_words(label))}</span>'
        f'<span class="bar" aria-hidden="true"><span style="width:{100 * share:.2f}%"></span>'
        f'</span><span class="share">{percent}</span></li>'
    )

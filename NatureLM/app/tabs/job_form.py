"""The fields of a job: questions, α, and how the sound is cut into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from NatureLM.app.context import AppContext
from NatureLM.app.jobs import JobSettings
from NatureLM.app.jobs.form import DEFAULT_QUESTION, make_settings
from NatureLM.app.lists import list_of
from NatureLM.species import presets

_ANY = "any answer"
_CHANNELS = [("All channels mixed", "mean"), *((f"Channel {n}", str(n)) for n in range(1, 9))]


def settings_of(context: AppContext, values: Sequence[Any]) -> JobSettings:
    """The settings from the values of `job_fields`. Raises UsageError with a sentence."""
    questions, alpha, window, hop, channel, expansion, names, preset, sure = values
    named = None if preset == _ANY else preset
    labels: tuple[str, ...] = ()
    if names.strip() or named:
        labels = list_of(names, None, named, context.folder, context.limits).names
    return make_settings(
        *(questions, alpha, window, hop, channel, expansion),
        labels=labels,
        sure=sure,
        limits=context.limits,
    )


def job_fields(context: AppContext, name: str) -> list[Any]:
    """Put the fields into the page."""
    import gradio as gr

    from NatureLM.app.tabs.ask import QUESTIONS, alpha_slider

    questions = gr.Textbox(
        DEFAULT_QUESTION,
        label="Question about every window",
        info="Several questions: one on each line.",
        lines=1,
        max_lines=10,
        elem_id=f"{name}-question",
    )
    with gr.Row(elem_classes=["chips"], elem_id=f"{name}-chips"):
        for text in QUESTIONS:
            chip = gr.Button(text, size="sm", min_width=60)
            chip.click(
                None,
                None,
                [questions],
                js=f"() => {text!r}",
                api_visibility="private",
                show_progress="hidden",
            )
    alpha = alpha_slider(context, name)
    with gr.Accordion("Windows, channel, bats", open=False, elem_id=f"{name}-windows"):
        with gr.Row():
            window = gr.Number(
                10.0,
                label="Length of a window (s)",
                info="At most 10.",
                elem_id=f"{name}-window",
                min_width=140,
            )
            hop = gr.Number(
                10.0,
                label="Step from window to window (s)",
                info="5: windows overlap by half.",
                elem_id=f"{name}-hop",
                min_width=140,
            )
        with gr.Row():
            channel = gr.Dropdown(
                _CHANNELS, value="mean", label="Channel", elem_id=f"{name}-channel", min_width=140
            )
            expansion = gr.Number(
                1.0,
                label="Slow the sound down (times)",
                info="10 makes bats audible; times stay true.",
                elem_id=f"{name}-expansion",
                min_width=140,
            )
    with gr.Accordion("Choose from a list of names", open=False, elem_id=f"{name}-list"):
        preset = gr.Dropdown(
            [_ANY, *presets()],
            value=_ANY,
            label="Ready-made list",
            info="With a list every answer is one of its names or None, with its confidence.",
            elem_id=f"{name}-preset",
        )
        names = gr.Textbox(
            "",
            label="or names of your own",
            info="One a line, or with commas between them. They go before the list above.",
            placeholder="Barn Owl, Common Cuckoo, European Nightjar",
            lines=2,
            max_lines=8,
            elem_id=f"{name}-names",
        )
        sure = gr.Slider(
            0.0,
            1.0,
            value=0.0,
            step=0.05,
            label="Least confidence",
            info="Below it the answer is None.",
            elem_id=f"{name}-sure",
        )
    return [questions, alpha, window, hop, channel, expansion, names, preset, sure]

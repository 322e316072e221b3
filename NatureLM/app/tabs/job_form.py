"""The fields of a job: questions, α, windows of the sound, and what may be answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from NatureLM.app.chat import list_of
from NatureLM.app.context import AppContext
from NatureLM.app.settings import AppError, Limits
from NatureLM.app.ui import QUESTIONS, alpha_slider, names_box
from NatureLM.inference.windows import AskOptions
from NatureLM.species import presets

MOST_QUESTIONS = 10
_ANY = "any answer"
_CHANNELS = [("All channels mixed", "mean"), *((f"Channel {n}", str(n)) for n in range(1, 9))]


def job_fields(context: AppContext, name: str) -> list[Any]:
    """Put the fields of a job into the page; `settings_of` takes their values."""
    import gradio as gr

    questions = gr.Textbox(
        QUESTIONS[0],
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
        names = names_box(name, value="")
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


def settings_of(values: Sequence[Any], folder: Path, limits: Limits) -> AskOptions:
    """The settings of a job from the values of `job_fields`; `folder` is for temporary files.

    Raises NatureLMError that names the field and what is allowed.
    """
    questions, alpha, window, hop, channel, expansion, names, preset, sure = values
    named = None if preset == _ANY else preset
    labels: tuple[str, ...] = ()
    if names.strip() or named:
        labels = list_of(names, None, named, folder, limits).names
    return AskOptions(
        queries=_questions(questions, limits),
        merging_alpha=_number("α", alpha, -10.0, 10.0),
        window_length_seconds=_number("The length of a window", window, 0.1, 10.0),
        hop_length_seconds=_number("The step from window to window", hop, 0.1, 3600.0),
        channel=_channel(channel),
        time_expansion=_number("The slowing down", expansion, 0.01, 100.0),
        mode="score" if labels else "generate",
        labels=labels,
        min_confidence=_number("The least confidence", sure, 0.0, 1.0) if labels else 0.0,
    )


def _questions(text: str, limits: Limits) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
    if not found:
        raise AppError(f"There is no question yet, such as: {QUESTIONS[0]}")
    if len(found) > MOST_QUESTIONS:
        raise AppError(f"{len(found)} questions are more than the {MOST_QUESTIONS} of one job.")
    longest = max(map(len, found))
    if longest > limits.question_characters:
        raise AppError(
            f"A question has {longest:,} characters, and {limits.question_characters:,} are the "
            "most that are taken."
        )
    return found


def _number(name: str, value: Any, least: float, most: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        shown = "not filled in" if value in (None, "") else f"{value}"
        raise AppError(f"{name} is {shown}, and it must be a number from {least:g} to {most:g}.")
    return number


def _channel(value: str) -> str | int:
    if value == "mean":
        return value
    if str(value).isdecimal() and 1 <= int(value) <= 1024:
        return int(value)
    raise AppError(f"The channel is {value!r}, and it must be mean or a number from 1.")

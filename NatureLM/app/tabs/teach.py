"""The tab Teach by example: labelled clips in front of a new one, which the model then names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from NatureLM.app.chat import answer, examples_query
from NatureLM.app.clips import Clip
from NatureLM.app.context import AppContext
from NatureLM.app.settings import AppError
from NatureLM.app.ui import ClipInput, alpha_slider, handler, html, what_went_wrong
from NatureLM.prompts import PLACEHOLDER

FEWEST, MOST = 2, 10
_HEAR = "The model hears"
_QUESTION = (
    "Identify the common name for the focal species in the audio.\nOutput exactly one of: {labels}"
)


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            html(
                f"<h2>1. Examples</h2><p>{FEWEST} to {MOST} clips with their names. Write a name, "
                "then give a clip of it.</p>"
            )
            label = gr.Textbox(
                label="Name of the next clip",
                placeholder="Barn Owl",
                max_length=100,
                elem_id="teach-label",
            )
            examples = ClipInput(
                context, "examples", MOST, what="clip", label=label, always_add=True, asking=_HEAR
            )
        with gr.Column(scale=5, min_width=320):
            html("<h2>2. The new clip</h2><p>The clip that the model is to name.</p>")
            new = ClipInput(context, "new", 1, what="clip", asking=_HEAR)
            question = gr.Textbox(
                _QUESTION,
                label="Question",
                info="{labels} stands for the names of the examples.",
                lines=2,
                max_lines=6,
                max_length=context.limits.question_characters,
                elem_id="teach-question",
            )
            alpha = alpha_slider(context, "teach")
            send = gr.Button("Name the new clip", variant="primary", elem_id="teach-send")
            problem = html(elem_id="teach-problem")
            found = html(elem_id="teach-found")

    @handler
    def name_clip(text: str, share: float, request: Any) -> Iterator[Any]:
        visitor = context.visitor(request)
        try:
            shown, clips = examples.clips(visitor).clips, new.clips(visitor).clips
            labels = labels_of(shown)
            if not clips:
                raise AppError("There is no new clip yet: give the one that is to be named.")
            query = examples_query(with_labels(text, labels), labels)
            yield "", '<p class="about">The model listens …</p>'
            heard = [*shown, clips[0]]
            said, prompt = answer(context.pipeline(), heard, query, share)
            yield "", answered(said, prompt, heard)
        except Exception as error:
            yield what_went_wrong(error), ""

    send.click(
        name_clip,
        [question, alpha],
        [problem, found],
        api_name="teach",
        show_progress="hidden",
    )


def labels_of(examples: Sequence[Clip]) -> list[str]:
    """The labels of the example clips; raises AppError where they are too few or have none."""
    labels = [clip.label for clip in examples]
    if len(labels) < FEWEST:
        raise AppError(
            f"There are {len(labels)} examples, and {FEWEST} are the fewest: "
            "write a name and give a clip of it."
        )
    for number, label in enumerate(labels, start=1):
        if not label:
            raise AppError(
                f"Example [{number}] has no name: take it out, write the name, and give it again."
            )
    return labels


def with_labels(question: str, labels: list[str]) -> str:
    """The question with the names, each once."""
    if not question.strip():
        raise AppError("The question is empty: write one.")
    return question.strip().replace("{labels}", ", ".join(dict.fromkeys(labels)))


def answered(said: str, prompt: str, clips: Sequence[Clip]) -> str:
    """The answer, and the prompt with the clips in their places."""
    pieces = [escape(piece) for piece in prompt.split(PLACEHOLDER)]
    shown = pieces[0]
    for clip, piece in zip(clips, pieces[1:], strict=True):
        shown += f'<span class="sound" data-clip="{clip.id}">♪ {escape(clip.name)}</span>{piece}'
    return (
        f'<p class="best">{escape(said) or "(The model gave an empty answer.)"}</p>'
        f"<details open><summary>The prompt, with {len(clips)} sounds in their places</summary>"
        f'<pre class="prompt">{shown}</pre></details>'
    )

"""The tab Teach by example: labelled clips in front of a new one, which the model then names."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from NatureLM.app.chat import answer, examples_query
from NatureLM.app.clips import Clip, ClipList
from NatureLM.app.intake import ClipInput
from NatureLM.app.player import handler, notice, what_went_wrong
from NatureLM.app.settings import AppContext
from NatureLM.app.tabs.ask import alpha_slider
from NatureLM.errors import UsageError
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
            gr.HTML(
                f"<h2>1. Examples</h2><p>{FEWEST} to {MOST} clips with their names. Write a name, "
                "then give a clip of it.</p>",
                js_on_load=None,
            )
            label = gr.Textbox(
                label="Name of the next clip",
                placeholder="Barn Owl",
                max_length=100,
                elem_id="teach-label",
            )
            examples = ClipInput(
                context, "examples", MOST, what="clip", label=label, always_add=True, asking=_HEAR
            ).build()
        with gr.Column(scale=5, min_width=320):
            gr.HTML(
                "<h2>2. The new clip</h2><p>The clip that the model is to name.</p>",
                js_on_load=None,
            )
            new = ClipInput(context, "new", 1, what="clip", asking=_HEAR).build()
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
            problem = gr.HTML("", elem_id="teach-problem", js_on_load=None)
            found = gr.HTML("", elem_id="teach-found", js_on_load=None)

    @handler
    def name_clip(text: str, share: float, request: Any) -> Iterator[Any]:
        visitor = context.visitor(request)
        try:
            shelf, clips = examples.shelf(visitor), list(new.shelf(visitor).clips)
            labels = labels_of(shelf)
            if not clips:
                raise UsageError("There is no new clip yet: give the one that is to be named.")
            query = examples_query(asked(text, labels), labels)
            yield "", '<p class="about">The model listens …</p>'
            together = [*shelf.clips, clips[0]]
            said, prompt = answer(context.pipeline(), together, query, share)
            yield "", answered(said, prompt, together)
        except Exception as error:
            yield notice(what_went_wrong(error)), ""

    send.click(
        name_clip,
        [question, alpha],
        [problem, found],
        api_name="teach",
        show_progress="hidden",
    )


def labels_of(shelf: ClipList) -> list[str]:
    """The labels of the example clips; raises UsageError where they are too few or have none."""
    labels = [shelf.labels.get(clip.id, "") for clip in shelf.clips]
    if len(labels) < FEWEST:
        raise UsageError(
            f"There are {len(labels)} examples, and {FEWEST} are the fewest: "
            "write a name and give a clip of it."
        )
    for number, label in enumerate(labels, start=1):
        if not label:
            raise UsageError(
                f"Example [{number}] has no name: take it out, write the name, and give it again."
            )
    return labels


def asked(question: str, labels: list[str]) -> str:
    """The question with the names, each once."""
    if not question.strip():
        raise UsageError("The question is empty: write one.")
    return question.strip().replace("{labels}", ", ".join(dict.fromkeys(labels)))


def answered(said: str, prompt: str, clips: list[Clip]) -> str:
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

"""The tab Ask: questions about clips, one after another, with answers that come as text."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from NatureLM.app.chat import ALPHAS, ChatSession, Message
from NatureLM.app.intake import ClipInput
from NatureLM.app.player import handler, notice, what_went_wrong
from NatureLM.app.settings import AppContext
from NatureLM.app.visitors import Visitor

QUESTIONS = (
    "What is the common name for the focal species in the audio?",
    "What makes the sound in the audio?",
    "What is the scientific name for the focal species in the audio?",
    "Is it a bird, a frog or a mammal?",
    "Caption the audio",
)
_EMPTY = "Drop a recording, record one or pick a sample. Then ask."


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            intake = ClipInput(context, "ask", context.limits.clips).build()
        with gr.Column(scale=6, min_width=320):
            chat = gr.Chatbot(
                label="Conversation",
                elem_id="ask-chat",
                height=380,
                placeholder=_EMPTY,
                render_markdown=False,
                sanitize_html=True,
                allow_tags=True,
                latex_delimiters=[],
                feedback_options=None,
                buttons=[],
                layout="bubble",
            )
            problem = gr.HTML("", elem_id="ask-problem", js_on_load=None)
            with gr.Row(elem_classes=["asking"]):
                question = gr.Textbox(
                    label="Question",
                    placeholder="What is the common name for the focal species in the audio?",
                    info="[1], [2] … stand for the sounds by their numbers.",
                    lines=1,
                    max_lines=6,
                    max_length=context.limits.question_characters,
                    elem_id="ask-question",
                    scale=5,
                )
                send = gr.Button("Ask", variant="primary", elem_id="ask-send", min_width=90)
                stop = gr.Button("Stop", visible=False, elem_id="ask-stop", min_width=90)
            with gr.Row(elem_classes=["chips"], elem_id="ask-chips"):
                chips = [gr.Button(text, size="sm", min_width=60) for text in QUESTIONS]
            alpha = alpha_slider(context, "ask")
            with gr.Accordion("Compare α", open=False, elem_id="ask-compare"):
                gr.HTML(
                    "<p>The question above at five values of α, each answered on its own.</p>",
                    js_on_load=None,
                )
                compare = gr.Button("Compare", elem_id="ask-compare-send")
                compared = gr.HTML("", elem_id="ask-compared", js_on_load=None)

    said = [chat, question, problem, send, stop]

    def answers(text: str, share: float, request: Any) -> Iterator[Any]:
        visitor = context.visitor(request)
        talk = talk_of(context, visitor)
        clips = list(intake.shelf(visitor).clips)
        busy = [gr.Button(visible=False), gr.Button(visible=True)]
        try:
            first = True
            waiting = "" if context.state == "ready" else notice("The model is loading …", "hint")
            if waiting and clips:
                yield [bubbles(talk), text, waiting, *busy]
            for _ in talk.ask(context.pipeline(), clips, text, share):
                yield [bubbles(talk), "" if first else gr.skip(), "", *busy]
                first = False
            yield [bubbles(talk), gr.skip(), "", gr.Button(visible=True), gr.Button(visible=False)]
        except Exception as error:
            yield [
                bubbles(talk),
                gr.skip(),
                notice(what_went_wrong(error)),
                gr.Button(visible=True),
                gr.Button(visible=False),
            ]

    @handler
    def ask(text: str, share: float, request: Any) -> Iterator[Any]:
        yield from answers(text, share, request)

    asked: list[Any] = [
        listen(ask, [question, alpha], said, show_progress="hidden", api_name=name)
        for listen, name in ((question.submit, "ask"), (send.click, "ask_button"))
    ]
    for number, chip in enumerate(chips):

        @handler
        def ask_chip(share: float, request: Any, text: str = QUESTIONS[number]) -> Iterator[Any]:
            yield from answers(text, share, request)

        asked.append(
            chip.click(ask_chip, [alpha], said, show_progress="hidden", api_visibility="private")
        )

    @handler
    def stopped(request: Any) -> Any:
        talk = talk_of(context, context.visitor(request))
        talk.stop()
        return [bubbles(talk), gr.skip(), "", gr.Button(visible=True), gr.Button(visible=False)]

    stop.click(stopped, None, said, cancels=asked, queue=False, api_visibility="private")

    @handler
    def begin_anew(request: Any) -> Any:
        talk = talk_of(context, context.visitor(request))
        talk.clear()
        return [[], gr.skip(), "", gr.Button(visible=True), gr.Button(visible=False)]

    chat.clear(begin_anew, None, said, cancels=asked, queue=False, api_visibility="private")

    @handler
    def compare_all(text: str, request: Any) -> Any:
        visitor = context.visitor(request)
        talk = talk_of(context, visitor)
        wanted = text.strip() or last_question(talk) or QUESTIONS[0]
        try:
            clips = list(intake.shelf(visitor).clips)
            found = talk.compare(context.pipeline(), clips, wanted, ALPHAS)
        except Exception as error:
            return notice(what_went_wrong(error))
        return comparison(wanted, ALPHAS, found)

    compare.click(compare_all, [question], [compared], api_name="compare_alphas")


def alpha_slider(context: AppContext, name: str) -> Any:
    """The slider of α, in plain words."""
    import gradio as gr

    return gr.Slider(
        0.0,
        1.0,
        value=min(1.0, max(0.0, context.alpha)),
        step=0.05,
        label="α: follows instructions (0) ↔ knows animals (1)",
        info="How much of what was learned about animal sound is mixed into the language model. "
        "1 for naming animals; 0.4 to 0.6 for unusual instructions; 0 cannot hear.",
        elem_id=f"{name}-alpha",
    )


def talk_of(context: AppContext, visitor: Visitor) -> ChatSession:
    """The visitor's conversation."""
    return visitor.keep("talk", lambda: ChatSession(context.limits))


def last_question(talk: ChatSession) -> str:
    """What was asked last; nothing if nothing was."""
    return next((one.text for one in reversed(talk.messages) if one.role == "user"), "")


def bubbles(talk: ChatSession) -> list[dict[str, str]]:
    """The messages as the chat shows them. It takes text for HTML, so that is escaped."""
    return [{"role": one.role, "content": escape(_words(one))} for one in talk.messages]


def comparison(question: str, alphas: tuple[float, ...], answers: list[str]) -> str:
    """The answers side by side."""
    cards = "".join(
        f'<li data-alpha="{alpha:g}"><span class="alpha">α = {alpha:g}</span>'
        f'<span class="answer">{escape(answer.strip()) or "(empty)"}</span></li>'
        for alpha, answer in zip(alphas, answers, strict=True)
    )
    return f'<p class="about">{escape(question)}</p><ul class="comparison">{cards}</ul>'


def _words(message: Message) -> str:
    if message.about:
        return f"♪ {message.about}\n{message.text}"
    return message.text or ("(Stopped before an answer came.)" if message.stopped else "…")

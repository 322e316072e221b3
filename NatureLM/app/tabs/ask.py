"""The tab Ask: questions about clips, one after another, with answers that come as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from NatureLM.app.chat import ChatSession, compare_alphas
from NatureLM.app.context import AppContext, Visitor
from NatureLM.app.ui import (
    QUESTIONS,
    ClipInput,
    alpha_slider,
    handler,
    html,
    notice,
    what_went_wrong,
)

_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_EMPTY = "Drop a recording, record one or pick a sample. Then ask."


def build(context: AppContext) -> None:
    """Put the tab's components into the page."""
    import gradio as gr

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            clip_input = ClipInput(context, "ask", context.limits.clips)
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
            problem = html(elem_id="ask-problem")
            with gr.Row(elem_classes=["asking"]):
                question = gr.Textbox(
                    label="Question",
                    placeholder=QUESTIONS[0],
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
                html("<p>The question above at five values of α, each answered on its own.</p>")
                compare = gr.Button("Compare", elem_id="ask-compare-send")
                compared = html(elem_id="ask-compared")

    outputs = [chat, question, problem, send, stop]

    def shown(
        session: ChatSession, said: str = "", *, text: Any = None, busy: bool = False
    ) -> list[Any]:
        """Values of `outputs`; `text` None leaves the question as it stands."""
        buttons = [gr.Button(visible=not busy), gr.Button(visible=busy)]
        return [bubbles(session), gr.skip() if text is None else text, said, *buttons]

    def answers(text: str, share: float, request: Any) -> Iterator[Any]:
        visitor = context.visitor(request)
        session = session_of(context, visitor)
        clips = clip_input.clips(visitor).clips
        try:
            if context.state != "ready" and clips:
                said = notice("The model is loading …", "hint")
                yield shown(session, said, text=text, busy=True)
            cleared: str | None = ""
            for _ in session.ask(context.pipeline(), clips, text, share):
                yield shown(session, text=cleared, busy=True)
                cleared = None
            yield shown(session)
        except Exception as error:
            yield shown(session, what_went_wrong(error))

    @handler
    def ask(text: str, share: float, request: Any) -> Iterator[Any]:
        yield from answers(text, share, request)

    asked: list[Any] = [
        listen(ask, [question, alpha], outputs, show_progress="hidden", api_name=name)
        for listen, name in ((question.submit, "ask"), (send.click, "ask_button"))
    ]
    for number, chip in enumerate(chips):

        @handler
        def ask_chip(share: float, request: Any, text: str = QUESTIONS[number]) -> Iterator[Any]:
            yield from answers(text, share, request)

        asked.append(
            chip.click(ask_chip, [alpha], outputs, show_progress="hidden", api_visibility="private")
        )

    @handler
    def stopped(request: Any) -> Any:
        session = session_of(context, context.visitor(request))
        session.stop()
        return shown(session)

    @handler
    def begin_anew(request: Any) -> Any:
        session = session_of(context, context.visitor(request))
        session.clear()
        return shown(session)

    stop.click(stopped, None, outputs, cancels=asked, queue=False, api_visibility="private")
    chat.clear(begin_anew, None, outputs, cancels=asked, queue=False, api_visibility="private")

    @handler
    def compare_all(text: str, request: Any) -> Any:
        visitor = context.visitor(request)
        turns = session_of(context, visitor).turns
        wanted = text.strip() or (turns[-1].question if turns else QUESTIONS[0])
        try:
            clips = clip_input.clips(visitor).clips
            found = compare_alphas(context.pipeline(), clips, wanted, _ALPHAS, context.limits)
        except Exception as error:
            return what_went_wrong(error)
        return comparison(wanted, _ALPHAS, found)

    compare.click(compare_all, [question], [compared], api_name="compare_alphas")


def session_of(context: AppContext, visitor: Visitor) -> ChatSession:
    """The visitor's conversation."""
    return visitor.keep("chat", lambda: ChatSession(context.limits))


def bubbles(session: ChatSession) -> list[dict[str, str]]:
    """The turns as the chat shows them. It takes text for HTML, so that is escaped."""
    shown = []
    for turn in session.turns:
        question = f"♪ {turn.about}\n{turn.question}" if turn.about else turn.question
        answer = turn.answer or ("(Stopped before an answer came.)" if turn.stopped else "…")
        shown.append({"role": "user", "content": escape(question)})
        shown.append({"role": "assistant", "content": escape(answer)})
    return shown


def comparison(question: str, alphas: Sequence[float], answers: Sequence[str]) -> str:
    """The answers side by side."""
    cards = "".join(
        f'<li data-alpha="{alpha:g}"><span class="alpha">α = {alpha:g}</span>'
        f'<span class="answer">{escape(answer.strip()) or "(empty)"}</span></li>'
        for alpha, answer in zip(alphas, answers, strict=True)
    )
    return f'<p class="about">{escape(question)}</p><ul class="comparison">{cards}</ul>'

"""The tabs that answer at once: Ask, Identify, and Teach by example."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from NatureLM.app.chat import (
    NO_SOUND,
    ChatSession,
    LabelRanking,
    answer,
    average_rankings,
    compare_alphas,
    examples_query,
    identify,
    list_of,
)
from NatureLM.app.clips import Clip, shown_name, span
from NatureLM.app.context import AppContext, Visitor
from NatureLM.app.ui import (
    HIDDEN,
    QUESTIONS,
    QUIET,
    ClipInput,
    alpha_slider,
    html,
    names_box,
    notice,
    sound_address,
    what_went_wrong,
)
from NatureLM.audio import AUDIO_SUFFIXES
from NatureLM.audio.windows import Window
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.models.registry import EMBEDDED
from NatureLM.prompts import PLACEHOLDER
from NatureLM.search.build import Embedder
from NatureLM.search.index import IndexSettings
from NatureLM.species import hints, known_names, presets
from NatureLM.teach.classifier import Classifier, ask_options, ranked, read_classifier
from NatureLM.teach.examples import Examples, Place, named
from NatureLM.teach.fit import fit_classifier

if TYPE_CHECKING:
    from NatureLM.app.job import Job
    from NatureLM.app.jobs import Jobs


FEWEST, MOST = 2, 10
"""Examples of Teach by example."""
_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
_EMPTY = "Drop a recording, record one or pick a sample. Then ask."
_NO_PRESET = "—"
_TAUGHT = "taught"  # what a visitor taught last
_HEAR = "The model hears"
_QUESTION = (
    "Identify the common name for the focal species in the audio.\nOutput exactly one of: {labels}"
)


def build_ask(context: AppContext) -> None:
    """Questions about clips, one after another, with answers that come as text."""
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

    def session_of(visitor: Visitor) -> ChatSession:
        return visitor.keep("chat", lambda: ChatSession(context.limits))

    def shown(
        session: ChatSession, said: str = "", *, text: Any = None, busy: bool = False
    ) -> list[Any]:
        """Values of `outputs`; `text` None leaves the question as it stands."""
        buttons = [gr.Button(visible=not busy), gr.Button("Stop", visible=busy, interactive=True)]
        return [bubbles(session), gr.skip() if text is None else text, said, *buttons]

    def ask(text: str, share: float, request: gr.Request) -> Iterator[Any]:
        visitor = context.visitor(request)
        session = session_of(visitor)
        clips = clip_input.clips(visitor).clips
        try:
            if context.loader.state != "ready" and clips:
                said = notice("The model is loading …", "hint")
                yield shown(session, said, text=text, busy=True)
            cleared: str | None = ""
            for _ in session.ask(context.pipeline(), clips, text, share):
                yield shown(session, text=cleared, busy=True)
                cleared = None
            yield shown(session)
        except Exception as error:
            yield shown(session, what_went_wrong(error))

    asked: list[Any] = [
        listen(ask, [question, alpha], outputs, show_progress="hidden", api_name=name)
        for listen, name in ((question.submit, "ask"), (send.click, "ask_button"))
    ]
    for chip, chip_text in zip(chips, QUESTIONS, strict=True):

        def ask_chip(share: float, request: gr.Request, text: str = chip_text) -> Iterator[Any]:
            yield from ask(text, share, request)

        asked.append(chip.click(ask_chip, [alpha], outputs, **HIDDEN))

    def stopped(request: gr.Request) -> Any:
        session = session_of(context.visitor(request))
        session.stop()
        return [*shown(session)[:3], gr.skip(), gr.Button("Stopping …", interactive=False)]

    def begin_anew(request: gr.Request) -> Any:
        session = session_of(context.visitor(request))
        session.clear()
        return [*shown(session)[:3], gr.skip(), gr.skip()]

    def at_rest(request: gr.Request) -> Any:
        return shown(session_of(context.visitor(request)))

    stop.click(stopped, None, outputs, cancels=asked, **QUIET)
    chat.clear(begin_anew, None, outputs, cancels=asked, **QUIET)
    # A call that is cancelled ends with the piece that is being made, and Gradio drops a click
    # before that: there is nothing to click until then, when it counts as failed.
    for event in asked:
        event.failure(at_rest, None, outputs, **QUIET)

    def compare_all(text: str, request: gr.Request) -> Any:
        visitor = context.visitor(request)
        turns = session_of(visitor).turns
        wanted = text.strip() or (turns[-1].question if turns else QUESTIONS[0])
        try:
            clips = clip_input.clips(visitor).clips
            found = compare_alphas(context.pipeline(), clips, wanted, _ALPHAS, context.limits)
        except Exception as error:
            return what_went_wrong(error)
        return comparison(wanted, _ALPHAS, found)

    compare.click(compare_all, [question], [compared], api_name="compare_alphas")


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
    cards = "".join(
        f'<li data-alpha="{alpha:g}"><span class="alpha">α = {alpha:g}</span>'
        f'<span class="answer">{escape(answer.strip()) or "(empty)"}</span></li>'
        for alpha, answer in zip(alphas, answers, strict=True)
    )
    return f'<p class="about">{escape(question)}</p><ul class="comparison">{cards}</ul>'


def build_identify(context: AppContext) -> None:
    """Which name of a list fits a clip, and how sure the model is."""
    ready_made = list(presets())
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            clip_input = ClipInput(context, "identify", 1, choosing=False)
        with gr.Column(scale=6, min_width=320):
            with gr.Group():
                preset = gr.Dropdown(
                    [_NO_PRESET, *ready_made],
                    value=EMBEDDED if EMBEDDED in ready_made else _NO_PRESET,
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

    def identify_clip(
        chosen: str, names: str, listed: Any, may_be_none: bool, share: float, request: gr.Request
    ) -> Iterator[Any]:
        visitor = context.visitor(request)
        try:
            clips = clip_input.clips(visitor).clips
            if not clips:
                raise UsageError(NO_SOUND)
            named = None if chosen == _NO_PRESET else chosen
            species = list_of(names, listed, named, visitor.folder, context.limits)
            notes = [*species.notes]
            if named is None or names.strip() or listed:
                notes += hints(species.names, known_names(context.model_name))
            said = notice("\n".join(notes), "hint")
            yield said, ""
            windows = identify(context.pipeline(), clips[0], species, share, none=may_be_none)
            yield said, rankings(average_rankings(windows), windows)
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
        changed.then(lambda: "", None, [found], **HIDDEN)


def rankings(whole: LabelRanking, windows: Sequence[LabelRanking]) -> str:
    """The whole clip, and its windows where it has several."""
    if len(windows) == 1:
        return bars(whole, "The clip", headline=True)
    each = "".join(bars(one, span(one.start, one.end), shown=3) for one in windows)
    return bars(whole, "The whole clip", headline=True) + f'<div class="per-window">{each}</div>'


def bars(ranked: LabelRanking, title: str, shown: int = 5, *, headline: bool = False) -> str:
    """The likeliest names of a stretch of sound."""
    rows = "".join(_bar(label, share) for label, share in ranked.labels[:shown])
    rest = len(ranked.labels) - shown
    rows = rows or f"<li>{escape(ranked.note)}</li>"
    more = f'<p class="about">{rest} other names are less likely.</p>' if rest > 0 else ""
    best = f'<p class="best">{escape(_in_words(ranked.labels[0][0]))}</p>' if headline else ""
    return (
        f'<section class="ranking" data-start="{ranked.start:.6g}" data-end="{ranked.end:.6g}">'
        f"<h3>{escape(title)}</h3>{best}<ol>{rows}</ol>{more}</section>"
    )


def _in_words(label: str) -> str:
    return "None of these" if label == NOTHING else label


def _bar(label: str, share: float) -> str:
    percent = "&lt;1 %" if share < 0.005 else f"{share:.0%}".replace("%", " %")
    return (
        f'<li data-label="{escape(label)}" data-share="{share:.6f}">'
        f'<span class="label">{escape(_in_words(label))}</span>'
        f'<span class="bar" aria-hidden="true"><span style="width:{100 * share:.2f}%"></span>'
        f'</span><span class="share">{percent}</span></li>'
    )


def build_teach(context: AppContext) -> None:
    """Labelled clips in front of a new one, which the model and a classifier of them then name."""
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
            html("<h2>2. The new clip</h2><p>The clip that is to be named.</p>")
            new = ClipInput(context, "new", 1, what="clip", asking=_HEAR)
            question = gr.Textbox(
                _QUESTION,
                label="Question to the language model",
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
            folder = _build_folder(context)

    def name_clip(text: str, share: float, request: gr.Request) -> Iterator[Any]:
        visitor = context.visitor(request)
        visitor.forget(_TAUGHT)
        hidden = gr.Accordion(visible=False)
        try:
            shown, clips = examples.clips(visitor).clips, new.clips(visitor).clips
            labels = labels_of(shown)
            if not clips:
                raise UsageError("There is no new clip yet: give the one that is to be named.")
            query = examples_query(with_labels(text, labels), labels)
            yield "", '<p class="about">The model listens …</p>', hidden
            pipeline, heard = context.pipeline(), [*shown, clips[0]]
            said, prompt = answer(pipeline, heard, query, share)
            taught = teach_clips(pipeline.model, context.model_name, shown, labels, clips[0])
            visitor.keep(_TAUGHT, lambda: taught)
            yield "", beside(answered(said, prompt, heard), taught), gr.Accordion(visible=True)
        except Exception as error:
            yield what_went_wrong(error), "", hidden

    send.click(
        name_clip,
        [question, alpha],
        [problem, found, folder],
        api_name="teach",
        show_progress="hidden",
    )


def _build_folder(context: AppContext) -> Any:
    """Asks the classifier about many recordings: a job, which opens in the tab Folder."""
    with gr.Accordion(
        "Use this for a folder", open=True, visible=False, elem_id="teach-folder"
    ) as part:
        html(
            "<p>The classifier listens to every ten seconds of the recordings, without the "
            "language model: many times quicker.</p>"
        )
        drop = gr.File(
            label="Recordings",
            file_count="multiple",
            file_types=sorted(AUDIO_SUFFIXES),
            height=120,
            elem_id="teach-drop",
            elem_classes=["drop"],
        )
        start = gr.Button("Start", elem_id="teach-start")
        begun = html(elem_id="teach-begun")

    def begin(files: Any, request: gr.Request) -> str:
        visitor = context.visitor(request)
        try:
            taught = visitor.kept(_TAUGHT)
            if taught is None:
                raise UsageError("Name a clip first: that teaches the classifier.")
            listed = [(Path(file), shown_name(file)) for file in files or []]
            job = begin_job(context.jobs, listed, keep(taught, visitor.folder))
        except Exception as error:
            return what_went_wrong(error)
        return f'<p>The work has begun. <a href="?job={job.id}">Show its progress</a></p>'

    start.click(begin, [drop], [begun], api_name="teach_folder")
    return part


_NEAREST = 3


@dataclass(frozen=True)
class TaughtAnswer:
    """What a classifier of some clips says of another one.

    ranking: its names and None, best first
    nearest: the examples that are most like the clip, with their cosines
    """

    classifier: Classifier
    examples: Examples
    ranking: LabelRanking
    nearest: tuple[tuple[Clip, float], ...]


def teach_clips(
    model: Any, name: str, examples: Sequence[Clip], labels: Sequence[str], new: Clip
) -> TaughtAnswer:
    """Teach a classifier by clips and ask it about a new one; of each the chosen window counts.

    name: of the model

    Raises UsageError where a clip holds no sound.
    """
    embedder = Embedder(model, "peaks")
    clips = [*examples, new]
    slowed = {clip.slowed for clip in clips}
    if len(slowed) > 1:
        raise UsageError(
            "Some clips are slowed down and some are not: give all of them at the same speed."
        )
    settings = IndexSettings(
        model=name,
        **embedder.about,
        window_seconds=model.config.window_seconds,
        hop_seconds=model.config.window_seconds,
        time_expansion=new.slowed,
    )
    vectors = embedder.vectors([_window(clip) for clip in clips])
    taught = Examples(
        vectors[:-1],
        tuple(map(named, labels)),
        ("",) * len(examples),
        tuple(range(len(examples))),
        tuple(clip.name for clip in examples),
        tuple(Place(clip.name, *clip.spans[clip.chosen]) for clip in examples),
    )
    classifier, _ = fit_classifier(taught, settings)
    said = classifier.classify(vectors[-1:])
    similar = classifier.examples @ vectors[-1] / max(float((vectors[-1] ** 2).sum() ** 0.5), 1e-9)
    order = similar.argsort()[::-1][:_NEAREST]
    return TaughtAnswer(
        classifier,
        taught,
        LabelRanking(*new.spans[new.chosen], tuple(ranked(said.chances[0], classifier.labels))),
        tuple((examples[place], float(similar[place])) for place in order),
    )


def _window(clip: Clip) -> Window:
    samples = clip.samples()
    return Window(0, 0.0, len(samples) / clip.sample_rate, samples)


def nearest_html(answer: TaughtAnswer) -> str:
    """The examples that are most like the clip, to listen to."""
    items = "".join(
        f'<li data-clip="{clip.id}"><span class="tag">{escape(clip.label)}</span> '
        f'<span class="name">{escape(clip.name)}, {span(*clip.spans[clip.chosen])}</span> '
        f'<span class="share">likeness {similarity:.2f}</span>'
        f'<audio controls preload="none" src="{sound_address(clip)}" '
        f'aria-label="Example {escape(clip.label)}, {escape(clip.name)}"></audio></li>'
        for clip, similarity in answer.nearest
    )
    return f'<h4>Nearest examples</h4><ol class="nearest">{items}</ol>'


def keep(answer: TaughtAnswer, folder: Path) -> Path:
    """Write the classifier into a visitor's folder; its place."""
    from NatureLM.teach.fit import save

    place = folder / f"taught-{secrets.token_urlsafe(8)}"
    save(place, answer.classifier, answer.examples, None, [])
    return place


def begin_job(jobs: Jobs, files: Sequence[tuple[Path, str]], classifier: Path) -> Job:
    """A job that asks a classifier about recordings. Raises UsageError."""
    if not files:
        raise UsageError("There are no recordings yet: drop a folder, or choose files.")
    jobs.refuse_if_full()
    settings = ask_options(read_classifier(classifier), top_k=3)
    job = jobs.create("folder", files, settings, classifier=classifier)
    jobs.submit(job.id)
    return job


def beside(model: str, taught: TaughtAnswer) -> str:
    """What the language model says, and beside it the classifier with its nearest examples."""
    ranking = bars(taught.ranking, "A classifier of the examples says", headline=True)
    return (
        f'<div class="beside"><section><h3>The language model says</h3>{model}</section>'
        f'<section class="taught">{ranking}'
        f"{nearest_html(taught)}</section></div>"
    )


def labels_of(examples: Sequence[Clip]) -> list[str]:
    """The labels of the example clips; raises UsageError where they are too few or have none."""
    labels = [clip.label for clip in examples]
    if len(labels) < FEWEST:
        raise UsageError(
            f"There are {len(labels)} examples, and {FEWEST} are the fewest: "
            "write a name and give a clip of it."
        )
    if "" in labels:
        number = labels.index("") + 1
        raise UsageError(
            f"Example [{number}] has no name: take it out, write the name, and give it again."
        )
    return labels


def with_labels(question: str, labels: list[str]) -> str:
    """The question with the names, each once."""
    if not question.strip():
        raise UsageError("The question is empty: write one.")
    return question.strip().replace("{labels}", ", ".join(dict.fromkeys(labels)))


def answered(said: str, prompt: str, clips: Sequence[Clip]) -> str:
    """The answer, and the prompt with the clips in their places."""
    first, *pieces = (escape(piece) for piece in prompt.split(PLACEHOLDER))
    shown = first + "".join(
        f'<span class="sound" data-clip="{clip.id}">♪ {escape(clip.name)}</span>{piece}'
        for clip, piece in zip(clips, pieces, strict=True)
    )
    return (
        f'<p class="best">{escape(said) or "(The model gave an empty answer.)"}</p>'
        f"<details open><summary>The prompt, with {len(clips)} sounds in their places</summary>"
        f'<pre class="prompt">{shown}</pre></details>'
    )

"""The only place of the app that calls the pipeline.

What is said in the tab Ask: turns about clips that may be changed between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from NatureLM.app.clips import Clip
from NatureLM.app.limits import LimitError, Limits
from NatureLM.app.player import span
from NatureLM.app.settings import AppSettings
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.prompts import PLACEHOLDER, few_shot_prompt, place_numbered
from NatureLM.species import SpeciesList, default_question

if TYPE_CHECKING:
    from NatureLM.inference.conversation import Conversation
    from NatureLM.inference.pipeline import Pipeline


ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
NONE_OF_THESE = NOTHING
"""What the model was taught to say where no name of a list is right; scored with every list."""


def load_pipeline(settings: AppSettings) -> Pipeline:
    """Load the model that the settings name. Raises `NatureLMError` where it cannot be."""
    from NatureLM.config import Config
    from NatureLM.inference.loading import load_model
    from NatureLM.inference.pipeline import Pipeline
    from NatureLM.models.registry import EMBEDDED

    config = settings.config or Config()
    model = load_model(
        settings.model or EMBEDDED, config, device=settings.device, dtype=settings.dtype
    )
    return Pipeline(model, config=config)


def converse(pipeline: Pipeline, rate: float, alpha: float) -> Conversation:
    """A new conversation; its clips are samples at `rate` Hz."""
    return pipeline.conversation(alpha=alpha, input_sample_rate=rate)


def compare_alphas(
    pipeline: Pipeline, clips: Sequence[Clip], query: str, alphas: Sequence[float] = ALPHAS
) -> list[str]:
    """The answers at several α, decoded as in a conversation, in one pass."""
    return pipeline.compare_alphas(
        [clip.samples() for clip in clips],
        query,
        alphas,
        input_sample_rate=clips[0].sample_rate,
        num_beams=1,
    )


def answer(pipeline: Pipeline, clips: Sequence[Clip], query: str, alpha: float) -> tuple[str, str]:
    """The answer to a question about several clips, and the whole prompt that the model saw."""
    with converse(pipeline, clips[0].sample_rate, alpha) as conversation:
        text = "".join(conversation.ask(query, [clip.samples() for clip in clips]))
        (turn,) = conversation.turns
        return text.strip(), conversation.prompt.removesuffix(turn.answer)


def examples_query(question: str, labels: Sequence[str]) -> str:
    """A question with labelled examples and the new clip, which is the last of the clips.

    Raises UsageError for a question or label with the mark that stands for sound.
    """
    for text in (question, *labels):
        if PLACEHOLDER in text:
            raise UsageError(f"{PLACEHOLDER} stands for sound and cannot be written in a text.")
    return few_shot_prompt(question, labels)


@dataclass(frozen=True)
class LabelRanking:
    """Labels with their probabilities, best first, of the seconds `start` to `end` of a clip."""

    start: float
    end: float
    labels: tuple[tuple[str, float], ...]


def identify(
    pipeline: Pipeline, clip: Clip, names: SpeciesList, alpha: float, *, none: bool
) -> list[LabelRanking]:
    """How likely each name is in each window of a clip; `none` lets none of them be right."""
    results = pipeline.windows(
        [clip.path],
        default_question(names.names, names.kind),
        alpha=alpha,
        time_expansion=clip.slowed,
        mode="score",
        labels=names.names,
        top_k=len(names.names) + 1,
        warn=lambda _: None,
    )
    return [_ranked(result, none) for result in results]


def average_rankings(windows: Sequence[LabelRanking]) -> LabelRanking:
    """Of the whole clip: the mean of the windows' probabilities."""
    sums: dict[str, float] = {}
    for window in windows:
        for label, share in window.labels:
            sums[label] = sums.get(label, 0.0) + share / len(windows)
    ordered = sorted(sums.items(), key=lambda pair: -pair[1])
    return LabelRanking(windows[0].start, windows[-1].end, tuple(ordered))


def _ranked(result: Any, none: bool) -> LabelRanking:
    shares = {result.text: result.confidence, **dict(result.alternatives)}
    if not none and len(shares) > 1:
        shares.pop(NONE_OF_THESE, None)
        total = sum(shares.values()) or 1.0
        shares = {label: share / total for label, share in shares.items()}
    ordered = sorted(shares.items(), key=lambda pair: -pair[1])
    return LabelRanking(result.start, result.end, tuple(ordered))


@dataclass(eq=False)
class Message:
    """One bubble.

    about: names the sound that a question brought in
    stopped: whether the visitor wanted no more of the answer
    """

    role: str
    text: str
    about: str = ""
    stopped: bool = False


@dataclass
class ChatSession:
    """A visitor's conversation. It begins anew where what it is about has changed."""

    limits: Limits
    messages: list[Message] = field(default_factory=list)
    _conversation: Conversation | None = None
    _alpha: float | None = None
    _heard: list[tuple[str, int]] = field(default_factory=list)
    _hangs: bool = False  # a question waits for the model: nobody knows what it has taken in

    def ask(
        self, pipeline: Pipeline, clips: Sequence[Clip], question: str, alpha: float
    ) -> Iterator[None]:
        """Ask; what comes of the answer is in the last message after each step.

        Raises `NatureLMError` where the question cannot be asked, with nothing said.
        """
        question = checked(question, clips, self.limits)
        query, numbers = place_numbered(question, len(clips))
        if self._hangs or self._begins_anew(clips, alpha):
            self.forget()
        new = self._new(clips, numbers)
        conversation = self._conversation
        if conversation is None:
            conversation = converse(pipeline, clips[0].sample_rate, alpha)
            self._conversation, self._alpha = conversation, alpha
        pieces = conversation.ask(query, [clip.samples() for clip in new])
        about = "; ".join(f"{clip.name}, {span(*clip.spans[clip.chosen])}" for clip in new)
        answer = Message("assistant", "")
        said = [Message("user", question, about), answer]
        self.messages += said
        try:
            yield
            self._hangs = True
            for piece in pieces:
                self._has_heard(conversation, new)
                new = []
                if answer.stopped:
                    return
                answer.text += piece
                yield
        except GeneratorExit:
            answer.stopped = True
            raise
        except BaseException:
            if not answer.text:
                self.messages = [one for one in self.messages if one not in said]
            if self._conversation is conversation:
                self.forget()
            raise
        self._has_heard(conversation, new)
        if not answer.stopped:
            answer.text = answer.text.strip() or "(The model gave an empty answer.)"
            yield

    def stop(self) -> None:
        """No more of the answer that is coming is wanted; what came stays."""
        if self.messages and self.messages[-1].role == "assistant":
            self.messages[-1].stopped = True

    def compare(
        self, pipeline: Pipeline, clips: Sequence[Clip], question: str, alphas: Sequence[float]
    ) -> list[str]:
        """The answers to one question at several α; the conversation stays as it is."""
        question = checked(question, clips, self.limits)
        query, numbers = place_numbered(question, len(clips))
        chosen = [clips[number - 1] for number in numbers] or clips
        return compare_alphas(pipeline, chosen, query, alphas)

    def forget(self) -> None:
        """Let go of the conversation; what was said stays to be read."""
        if self._conversation is not None:
            self._conversation.close()
        self._conversation, self._alpha, self._heard, self._hangs = None, None, [], False

    def clear(self) -> None:
        """Begin with an empty page."""
        self.forget()
        self.messages = []

    close = clear

    def _has_heard(self, conversation: Conversation, clips: Sequence[Clip]) -> None:
        """The conversation has taken in the clips of a question, unless another one began."""
        if self._conversation is conversation:
            self._heard += [clip.key for clip in clips]
            self._hangs = False

    def _begins_anew(self, clips: Sequence[Clip], alpha: float) -> bool:
        """Whether the conversation is about another sound, or under another α."""
        there = {clip.key for clip in clips}
        return alpha != self._alpha or not all(key in there for key in self._heard)

    def _new(self, clips: Sequence[Clip], numbers: Sequence[int]) -> list[Clip]:
        """The clips that a question brings in: those it names, or all that were not heard yet."""
        if numbers:
            return [clips[number - 1] for number in numbers]
        return [clip for clip in clips if clip.key not in self._heard]


def checked(question: str, clips: Sequence[Clip], limits: Limits) -> str:
    """The question, stripped. Raises UsageError or LimitError where it cannot be asked."""
    if not clips:
        raise UsageError("There is no sound yet: drop a recording, record one, or pick a sample.")
    question = question.strip()
    if not question:
        raise UsageError("The question is empty: write one, or press one of those below.")
    if len(question) > limits.question_characters:
        raise LimitError(
            f"The question has {len(question)} characters, and may have "
            f"{limits.question_characters} at most."
        )
    return question

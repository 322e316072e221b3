"""What is said in the tab Ask: turns about clips that may be changed between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from NatureLM.app.asking import compare_alphas, converse
from NatureLM.app.clips import Clip
from NatureLM.app.limits import LimitError, Limits
from NatureLM.app.player import span
from NatureLM.errors import UsageError
from NatureLM.prompts.numbers import place_numbered

if TYPE_CHECKING:
    from NatureLM.conversation import Conversation
    from NatureLM.infer import Pipeline


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
class Talk:
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

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
    """One bubble. `about` names the sound that a question brought in."""

    role: str
    text: str
    about: str = ""


@dataclass
class Talk:
    """A visitor's conversation. It begins anew where what it is about has changed."""

    limits: Limits
    messages: list[Message] = field(default_factory=list)
    _conversation: Conversation | None = None
    _alpha: float | None = None
    _heard: list[tuple[str, int]] = field(default_factory=list)

    def ask(
        self, pipeline: Pipeline, clips: Sequence[Clip], question: str, alpha: float
    ) -> Iterator[None]:
        """Ask; what comes of the answer is in the last message after each step.

        Raises `NatureLMError` where the question cannot be asked, with nothing said.
        """
        question = checked(question, clips, self.limits)
        query, numbers = place_numbered(question, len(clips))
        if self._begins_anew(clips, alpha):
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
        yield
        try:
            for piece in pieces:
                answer.text += piece
                yield
        except BaseException:
            if not answer.text:
                self.messages = [one for one in self.messages if one not in said]
            raise
        else:
            self._heard += [clip.key for clip in new]
            answer.text = answer.text.strip() or "(The model gave an empty answer.)"
            yield

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
        self._conversation, self._alpha, self._heard = None, None, []

    def clear(self) -> None:
        """Begin with an empty page."""
        self.forget()
        self.messages = []

    close = clear

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

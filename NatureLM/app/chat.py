"""What is asked of the model: conversations about clips, names ranked, examples, several α."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.app.clips import Clip, shown_name, span
from NatureLM.app.settings import Limits
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.prompts import PLACEHOLDER, few_shot_prompt, place_numbered
from NatureLM.species import SpeciesList, default_question, presets, read_species_list
from NatureLM.util import format_bytes

if TYPE_CHECKING:
    from NatureLM.inference.conversation import Conversation
    from NatureLM.inference.pipeline import Pipeline

NO_SOUND = "There is no sound yet: drop a recording, record one, or pick a sample."


@dataclass(eq=False)
class ChatTurn:
    """A question and its answer, as the page shows them.

    about: names the sound that the question brought in
    stopped: whether the visitor wanted no more of the answer
    """

    question: str
    about: str
    answer: str = ""
    stopped: bool = False


@dataclass
class ChatSession:
    """A visitor's conversation. It begins anew where what it is about has changed."""

    limits: Limits
    turns: list[ChatTurn] = field(default_factory=list)
    _conversation: Conversation | None = None
    _alpha: float | None = None
    _heard: list[tuple[str, int]] = field(default_factory=list)
    _hangs: bool = False  # a question waits for the model: nobody knows what it has taken in

    def ask(
        self, pipeline: Pipeline, clips: Sequence[Clip], question: str, alpha: float
    ) -> Iterator[None]:
        """Ask; what comes of the answer is in the last turn after each step.

        Raises `NatureLMError` where the question cannot be asked, with nothing said.
        """
        question = checked(question, clips, self.limits)
        query, numbers = _placed(question, clips, self.limits)
        keys = {clip.key for clip in clips}
        if self._hangs or alpha != self._alpha or not keys.issuperset(self._heard):
            self.forget()  # another sound, or another α
        # Those that the question names, or all that were not heard yet.
        new = [clips[number - 1] for number in numbers] or [
            clip for clip in clips if clip.key not in self._heard
        ]
        conversation = self._conversation
        if conversation is None:
            conversation = pipeline.conversation(
                alpha=alpha, input_sample_rate=clips[0].sample_rate
            )
            self._conversation, self._alpha = conversation, alpha
        pieces = conversation.ask(query, [clip.samples() for clip in new])
        about = "; ".join(f"{clip.name}, {span(*clip.spans[clip.chosen])}" for clip in new)
        turn = ChatTurn(question, about)
        self.turns.append(turn)
        try:
            yield
            self._hangs = True
            for piece in pieces:
                self._has_heard(conversation, new)
                new = []
                if turn.stopped:
                    return
                turn.answer += piece
                yield
        except GeneratorExit:
            turn.stopped = True
            raise
        except BaseException:
            if not turn.answer:
                self.turns = [one for one in self.turns if one is not turn]
            if self._conversation is conversation:
                self.forget()
            raise
        self._has_heard(conversation, new)
        if not turn.stopped:
            turn.answer = turn.answer.strip() or "(The model gave an empty answer.)"
            yield

    def stop(self) -> None:
        """No more of the answer that is coming is wanted; what came stays."""
        if self.turns:
            self.turns[-1].stopped = True

    def forget(self) -> None:
        """Let go of the conversation; what was said stays to be read."""
        if self._conversation is not None:
            self._conversation.close()
        self._conversation, self._alpha, self._heard, self._hangs = None, None, [], False

    def clear(self) -> None:
        """Begin with an empty page."""
        self.forget()
        self.turns = []

    close = clear

    def _has_heard(self, conversation: Conversation, clips: Sequence[Clip]) -> None:
        """The conversation has taken in the clips of a question, unless another one began."""
        if self._conversation is conversation:
            self._heard += [clip.key for clip in clips]
            self._hangs = False


def checked(question: str, clips: Sequence[Clip], limits: Limits) -> str:
    """The question, stripped. Raises UsageError where it cannot be asked."""
    if not clips:
        raise UsageError(NO_SOUND)
    question = question.strip()
    if not question:
        raise UsageError("The question is empty: write one, or press one of those below.")
    if len(question) > limits.question_characters:
        raise UsageError(
            f"The question has {len(question)} characters, and may have "
            f"{limits.question_characters} at most."
        )
    return question


def _placed(question: str, clips: Sequence[Clip], limits: Limits) -> tuple[str, tuple[int, ...]]:
    """As `place_numbered`; each time that a clip is named it is heard, so there is a bound."""
    query, numbers = place_numbered(question, len(clips))
    if len(numbers) > limits.clips:
        raise UsageError(
            f"The question names clips {len(numbers)} times, and {limits.clips} times at most are "
            "taken."
        )
    return query, numbers


def compare_alphas(
    pipeline: Pipeline,
    clips: Sequence[Clip],
    question: str,
    alphas: Sequence[float],
    limits: Limits,
) -> list[str]:
    """The answers to one question at several α, decoded as in a conversation, in one pass."""
    query, numbers = _placed(checked(question, clips, limits), clips, limits)
    chosen = [clips[number - 1] for number in numbers] or clips
    return pipeline.compare_alphas(
        [clip.samples() for clip in chosen],
        query,
        alphas,
        input_sample_rate=chosen[0].sample_rate,
        num_beams=1,
    )


def answer(pipeline: Pipeline, clips: Sequence[Clip], query: str, alpha: float) -> tuple[str, str]:
    """The answer to a question about several clips, and the whole prompt that the model saw."""
    with pipeline.conversation(alpha=alpha, input_sample_rate=clips[0].sample_rate) as conversation:
        text = "".join(conversation.ask(query, [clip.samples() for clip in clips]))
        (turn,) = conversation.turns
        return text.strip(), conversation.prompt.removesuffix(turn.answer)


def examples_query(question: str, labels: Sequence[str]) -> str:
    """A question with labelled examples and the new clip, which is the last of the clips.

    Raises UsageError for a question or label with the mark that stands for sound.
    """
    for text in (question, *labels):
        if PLACEHOLDER in text:
            raise UsageError(f"{PLACEHOLDER} stands for sound and cannot be written in a question.")
    return few_shot_prompt(question, labels)


@dataclass(frozen=True)
class LabelRanking:
    """Labels with their probabilities, best first, of the seconds `start` to `end` of a clip.

    note: why there are none
    """

    start: float
    end: float
    labels: tuple[tuple[str, float], ...]
    note: str = ""


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
    ranked = [_ranked(result, none) for result in results]
    if not any(one.labels for one in ranked):
        raise UsageError(f"{clip.name}: there is no sound to identify ({ranked[0].note}).")
    return ranked


def average_rankings(windows: Sequence[LabelRanking]) -> LabelRanking:
    """Of the whole clip: the mean of the probabilities of windows with sound."""
    sums: dict[str, float] = {}
    heard = [window for window in windows if window.labels]
    for window in heard:
        for label, share in window.labels:
            sums[label] = sums.get(label, 0.0) + share / len(heard)
    return LabelRanking(windows[0].start, windows[-1].end, _best_first(sums))


def _ranked(result: Any, none: bool) -> LabelRanking:
    if result.confidence is None:
        return LabelRanking(result.start, result.end, (), result.shown)
    shares = {result.text: result.confidence, **dict(result.alternatives)}
    if not none and len(shares) > 1:
        shares.pop(NOTHING, None)
        total = sum(shares.values()) or 1.0
        shares = {label: share / total for label, share in shares.items()}
    return LabelRanking(result.start, result.end, _best_first(shares))


def _best_first(shares: dict[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(shares.items(), key=lambda pair: -pair[1]))


def list_of(
    pasted: str, file: str | None, preset: str | None, folder: Path, limits: Limits
) -> SpeciesList:
    """The list that a visitor gave: a file goes before pasted names, these before a preset.

    What is pasted is text and never taken for the name of a file. Raises UsageError.
    """
    if file:
        return _read(Path(file), shown_name(file), limits)
    if pasted.strip():
        names = pasted if "\n" in pasted.strip() else pasted.replace(",", "\n")
        path = folder / f"{secrets.token_urlsafe(8)}.txt"
        path.write_text(names, encoding="utf-8")
        try:
            return _read(path, "The list", limits)
        finally:
            path.unlink()
    if preset:
        return read_species_list(preset, presets=presets())
    raise UsageError("There is no list yet: paste names, drop a file, or pick a ready-made one.")


def _read(path: Path, name: str, limits: Limits) -> SpeciesList:
    size = path.stat().st_size
    if size > limits.list_bytes:
        raise UsageError(
            f"{name} has {format_bytes(size)}, and a list may have "
            f"{format_bytes(limits.list_bytes)}."
        )
    try:
        found = read_species_list(path)
    except UsageError as error:
        raise UsageError(str(error).replace(str(path), name)) from None
    if len(found.names) > limits.labels:
        raise UsageError(
            f"{name} has {len(found.names)} names, and a list may have {limits.labels}."
        )
    notes = tuple(note.replace(str(path), name) for note in found.notes)
    return SpeciesList(found.names, found.kind, name, notes)

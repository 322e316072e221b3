"""How answers come about: said freely, decoded within a list of labels, or by scoring the list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING, LabelChoice, Normalize

if TYPE_CHECKING:
    from NatureLM.generation.request import Answer
    from NatureLM.inference.calibration import Calibration


Mode = Literal["generate", "constrained", "score"]
MODES = get_args(Mode)


@dataclass(frozen=True)
class Prediction:
    """A text, how sure the model is of it, and what else was likely, best first."""

    text: str
    confidence: float | None
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class AnswerOptions:
    """How an answer is chosen, checked.

    mode: "generate" for any text; of the others, whose answers are one of the labels or `None`,
        "constrained" decodes it token by token and "score" looks how likely each of them is
    labels: what may be answered; for "generate" none
    several: whether a constrained answer may be several labels
    top_k: how many labels are named, the answer included
    min_confidence: below it the answer is `None`
    normalize, temperature: how scores become probabilities

    Raises UsageError that says what is wrong and what is allowed.
    """

    mode: Mode = "generate"
    labels: tuple[str, ...] = ()
    several: bool = False
    top_k: int = 3
    min_confidence: float = 0.0
    normalize: Normalize = "sum"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"mode is {self.mode!r}, and it must be one of {', '.join(MODES)}")
        if self.mode != "generate" and not self.labels:
            raise UsageError(f"mode {self.mode!r} needs labels to choose from")
        if self.mode == "generate" and self.labels:
            raise UsageError(
                "labels are chosen from in the modes 'score' and 'constrained'; mode is 'generate'"
            )
        check_options(self.mode, self.several, self.top_k, self.min_confidence)
        self.choice()  # which refuses labels that cannot be used

    def choice(self) -> LabelChoice | None:
        """What a request of the engine is told."""
        if self.mode == "generate":
            return None
        labels = self.labels if NOTHING in self.labels else (*self.labels, NOTHING)
        return LabelChoice(labels, self.mode, several=self.several, normalize=self.normalize)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `Pipeline.windows` that ask for it."""
        return {
            "mode": self.mode,
            "labels": self.labels or None,
            "several": self.several,
            "top_k": self.top_k,
            "min_confidence": self.min_confidence,
        }

    def settings(self) -> dict[str, Any]:
        """What changes answers, as plain values; nothing for free ones."""
        if self.mode == "generate":
            return {}
        return {"choosing": self.arguments()}

    def read(self, answer: Answer) -> Prediction:
        """What an answer of the engine says."""
        if answer.scores is not None:
            scores = answer.scores.at_temperature(self.temperature)
            ranked = scores.ranked(self.top_k)
            text, confidence = ranked[0]
            if confidence < self.min_confidence:
                return Prediction(NOTHING, confidence, tuple(ranked))
            return Prediction(text, confidence, tuple(ranked[1:]))
        text = answer.text or ""
        if answer.log_probability is None:
            return Prediction(text, None)
        if self.mode == "generate":
            return Prediction(text, math.exp(answer.mean_log_probability or 0.0))
        confidence = math.exp(answer.log_probability)
        is_sure = confidence >= self.min_confidence
        return Prediction(text if is_sure else NOTHING, confidence)


def check_options(
    mode: str,
    several: bool,
    top_k: int,
    min_confidence: float,
    named: Callable[[str], str] = str,
) -> None:
    """Raise UsageError for options of `AnswerOptions` that do not go together.

    named: what the user calls an option
    """
    by_mode = named("mode")
    if several and mode != "constrained":
        raise UsageError(f"{named('several')} is for {by_mode} constrained")
    if top_k < 1:
        raise UsageError(f"{named('top_k')} is {top_k}, and it must be at least 1")
    confidence = named("min_confidence")
    if not 0 <= min_confidence <= 1:
        raise UsageError(f"{confidence} is {min_confidence:g}, and it must be between 0 and 1")
    if min_confidence > 0 and mode == "generate":
        raise UsageError(f"{confidence} is for {by_mode} score and {by_mode} constrained")


def make_answer_options(
    mode: Mode,
    labels: Sequence[str] | None,
    *,
    several: bool,
    top_k: int,
    min_confidence: float,
    calibration: Calibration | None = None,
) -> AnswerOptions:
    """What was asked for; raises UsageError."""
    if isinstance(labels, str):
        raise UsageError(f"labels must be a list of texts, got the text {labels!r}")
    made = AnswerOptions(mode, tuple(labels or ()), several, top_k, min_confidence)
    if calibration is None:
        return made
    return replace(made, normalize=calibration.normalize, temperature=calibration.temperature)

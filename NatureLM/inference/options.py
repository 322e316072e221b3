"""What is asked of recordings: one checked record from every door to the engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from NatureLM.audio.windows import parse_channel
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING, LabelChoice, Normalize

if TYPE_CHECKING:
    from NatureLM.config.schema import GenerateConfig

Mode = Literal["generate", "constrained", "score"]
MODES = get_args(Mode)


@dataclass(frozen=True)
class AskOptions:
    """What is asked of every window of recordings, how they are cut, and how answers are made.

    queries: each is asked of every window
    merging_alpha: share of the adapter
    window_length_seconds, hop_length_seconds: after time expansion
    channel: "mean", or the number of a channel from 1 on
    time_expansion: the sound is slowed down so many times
    mode: "generate" for any text; of the others, whose answers are one of the labels or `None`,
        "constrained" decodes it token by token and "score" looks how likely each of them is
    labels: what may be answered; for "generate" none
    several: whether a constrained answer may be several labels
    top_k: how many labels are named, the answer included
    min_confidence: below it the answer is `None`
    named: what messages call a field

    Raises UsageError that says what is wrong and what is allowed.
    """

    queries: tuple[str, ...]
    merging_alpha: float = 1.0
    window_length_seconds: float = 10.0
    hop_length_seconds: float = 10.0
    channel: str | int = "mean"
    time_expansion: float = 1.0
    mode: Mode = "generate"
    labels: tuple[str, ...] = ()
    several: bool = False
    top_k: int = 3
    min_confidence: float = 0.0
    named: InitVar[Callable[[str], str]] = str

    def __post_init__(self, named: Callable[[str], str]) -> None:
        for name in ("window_length_seconds", "hop_length_seconds", "time_expansion"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{named(name)} is {value:g}, and it must be above 0")
        if not math.isfinite(self.merging_alpha):
            alpha = f"{named('merging_alpha')} is {self.merging_alpha:g}"
            raise UsageError(f"{alpha}, and it must be a finite number")
        parse_channel(self.channel)
        check_answers(self.mode, self.several, self.top_k, self.min_confidence, named)
        if self.mode != "generate" and not self.labels:
            raise UsageError(f"{named('mode')} {self.mode!r} needs labels to choose from")
        if self.mode == "generate" and self.labels:
            raise UsageError(
                "labels are chosen from in the modes 'score' and 'constrained'; "
                f"{named('mode')} is 'generate'"
            )
        self.choice()  # refuses labels that cannot be used

    def choice(self, normalize: Normalize = "sum") -> LabelChoice | None:
        """The list that the engine chooses from; None for free answers."""
        if self.mode == "generate":
            return None
        labels = self.labels if NOTHING in self.labels else (*self.labels, NOTHING)
        return LabelChoice(labels, self.mode, several=self.several, normalize=normalize)

    def settings(
        self, *, model: str, adapter: str | None, generate: GenerateConfig
    ) -> dict[str, Any]:
        """What changes the answers, as far as it is known without the model; plain values.

        generate: the section of the configuration, whose α plays no part
        """
        values: dict[str, Any] = {
            "model": model,
            "adapter": adapter,
            "merging_alpha": self.merging_alpha,
            "queries": list(self.queries),
            "window_length_seconds": self.window_length_seconds,
            "hop_length_seconds": self.hop_length_seconds,
            "channel": self.channel,
            "time_expansion": self.time_expansion,
            "generate": generate.model_dump(mode="json", exclude={"merging_alpha"}),
        }
        if self.mode != "generate":
            names = ("mode", "labels", "several", "top_k", "min_confidence")
            values["choosing"] = {name: getattr(self, name) for name in names}
        return values


def check_answers(
    mode: str, several: bool, top_k: int, min_confidence: float, named: Callable[[str], str] = str
) -> None:
    """Raise UsageError for fields of `AskOptions` about answers that do not go together."""
    by_mode, confidence = named("mode"), named("min_confidence")
    if mode not in MODES:
        raise UsageError(f"{by_mode} is {mode!r}, and it must be one of {', '.join(MODES)}")
    if several and mode != "constrained":
        raise UsageError(f"{named('several')} is for {by_mode} constrained")
    if top_k < 1:
        raise UsageError(f"{named('top_k')} is {top_k}, and it must be at least 1")
    if not 0 <= min_confidence <= 1:
        raise UsageError(f"{confidence} is {min_confidence:g}, and it must be between 0 and 1")
    if min_confidence > 0 and mode == "generate":
        raise UsageError(f"{confidence} is for {by_mode} score and {by_mode} constrained")

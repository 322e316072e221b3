"""What the engine is asked and what it answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from NatureLM.errors import UsageError
from NatureLM.generation.label_scores import LabelScores, Normalize, check_normalize
from NatureLM.generation.trie import check_labels


@dataclass(frozen=True)
class LabelChoice:
    """A list that an answer is chosen from.

    labels: what may be answered
    how: "score" says how likely each label is; "constrained" decodes an answer that can only be
        one of them or `None`
    several: whether a constrained answer may be several labels, separated by ", "
    normalize: how scores are made comparable, see `label_scores`

    Raises UsageError for a list without labels, an empty label, or one that is there twice.
    """

    labels: tuple[str, ...]
    how: Literal["score", "constrained"] = "score"
    several: bool = False
    normalize: Normalize = "sum"

    def __post_init__(self) -> None:
        check_labels(self.labels)
        check_normalize(self.normalize)


@dataclass(frozen=True)
class Request:
    """One generation.

    key: whatever the caller knows it by
    prompt: complete text with placeholders, template included
    audios: names of the clips, the i-th for the i-th placeholder
    alpha: share of the adapter
    stream: number of the random stream when sampling; requests with one number draw alike
    choice: the list that the answer is chosen from; None for a free answer
    """

    key: Hashable
    prompt: str
    audios: tuple[str, ...]
    alpha: float = 1.0
    stream: int = 0
    choice: LabelChoice | None = None

    @property
    def is_scored(self) -> bool:
        """Whether labels are scored and nothing is decoded."""
        return self.choice is not None and self.choice.how == "score"


@dataclass(frozen=True)
class Answer:
    """The text that a request was answered with, or the error that kept it from one.

    log_probability: how likely the model found the text and its end, natural logarithm, summed over
        its tokens; tokens: how many they are
    scores: of all labels, where they were scored; the text is the likeliest then
    """

    request: Request
    text: str | None
    error: Exception | None = None
    log_probability: float | None = None
    tokens: int = 0
    scores: LabelScores | None = None

    @property
    def mean_log_probability(self) -> float | None:
        """Of a token of the text."""
        if self.log_probability is None:
            return None
        return self.log_probability / max(1, self.tokens)

    @property
    def key(self) -> Hashable:
        return self.request.key


def label_choices(
    labels: Sequence[str] | Sequence[Sequence[str]], prompts: int, normalize: Normalize
) -> list[LabelChoice]:
    """What each prompt is scored on: one list for all of them, or one list for each."""
    if isinstance(labels, str):
        raise UsageError(f"labels must be a list of texts, got the text {labels!r}")
    if all(isinstance(label, str) for label in labels):
        return [LabelChoice(tuple(map(str, labels)), normalize=normalize)] * prompts
    if len(labels) != prompts:
        raise UsageError(f"{len(labels)} lists of labels were given for {prompts} prompts")
    return [LabelChoice(tuple(one), normalize=normalize) for one in labels]

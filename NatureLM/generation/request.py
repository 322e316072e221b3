"""What the engine is asked, how it decodes, what it needs of a model, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from NatureLM.errors import UsageError
from NatureLM.generation.labels import LabelChoice, LabelScores

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class GenerationOptions:
    """Decoding options; the defaults are the published ones (`configs/inference.yml`).

    `min_length` counts the prompt's positions too, as in the reference, where the published value 1
    therefore never forces a token. `temperature`, `top_p` and `top_k` act only when sampling;
    `seed` and a row's number give each row its own random stream.
    """

    max_new_tokens: int = 300
    num_beams: int = 2
    do_sample: bool = False
    min_length: int = 1
    temperature: float = 0.1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check("max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        self._check("num_beams", self.num_beams >= 1, "at least 1")
        self._check("min_length", self.min_length >= 0, "0 or more")
        self._check("temperature", self.temperature > 0, "above 0")
        self._check("repetition_penalty", self.repetition_penalty > 0, "above 0")
        self._check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._check("top_k", self.top_k >= 0, "0 (off) or more")
        if self.do_sample and self.num_beams > 1:
            raise UsageError(
                f"num_beams is {self.num_beams} and do_sample is true: sampling works with one "
                "beam; set num_beams to 1 or do_sample to false"
            )

    def _check(self, name: str, good: bool, allowed: str) -> None:
        if not good:
            raise UsageError(f"{name} must be {allowed}, got {getattr(self, name)}")


class EngineModel(Protocol):
    """What the engine needs of a model."""

    @property
    def language_model(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def eos_ids(self) -> list[int]: ...
    @property
    def device(self) -> torch.device: ...

    llama_embed_tokens: nn.Embedding
    processor: Any

    def encode_audio(self, wav_BS: Tensor) -> Tensor:
        """Waveforms to audio embeddings."""

    def alphas_for(self, alpha: Sequence[float], rows: int) -> list[float]:
        """Check α against the model."""


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
    ids: the tokens of a decoded answer, its end included; of NaN logits there are some, too
    """

    request: Request
    text: str | None
    error: Exception | None = None
    log_probability: float | None = None
    tokens: int = 0
    scores: LabelScores | None = None
    ids: tuple[int, ...] = ()

    @property
    def mean_log_probability(self) -> float | None:
        """Of a token of the text."""
        if self.log_probability is None:
            return None
        return self.log_probability / max(1, self.tokens)

    @property
    def key(self) -> Hashable:
        return self.request.key

"""What the engine is asked and answers, and the requests that wait until there is room for them.

A request is refused where its prompt and an answer do not fit the model's context, before its sound
is encoded if that shows; else it becomes a row of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from NatureLM.config.load import out_of_bounds
from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import AudioEncoder, Encoded, EncodedClip
from NatureLM.generation.decoding import Constraint, TokenLogProbability
from NatureLM.generation.labels import LabelChoice, LabelScores
from NatureLM.generation.prefill import (
    Batch,
    Budget,
    Row,
    check_placeholders,
    context_length,
    pieces_of,
    plan_batches,
    prompt_parts,
)
from NatureLM.prompts import ALWAYS_READ, PromptTooLong

_MAX_LOGPROBS = 100


@dataclass(frozen=True)
class GenerationOptions:
    """Decoding options; the defaults are the published ones (`configs/inference.yml`).

    `min_length` counts the prompt's positions too, as in the reference, where the published value 1
    therefore never forces a token. Before `min_new_tokens` an answer ends at a `stop` string only.
    `temperature`, `top_p` and `top_k` act only when sampling; `seed` and a row's number give each
    row its own random stream. However many `max_new_tokens` are, an answer ends where the language
    model takes no more positions.
    A free answer ends before the first of the `stop` strings. With `logprobs`, each token comes
    with its log-probability and with so many of the likeliest ones; not with beams.
    """

    max_new_tokens: int = 300
    num_beams: int = 2
    do_sample: bool = False
    min_length: int = 1
    min_new_tokens: int = 0
    temperature: float = 0.1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            allowed = (
                None
                if one.name in ("do_sample", "min_new_tokens", "stop", "logprobs")
                else out_of_bounds(("generate", one.name), value)
            )
            if allowed is not None:
                raise UsageError(f"{one.name} must be {allowed}, got {value}")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UsageError(
                f"min_new_tokens is {self.min_new_tokens}, and it must be 0 to max_new_tokens "
                f"({self.max_new_tokens})"
            )
        if isinstance(self.stop, str) or not all(self.stop):
            raise UsageError(f"stop must be texts that are not empty, got {self.stop!r}")
        if self.logprobs is not None and not 0 <= self.logprobs <= _MAX_LOGPROBS:
            raise UsageError(f"logprobs is {self.logprobs}, and it must be 0 to {_MAX_LOGPROBS}")
        if self.do_sample and self.num_beams > 1:
            raise UsageError(
                f"num_beams is {self.num_beams} and do_sample is true: sampling works with one "
                "beam; set num_beams to 1 or do_sample to false"
            )
        if self.logprobs is not None and self.num_beams > 1:
            raise UsageError(
                f"num_beams is {self.num_beams} and logprobs is {self.logprobs}: tokens have log-"
                "probabilities of their own with one beam only; set num_beams to 1"
            )


class EngineModel(Protocol):
    """What the engine needs of a model, such as a `NatureLM`."""

    llama_embed_tokens: nn.Embedding
    processor: Any

    @property
    def language_model(self) -> Any: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def eos_ids(self) -> list[int]: ...
    @property
    def device(self) -> torch.device: ...
    def encode_audio(self, wav_BS: Tensor) -> Tensor: ...
    def alphas_for(self, alpha: Sequence[float], rows: int) -> list[float]: ...


@dataclass(frozen=True)
class Request:
    """One generation.

    key: whatever the caller knows it by
    prompt: complete text with placeholders, template included
    audios: names of the clips, the i-th for the i-th placeholder
    alpha: share of the adapter
    stream: number of the random stream when sampling; requests with one number draw alike
    choice: the list that the answer is chosen from; None for a free answer
    options: how it is decoded; None takes the engine's
    constraint: which free answers are allowed
    tenant: whom it belongs to; what requests begin with is shared within one tenant only
    """

    key: Hashable
    prompt: str
    audios: tuple[str, ...]
    alpha: float = 1.0
    stream: int = 0
    choice: LabelChoice | None = None
    options: GenerationOptions | None = None
    constraint: Constraint | None = None
    tenant: str = ""

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
    is_whole: whether it came to an end, not to the most tokens that it may have
    log_probabilities: of its tokens, if the options ask for them
    """

    request: Request
    text: str | None
    error: Exception | None = None
    log_probability: float | None = None
    tokens: int = 0
    scores: LabelScores | None = None
    ids: tuple[int, ...] = ()
    is_whole: bool = True
    log_probabilities: tuple[TokenLogProbability, ...] = ()

    @property
    def mean_log_probability(self) -> float | None:
        """Of a token of the text."""
        if self.log_probability is None:
            return None
        return self.log_probability / max(1, self.tokens)

    @property
    def key(self) -> Hashable:
        return self.request.key


class PromptReader:
    """Tokenises prompts, each once, and refuses those that cannot be answered.

    answer_tokens: how many tokens an answer from a list needs; raises UsageError for a list that
        cannot be used
    """

    def __init__(
        self, model: EngineModel, answer_tokens: Callable[[LabelChoice | None], int]
    ) -> None:
        self._answer_tokens = answer_tokens
        self._limit = limit = context_length(model.language_model)
        self._read = lru_cache(maxsize=4096)(
            lambda prompt: _parts_and_length(prompt, model.tokenizer, limit)
        )

    def check(self, request: Request, sound: int = 0) -> tuple[tuple[int, ...], ...]:
        """The parts of a prompt whose clips take so many positions; raises UsageError."""
        check_placeholders(request.prompt, len(request.audios))
        parts, text = self._read(request.prompt)
        needed, limit = self._answer_tokens(request.choice), self._limit
        if limit is not None and text + sound + needed > limit:
            is_whole = bool(parts) or len(request.prompt) <= ALWAYS_READ
            raise PromptTooLong(text, sound, needed, limit, is_whole=is_whole)
        return parts

    def row(self, request: Request, clips: Sequence[Encoded]) -> Row | Answer:
        """A request that is ready to run, or its refusal."""
        encoded: list[EncodedClip] = []
        for clip in clips:
            if isinstance(clip, Exception):
                return Answer(request, None, clip)
            encoded.append(clip)
        audios_QD = tuple(clip.audio_QD for clip in encoded)
        try:
            parts = self.check(request, sum(one.shape[0] for one in audios_QD))
        except UsageError as error:
            return Answer(request, None, error)
        return Row(request, parts, audios_QD, *pieces_of(parts, encoded))


def _parts_and_length(
    prompt: str, tokenizer: Any, limit: int | None
) -> tuple[tuple[tuple[int, ...], ...], int]:
    """The parts of a prompt, and their tokens; none of one that is too long is kept."""
    parts = tuple(map(tuple, prompt_parts(prompt, tokenizer, limit)))
    text = sum(map(len, parts))
    return () if limit is not None and text > limit else parts, text


class RowQueue:
    """Rows that are ready to run."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def longest(self) -> int:
        """Positions of the longest prompt that waits."""
        return max((row.length for row in self._rows), default=0)

    @property
    def options(self) -> list[GenerationOptions]:
        """Those of their own that rows have."""
        return [own for row in self._rows if (own := row.request.options) is not None]

    def take(self, budget: Budget) -> Batch:
        """The batch of the row that has waited longest, with those that go well with it."""
        first = self._rows[0]
        batch = next(
            one for one in plan_batches(self._rows, budget) if any(row is first for row in one.rows)
        )
        self.remove(batch.rows)
        return batch

    def take_scored(self) -> list[Row]:
        """The rows whose labels are scored, which wait no longer."""
        taken = [row for row in self._rows if row.request.is_scored]
        self.remove(taken)
        return taken

    def put_back(self, rows: Sequence[Row]) -> None:
        """Rows that could not be run now wait again, in front of all others."""
        self._rows = [*rows, *self._rows]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def add(self, rows: Sequence[Row]) -> None:
        """Rows wait behind all others."""
        self._rows += rows

    def remove(self, rows: Sequence[Row]) -> None:
        """These wait no longer."""
        gone = set(map(id, rows))
        self._rows = [row for row in self._rows if id(row) not in gone]


class RequestQueue(RowQueue):
    """Rows of requests that are ready to run, and the requests behind them.

    requests: read `lookahead` at a time, while those before them are worked on
    model: is told the α of requests before they wait; what it raises ends the run
    """

    def __init__(
        self,
        requests: Iterable[Request],
        audio: AudioEncoder,
        model: EngineModel,
        lookahead: int,
        reader: PromptReader,
    ) -> None:
        self._source = iter(requests)
        self._audio, self._model, self._lookahead = audio, model, lookahead
        super().__init__()
        self._reader = reader
        self._coming = self._next(lookahead)

    def fill(self) -> list[Answer]:
        """Get rows ready until `lookahead` wait; the answers of requests that cannot run."""
        refused: list[Answer] = []
        while self._coming and len(self._rows) < self._lookahead:
            room = self._lookahead - len(self._rows)
            fresh, self._coming = self._coming[:room], self._coming[room:]
            self._coming += self._next(self._lookahead - len(self._coming))
            self._model.alphas_for([one.alpha for one in fresh], len(fresh))
            fresh, problems = self._checked(fresh)
            refused += problems
            clips = self._audio.get(key for one in fresh for key in one.audios)
            for request in fresh:
                made = self._reader.row(request, [clips[key] for key in request.audios])
                if isinstance(made, Row):
                    self._rows.append(made)
                else:
                    refused.append(made)
        return refused

    def _checked(self, requests: Sequence[Request]) -> tuple[list[Request], list[Answer]]:
        """Those that may be answered, before their sound is encoded, and the others."""
        good: list[Request] = []
        refused: list[Answer] = []
        for one in requests:
            try:
                self._reader.check(one)
                good.append(one)
            except UsageError as error:
                refused.append(Answer(one, None, error))
        return good, refused

    def _next(self, count: int) -> list[Request]:
        requests = list(islice(self._source, count))
        self._audio.announce(key for one in requests for key in one.audios)
        return requests

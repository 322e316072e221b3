"""The engine: requests in, answers out, each as if it had been asked alone, and much cheaper.

Every clip is encoded once. Queries and α are rows of batches, which are filled by tokens; rows that
begin alike share keys and values; rows that are finished leave, and others take their places.
Requests are read as they are needed, and their audio is encoded ahead of time. One is refused where
its prompt and an answer do not fit the model's context, before its sound is encoded if that shows.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from NatureLM.config.load import out_of_bounds
from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import (
    AudioEncoder,
    EmbeddingCache,
    Encoded,
    EncodedClip,
    Load,
    bytes_in_memory,
    for_steps,
)
from NatureLM.generation.decoding import (
    Constraint,
    Decoder,
    NonFiniteLogitsError,
    Prompt,
    RowState,
    TokenLogProbability,
)
from NatureLM.generation.labels import LabelChoice, LabelGrammar, LabelScorer, LabelScores
from NatureLM.generation.prefill import (
    Batch,
    Budget,
    Row,
    context_length,
    pieces_of,
    plan_batches,
    position_bytes,
)
from NatureLM.memory import free_memory, oom_backoff
from NatureLM.merging.lora import lora_layers
from NatureLM.prompts import PromptReader

logger = logging.getLogger(__name__)

_BATCH_TOKENS = {"cpu": 16_384}
_ACCELERATOR_BATCH_TOKENS = 65_536
# What mps uses is the memory of the whole machine.
_ENCODE_BATCH = {"cpu": 8, "mps": 16}  # clips; more take more memory, and are no quicker on cpu
_ACCELERATOR_ENCODE_BATCH = 64
_LOADING_THREADS = {"cpu": 2}
_ACCELERATOR_LOADING_THREADS = 8
_BATCHES_AHEAD = 4  # of clips that are loaded while others are encoded
_CACHE_BYTES = {"cpu": 2 << 30, "mps": 2 << 30}  # what the keys and values of a batch may take
_ACCELERATOR_CACHE_BYTES = 8 << 30
_BUSY_ROWS = {"cpu": 16}  # rows that a step takes hardly longer for than for one
_ACCELERATOR_BUSY_ROWS = 128
_CACHE_SHARE = 4  # of the memory that may be used, one part
_MAX_LOGPROBS = 100
_BOUNDED_HERE = ("do_sample", "min_new_tokens", "stop", "logprobs")  # others: in the schema


# -- what is asked and answered ---------------------------------------------------------------


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
            if value == one.default or one.name in _BOUNDED_HERE:
                continue
            if (allowed := out_of_bounds(("generate", one.name), value)) is not None:
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


# -- what waits -------------------------------------------------------------------------------


class RowQueue:
    """Rows that are ready to run."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

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
    """

    def __init__(
        self, engine: Engine, requests: Iterable[Request], audio: AudioEncoder, lookahead: int
    ) -> None:
        super().__init__()
        self._engine, self._source = engine, iter(requests)
        self._audio, self._lookahead = audio, lookahead
        self._coming = self._next(lookahead)

    def fill(self) -> Iterator[Answer]:
        """Get rows ready until `lookahead` wait; the answers of requests that cannot run.

        The model is told the α of requests before they wait; what it raises ends the run.
        """
        while self._coming and len(self._rows) < self._lookahead:
            room = self._lookahead - len(self._rows)
            fresh, self._coming = self._coming[:room], self._coming[room:]
            self._coming += self._next(self._lookahead - len(self._coming))
            self._engine.model.alphas_for([one.alpha for one in fresh], len(fresh))
            good: list[Request] = []
            for one in fresh:
                if problem := self._engine.problem_of(one):
                    yield Answer(one, None, problem)
                else:
                    good.append(one)
            clips = self._audio.get(key for one in good for key in one.audios)
            for one in good:
                made = self._engine.row(one, [clips[key] for key in one.audios])
                if isinstance(made, Row):
                    self._rows.append(made)
                else:
                    yield made

    def _next(self, count: int) -> list[Request]:
        requests = list(islice(self._source, count))
        self._audio.announce(key for one in requests for key in one.audios)
        return requests


# -- the engine -------------------------------------------------------------------------------


class Engine:
    """Answers requests with a model.

    options: how answers are decoded
    batch_tokens: size of a batch: rows x beams x (prompt + new tokens); by default that of the
        device. It changes the speed and never an answer
    batch_rows: most answers that are decoded, and most clips that are encoded, at once
    max_memory: bytes that batches and kept embeddings may take beside the model's weights
    workers: threads that load audio ahead of the model, by default as the device can use
    lookahead: requests that batches are chosen from
    embeddings: where audio embeddings are kept; in memory, as long as the engine lives, by default
    eos_ids: tokens that end an answer, by default the model's
    capture: whether decoding steps are captured as CUDA graphs; None does so on CUDA, True takes
        static steps elsewhere, too, where nothing is captured and nothing gained. It changes the
        speed and never an answer

    Logs where memory runs out or steps cannot be captured, and how the work goes on.
    """

    def __init__(
        self,
        model: EngineModel,
        options: GenerationOptions | None = None,
        *,
        batch_tokens: int | None = None,
        batch_rows: int | None = None,
        max_memory: int | None = None,
        workers: int | None = None,
        lookahead: int = 512,
        embeddings: EmbeddingCache | None = None,
        eos_ids: Sequence[int] | None = None,
        capture: bool | None = None,
    ) -> None:
        for name, value in (
            ("batch_tokens", batch_tokens),
            ("batch_rows", batch_rows),
            ("max_memory", max_memory),
            ("lookahead", lookahead),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.model, self.options = model, options or GenerationOptions()
        self._language_model = language_model = model.language_model
        tokens = batch_tokens or _default_batch_tokens(model, max_memory)
        beams, new_tokens = self.options.num_beams, self.options.max_new_tokens
        self._budget = Budget(tokens, beams, new_tokens, batch_rows)
        self._workers = workers or loading_threads(model.device.type)
        self._lookahead = lookahead
        if embeddings is None:
            embeddings = EmbeddingCache(bytes_in_memory(max_memory))
        self._embeddings = embeddings
        self._eos_ids = list(eos_ids) if eos_ids is not None else model.eos_ids
        limit = context_length(language_model)
        self._grammar = lru_cache(maxsize=64)(
            lambda choice: LabelGrammar(choice, model.tokenizer, self._eos_ids, new_tokens, limit)
        )
        self._reader = PromptReader(model.tokenizer, limit, self._answer_tokens)
        self._scorer = LabelScorer(model, self._eos_ids, replace(self._budget, num_beams=1))
        self._graphs = None
        kind = model.device.type
        if capture is None:
            capture = kind == "cuda" and not _is_offloaded(model)
        if capture:
            from NatureLM.generation.cuda_graphs import make_graph_runner

            # Rows and columns are rounded up, by up to a half of a full batch.
            most = tokens + tokens // 2
            self._graphs = make_graph_runner(language_model, max_positions=most)
        self._busy = _BUSY_ROWS.get(kind, _ACCELERATOR_BUSY_ROWS)
        self.encoded = 0
        """Windows that were encoded in all runs."""

    def forget_audio(self) -> None:
        """Let go of audio embeddings in memory, where no clip of them comes again."""
        self._embeddings.memory.clear()

    def run(self, requests: Iterable[Request], load: Load) -> Iterator[Answer]:
        """Answers as they come, not in the order of the requests.

        load: reads a clip by its name, called from threads; where it raises NatureLMError or
            OSError, the requests with that clip get the error, and the others are answered
        """
        with self._encoder(load) as audio:
            waiting = RequestQueue(self, requests, audio, self._lookahead)
            decoder: Decoder | None = None
            while True:
                scored: list[Row] = []
                if not decoder or self._more_rows_pay(decoder):
                    yield from waiting.fill()
                    scored = waiting.take_scored()
                    if scored:
                        yield from self.score(scored)
                    if len(waiting):
                        decoder = decoder or self.new_decoder()
                        self.refill(decoder, waiting)
                if decoder:
                    yield from self.advance(decoder, waiting)
                elif not scored:
                    return

    def check(self, request: Request) -> None:
        """Raise UsageError for what is wrong with a request before its sound is known."""
        self.model.alphas_for([request.alpha], 1)
        self._reader.check(request)

    def problem_of(self, request: Request, sound: int = 0) -> UsageError | None:
        """What keeps a request from an answer, whatever its clips sound like; None if nothing does.

        sound: positions of its clips together
        """
        try:
            self._reader.check(request, sound)
        except UsageError as error:
            return error
        return None

    def row(self, request: Request, clips: Sequence[Encoded]) -> Row | Answer:
        """A request with its clips that is ready to run, or its refusal."""
        encoded: list[EncodedClip] = []
        for clip in clips:
            if isinstance(clip, Exception):
                return Answer(request, None, clip)
            encoded.append(clip)
        audios_QD = tuple(clip.audio_QD for clip in encoded)
        try:
            parts = self._reader.check(request, sum(one.shape[0] for one in audios_QD))
        except UsageError as error:
            return Answer(request, None, error)
        return Row(request, parts, audios_QD, *pieces_of(parts, encoded))

    def new_decoder(self) -> Decoder:
        """Decodes nothing yet."""
        return Decoder(self._language_model, self.options, self._eos_ids, self._graphs)

    def encode(
        self, names: Iterable[str], load: Load, tenant: Callable[[str], str] = lambda name: ""
    ) -> dict[str, Encoded]:
        """Clips (or what kept them from being read) by name, encoded and kept.

        tenant: whose each is
        """
        with self._encoder(load, tenant) as audio:
            return audio.get(names)

    def _encoder(self, load: Load, tenant: Callable[[str], str] = lambda name: "") -> AudioEncoder:
        batch = _ENCODE_BATCH.get(self.model.device.type, _ACCELERATOR_ENCODE_BATCH)
        batch = min(batch, self._budget.most_rows or batch)
        return AudioEncoder(
            load,
            self.model.processor.prepare_audio,
            self._encode,
            kept=self._embeddings,
            state=partial(self._embeddings.state_of, self.model),
            workers=self._workers,
            batch=batch,
            ahead=_BATCHES_AHEAD * batch,
            tenant=tenant,
        )

    def _encode(self, wav_BS: Tensor) -> Tensor:
        audio_BQD = self.model.encode_audio(wav_BS)
        self.encoded += len(wav_BS)
        return audio_BQD

    def _more_rows_pay(self, decoder: Decoder) -> bool:
        """Whether rows should join.

        A step of few rows takes as long as one of `busy` rows; with that many it is the arithmetic
        that takes the time, and more rows bring nothing. Half a batch must be free, because all
        keys and values that are there are copied when rows join.
        """
        is_busy = decoder.rows >= self._busy
        return not is_busy and 2 * len(decoder) <= self._budget.rows(decoder.longest)

    def refill(self, decoder: Decoder, waiting: RowQueue) -> None:
        """Add rows that wait to those that are decoded, as far as there is room."""
        while len(waiting):
            budget = self._budget_for(decoder, waiting)
            if decoder:
                room = budget.rows(max(decoder.longest, waiting.longest)) - len(decoder)
                if room < 1:
                    return
                budget = budget.within(room)
            batch = waiting.take(budget)
            rows = len(decoder) + len(batch.rows)
            steps = for_steps(self._language_model)
            with oom_backoff(rows, "answers were decoded") as backoff, steps:
                decoder.add([self._prompt(row) for row in batch.rows], batch.shared)
            if backoff.retry_size is None:
                return
            waiting.put_back(batch.rows)
            self._shrink(backoff.retry_size)

    def _budget_for(self, decoder: Decoder, waiting: RowQueue) -> Budget:
        """The budget by the largest options of those that are decoded or wait."""
        budget, own = self._budget, [*(one.options for one in decoder.states), *waiting.options]
        beams = max([budget.num_beams, *(one.num_beams for one in own)])
        tokens = max([budget.new_tokens, *(one.max_new_tokens for one in own)])
        return replace(budget, num_beams=beams, new_tokens=tokens)

    def _answer_tokens(self, choice: LabelChoice | None) -> int:
        """How many tokens there must be room for, an end included."""
        if choice is None:
            return 1
        if choice.how == "score":
            return max(self._scorer.tokens(choice.labels))
        return self._grammar(choice).needed

    def _prompt(self, row: Row) -> Prompt:
        request, options = row.request, row.request.options
        rule = request.constraint if request.choice is None else self._grammar(request.choice)
        stop = (options or self.options).stop if request.choice is None else ()
        ends = StopStrings(stop, self.model.tokenizer).end if stop else None
        embeds_LD = row.embeddings(self.model.llama_embed_tokens)
        return Prompt(embeds_LD, request.alpha, request.stream, rule, row, options, ends)

    def advance(self, decoder: Decoder, waiting: RowQueue) -> Iterator[Answer]:
        finished: list[RowState] = []
        prompts = decoder.prompts
        steps = for_steps(self._language_model)
        with oom_backoff(len(decoder), "answers were decoded") as backoff, steps:
            finished = decoder.advance()
        if backoff.retry_size is not None:
            # Some layers may have taken the step, others not: all rows begin again.
            decoder.clear()
            waiting.put_back([prompt.source for prompt in prompts])
            self._shrink(backoff.retry_size)
        for state in finished:
            yield self._answer(state)

    def score(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """The answers of rows whose labels are scored, list by list: the likeliest of each."""
        for row, found in self._scorer(rows):
            if isinstance(found, Exception):
                yield Answer(row.request, None, found)
                continue
            best = found.labels.index(found.best)
            yield Answer(
                row.request,
                found.best,
                log_probability=found.log_likelihoods[best],
                tokens=self._scorer.tokens(found.labels)[best],
                scores=found,
            )

    def _answer(self, state: RowState) -> Answer:
        ids, log_probability = tuple(state.ids), state.log_probability
        request: Request = state.prompt.source.request
        if state.error is not None:
            return Answer(request, None, state.error, ids=ids)
        if math.isnan(log_probability):
            return Answer(request, None, NonFiniteLogitsError(self.model), ids=ids)
        if request.choice is not None:
            text = self._grammar(request.choice).text(ids)
        else:
            text = self.model.tokenizer.decode(state.ids, skip_special_tokens=True)
            text = before_stop(text, (request.options or self.options).stop)
        return Answer(
            request,
            text,
            log_probability=log_probability,
            tokens=len(ids),
            ids=ids,
            is_whole=state.ends_with(ids),
            log_probabilities=tuple(state.log_probabilities),
        )

    def _shrink(self, rows: int) -> None:
        """Continue with fewer rows, and give back what captured steps hold."""
        self._budget = self._budget.within(rows)
        if self._graphs is not None:
            self._graphs.release()


class StopStrings:
    """Strings that end an answer before them."""

    def __init__(self, stop: Sequence[str], tokenizer: Any) -> None:
        self._stop, self._tokenizer = tuple(stop), tokenizer
        # A token is a byte or more of text, and one may begin or end beside the string.
        self._tail = max(len(one.encode()) for one in stop) + 2

    def end(self, ids: Sequence[int]) -> bool:
        """Whether one stands in the text of these tokens, of which the last one is new."""
        return self._has(ids[-self._tail :]) and self._has(ids)

    def _has(self, ids: Sequence[int]) -> bool:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return before_stop(text, self._stop) != text


def before_stop(text: str, stop: Sequence[str]) -> str:
    """What stands in front of the first stop string."""
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=None)]


def _default_batch_tokens(model: EngineModel, max_memory: int | None) -> int:
    """As many as the device is quick with and the keys and values have room for."""
    kind = model.device.type
    size = model.llama_embed_tokens.weight.element_size()
    bytes_of_one = position_bytes(model.language_model, size)
    room = _CACHE_BYTES.get(kind, _ACCELERATOR_CACHE_BYTES)
    if max_memory is None:
        max_memory = free_memory(model.device).bytes
    room = min(room, max_memory // _CACHE_SHARE)
    tokens = min(_BATCH_TOKENS.get(kind, _ACCELERATOR_BATCH_TOKENS), room // bytes_of_one)
    return max(1, int(tokens))


def loading_threads(device: str) -> int:
    """Threads that read audio for a kind of device: a card waits for two of them."""
    most = _LOADING_THREADS.get(device, _ACCELERATOR_LOADING_THREADS)
    return min(most, max(2, os.cpu_count() or 2))


@contextmanager
def fold_if_single_alpha(model: Any, alphas: Iterable[float]) -> Iterator[None]:
    """Within the block the model is folded, if the requests have one α and it can be.

    No adapter arithmetic runs then. The weights are put back bit for bit at the end, whatever ends
    the block. Where memory has no room for a copy of those that change, the adapter acts beside
    them, which takes a little longer.
    """
    different = set(alphas)
    config = model.config
    can_fold = config.lora and getattr(config, "quantized", None) is None
    can_fold = can_fold and not _is_offloaded(model)
    if len(different) != 1 or model.folded is not None or not can_fold:
        yield
        return
    layers: Iterable[Any] = lora_layers(model.language_model).values()
    copied = sum(one.base_layer.weight.nbytes for one in layers)
    if 1.2 * copied > free_memory(model.device).bytes:
        logger.info(
            "no room for a copy of the weights that an adapter changes: it acts beside them"
        )
        yield
        return
    with model.fold(different.pop()):
        yield


def _is_offloaded(model: Any) -> bool:
    """Whether layers are copied to the card each time that they run."""
    return bool(getattr(model, "offloaded", 0))


Other = TypeVar("Other")
Run: TypeAlias = Callable[[Iterable[Request], Load], Iterator[Answer]]
"""What answers requests, such as `Engine.run`."""


def yield_in_input_order(
    run: Run, entries: Iterable[Request | Other], load: Load
) -> Iterator[Answer | Other]:
    """Answers in the place of their requests; entries that are no requests keep theirs.

    entries: read as `run` needs them; the keys of requests differ
    """
    waiting: deque[Request | Other] = deque()
    found: dict[Hashable, Answer] = {}

    def requests() -> Iterator[Request]:
        for entry in entries:
            waiting.append(entry)
            if isinstance(entry, Request):
                yield entry

    def ready() -> Iterator[Answer | Other]:
        while waiting and (not isinstance(waiting[0], Request) or waiting[0].key in found):
            first = waiting.popleft()
            yield found.pop(first.key) if isinstance(first, Request) else first

    for answer in run(requests(), load):
        found[answer.key] = answer
        yield from ready()
    yield from ready()

"""The engine: requests in, answers out, each as if it had been asked alone, and much cheaper.

Every clip is encoded once. Queries and α are rows of batches, which are filled by tokens; rows that
begin alike share keys and values; rows that are finished leave, and others take their places.
Requests are read as they are needed, and their audio is encoded ahead of time.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

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
from NatureLM.generation.decoding import Decoder, NonFiniteLogitsError, Prompt, RowState
from NatureLM.generation.labels import (
    LabelChoice,
    LabelGrammar,
    LabelScores,
    TokenTrie,
    label_tokens,
    score_trie,
)
from NatureLM.generation.prefill import (
    Budget,
    Row,
    context_length,
    merge_prompt_parts,
    plan_batches,
    position_bytes,
)
from NatureLM.generation.requests import (
    Answer,
    EngineModel,
    GenerationOptions,
    PromptReader,
    Request,
    RequestQueue,
    RowQueue,
)
from NatureLM.memory import free_memory
from NatureLM.merging.lora import lora_layers
from NatureLM.util import oom_backoff

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
_MAX_PRIORS = 4096  # of labels without audio that are kept


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
        tokens = batch_tokens or _default_batch_tokens(model, max_memory)
        beams, new_tokens = self.options.num_beams, self.options.max_new_tokens
        self._budget = Budget(tokens, beams, new_tokens, batch_rows)
        self._workers = workers or loading_threads(model.device.type)
        self._lookahead = lookahead
        if embeddings is None:
            embeddings = EmbeddingCache(bytes_in_memory(max_memory))
        self._embeddings = embeddings
        self._eos_ids = list(eos_ids) if eos_ids is not None else model.eos_ids
        limit = context_length(model.language_model)
        self._grammar = lru_cache(maxsize=64)(
            lambda choice: LabelGrammar(choice, model.tokenizer, self._eos_ids, new_tokens, limit)
        )
        self.reader = PromptReader(model, self._answer_tokens)
        self.scorer = LabelScorer(model, self._eos_ids, replace(self._budget, num_beams=1))
        self._graphs = None
        kind = model.device.type
        if capture is None:
            capture = kind == "cuda" and not _is_offloaded(model)
        if capture:
            from NatureLM.generation.cuda_graphs import make_graph_runner

            # Rows and columns are rounded up, by up to a half of a full batch.
            most = tokens + tokens // 2
            self._graphs = make_graph_runner(model.language_model, max_positions=most)
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
            waiting = RequestQueue(requests, audio, self.model, self._lookahead, self.reader)
            decoder: Decoder | None = None
            while True:
                scored: list[Row] = []
                if not decoder or self._more_rows_pay(decoder):
                    yield from waiting.fill()
                    scored = waiting.take_scored()
                    yield from self.scorer(scored)
                    if len(waiting):
                        decoder = decoder or self.new_decoder()
                        self.refill(decoder, waiting)
                if decoder:
                    yield from self.advance(decoder, waiting)
                elif not scored:
                    return

    def problem_of(self, request: Request, sound: int) -> UsageError | None:
        """What keeps a request from an answer, whatever its clips sound like; None if nothing does.

        sound: positions of its clips together
        """
        try:
            self.reader.check(request, sound)
        except UsageError as error:
            return error
        return None

    def new_decoder(self) -> Decoder:
        """Decodes nothing yet."""
        return Decoder(self.model.language_model, self.options, self._eos_ids, self._graphs)

    def check(self, request: Request) -> None:
        """Raise UsageError for what is wrong with a request before its sound is known."""
        self.model.alphas_for([request.alpha], 1)
        self.reader.check(request)

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
            state=self._embeddings.state_of(self.model),
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
            steps = for_steps(self.model.language_model)
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
            return self.scorer.longest(choice.labels)
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
        steps = for_steps(self.model.language_model)
        with oom_backoff(len(decoder), "answers were decoded") as backoff, steps:
            finished = decoder.advance()
        if backoff.retry_size is not None:
            # Some layers may have taken the step, others not: all rows begin again.
            decoder.clear()
            waiting.put_back([prompt.source for prompt in prompts])
            self._shrink(backoff.retry_size)
        for state in finished:
            yield self._answer(state)

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


class LabelScorer:
    """Answers rows with the scores of labels; keeps the trees of lists, and scores without audio.

    eos_ids: tokens that end an answer
    budget: how large a batch may be; a row takes its prompt and the nodes of its list
    """

    def __init__(self, model: EngineModel, eos_ids: Sequence[int], budget: Budget) -> None:
        self._model, self._eos_ids, self._budget = model, eos_ids, budget
        most = context_length(model.language_model)
        self._trie = lru_cache(maxsize=64)(
            lambda labels: TokenTrie.of(label_tokens(labels, model.tokenizer, eos_ids, most))
        )
        self._prior = lru_cache(maxsize=_MAX_PRIORS)(self._make_prior)

    def longest(self, labels: tuple[str, ...]) -> int:
        """Tokens of the longest label and of the end after it."""
        return max(self._trie(labels).lengths) + 1

    def __call__(self, rows: Sequence[Row]) -> Iterator[Answer]:
        """An answer for each row, list by list."""
        by_list: dict[LabelChoice, list[Row]] = {}
        for row in rows:
            by_list.setdefault(row.request.choice, []).append(row)
        for choice, members in by_list.items():
            yield from self._score_list(choice, members)

    def _score_list(self, choice: LabelChoice, rows: Sequence[Row]) -> Iterator[Answer]:
        trie = self._trie(choice.labels)
        batches = plan_batches(rows, replace(self._budget, new_tokens=len(trie)))
        while batches:
            batch = batches[0]
            steps = for_steps(self._model.language_model)
            with oom_backoff(len(batch.rows), "lists of labels were scored") as backoff, steps:
                likely_RC = score_trie(
                    self._model.language_model,
                    [row.embeddings(self._model.llama_embed_tokens) for row in batch.rows],
                    [row.request.alpha for row in batch.rows],
                    trie,
                    self._eos_ids,
                    shared=batch.shared,
                )
            if backoff.retry_size is not None:
                self._budget = self._budget.within(backoff.retry_size)
                left = [row for one in batches for row in one.rows]
                batches = plan_batches(left, replace(self._budget, new_tokens=len(trie)))
                continue
            batches = batches[1:]
            for row, likely_C in zip(batch.rows, likely_RC, strict=True):
                yield self._answer(row, choice, likely_C)

    def _answer(self, row: Row, choice: LabelChoice, likely_C: Tensor) -> Answer:
        if not likely_C.max().isfinite():
            return Answer(row.request, None, NonFiniteLogitsError(self._model))
        tokens = [length + 1 for length in self._trie(choice.labels).lengths]  # the end is one
        scores_C = likely_C
        if choice.normalize == "mean":
            scores_C = likely_C / likely_C.new_tensor(tokens)
        elif choice.normalize == "prior":
            if not row.audios_QD:
                error = UsageError(
                    'normalize="prior" compares a prompt with the same prompt without audio, and '
                    f"this one has none: {row.request.prompt[:200]!r}"
                )
                return Answer(row.request, None, error)
            scores_C = likely_C - self._prior(row.parts, row.request.alpha, choice.labels)
        found = LabelScores(choice.labels, tuple(likely_C.tolist()), tuple(scores_C.tolist()))
        best = choice.labels.index(found.best)
        return Answer(
            row.request,
            found.best,
            log_probability=found.log_likelihoods[best],
            tokens=tokens[best],
            scores=found,
        )

    def _make_prior(self, parts: Any, alpha: float, labels: tuple[str, ...]) -> Tensor:
        """Log-likelihood of each label (C,) without the audio of the prompt."""
        with torch.inference_mode():
            prompt_LD = merge_prompt_parts(parts, (), self._model.llama_embed_tokens)
        trie = self._trie(labels)
        return score_trie(self._model.language_model, [prompt_LD], [alpha], trie, self._eos_ids)[0]


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


def answer_prompts(
    model: EngineModel,
    prompts: Sequence[str],
    audios: Sequence[Sequence[Any]],
    alphas: Sequence[float],
    *,
    options: GenerationOptions | None = None,
    eos_ids: Sequence[int] | None = None,
    choices: Sequence[LabelChoice] | None = None,
) -> list[Answer]:
    """The engine's answers to complete prompts, in their order; the door of `model.generate`.

    audios: waveforms (samples,) or encoded audio (Q, D) for the placeholders of each prompt
    choices: lists of labels that prompts are answered from

    A prompt's number is that of its random stream. Raises what kept a prompt from an answer, except
    that an answer with NaN logits has its ids and no text.
    """
    clips: dict[str, Any] = {}
    requests: list[Request] = []
    for place, (prompt, row, alpha) in enumerate(zip(prompts, audios, alphas, strict=True)):
        names = tuple(f"{id(clip):x}" for clip in row)  # hexadecimal, as the engine takes hashes
        for name, clip in zip(names, row, strict=True):
            is_encoded = isinstance(clip, Tensor) and clip.ndim == 2
            clips[name] = EncodedClip(name, clip) if is_encoded else clip
        choice = None if choices is None else choices[place]
        requests.append(Request(place, prompt, names, alpha, place, choice))
    engine = Engine(model, options, eos_ids=eos_ids, capture=False)
    found = {answer.key: answer for answer in engine.run(requests, clips.__getitem__)}
    answers = [found[request.key] for request in requests]
    for answer in answers:
        if answer.error is not None and not answer.ids:
            raise answer.error
    return answers

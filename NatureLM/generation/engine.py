"""The engine: requests in, answers out, each as if it had been asked alone, and much cheaper.

Every clip is encoded once. Queries and α are rows of batches, which are filled by tokens; rows that
begin alike share keys and values; rows that are finished leave, and others take their place.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import (
    AudioEncoder,
    EmbeddingCache,
    Encoded,
    EncodedClip,
    Load,
    bytes_in_memory,
)
from NatureLM.generation.cuda_graphs import make_graph_runner
from NatureLM.generation.decoding import Decoder, Prompt
from NatureLM.generation.labels import LabelChoice, LabelGrammar
from NatureLM.generation.request import Answer, EngineModel, GenerationOptions, Request
from NatureLM.generation.sampling import GenerationOutput, NonFiniteLogitsError
from NatureLM.generation.scheduler import Budget, RequestQueue, Row
from NatureLM.generation.scoring import Scorer
from NatureLM.util import oom_backoff

_BATCH_TOKENS = {"cpu": 32_768}
_ACCELERATOR_BATCH_TOKENS = 65_536
_ENCODE_BATCH = {"cpu": 8}  # clips; more take more memory there, and are no quicker
_ACCELERATOR_ENCODE_BATCH = 16
_BATCHES_AHEAD = 4  # of clips that are loaded while others are encoded
_CACHE_BYTES = {"cpu": 2 << 30}  # what the keys and values of a batch may take
_ACCELERATOR_CACHE_BYTES = 8 << 30
_BUSY_ROWS = {"cpu": 16}  # rows that a step takes hardly longer for than for one
_ACCELERATOR_BUSY_ROWS = 128
_CACHE_SHARE = 4  # of the memory that may be used, one part


class Engine:
    """Answers requests with a model.

    options: how answers are decoded
    batch_tokens: size of a batch: rows x beams x (prompt + new tokens); by default that of the
        device. It changes the speed and never an answer
    batch_rows: most answers that are decoded, and most clips that are encoded, at once
    max_memory: bytes that batches and kept embeddings may take beside the model's weights
    workers: threads that load audio ahead of the model
    lookahead: requests that batches are chosen from
    embeddings: where audio embeddings are kept; in memory, as long as the engine lives, by default
    eos_ids: tokens that end an answer, by default the model's
    capture: whether decoding steps are captured as CUDA graphs; None does so on CUDA. It changes
        the speed and never an answer

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
        workers: int = 2,
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
        self.model = model
        self.options = options or GenerationOptions()
        tokens = batch_tokens or _default_batch_tokens(model, max_memory)
        beams, new_tokens = self.options.num_beams, self.options.max_new_tokens
        self._budget = Budget(tokens, beams, new_tokens, batch_rows)
        self._workers, self._lookahead = workers, lookahead
        if embeddings is None:
            embeddings = EmbeddingCache(bytes_in_memory(max_memory))
        self._embeddings = embeddings
        self._eos_ids = list(eos_ids) if eos_ids is not None else model.eos_ids
        self._grammar = lru_cache(maxsize=64)(self._make_grammar)
        self._scorer = Scorer(model, self._eos_ids, self._budget)
        self._graphs = make_graph_runner(model.language_model, capture, max_positions=tokens)
        self._busy = _BUSY_ROWS.get(model.device.type, _ACCELERATOR_BUSY_ROWS)
        self.encoded = 0
        """Windows that were encoded in all runs."""

    def run(self, requests: Iterable[Request], load: Load) -> Iterator[Answer]:
        """Answers as they come, not in the order of the requests.

        load: reads a clip by its name, called from threads; where it raises NatureLMError or
            OSError, the requests with that clip get the error, and the others are answered
        """
        with self._encoder(load) as audio:
            waiting = RequestQueue(
                requests, audio, self.model.tokenizer, self._check_alphas, self._lookahead
            )
            decoder = Decoder(self.model.language_model, self.options, self._eos_ids, self._graphs)
            while True:
                scored: list[Row] = []
                if self._more_rows_pay(decoder):
                    yield from waiting.fill()
                    self.encoded += audio.taken()
                    scored = waiting.take_scored()
                    yield from self._scorer(scored)
                    self._refill(decoder, waiting)
                if decoder:
                    yield from self._advance(decoder, waiting)
                elif not scored:
                    return

    def encode(self, names: Iterable[str], load: Load) -> dict[str, Encoded]:
        """Clips (or what kept them from being read) by name, encoded and kept."""
        with self._encoder(load) as audio:
            found = audio.get(names)
            self.encoded += audio.taken()
            return found

    def _encoder(self, load: Load) -> AudioEncoder:
        batch = _ENCODE_BATCH.get(self.model.device.type, _ACCELERATOR_ENCODE_BATCH)
        batch = min(batch, self._budget.most_rows or batch)
        return AudioEncoder(
            load,
            self.model.processor.prepare_audio,
            self.model.encode_audio,
            kept=self._embeddings,
            state=self._embeddings.state_of(self.model),
            workers=self._workers,
            batch=batch,
            ahead=_BATCHES_AHEAD * batch,
        )

    def _check_alphas(self, alphas: Sequence[float]) -> None:
        self.model.alphas_for(alphas, len(alphas))

    def _more_rows_pay(self, decoder: Decoder) -> bool:
        """Whether rows should join.

        A step of few rows takes as long as one of `busy` rows; with that many it is the arithmetic
        that takes the time, and more rows bring nothing. Half a batch must be free, because all
        keys and values that are there are copied when rows join.
        """
        is_busy = len(decoder) * self.options.num_beams >= self._busy
        return not is_busy and 2 * len(decoder) <= self._budget.rows(decoder.longest)

    def _refill(self, decoder: Decoder, waiting: RequestQueue) -> None:
        """Add rows that wait to those that are decoded, as far as there is room."""
        while len(waiting):
            budget = self._budget
            if decoder:
                room = budget.rows(max(decoder.longest, waiting.longest)) - len(decoder)
                if room < 1:
                    return
                budget = budget.within(room)
            batch = waiting.take(budget)
            rows = len(decoder) + len(batch.rows)
            with oom_backoff(rows, "answers were decoded") as backoff:
                decoder.add([self._prompt(row) for row in batch.rows], batch.shared)
            if backoff.retry_size is None:
                return
            waiting.put_back(batch.rows)
            self._shrink(backoff.retry_size)

    def _prompt(self, row: Row) -> Prompt:
        request = row.request
        grammar = None if request.choice is None else self._grammar(request.choice)
        embeds_LD = row.embeddings(self.model.llama_embed_tokens)
        return Prompt(embeds_LD, request.alpha, request.stream, grammar, row)

    def _make_grammar(self, choice: LabelChoice) -> LabelGrammar:
        tokens = self.options.max_new_tokens
        return LabelGrammar(choice, self.model.tokenizer, self._eos_ids, tokens)

    def _advance(self, decoder: Decoder, waiting: RequestQueue) -> Iterator[Answer]:
        finished: list[tuple[Prompt, GenerationOutput]] = []
        prompts = decoder.prompts
        with oom_backoff(len(decoder), "answers were decoded") as backoff:
            finished = decoder.advance()
        if backoff.retry_size is not None:
            # Some layers may have taken the step, others not: all rows begin again.
            decoder.clear()
            waiting.put_back([prompt.source for prompt in prompts])
            self._shrink(backoff.retry_size)
        for prompt, output in finished:
            yield self._answer(prompt, output)

    def _answer(self, prompt: Prompt, output: GenerationOutput) -> Answer:
        ids, log_probability = tuple(output.ids), output.log_probability
        request = prompt.source.request
        if math.isnan(log_probability):
            return Answer(request, None, NonFiniteLogitsError(), ids=ids)
        if prompt.grammar is None:
            text = self.model.tokenizer.decode(output.ids, skip_special_tokens=True)
        else:
            text = prompt.grammar.text(output.ids)
        return Answer(request, text, log_probability=log_probability, tokens=len(ids), ids=ids)

    def _shrink(self, rows: int) -> None:
        """Continue with fewer rows, and give back what captured steps hold."""
        self._budget = self._budget.within(rows)
        if self._graphs is not None:
            self._graphs.release()


def _default_batch_tokens(model: EngineModel, max_memory: int | None) -> int:
    """As many as the device is quick with and the keys and values have room for."""
    kind = model.device.type
    config = model.language_model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = model.llama_embed_tokens.weight.element_size()
    bytes_of_one = 2 * config.num_hidden_layers * heads * width * size
    room = _CACHE_BYTES.get(kind, _ACCELERATOR_CACHE_BYTES)
    if max_memory is not None:
        room = min(room, max_memory // _CACHE_SHARE)
    tokens = min(_BATCH_TOKENS.get(kind, _ACCELERATOR_BATCH_TOKENS), room // bytes_of_one)
    return max(1, int(tokens))


@contextmanager
def fold_if_single_alpha(model: Any, alphas: Iterable[float]) -> Iterator[None]:
    """Within the block the model is folded, if the requests have one α and it can be.

    No adapter arithmetic runs then. The weights are put back bit for bit at the end, whatever ends
    the block.
    """
    different = set(alphas)
    if len(different) != 1 or model.folded is not None or not model.config.lora:
        yield
        return
    with model.fold(different.pop()):
        yield


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
        while waiting:
            first = waiting[0]
            if isinstance(first, Request):
                if first.key not in found:
                    return
                yield found.pop(first.key)
            else:
                yield first
            waiting.popleft()

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
    clips = {_name(clip): clip for row in audios for clip in row}

    def load(name: str) -> Any:
        clip = clips[name]
        is_encoded = isinstance(clip, Tensor) and clip.ndim == 2
        return EncodedClip(name, clip) if is_encoded else clip

    rows = zip(prompts, audios, alphas, strict=True)
    requests = [
        Request(
            place,
            prompt,
            tuple(map(_name, row)),
            alpha,
            stream=place,
            choice=None if choices is None else choices[place],
        )
        for place, (prompt, row, alpha) in enumerate(rows)
    ]
    engine = Engine(model, options, eos_ids=eos_ids, capture=False)
    found = {answer.key: answer for answer in engine.run(requests, load)}
    answers = [found[request.key] for request in requests]
    for answer in answers:
        if answer.error is not None and not answer.ids:
            raise answer.error
    return answers


def _name(clip: Any) -> str:
    """A name for a clip of this call, as the engine takes it for a hash: hexadecimal."""
    return f"{id(clip):x}"

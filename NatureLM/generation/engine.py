"""The engine: requests in, answers out, each as if it had been asked alone, and much cheaper.

Every clip is encoded once. Queries and α are rows of batches, which are filled by tokens; rows that
begin alike share keys and values; rows that are finished leave, and others take their place.

Answers in the order of their requests, whatever the order they come in.

Prompts as embeddings in, token ids out.

Scores of label lists for prompts with their clips, by the engine.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import (
    AudioEncoder,
    EmbeddingCache,
    Encoded,
    EncodedClip,
    Load,
    bytes_in_memory,
)
from NatureLM.generation.constrained import LabelGrammar
from NatureLM.generation.cuda_graphs import StaticSteps, static_steps
from NatureLM.generation.decoding import Decoder, Prompt
from NatureLM.generation.labels import LabelScores, Normalize
from NatureLM.generation.oom import oom_backoff
from NatureLM.generation.prefill import SharedPrefix, merge_prompt_parts
from NatureLM.generation.request import (
    Answer,
    GenerationOptions,
    LabelChoice,
    Request,
    label_choices,
)
from NatureLM.generation.sampling import GenerationOutput, NonFiniteLogitsError
from NatureLM.generation.scheduler import Batch, Budget, RequestQueue, Row
from NatureLM.generation.scoring import Scorer

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
    capture: whether decoding steps are recorded as graphs; None does so on CUDA. It changes the
        speed and never an answer
    note: told that memory ran out, or steps cannot be recorded, and how the work goes on
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
        note: Callable[[str], None] = lambda text: None,
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
        self._workers, self._lookahead, self._note = workers, lookahead, note
        if embeddings is None:
            embeddings = EmbeddingCache(bytes_in_memory(max_memory))
        self._embeddings = embeddings
        self._eos_ids = list(eos_ids) if eos_ids is not None else model.eos_ids
        self._scorer = Scorer(model, self._eos_ids, self._budget, note)
        self._static = static_steps(model.language_model, capture, most_positions=tokens, note=note)
        self._busy = _BUSY_ROWS.get(model.device.type, _ACCELERATOR_BUSY_ROWS)
        self.encoded = 0
        """Windows that were encoded in all runs."""

    def run(self, requests: Iterable[Request], load: Load) -> Iterator[Answer]:
        """Answers as they come, not in the order of the requests.

        load: reads a clip by its name, called from threads; where it raises NatureLMError or
            OSError, the requests with that clip get the error, and the others go on
        """
        with self._encoder(load) as audio:
            waiting = self._waiting(requests, audio)
            decoding = _Decoding(self.model, self.options, self._eos_ids, self._static)
            while True:
                scored: list[Row] = []
                if self._has_idle_room(decoding):
                    yield from waiting.fill()
                    self.encoded += audio.taken()
                    scored = waiting.withdraw(lambda row: row.request.is_scored)
                    yield from self._scorer(scored)
                    self._refill(decoding, waiting)
                if decoding.rows:
                    yield from self._advance(decoding, waiting)
                elif not scored:
                    return

    def batches(self, requests: Iterable[Request], load: Load) -> Iterator[Batch | Answer]:
        """The batches that requests are run in, for who does something else with them than decode.

        Answers are those of requests that cannot be run. `load` as for `run`.
        """
        with self._encoder(load) as audio:
            waiting = self._waiting(requests, audio)
            while True:
                yield from waiting.fill()
                self.encoded += audio.taken()
                batch = waiting.take(self._budget)
                if batch is None:
                    return
                yield batch

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
            note=self._note,
        )

    def _waiting(self, requests: Iterable[Request], audio: AudioEncoder) -> RequestQueue:
        def check(alphas: Sequence[float]) -> None:
            self.model.alphas_for(alphas, len(alphas))

        return RequestQueue(requests, audio, self.model.tokenizer, check, self._lookahead)

    def _has_idle_room(self, decoding: _Decoding) -> bool:
        """Whether more rows pay.

        A step of few rows takes as long as one of `busy` rows; with that many it is the arithmetic
        that takes the time, and more rows bring nothing. Half a batch must be free, because all
        keys and values that are there are copied when rows join.
        """
        is_busy = decoding.rows * self.options.num_beams >= self._busy
        return not is_busy and 2 * decoding.rows <= self._budget.rows(decoding.longest)

    def _refill(self, decoding: _Decoding, waiting: RequestQueue) -> None:
        """Add rows that wait to those that are decoded, as far as there is room."""
        while len(waiting):
            budget = self._budget
            if decoding.rows:
                room = budget.rows(max(decoding.longest, waiting.longest)) - decoding.rows
                if room < 1:
                    return
                budget = budget.within(room)
            batch = waiting.take(budget)
            assert batch is not None, "rows wait"
            rows = decoding.rows + len(batch.rows)
            with oom_backoff(rows, self._note, "answers were decoded") as backoff:
                decoding.add(batch)
            if backoff.retry_size is None:
                return
            waiting.put_back(batch.rows)
            self._make_do(backoff.retry_size)

    def _advance(self, decoding: _Decoding, waiting: RequestQueue) -> Iterator[Answer]:
        rows = decoding.rows
        finished: list[tuple[Row, GenerationOutput]] = []
        with oom_backoff(rows, self._note, "answers were decoded") as backoff:
            finished = decoding.advance()
        if backoff.retry_size is not None:
            # Some layers may have taken the step, others not: all rows begin again.
            waiting.put_back(decoding.give_up())
            self._make_do(backoff.retry_size)
        for row, decoded in finished:
            if math.isnan(decoded.log_probability):
                yield Answer(row.request, None, NonFiniteLogitsError())
                continue
            grammar = decoding.grammar(row)
            if grammar is None:
                text = self.model.tokenizer.decode(decoded.ids, skip_special_tokens=True)
            else:
                text = grammar.text(decoded.ids)
            tokens = len(decoded.ids)
            yield Answer(row.request, text, log_probability=decoded.log_probability, tokens=tokens)

    def _make_do(self, rows: int) -> None:
        """Go on with fewer rows, and give back what steps hold."""
        self._budget = self._budget.within(rows)
        if self._static is not None:
            self._static.release()


class _Decoding:
    """Rows that are being decoded."""

    def __init__(
        self,
        model: EngineModel,
        options: GenerationOptions,
        eos_ids: Sequence[int],
        static: StaticSteps | None = None,
    ) -> None:
        self._model, self._options, self._eos_ids = model, options, eos_ids
        self._static = static
        self._grammar = lru_cache(maxsize=64)(self._make_grammar)
        self._start()

    def _start(self) -> None:
        language_model = self._model.language_model
        self._decoder = Decoder(language_model, self._options, self._eos_ids, self._static)
        self._rows: dict[Prompt, Row] = {}

    @property
    def rows(self) -> int:
        """Answers that are not finished."""
        return len(self._rows)

    @property
    def longest(self) -> int:
        """Positions of the longest prompt."""
        return max((row.length for row in self._rows.values()), default=0)

    def add(self, batch: Batch) -> None:
        """Run the prompts of a batch."""
        with torch.inference_mode():
            prompts = [
                Prompt(
                    merge_prompt_parts(row.parts, row.audios_QD, self._model.llama_embed_tokens),
                    row.request.alpha,
                    row.request.stream,
                    self.grammar(row),
                )
                for row in batch.rows
            ]
        self._decoder.add(prompts, batch.shared)
        self._rows.update(zip(prompts, batch.rows, strict=True))

    def advance(self) -> list[tuple[Row, GenerationOutput]]:
        """Take every answer a token further; those that are finished."""
        return [(self._rows.pop(prompt), decoded) for prompt, decoded in self._decoder.advance()]

    def grammar(self, row: Row) -> LabelGrammar | None:
        """What the row may be answered; None for anything."""
        return None if row.request.choice is None else self._grammar(row.request.choice)

    def _make_grammar(self, choice: LabelChoice) -> LabelGrammar:
        return LabelGrammar(
            choice.labels,
            self._model.tokenizer,
            self._eos_ids,
            several=choice.several,
            max_new_tokens=self._options.max_new_tokens,
        )

    def give_up(self) -> list[Row]:
        """Forget all that was decoded; the rows whose answers are not finished."""
        rows = list(self._rows.values())
        self._start()
        return rows


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


def decode(
    language_model: nn.Module,
    prompts_LD: Sequence[Tensor],
    *,
    alphas: Sequence[float],
    eos_ids: Sequence[int],
    options: GenerationOptions,
    row_numbers: Sequence[int] | None = None,
    shared: Sequence[SharedPrefix] = (),
    grammars: Sequence[LabelGrammar | None] | None = None,
) -> list[GenerationOutput]:
    """Decode each prompt's embeddings (length, width) under its own α.

    A prompt's ids do not depend on the others, their order or their number. `row_numbers` name the
    random streams when sampling (the place in the list by default). `shared` names prompts of one α
    that begin with the same embeddings, which are then run once. `grammars` says what a prompt may
    be answered (None: anything); `options` must leave room for the longest of those answers.
    """
    count = len(prompts_LD)
    numbers = range(count) if row_numbers is None else row_numbers
    rules = [None] * count if grammars is None else grammars
    prompts = [Prompt(*facts) for facts in zip(prompts_LD, alphas, numbers, rules, strict=True)]
    decoder = Decoder(language_model, options, eos_ids)
    decoder.add(prompts, shared)
    found: dict[Prompt, GenerationOutput] = {}
    while len(decoder):
        found.update(decoder.advance())
    return [found[prompt] for prompt in prompts]


def generate_ids(
    language_model: nn.Module, prompts_LD: Sequence[Tensor], **how: Any
) -> list[list[int]]:
    """The token ids that `decode` gives for each prompt, the end included if one came."""
    return [one.ids for one in decode(language_model, prompts_LD, **how)]


def score_labels(
    model: EngineModel,
    prompts: Sequence[str],
    audios: Sequence[Sequence[Any]],
    labels: Sequence[str] | Sequence[Sequence[str]],
    alphas: Sequence[float],
    normalize: Normalize = "sum",
) -> list[LabelScores]:
    """The scores of one list for all prompts, or of one list for each, in their order.

    audios: waveforms (samples,) or encoded audio (Q, D) for the placeholders of each prompt
    """
    clips = {_name(clip): clip for row in audios for clip in row}

    def load(name: str) -> Any:
        clip = clips[name]
        is_encoded = isinstance(clip, Tensor) and clip.ndim == 2
        return EncodedClip(name, clip) if is_encoded else clip

    choices = label_choices(labels, len(prompts), normalize)
    rows = zip(prompts, audios, alphas, choices, strict=True)
    requests = [
        Request(place, prompt, tuple(map(_name, row)), alpha, choice=choice)
        for place, (prompt, row, alpha, choice) in enumerate(rows)
    ]
    found: list[LabelScores] = []
    for answer in yield_in_input_order(Engine(model).run, requests, load):
        assert isinstance(answer, Answer)
        if answer.error is not None:
            raise answer.error
        assert answer.scores is not None
        found.append(answer.scores)
    return found


def _name(clip: Any) -> str:
    """A name for a clip of this call, as the engine takes it for a hash: hexadecimal."""
    return f"{id(clip):x}"

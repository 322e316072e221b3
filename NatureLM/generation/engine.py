"""The engine: requests in, answers out, each as if it had been asked alone, and much cheaper.

Every clip is encoded once. Queries and α are rows of batches, which are filled by tokens; rows that
begin alike share keys and values; rows that are finished leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from NatureLM.errors import UsageError
from NatureLM.generation.audio import AudioEncoder, Encoded, Load
from NatureLM.generation.generate import generate_ids
from NatureLM.generation.options import GenerationOptions
from NatureLM.generation.requests import Answer, Request
from NatureLM.generation.scheduler import Batch, Budget, Row, plan_batches
from NatureLM.generation.splice import (
    PromptError,
    check_placeholders,
    prompt_parts,
    splice_parts,
)

_BATCH_TOKENS = {"cpu": 32_768}
_ACCELERATOR_BATCH_TOKENS = 65_536
_CACHE_BYTES = {"cpu": 2 << 30}  # what the keys and values of a batch may take
_ACCELERATOR_CACHE_BYTES = 8 << 30


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
    workers: threads that load audio ahead of the model
    lookahead: requests that batches are chosen from
    cache_bytes: what may be kept of audio embeddings
    eos_ids: tokens that end an answer, by default the model's
    """

    def __init__(
        self,
        model: EngineModel,
        options: GenerationOptions | None = None,
        *,
        batch_tokens: int | None = None,
        workers: int = 2,
        lookahead: int = 512,
        cache_bytes: int = 1 << 28,
        eos_ids: Sequence[int] | None = None,
    ) -> None:
        for name, value in (("batch_tokens", batch_tokens), ("lookahead", lookahead)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.model = model
        self.options = options or GenerationOptions()
        tokens = batch_tokens or _default_batch_tokens(model)
        self._budget = Budget(tokens, self.options.num_beams, self.options.max_new_tokens)
        self._workers, self._lookahead, self._cache_bytes = workers, lookahead, cache_bytes
        self._eos_ids = list(eos_ids) if eos_ids is not None else model.eos_ids
        self.encoded = 0
        """Windows that were encoded in all runs."""

    def run(self, requests: Iterable[Request], load: Load) -> Iterator[Answer]:
        """Answers as they come, not in the order of the requests.

        load: reads a clip by its name, called from threads; where it raises NatureLMError or
            OSError, the requests with that clip get the error, and the others go on
        """
        run = _Run(self.model.tokenizer)
        source = iter(requests)
        with self._encoder(load) as audio:
            pool: list[Row] = []
            coming = list(islice(source, self._lookahead))
            while coming or pool:
                fresh, room = coming, max(1, self._lookahead - len(pool))
                coming = list(islice(source, room))
                audio.announce(key for one in (*fresh, *coming) for key in one.audios)
                for made in self._prepare(fresh, audio, run):
                    if isinstance(made, Answer):
                        yield made
                    else:
                        pool.append(made)
                self.encoded += audio.taken()
                batches = plan_batches(pool, self._budget)
                # The last batch is seldom full: its rows wait for more of their length.
                held = batches.pop() if coming and len(batches) > 1 else None
                for batch in batches:
                    yield from self._answer(batch)
                pool = list(held.rows) if held is not None else []

    def _encoder(self, load: Load) -> AudioEncoder:
        return AudioEncoder(
            load,
            self.model.processor.prepare_audio,
            self.model.encode_audio,
            workers=self._workers,
            cache_bytes=self._cache_bytes,
        )

    def _prepare(
        self, requests: Sequence[Request], audio: AudioEncoder, run: _Run
    ) -> Iterator[Row | Answer]:
        """Rows that are ready to run; answers of those that cannot."""
        self.model.alphas_for([one.alpha for one in requests], len(requests))
        encoded = audio.get(key for one in requests for key in one.audios)
        for request in requests:
            clips = [encoded[key] for key in request.audios]
            broken = next((clip for clip in clips if isinstance(clip, Exception)), None)
            try:
                check_placeholders(request.prompt, len(clips))
            except PromptError as error:
                broken = error
            yield run.row(request, clips) if broken is None else Answer(request, None, broken)

    def _answer(self, batch: Batch) -> list[Answer]:
        model = self.model
        with torch.inference_mode():
            embeds = [
                splice_parts(row.parts, row.audios_QD, model.llama_embed_tokens)
                for row in batch.rows
            ]
        ids = generate_ids(
            model.language_model,
            embeds,
            alphas=[row.request.alpha for row in batch.rows],
            eos_ids=self._eos_ids,
            options=self.options,
            row_numbers=[row.request.stream for row in batch.rows],
            shared=batch.shared,
        )
        return [
            Answer(row.request, model.tokenizer.decode(tokens, skip_special_tokens=True))
            for row, tokens in zip(batch.rows, ids, strict=True)
        ]


class _Run:
    """What one run knows: tokenised prompts, and numbers in place of the names of clips."""

    def __init__(self, tokenizer: Any) -> None:
        self._parts = lru_cache(maxsize=4096)(
            lambda prompt: tuple(tuple(part) for part in prompt_parts(prompt, tokenizer))
        )
        self._numbers: dict[str, int] = {}

    def row(self, request: Request, clips: Sequence[Encoded]) -> Row:
        """The request in pieces."""
        audios = tuple(clip for clip in clips if isinstance(clip, Tensor))
        parts = self._parts(request.prompt)
        pieces: list[int] = []
        widths: list[int] = []
        for index, part in enumerate(parts):
            pieces += part
            widths += [1] * len(part)
            if index < len(audios):
                key = request.audios[index]
                pieces.append(-1 - self._numbers.setdefault(key, len(self._numbers)))
                widths.append(audios[index].shape[0])
        return Row(request, parts, audios, tuple(pieces), tuple(accumulate(widths)))


def _default_batch_tokens(model: EngineModel) -> int:
    """As many as the device is quick with and the keys and values have room for."""
    kind = model.device.type
    config = model.language_model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = model.llama_embed_tokens.weight.element_size()
    bytes_of_one = 2 * config.num_hidden_layers * heads * width * size
    room = _CACHE_BYTES.get(kind, _ACCELERATOR_CACHE_BYTES) // bytes_of_one
    return max(1, int(min(_BATCH_TOKENS.get(kind, _ACCELERATOR_BATCH_TOKENS), room)))


@contextmanager
def one_alpha(model: Any, alphas: Iterable[float]) -> Iterator[None]:
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

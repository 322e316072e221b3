"""Audio by name: loaded by threads ahead of the model, encoded once in batches, kept within bytes.

Shapes: B windows, S samples, Q audio positions, D width of the language model.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from NatureLM.errors import NatureLMError


@dataclass(frozen=True)
class Stretch:
    """A waveform (samples,) with a window of its own, `seconds`, shorter than the model's."""

    samples: Any
    seconds: float


Load: TypeAlias = Callable[[str], Any]
"""The waveform (samples,) of a clip, or a `Stretch`, by its name; called from threads."""

Encoded: TypeAlias = "Tensor | Exception"
"""Audio embeddings (Q, D) of a clip, or what kept it from being read."""

_READ_ERRORS = (NatureLMError, OSError)


class AudioEncoder:
    """Clips by name → audio embeddings. Use it as a context manager, which ends its threads.

    load: reads a clip; what it raises for a clip (NatureLMError, OSError) is that clip's result
    prepare: makes a waveform as long as the model wants it, or as a second argument says
    encode: waveforms (B, S) → (B, Q, D); those of a batch are equally long
    workers: threads that load
    batch: clips that are encoded at once
    ahead: clips that are loaded ahead of the model, which bounds the memory for waveforms
    cache_bytes: what may be kept of embeddings for later calls
    """

    def __init__(
        self,
        load: Load,
        prepare: Callable[..., Tensor],
        encode: Callable[[Tensor], Tensor],
        *,
        workers: int = 2,
        batch: int = 16,
        ahead: int = 64,
        cache_bytes: int = 1 << 28,
    ) -> None:
        self._load, self._prepare, self._encode = load, prepare, encode
        self._batch, self._ahead, self._cache_bytes = batch, ahead, cache_bytes
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="naturelm-audio")
        self._waiting: deque[str] = deque()
        self._loading: dict[str, Future[Tensor]] = {}
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._bytes = 0
        self._encoded = 0

    def __enter__(self) -> AudioEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def taken(self) -> int:
        """Windows that were encoded since this was last asked."""
        count, self._encoded = self._encoded, 0
        return count

    def announce(self, keys: Iterable[str]) -> None:
        """Clips that will be asked for soon: load them when there is time."""
        known = {*self._waiting, *self._loading, *self._kept}
        self._waiting.extend(key for key in dict.fromkeys(keys) if key not in known)
        self._start_loading()

    def get(self, keys: Iterable[str]) -> dict[str, Encoded]:
        """Embeddings (or errors) of clips by name; what is not kept is loaded and encoded."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Encoded] = {}
        for key in wanted:
            if key in self._kept:
                self._kept.move_to_end(key)
                found[key] = self._kept[key]
        missing = [key for key in wanted if key not in found]
        self.announce(missing)
        by_length: dict[int, dict[str, Tensor]] = {}
        for key in missing:
            try:
                wav_S = self._loaded(key)
            except _READ_ERRORS as error:
                found[key] = self._keep(key, error)
                continue
            ready = by_length.setdefault(wav_S.shape[0], {})
            ready[key] = wav_S
            if len(ready) == self._batch:
                found.update(self._encode_batch(by_length.pop(wav_S.shape[0])))
        for ready in by_length.values():
            found.update(self._encode_batch(ready))
        return found

    def _start_loading(self) -> None:
        while self._waiting and len(self._loading) < self._ahead:
            self._submit(self._waiting.popleft())

    def _submit(self, key: str) -> Future[Tensor]:
        self._loading[key] = self._pool.submit(self._prepared, key)
        return self._loading[key]

    def _prepared(self, key: str) -> Tensor:
        loaded = self._load(key)
        if isinstance(loaded, Stretch):
            return self._prepare(loaded.samples, loaded.seconds)
        return self._prepare(loaded)

    def _loaded(self, key: str) -> Tensor:
        """The waveform, once it is there; its place is free for the next one."""
        if key not in self._loading:
            if key in self._waiting:
                self._waiting.remove(key)
            self._submit(key)
        try:
            return self._loading[key].result()
        finally:
            del self._loading[key]
            self._start_loading()

    def _encode_batch(self, ready: dict[str, Tensor]) -> dict[str, Encoded]:
        with torch.inference_mode():
            audio_BQD = self._encode(torch.stack(list(ready.values())))
        self._encoded += len(ready)
        rows = zip(ready, audio_BQD, strict=True)
        return {key: self._keep(key, audio_QD.clone()) for key, audio_QD in rows}

    def _keep(self, key: str, encoded: Encoded) -> Encoded:
        """Keep it, and let go of what was not used for longest."""
        self._kept[key] = encoded
        self._bytes += _bytes(encoded)
        while self._bytes > self._cache_bytes and len(self._kept) > 1:
            self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return encoded


def _bytes(encoded: Encoded) -> int:
    return encoded.numel() * encoded.element_size() if isinstance(encoded, Tensor) else 0

"""Audio embeddings that are kept, by the content of the sound and not by its name.

Shapes: S samples, Q audio positions, D width of the language model.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from typing import Any, Protocol

import torch
from torch import Tensor

LANGUAGE_MODEL = ("llama_model.", "llama_embed_tokens.")
"""Parameters that audio embeddings do not depend on."""

_MOST_BYTES = 1 << 28
_SHARE = 8  # of the memory that may be used, one part

_NOT_AUDIO = ("text_config", "lora", "use_rslora", "llama", "prompt_template", "_name", "end_sym")


def sound_digest(wav_S: Tensor) -> str:
    """Hash of all samples of a prepared waveform, of their number and precision."""
    content = hashlib.blake2b(digest_size=16)
    content.update(f"{wav_S.dtype} {wav_S.shape[0]} ".encode())
    content.update(_content(wav_S))
    return content.hexdigest()


class Embeddings(Protocol):
    """Somewhere that embeddings are kept; safe to use from several threads."""

    def state_of(self, model: Any) -> str:
        """Names what audio embeddings of a model depend on; the beginning of every key."""

    def get(self, key: str) -> Tensor | None:
        """Embeddings (Q, D), if they are there."""

    def put(self, key: str, audio_QD: Tensor) -> None:
        """Keep them, perhaps for a while."""


def bytes_in_memory(max_memory: int | None) -> int:
    """How many bytes of embeddings are kept in memory where a run may use so many in all."""
    return _MOST_BYTES if max_memory is None else min(_MOST_BYTES, max_memory // _SHARE)


class MemoryEmbeddings:
    """Keeps embeddings within a number of bytes; lets go of what was not used for longest."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept."""
        return self._bytes

    def state_of(self, model: Any) -> str:
        """Which tensors the audio side of a model has in memory, and how often they changed."""
        return audio_state(model)

    def get(self, key: str) -> Tensor | None:
        """Embeddings (Q, D), if they are there."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: str, audio_QD: Tensor) -> None:
        """Keep embeddings, unless they alone are too many bytes."""
        size = _bytes(audio_QD)
        with self._lock:
            if key in self._kept or size > self.most_bytes:
                return
            self._kept[key] = audio_QD
            self._bytes += size
            while self._bytes > self.most_bytes:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])


def audio_state(model: Any) -> str:
    """Tells states of the audio side of models in memory apart.

    Nothing is read of the weights themselves, so this costs next to nothing.
    """
    state = hashlib.blake2b(repr(model.config.window_delays).encode(), digest_size=16)
    for name, tensor in _audio_tensors(model):
        version = 0 if tensor.is_inference() else tensor._version
        facts = (name, tensor.data_ptr(), version, str(tensor.dtype), str(tensor.device))
        state.update(repr(facts).encode())
    return state.hexdigest()


def audio_fingerprint(model: Any) -> str:
    """Hash of all weights of the audio side of a model, and of its configuration.

    The same in every process, whatever language model and adapter stand behind.
    """
    state = hashlib.blake2b(digest_size=16)
    config = model.config.to_dict()
    kept = {key: value for key, value in config.items() if not key.startswith(_NOT_AUDIO)}
    state.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in _audio_tensors(model):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        state.update(_content(tensor))
    return state.hexdigest()


def _audio_tensors(model: Any) -> list[tuple[str, Tensor]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, one) for name, one in named if not name.startswith(LANGUAGE_MODEL)]


def _content(tensor: Tensor) -> memoryview:
    whole = tensor.detach().cpu().contiguous().reshape(-1)
    return whole.view(torch.uint8).numpy().data


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

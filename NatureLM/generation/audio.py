"""Audio by name: loaded by threads ahead of the model, encoded once in batches, then kept.

Shapes: B windows, S samples, Q audio positions, D width of the language model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from NatureLM.errors import NatureLMError
from NatureLM.generation.embeddings import Embeddings, sound_digest
from NatureLM.generation.memory import halving

_READ_ERRORS = (NatureLMError, OSError)
_MOST_NAMES = 1 << 16  # names whose sound is known; others are read again


@dataclass(frozen=True)
class Stretch:
    """A waveform (samples,) with a window of its own, `seconds`, shorter than the model's."""

    samples: Any
    seconds: float


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """Audio embeddings (Q, D) of a clip; `digest` is the hash of its prepared waveform."""

    digest: str
    audio_QD: Tensor


Load: TypeAlias = Callable[[str], Any]
"""The waveform (samples,) of a clip, or a `Stretch`, or an `EncodedClip`, by its name; called from
threads."""

Encoded: TypeAlias = EncodedClip | Exception
"""A clip that is ready for prompts, or what kept it from being read."""


@dataclass(frozen=True, eq=False)
class _Waveform:
    digest: str
    wav_S: Tensor


class AudioEncoder:
    """Clips by name → audio embeddings. Use it as a context manager, which ends its threads.

    load: reads a clip; what it raises for a clip (NatureLMError, OSError) is that clip's result
    prepare: makes a waveform as long as the model wants it, or as a second argument says
    encode: waveforms (B, S) → (B, Q, D); those of a batch are equally long
    kept: where embeddings are looked up and kept, by `state` and the hash of the sound
    state: names the state of the model
    workers: threads that load
    batch: clips that are encoded at once; half as many after each time that memory ran out
    ahead: clips that are loaded ahead of the model, which bounds the memory for waveforms
    note: told that memory ran out
    """

    def __init__(
        self,
        load: Load,
        prepare: Callable[..., Tensor],
        encode: Callable[[Tensor], Tensor],
        *,
        kept: Embeddings,
        state: str = "",
        workers: int = 2,
        batch: int = 16,
        ahead: int = 64,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._load, self._prepare, self._encode = load, prepare, encode
        self._kept, self._state, self._note = kept, state, note
        self._batch, self._ahead = batch, ahead
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="naturelm-audio")
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._loading: dict[str, Future[_Waveform | EncodedClip]] = {}
        self._known: OrderedDict[str, str | Exception] = OrderedDict()
        self._encoded = 0

    def __enter__(self) -> AudioEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def taken(self) -> int:
        """Windows that were encoded since this was last asked."""
        count, self._encoded = self._encoded, 0
        return count

    def announce(self, names: Iterable[str]) -> None:
        """Clips that will be asked for soon: load them when there is time."""
        for name in names:
            if name not in self._loading and name not in self._known:
                self._waiting[name] = None
        self._start_loading()

    def get(self, names: Iterable[str]) -> dict[str, Encoded]:
        """Clips (or errors) by name; what is not kept is loaded and encoded."""
        wanted = list(dict.fromkeys(names))
        found = {name: one for name in wanted if (one := self._remembered(name)) is not None}
        missing = [name for name in wanted if name not in found]
        self.announce(missing)
        digests: dict[str, str] = {}
        made: dict[str, EncodedClip] = {}
        by_length: dict[int, dict[str, Tensor]] = {}
        for name in missing:
            clip = self._loaded(name)
            if isinstance(clip, Exception):
                found[name] = clip
                continue
            digests[name] = clip.digest
            if isinstance(clip, EncodedClip):
                made[clip.digest] = clip
            elif clip.digest not in made:
                ready = by_length.setdefault(clip.wav_S.shape[0], {})
                ready[clip.digest] = clip.wav_S
                if len(ready) >= self._batch:
                    made.update(self._encode_all(by_length.pop(clip.wav_S.shape[0])))
        for ready in by_length.values():
            made.update(self._encode_all(ready))
        return found | {name: made[digest] for name, digest in digests.items()}

    def _remembered(self, name: str) -> Encoded | None:
        known = self._known.get(name)
        if isinstance(known, str):
            return self._look_up(known)
        return known

    def _look_up(self, digest: str) -> EncodedClip | None:
        audio_QD = self._kept.get(self._state + digest)
        return None if audio_QD is None else EncodedClip(digest, audio_QD)

    def _start_loading(self) -> None:
        while self._waiting and len(self._loading) < self._ahead:
            name, _ = self._waiting.popitem(last=False)
            self._submit(name)

    def _submit(self, name: str) -> None:
        self._loading[name] = self._pool.submit(self._read, name)

    def _read(self, name: str) -> _Waveform | EncodedClip:
        loaded = self._load(name)
        if isinstance(loaded, EncodedClip):
            return loaded
        if isinstance(loaded, Stretch):
            wav_S = self._prepare(loaded.samples, loaded.seconds)
        else:
            wav_S = self._prepare(loaded)
        digest = sound_digest(wav_S)
        return self._look_up(digest) or _Waveform(digest, wav_S)

    def _loaded(self, name: str) -> _Waveform | Encoded:
        """The clip, once it was read; its place is free for the next one."""
        if name not in self._loading:
            self._waiting.pop(name, None)
            self._submit(name)
        try:
            clip: _Waveform | Encoded = self._loading[name].result()
        except _READ_ERRORS as error:
            clip = error
        finally:
            del self._loading[name]
            self._start_loading()
        self._known[name] = clip if isinstance(clip, Exception) else clip.digest
        if len(self._known) > _MOST_NAMES:
            self._known.popitem(last=False)
        return clip

    def _encode_all(self, ready: dict[str, Tensor]) -> Iterator[tuple[str, EncodedClip]]:
        """Encode waveforms by their hash, in batches, and keep what comes out."""
        digests = list(ready)
        while digests:
            batch = digests[: self._batch]
            with halving(len(batch), self._note, "clips were encoded") as room:
                audio_BQD = self._encode_batch([ready[digest] for digest in batch])
            if room.halved is not None:
                self._batch = room.halved
                continue
            for digest, audio_QD in zip(batch, audio_BQD, strict=True):
                clip = EncodedClip(digest, audio_QD.clone())
                self._kept.put(self._state + digest, clip.audio_QD)
                yield digest, clip
            digests = digests[len(batch) :]

    def _encode_batch(self, wavs_S: list[Tensor]) -> Tensor:
        with torch.inference_mode():
            audio_BQD = self._encode(torch.stack(wavs_S))
        self._encoded += len(wavs_S)
        return audio_BQD

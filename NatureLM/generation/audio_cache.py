"""Audio embeddings that are kept, by the content of the sound and not by its name.

Shapes: S samples, Q audio positions, D width of the language model.

Audio embeddings on disk, for work that comes back to the same recordings.

One safetensors file for each clip, in `audio-embeddings` within the folder that the user names. A
file that is damaged is taken away, and the clip encoded again.

Audio by name: loaded by threads ahead of the model, encoded once in batches, then kept.

Shapes: B windows, S samples, Q audio positions, D width of the language model.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from NatureLM.errors import NatureLMError
from NatureLM.generation.oom import halving
from NatureLM.util import atomic_write, format_bytes

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


class EmbeddingCache(Protocol):
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


class MemoryEmbeddingCache:
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


CACHE_VARIABLE = "NATURELM_CACHE"
"""Environment variable with the folder; without it nothing is kept on disk."""

MOST_BYTES = 8 << 30
_FOLDER = "audio-embeddings"
_AFTER_CLEANING = 0.9  # share of the limit that is left, so that not every file means cleaning
_DAMAGED = (SafetensorError, ValueError, KeyError)


@dataclass(frozen=True)
class CacheInfo:
    """What is on disk."""

    folder: Path
    files: int
    bytes: int

    def __str__(self) -> str:
        clips = "1 clip" if self.files == 1 else f"{self.files} clips"
        return f"{self.folder}: {clips}, {format_bytes(self.bytes)}"


class EmbeddingFiles:
    """Embeddings in a folder, at most so many bytes; those not used for longest leave first.

    Several processes may use one folder. A folder that cannot be written to costs a note, and the
    work goes on without it.
    """

    def __init__(
        self,
        folder: Path,
        most_bytes: int = MOST_BYTES,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.folder = folder / _FOLDER
        self.most_bytes, self._note = most_bytes, note
        self._lock = threading.Lock()
        self._bytes: int | None = None  # not known before something is written
        self._is_off = False

    def get(self, key: str) -> Tensor | None:
        """Embeddings (Q, D) as they were put, if they are there and whole."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                audio_QD: Tensor = file.get_tensor("audio")
                facts = file.metadata() or {}
            if audio_QD.ndim != 2 or facts.get("checksum") != _checksum(audio_QD):
                raise ValueError("not what was written")
        except OSError:  # it is not there, or cannot be read at the moment
            return None
        except _DAMAGED:
            _remove(path)
            return None
        with suppress(OSError):  # others may have lent the folder for reading only
            os.utime(path)
        return audio_QD

    def put(self, key: str, audio_QD: Tensor) -> None:
        """Write embeddings, all at once or not at all."""
        if self._is_off:
            return
        audio_QD = audio_QD.detach().cpu().contiguous()
        data = save({"audio": audio_QD}, metadata={"checksum": _checksum(audio_QD)})
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as unfinished:
                unfinished.write_bytes(data)
            self._make_room(len(data))
        except OSError as error:
            self._is_off = True
            self._note(f"{self.folder}: nothing more is kept there ({error.strerror or error})")

    def info(self) -> CacheInfo:
        """How much there is."""
        sizes = [stat.st_size for _, stat in self._files()]
        return CacheInfo(self.folder, len(sizes), sum(sizes))

    def clear(self) -> CacheInfo:
        """Take all away; what there was."""
        before = self.info()
        for path, _ in self._files():
            _remove(path)
        for folder in (*self.folder.glob("??"), self.folder):
            with suppress(OSError):  # where it is not empty it holds what is not ours
                folder.rmdir()
        self._bytes = None
        return before

    def _path(self, key: str) -> Path:
        return self.folder / key[-2:] / f"{key}.safetensors"

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.folder.glob("??/*.safetensors*"):
            try:
                yield path, path.stat()
            except OSError:  # another process took it away
                continue

    def _make_room(self, new: int) -> None:
        with self._lock:
            self._bytes = self.info().bytes if self._bytes is None else self._bytes + new
            if self._bytes <= self.most_bytes:
                return
            files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
            self._bytes = sum(stat.st_size for _, stat in files)
            for path, stat in files:
                if self._bytes <= _AFTER_CLEANING * self.most_bytes:
                    break
                _remove(path)
                self._bytes -= stat.st_size


class DiskEmbeddingCache:
    """Embeddings in memory, and behind it on disk."""

    def __init__(self, memory: MemoryEmbeddingCache, files: EmbeddingFiles) -> None:
        self._memory, self._files = memory, files
        self._fingerprints: dict[str, str] = {}

    def state_of(self, model: Any) -> str:
        """Hash of all that embeddings depend on, the same in every process."""
        state = audio_state(model)
        if state not in self._fingerprints:
            self._fingerprints = {state: audio_fingerprint(model)}
        return self._fingerprints[state]

    def get(self, key: str) -> Tensor | None:
        """Embeddings (Q, D), from where they are."""
        found = self._memory.get(key)
        if found is None:
            found = self._files.get(key)
            if found is not None:
                self._memory.put(key, found)
        return found

    def put(self, key: str, audio_QD: Tensor) -> None:
        """Keep embeddings in both."""
        self._memory.put(key, audio_QD)
        self._files.put(key, audio_QD)


def cache_folder(folder: str | Path | None = None) -> Path | None:
    """The folder that is named, else that of the environment, else none."""
    named = folder or os.environ.get(CACHE_VARIABLE, "").strip()
    return Path(named).expanduser() if named else None


def make_embedding_cache(
    folder: str | Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    *,
    max_memory: int | None = None,
    most_bytes: int | None = None,
) -> EmbeddingCache:
    """Where embeddings are kept: in memory, and in a folder if one is named or in the environment.

    max_memory: bytes that a run may use, of which embeddings in memory take a part
    most_bytes: bytes that those in memory may take in any case
    note: told when the folder cannot be used
    """
    room = bytes_in_memory(max_memory)
    memory = MemoryEmbeddingCache(room if most_bytes is None else min(room, most_bytes))
    where = cache_folder(folder)
    return memory if where is None else DiskEmbeddingCache(memory, EmbeddingFiles(where, note=note))


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _checksum(tensor: Tensor) -> str:
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(content, digest_size=16).hexdigest()


_READ_ERRORS = (NatureLMError, OSError)
_MOST_NAMES = 1 << 16  # names whose sound is known; others are read again


@dataclass(frozen=True)
class PaddedClip:
    """A waveform (samples,) with a window of its own, `seconds`, shorter than the model's."""

    samples: Any
    seconds: float


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """Audio embeddings (Q, D) of a clip; `digest` is the hash of its prepared waveform."""

    digest: str
    audio_QD: Tensor


Load: TypeAlias = Callable[[str], Any]
"""By its name: the waveform (samples,) of a clip, or a `PaddedClip`, or an `EncodedClip`.

Called from threads."""

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
        kept: EmbeddingCache,
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
        if isinstance(loaded, PaddedClip):
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

"""Audio embeddings: clips loaded by threads, encoded once in batches, kept in memory and on disk.

Embeddings are kept under the state of the model and the hash of the prepared waveform, not under
the clip's name. On disk they are one safetensors file a clip, in `audio-embeddings` within the
folder that the user names; a damaged file is removed, and its clip encoded again.

Shapes: B windows, S samples, Q audio positions, D width of the language model.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from NatureLM.errors import NatureLMError
from NatureLM.memory import ByteBoundedCache, oom_backoff
from NatureLM.util import atomic_write, digest, format_bytes

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "NATURELM_CACHE"
"""Environment variable with the folder; without it nothing is kept on disk."""

_LANGUAGE_MODEL = ("llama_model.", "llama_embed_tokens.")  # audio embeddings depend on neither
_NOT_AUDIO = (
    *("text_config", "lora", "use_rslora", "llama", "quantized"),
    *("prompt_template", "_name", "end_sym"),
)

_MAX_BYTES = 1 << 28  # in memory
_MEMORY_SHARE = 8  # and of the memory that may be used, one part
_MAX_BYTES_ON_DISK = 8 << 30
_AFTER_CLEANING = 0.9  # share of the limit that is left, so that not every file means cleaning
_FOLDER = "audio-embeddings"

_DAMAGED = (SafetensorError, ValueError, KeyError)
_READ_ERRORS = (NatureLMError, OSError)
_MAX_NAMES = 1 << 16  # names whose content is known; others are read again

LEAST_ROWS = 2  # windows of a thread; one alone takes longer by a third
_SMALL = 512  # width of a language model
_lock = threading.Lock()
_inside, _threads = 0, 1  # blocks of all threads, and what each takes outside
_here = threading.local()  # `depth`: blocks of this thread


def waveform_digest(wav_S: Tensor) -> str:
    """Hash of all samples of a prepared waveform, of their number and precision."""
    return _hash((f"{wav_S.dtype} {wav_S.shape[0]} ", tensor_bytes(wav_S)))


def audio_state(model: Any) -> str:
    """Tells states of the audio side of models in memory apart.

    Nothing is read of the weights themselves, so this costs next to nothing.
    """
    facts: list[Any] = [model.config.window_delays]
    for name, tensor in _audio_tensors(model):
        version = 0 if tensor.is_inference() else tensor._version
        facts.append((name, tensor.data_ptr(), version, str(tensor.dtype), str(tensor.device)))
    return _hash(map(repr, facts))


def audio_fingerprint(model: Any) -> str:
    """Hash of all weights of the audio side of a model, and of its configuration.

    The same in every process, and for every language model and adapter.
    """
    config = model.config.to_dict()
    kept = {key: value for key, value in config.items() if not key.startswith(_NOT_AUDIO)}

    def contents() -> Iterator[Any]:
        yield json.dumps(kept, sort_keys=True, default=str)
        for name, tensor in _audio_tensors(model):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)} "
            yield tensor_bytes(tensor)

    return _hash(contents())


def _audio_tensors(model: Any) -> list[tuple[str, Tensor]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, one) for name, one in named if not name.startswith(_LANGUAGE_MODEL)]


def tensor_bytes(tensor: Tensor) -> memoryview:
    """What a tensor holds, wherever it lies."""
    whole = tensor.detach().cpu().contiguous().reshape(-1)
    return whole.view(torch.uint8).numpy().data


def _hash(chunks: Any) -> str:
    return digest(chunks, "blake2b", size=16).hex()


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
    """Embeddings in a folder, at most so many bytes; the least recently used are removed first.

    Several processes may use one folder. A folder that cannot be written to is logged once, and
    no longer used.
    """

    def __init__(self, folder: Path, max_bytes: int = _MAX_BYTES_ON_DISK) -> None:
        self.folder, self.max_bytes = folder / _FOLDER, max_bytes
        self._lock = threading.Lock()
        self._bytes: int | None = None  # not known before something is written
        self._is_off = False

    def get(self, key: str) -> Tensor | None:
        """Embeddings (Q, D) as they were put, if they are there and undamaged."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                audio_QD: Tensor = file.get_tensor("audio")
                facts = file.metadata() or {}
            if audio_QD.ndim != 2 or facts.get("checksum") != _hash(tensor_bytes(audio_QD)):
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
        """Write embeddings atomically."""
        if self._is_off:
            return
        audio_QD = audio_QD.detach().cpu().contiguous()
        data = save({"audio": audio_QD}, metadata={"checksum": _hash(tensor_bytes(audio_QD))})
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as unfinished:
                unfinished.write_bytes(data)
            self._remove_oldest(len(data))
        except OSError as error:
            self._is_off = True
            reason = error.strerror or error
            logger.warning(f"{self.folder}: nothing more is kept there ({reason})")

    def info(self) -> CacheInfo:
        """How much there is."""
        sizes = [stat.st_size for _, stat in self._files()]
        return CacheInfo(self.folder, len(sizes), sum(sizes))

    def clear(self) -> CacheInfo:
        """Remove all files; what there was."""
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
            with suppress(OSError):  # another process removed it
                yield path, path.stat()

    def _remove_oldest(self, new: int) -> None:
        with self._lock:
            self._bytes = self.info().bytes if self._bytes is None else self._bytes + new
            if self._bytes <= self.max_bytes:
                return
            files = sorted(self._files(), key=lambda file: file[1].st_mtime_ns)
            self._bytes = sum(stat.st_size for _, stat in files)
            for path, stat in files:
                if self._bytes <= _AFTER_CLEANING * self.max_bytes:
                    break
                _remove(path)
                self._bytes -= stat.st_size


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def bytes_in_memory(max_memory: int | None) -> int:
    """How many bytes of embeddings are kept in memory where a run may use so many in all."""
    return _MAX_BYTES if max_memory is None else min(_MAX_BYTES, max_memory // _MEMORY_SHARE)


class EmbeddingCache:
    """Embeddings in memory, and behind it in files if there are any. Safe under threads.

    max_bytes: those in memory may take
    """

    def __init__(self, max_bytes: int = _MAX_BYTES, files: EmbeddingFiles | None = None) -> None:
        self.memory: ByteBoundedCache[str, Tensor] = ByteBoundedCache(max_bytes)
        self.files = files
        self._fingerprints: dict[str, str] = {}

    def state_of(self, model: Any) -> str:
        """Names what audio embeddings of a model depend on; the beginning of every key.

        With files it is the same in every process.
        """
        state = audio_state(model)
        if self.files is None:
            return state
        if state not in self._fingerprints:
            self._fingerprints = {state: audio_fingerprint(model)}
        return self._fingerprints[state]

    def get(self, key: str) -> Tensor | None:
        """Embeddings (Q, D), if they are kept."""
        found = self.memory.get(key)
        if found is None and self.files is not None:
            found = self.files.get(key)
            if found is not None:
                self.memory.put(key, found, found.nbytes)
        return found

    def put(self, key: str, audio_QD: Tensor) -> None:
        """Keep embeddings, in memory unless they alone are too many bytes."""
        self.memory.put(key, audio_QD, audio_QD.nbytes)
        if self.files is not None:
            self.files.put(key, audio_QD)


def cache_folder(folder: str | Path | None = None) -> Path | None:
    """The folder that is named, else that of the environment, else none."""
    named = folder or os.environ.get(CACHE_VARIABLE, "").strip()
    return Path(named).expanduser() if named else None


def make_embedding_cache(
    folder: str | Path | None = None,
    *,
    max_memory: int | None = None,
    max_bytes: int | None = None,
) -> EmbeddingCache:
    """A cache in memory, and in a folder if one is named here or in the environment.

    max_memory: bytes that a run may use, of which embeddings in memory take a part
    max_bytes: bytes that those in memory may take in any case
    """
    room = bytes_in_memory(max_memory)
    where = cache_folder(folder)
    files = None if where is None else EmbeddingFiles(where)
    return EmbeddingCache(room if max_bytes is None else min(room, max_bytes), files)


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

_Waveform: TypeAlias = tuple[str, Tensor]  # with its digest


class AudioEncoder:
    """Clips by name → audio embeddings. Use it as a context manager, which ends its threads.

    load: reads a clip; what it raises (NatureLMError, OSError) is that clip's result
    prepare: makes a waveform as long as the model wants it, or as a second argument says
    encode: waveforms (B, S) → (B, Q, D); those of a batch are equally long
    kept: where embeddings are looked up and kept, by `state` and the hash of the sound
    state: names the state of the model; asked for once, when something is looked up
    workers: threads that load
    batch: clips that are encoded at once; half as many after each time that memory ran out
    ahead: clips that are loaded ahead of the model, which bounds the memory for waveforms
    tenant: whose a clip is, by its name; what one tenant sent is not found by another
    """

    def __init__(
        self,
        load: Load,
        prepare: Callable[..., Tensor],
        encode: Callable[[Tensor], Tensor],
        *,
        kept: EmbeddingCache,
        state: Callable[[], str] = str,
        workers: int = 2,
        batch: int = 16,
        ahead: int = 64,
        tenant: Callable[[str], str] = lambda name: "",
    ) -> None:
        self._load, self._prepare, self._encode = load, prepare, encode
        self._kept, self._state = kept, cache(state)
        self._asking = threading.Lock()
        self._batch, self._ahead, self._tenant = batch, ahead, tenant
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="naturelm-audio")
        self._waiting: OrderedDict[str, None] = OrderedDict()
        self._loading: dict[str, Future[_Waveform | EncodedClip]] = {}
        self._known: OrderedDict[str, str | Exception] = OrderedDict()

    def __enter__(self) -> AudioEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def announce(self, names: Iterable[str]) -> None:
        """Clips that will be asked for soon: load them when there is time."""
        for name in names:
            if name not in self._loading and name not in self._known:
                self._waiting[name] = None
        self._start_loading()

    def get(self, names: Iterable[str]) -> dict[str, Encoded]:
        """Clips (or errors) by name; what is not kept is loaded and encoded."""
        found: dict[str, Encoded] = {}
        missing: list[str] = []
        for name in dict.fromkeys(names):
            known = self._known.get(name)
            clip = self._look_up(known) if isinstance(known, str) else known
            if clip is None:
                missing.append(name)
            else:
                found[name] = clip
        self.announce(missing)
        digests: dict[str, str] = {}
        made: dict[str, EncodedClip] = {}
        by_length: dict[int, dict[str, Tensor]] = {}
        for name in missing:
            loaded = self._loaded(name)
            if isinstance(loaded, Exception):
                found[name] = loaded
            elif isinstance(loaded, EncodedClip):
                digests[name] = loaded.digest
                made[loaded.digest] = loaded
            else:
                digests[name], wav_S = loaded
                if digests[name] not in made:
                    ready = by_length.setdefault(wav_S.shape[0], {})
                    ready[digests[name]] = wav_S
                    if len(ready) >= self._batch:
                        made.update(self._encode_all(by_length.pop(wav_S.shape[0])))
        for ready in by_length.values():
            made.update(self._encode_all(ready))
        return found | {name: made[content] for name, content in digests.items()}

    def _look_up(self, content: str) -> EncodedClip | None:
        audio_QD = self._kept.get(self._key(content))
        return None if audio_QD is None else EncodedClip(content, audio_QD)

    def _key(self, content: str) -> str:
        """What embeddings are kept under."""
        with self._asking:
            return self._state() + content

    def _start_loading(self) -> None:
        while self._waiting and len(self._loading) < self._ahead:
            name, _ = self._waiting.popitem(last=False)
            self._loading[name] = self._pool.submit(self._read, name)

    def _read(self, name: str) -> _Waveform | EncodedClip:
        loaded = self._load(name)
        if isinstance(loaded, EncodedClip):
            return loaded
        if isinstance(loaded, PaddedClip):
            wav_S = self._prepare(loaded.samples, loaded.seconds)
        else:
            wav_S = self._prepare(loaded)
        content, tenant = waveform_digest(wav_S), self._tenant(name)
        if tenant:
            content = _hash((f"{tenant} ", content))
        return self._look_up(content) or (content, wav_S)

    def _loaded(self, name: str) -> _Waveform | Encoded:
        """The clip, once it was read; its place is free for the next one."""
        if name not in self._loading:
            self._waiting.pop(name, None)
            self._loading[name] = self._pool.submit(self._read, name)
        clip: _Waveform | Encoded
        try:
            clip = self._loading[name].result()
            self._known[name] = clip.digest if isinstance(clip, EncodedClip) else clip[0]
        except _READ_ERRORS as error:
            clip = self._known[name] = error
        finally:
            del self._loading[name]
            self._start_loading()
        if len(self._known) > _MAX_NAMES:
            self._known.popitem(last=False)
        return clip

    def _encode_all(self, ready: dict[str, Tensor]) -> Iterator[tuple[str, EncodedClip]]:
        """Encode waveforms by their hash, in batches, and keep what comes out."""
        digests = list(ready)
        while digests:
            batch = digests[: self._batch]
            with oom_backoff(len(batch), "clips were encoded") as backoff, torch.inference_mode():
                with one_core_each():
                    wav_BS = torch.stack([ready[content] for content in batch])
                audio_BQD = self._encode(wav_BS)
            if backoff.retry_size is not None:
                self._batch = backoff.retry_size
                continue
            for content, audio_QD in zip(batch, audio_BQD, strict=True):
                clip = EncodedClip(content, audio_QD.clone())
                self._kept.put(self._key(content), clip.audio_QD)
                yield content, clip
            digests = digests[len(batch) :]


# -- one core each --------------------------------------------------------------------------

# Cores that share each operation wait for each other after it: half of the time with a small
# encoder on two cores, and most of it where other programs run. Windows do not depend on each
# other, so each core takes some of them, and gets the same numbers as if one did all. Steps of a
# small language model are done soonest by one core.


def by_windows(encode: Callable[[Tensor], Tensor], wav_BS: Tensor) -> Tensor:
    """`encode` of waveforms (B, S), where nothing is learnt, by as many threads as torch has."""
    with one_core_each() as threads:
        pieces = wav_BS.tensor_split(max(1, min(threads, len(wav_BS) // LEAST_ROWS)))
        if len(pieces) == 1:
            return encode(wav_BS)

        def run(piece: Tensor) -> Tensor:
            torch.set_num_threads(1)  # of this thread
            with torch.inference_mode(is_inference):
                return encode(piece)

        is_inference = torch.is_inference_mode_enabled()
        with ThreadPoolExecutor(len(pieces) - 1, thread_name_prefix="naturelm-encode") as pool:
            others = [pool.submit(run, piece) for piece in pieces[1:]]
            first = run(pieces[0])
            return torch.cat([first, *(one.result() for one in others)])


def for_steps(language_model: Any) -> AbstractContextManager[object]:
    """Within the block, steps of a small language model on a processor take one core."""
    is_small = language_model.config.hidden_size <= _SMALL and language_model.device.type == "cpu"
    return one_core_each() if is_small else nullcontext()


@contextmanager
def one_core_each() -> Iterator[int]:
    """Within the block an operation takes one thread; how many it takes else."""
    global _inside, _threads
    depth = getattr(_here, "depth", 0)
    with _lock:
        if not _inside:
            _threads = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    _here.depth = depth + 1
    try:
        yield _threads
    finally:
        _here.depth = depth
        with _lock:
            _inside -= 1
            if not depth:
                torch.set_num_threads(_threads)

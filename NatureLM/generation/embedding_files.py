"""Audio embeddings on disk, for work that comes back to the same recordings.

One safetensors file for each clip, in `audio-embeddings` within the folder that the user names. A
file that is damaged is taken away, and the clip encoded again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from NatureLM.generation.embeddings import (
    Embeddings,
    MemoryEmbeddings,
    audio_fingerprint,
    audio_state,
    bytes_in_memory,
)
from NatureLM.sizes import show_bytes
from NatureLM.whole import whole_file

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
        return f"{self.folder}: {clips}, {show_bytes(self.bytes)}"


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
            with whole_file(path) as unfinished:
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


class LastingEmbeddings:
    """Embeddings in memory, and behind it on disk."""

    def __init__(self, memory: MemoryEmbeddings, files: EmbeddingFiles) -> None:
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


def kept_embeddings(
    folder: str | Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    *,
    max_memory: int | None = None,
    most_bytes: int | None = None,
) -> Embeddings:
    """Where embeddings are kept: in memory, and in a folder if one is named or in the environment.

    max_memory: bytes that a run may use, of which embeddings in memory take a part
    most_bytes: bytes that those in memory may take in any case
    note: told when the folder cannot be used
    """
    room = bytes_in_memory(max_memory)
    memory = MemoryEmbeddings(room if most_bytes is None else min(room, most_bytes))
    where = cache_folder(folder)
    return memory if where is None else LastingEmbeddings(memory, EmbeddingFiles(where, note=note))


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _checksum(tensor: Tensor) -> str:
    content = tensor.reshape(-1).view(torch.uint8).numpy().data
    return hashlib.blake2b(content, digest_size=16).hexdigest()

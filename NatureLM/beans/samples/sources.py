"""Where the sound of a clip lies: in a file of its own, or in a row of a dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from NatureLM.beans.samples.arrow import short

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from NatureLM.tables import Row


class Rows(Protocol):
    """The rows of a dataset that holds sound; safe under threads.

    name: what messages call it
    folder: where relative paths in it start from
    has_audio: whether there is a column with sound
    """

    name: str
    folder: Path | None
    has_audio: bool

    def light(self) -> Iterator[Row]:
        """Every row without its sound, which is not read."""

    def audio(self, index: int) -> Any:
        """The cell `audio` of a row, not decoded."""


_STRETCH = 2**16
_STRETCHES = 17


@dataclass(frozen=True, eq=False)
class FileSource:
    """A file; however its path is written, it is the same source."""

    path: Path

    @cached_property
    def _real(self) -> str:
        return os.path.realpath(self.path)

    @cached_property
    def digest(self) -> str | None:
        """Hash of the file's length and content; None where it cannot be read.

        Of large files the ends and stretches between them are read: recordings of hours are told
        apart in a moment, and wherever they are copied they stay the same.
        """
        try:
            size = os.stat(self.path).st_size
            found = hashlib.blake2b(str(size).encode(), digest_size=8)
            with open(self.path, "rb") as file:
                for start in _stretches(size):
                    file.seek(start)
                    found.update(file.read(_STRETCH))
        except OSError:
            return None
        return found.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileSource) and self._real == other._real

    def __hash__(self) -> int:
        return hash(self._real)

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples; raises `AudioError`."""
        from NatureLM.audio import read_clip

        return read_clip(self.path, start=start, duration=duration, sample_rate=sample_rate)


@dataclass(frozen=True)
class RowSource:
    """The sound in row `index` of a dataset.

    name: what errors call it
    array_rate: sample rate of samples that name none, in Hz
    """

    rows: Rows
    index: int
    name: str
    array_rate: float | None

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples; raises `AudioError`."""
        from NatureLM.audio import AudioError
        from NatureLM.audio.embedded import read_embedded

        try:
            stored = self.rows.audio(self.index)
        except Exception as error:  # a damaged file, or no network: each library has its own
            raise AudioError(self.name, f"cannot be read ({short(error)})") from error
        return read_embedded(
            stored,
            name=self.name,
            array_rate=self.array_rate,
            folder=self.rows.folder,
            start=start,
            duration=duration,
            sample_rate=sample_rate,
        )


def _stretches(size: int) -> Iterable[int]:
    """Where the stretches of a file begin that its digest is made of: all, if it is small."""
    if size <= _STRETCHES * _STRETCH:
        return range(0, size, _STRETCH)
    last = size - _STRETCH
    return (last * number // (_STRETCHES - 1) for number in range(_STRETCHES))

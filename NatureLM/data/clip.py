"""A stretch of sound by name, wherever it lies: read when it is needed, never before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from NatureLM.util import digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BEYOND = 0.1  # seconds after the window that are read, too
_TOLERANCE = 0.025  # seconds more than the window that no recorder is blamed for
_BLOCK = 2**16  # bytes of a file that a digest reads at a time
_BLOCKS = 17  # most blocks that a digest reads


class AudioSource(Protocol):
    """Sound that can be read: a file, or a row of a dataset. Reading is safe under threads."""

    @property
    def name(self) -> str:
        """What errors call it."""

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples in [-1, 1] from `start` on, at most `duration` seconds (None: all).

        Raises `AudioError`, which names the file or the sample.
        """


@dataclass(frozen=True, eq=False)
class FileSource:
    """A file; however its path is written, it is the same source."""

    path: Path

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

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
            with open(self.path, "rb") as file:
                return digest(_sampled_contents(file, size), "blake2b", size=8).hex()
        except OSError:
            return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileSource) and self._real == other._real

    def __hash__(self) -> int:
        return hash(self._real)

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples; raises `AudioError`."""
        from NatureLM.audio.windows import read_clip

        return read_clip(self.path, start=start, duration=duration, sample_rate=sample_rate)


def _sampled_contents(file: BinaryIO, size: int) -> Iterator[str | bytes]:
    """The size of a file and its blocks: all of a small file, evenly spread ones otherwise."""
    yield str(size)
    if size <= _BLOCKS * _BLOCK:
        starts = list(range(0, size, _BLOCK))
    else:
        starts = [(size - _BLOCK) * number // (_BLOCKS - 1) for number in range(_BLOCKS)]
    for start in starts:
        file.seek(start)
        yield file.read(_BLOCK)


@dataclass(frozen=True)
class Clip:
    """A stretch of a recording.

    key: its stable name, the same on every machine; clips of one key are one clip
    source: where the sound is
    start, end: seconds in the source; end None is its end
    window: seconds of it that are heard, and that it is padded to where it is shorter; None takes
        the model's window
    """

    key: str
    source: AudioSource = field(compare=False, repr=False)
    start: float = field(default=0.0, compare=False)
    end: float | None = field(default=None, compare=False)
    window: float | None = field(default=None, compare=False)

    @classmethod
    def of(cls, source: AudioSource, start: float = 0.0, end: float | None = None) -> Clip:
        """A stretch of a source that bears the source's name."""
        return cls(f"{source.name}@{start!r}-{end!r}", source, start, end)

    @property
    def duration(self) -> float | None:
        """Seconds, None when only the source knows."""
        return None if self.end is None else self.end - self.start


@dataclass(frozen=True)
class ClipAudio:
    """The sound of a clip.

    samples: mono, float32 in [-1, 1], (samples,), no longer than the window and not padded
    seconds: length of the window
    is_cut: whether the clip goes on after the window
    """

    samples: NDArray[np.float32]
    seconds: float
    is_cut: bool


def clip_key(dataset: str, name: str, start: float = 0.0, duration: float | None = None) -> str:
    """The stable name of a stretch: `cbi/XC1234`, with `@start+duration` where it is a part."""
    length = "" if duration is None else f"+{duration!r}"
    stretch = f"@{start!r}{length}" if start or length else ""
    return f"{dataset}/{name}{stretch}"


def read_window(clip: Clip, sample_rate: int, seconds: float) -> ClipAudio:
    """The sound of a clip, cut to its window, which is `seconds` or shorter, and not padded.

    Raises `AudioError`.
    """
    window = seconds if clip.window is None else min(clip.window, seconds)
    # What comes after the window is resampled with it, and shows whether the clip goes on.
    wanted = window + _BEYOND
    duration = wanted if clip.duration is None else min(clip.duration, wanted)
    wav = clip.source.read(start=clip.start, duration=duration, sample_rate=sample_rate)
    length = round(window * sample_rate)
    return ClipAudio(wav[:length], window, is_cut=len(wav) - length > _TOLERANCE * sample_rate)

"""A stretch of sound by name, wherever it lies: read when it is needed, never before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_BEYOND = 0.1  # seconds after the window that are read, too
_TOLERANCE = 0.025  # seconds more than the window that no recorder is blamed for


class AudioSource(Protocol):
    """Sound that can be read: a file, or a row of a dataset. Reading is safe under threads."""

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples in [-1, 1] from `start` on, at most `duration` seconds (None: all).

        Raises `AudioError`, which names the file or the sample.
        """


@dataclass(frozen=True)
class Clip:
    """One window of audio.

    key: its stable name, the same on every machine; clips of one key are one clip
    source: where the sound is
    start, duration: seconds in the source; duration None is to the end
    window: seconds of it that are heard, and that it is padded to where it is shorter; None takes
        the model's window
    """

    key: str
    source: AudioSource = field(compare=False, repr=False)
    start: float = field(default=0.0, compare=False)
    duration: float | None = field(default=None, compare=False)
    window: float | None = field(default=None, compare=False)


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


def hear(clip: Clip, sample_rate: int, seconds: float) -> ClipAudio:
    """What is heard of a clip in its window, which is `seconds` or shorter. Raises `AudioError`."""
    window = seconds if clip.window is None else min(clip.window, seconds)
    # What comes after the window is resampled with it, and shows whether the clip goes on.
    wanted = window + _BEYOND
    duration = wanted if clip.duration is None else min(clip.duration, wanted)
    wav = clip.source.read(start=clip.start, duration=duration, sample_rate=sample_rate)
    length = round(window * sample_rate)
    return ClipAudio(wav[:length], window, is_cut=len(wav) - length > _TOLERANCE * sample_rate)


def load_window(clip: Clip, sample_rate: int, seconds: float) -> NDArray[np.float32]:
    """The sound of a clip, mono, cut to its window of at most `seconds`, not padded.

    Returns float32 in [-1, 1] of shape (samples,). Raises `AudioError`.
    """
    return hear(clip, sample_rate, seconds).samples

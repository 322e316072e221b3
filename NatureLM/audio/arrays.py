"""Samples in memory, read through the same door as files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.decode import BLOCK_FRAMES, Block, check_sample_rate
from NatureLM.audio.errors import AudioError, EmptyAudio
from NatureLM.errors import UsageError

# Full scale of the integer types that audio is kept in, and their value of silence.
_INTEGERS = {
    np.dtype(np.int8): (2.0**7, 0.0),
    np.dtype(np.uint8): (2.0**7, 2.0**7),
    np.dtype(np.int16): (2.0**15, 0.0),
    np.dtype(np.uint16): (2.0**15, 2.0**15),
    np.dtype(np.int32): (2.0**31, 0.0),
}


class ArrayRecording:
    """An array of samples with the interface of `Recording`.

    Args:
        samples: numpy array, or anything that turns into one through `__array__` (a torch tensor
            on any device), of shape (samples,), (channels, samples) or (samples, channels): the
            shorter axis is the channels. Floats are full scale at 1, integers at their type's.
        sample_rate: Hz.
    """

    path = None

    def __init__(self, samples: Any, sample_rate: float | None) -> None:
        if sample_rate is None:
            raise UsageError("input_sample_rate is needed for an array: its sample rate in Hz")
        check_sample_rate(None, sample_rate)
        self.sample_rate = sample_rate
        self.failure: AudioError | None = None
        self._samples = _frames_first(_as_numpy(samples))
        self.frames: int | None
        self.frames, self.channels = self._samples.shape
        if self.frames == 0 or self.channels == 0:
            raise EmptyAudio(None, f"holds no samples (its shape is {np.shape(samples)})")

    def __enter__(self) -> ArrayRecording:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""

    def skip(self, frames: int) -> None:
        """Move forward by `frames`, or to the end."""
        self._samples = self._samples[frames:]

    def blocks(self, block_frames: int = BLOCK_FRAMES) -> Iterator[Block]:
        """Yield float32 arrays (frames, channels)."""
        scale, silence = _INTEGERS.get(self._samples.dtype, (1.0, 0.0))
        for first in range(0, len(self._samples), block_frames):
            block = self._samples[first : first + block_frames].astype(np.float32)
            if scale != 1.0:
                block -= np.float32(silence)
                block /= np.float32(scale)
            yield block


def _as_numpy(samples: Any) -> NDArray[Any]:
    for step in ("detach", "cpu"):  # what a torch tensor needs before it can become an array
        if callable(getattr(samples, step, None)):
            samples = getattr(samples, step)()
    if not hasattr(samples, "__array__"):
        raise UsageError(
            f"audio must be a path, a numpy array or a tensor, not {type(samples).__name__}"
        )
    try:
        array = np.asarray(samples)
    except TypeError:  # bfloat16 has no numpy type
        array = np.asarray(samples.float())
    if array.dtype.kind != "f" and array.dtype not in _INTEGERS:
        raise UsageError(
            f"the audio array is of type {array.dtype}, whose full scale is not clear; "
            "give floats in [-1, 1], int16 or int32"
        )
    return array


def _frames_first(array: NDArray[Any]) -> NDArray[Any]:
    """View an array as (samples, channels)."""
    if array.ndim == 1:
        return array[:, np.newaxis]
    if array.ndim == 2:
        return array.T if array.shape[0] <= array.shape[1] else array
    raise UsageError(
        f"the audio array has shape {array.shape}; give (samples,), (channels, samples) or "
        "(samples, channels)"
    )

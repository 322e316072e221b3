"""Samples in memory: arrays read like files, channels mixed to mono, resampling in a stream.

Resampling is soxr's HQ quality, whose result does not depend on the size of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.decode import BLOCK_FRAMES, Block, check_sample_rate
from NatureLM.audio.errors import AudioError, ChannelError, EmptyAudio
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


MEAN = "mean"


def parse_channel(channel: str | int) -> int | None:
    """Return the number of the channel, from 1 on, or None for the mean of all.

    Raises:
        UsageError: neither `mean` nor an integer from 1 on.
    """
    text = str(channel).strip().lower()
    if text == MEAN:
        return None
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    raise UsageError(
        f"channel: {channel!r} is not known; give mean, or the number of a channel: 1, 2, ..."
    )


class Mixer:
    """Makes blocks (frames, channels) mono. Raises `ChannelError` if there is no such channel."""

    def __init__(self, path: str | Path | None, channels: int, channel: int | None) -> None:
        if channel is not None and channel > channels:
            has = "one channel" if channels == 1 else f"channels 1 to {channels}"
            raise ChannelError(
                path,
                f"channel {channel} was asked for, the recording has {has}",
                "Choose one of them, or mean",
            )
        self._channel = 1 if channels == 1 else channel
        self._weights = np.full(channels, 1 / channels, dtype=np.float32)

    def mono(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the samples (frames,) of the chosen channel or the mean."""
        if self._channel is not None:
            return np.ascontiguousarray(block[:, self._channel - 1])
        # A matrix product: ten times as fast as numpy's mean over a short axis.
        return block @ self._weights


QUALITY = "HQ"  # 20 bits: more than float32 audio at these levels carries


class Resampler:
    """Turns mono blocks at `input_rate` into blocks at `output_rate` (Hz); passes equal rates on.

    Sample i of the output stands for the same moment as input i · input_rate / output_rate.
    """

    def __init__(self, input_rate: float, output_rate: float) -> None:
        self._stream: Any = None
        if input_rate != output_rate:
            import soxr  # type: ignore[import-untyped, unused-ignore]

            self._stream = soxr.ResampleStream(
                input_rate, output_rate, 1, dtype="float32", quality=QUALITY
            )

    def push(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the samples so far determine and was not returned yet."""
        return mono if self._stream is None else self._chunk(mono, last=False)

    def finish(self) -> NDArray[np.float32]:
        """Return the rest; the total is the input's duration, to half an output sample."""
        nothing = np.zeros(0, dtype=np.float32)
        return nothing if self._stream is None else self._chunk(nothing, last=True)

    def _chunk(self, mono: NDArray[np.float32], last: bool) -> NDArray[np.float32]:
        samples: NDArray[np.float32] = self._stream.resample_chunk(mono, last=last)
        return samples


def resample(
    mono: NDArray[np.float32], input_rate: float, output_rate: float
) -> NDArray[np.float32]:
    """Resample a whole signal (samples,) at once."""
    resampler = Resampler(input_rate, output_rate)
    return np.concatenate([resampler.push(mono), resampler.finish()])

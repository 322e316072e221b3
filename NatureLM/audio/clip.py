"""Read one clip, whole or a part of a file, for training and for example sounds."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.arrays import ArrayRecording
from NatureLM.audio.channels import Mixer, parse_channel
from NatureLM.audio.decode import BLOCK_FRAMES, Recording
from NatureLM.audio.errors import TooShortAudio
from NatureLM.audio.resample import resample
from NatureLM.audio.stream import check_length, first_non_finite, non_finite
from NatureLM.audio.windows import exact
from NatureLM.errors import UsageError


def read_clip(
    path: str | os.PathLike[str],
    *,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16_000,
    channel: str | int = "mean",
) -> NDArray[np.float32]:
    """Read a clip as mono samples; no more is decoded than it needs.

    Args:
        path: the file.
        start: seconds from the start of the file.
        duration: seconds; None reads to the end. Where the file ends before, the clip is shorter.
        sample_rate: Hz, of the result.
        channel: `mean`, or the number of a channel from 1 on.

    Returns:
        float32 in [-1, 1], shape (samples,), writable and the caller's own.

    Raises:
        UsageError: a time is impossible.
        AudioError: the file cannot be used, or the clip is damaged or shorter than 25 ms.
    """
    _check_times(start, duration)
    with Recording(path) as recording:
        return _clip_of(recording, start, duration, sample_rate, channel)


def clip_array(
    samples: Any,
    array_rate: float | None,
    *,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16_000,
) -> NDArray[np.float32]:
    """The same of samples in memory, of any shape that `ArrayRecording` takes, at `array_rate` Hz.

    Raises UsageError and AudioError as above.
    """
    _check_times(start, duration)
    return _clip_of(ArrayRecording(samples, array_rate), start, duration, sample_rate, "mean")


def _check_times(start: float, duration: float | None) -> None:
    if not (math.isfinite(start) and start >= 0):
        raise UsageError(f"a clip cannot start at {start:g} s; give 0 or more")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise UsageError(f"a clip cannot last {duration:g} s; give more than 0, or nothing for all")


def _clip_of(
    recording: Recording | ArrayRecording,
    start: float,
    duration: float | None,
    sample_rate: int,
    channel: str | int,
) -> NDArray[np.float32]:
    mixer = Mixer(recording.path, recording.channels, parse_channel(channel))
    rate = recording.sample_rate
    first = round(exact(start) * rate)
    frames = None if duration is None else round(exact(duration) * rate)
    mono = _read_mono(recording, first, frames, mixer)
    if not len(mono) and first:
        raise TooShortAudio(
            recording.path, f"the clip starts at {start:g} s, at or after the end of the recording"
        )
    check_length(recording.path, len(mono) / exact(rate))
    samples = resample(mono, rate, sample_rate)
    if duration is not None:
        samples = samples[: round(exact(duration) * sample_rate)]
    return np.clip(samples, -1.0, 1.0)


def _read_mono(
    recording: Recording | ArrayRecording, first: int, frames: int | None, mixer: Mixer
) -> NDArray[np.float32]:
    """Decode `frames` samples (None: all) from sample `first` on."""
    recording.skip(first)
    wanted = math.inf if frames is None else frames
    parts: list[NDArray[np.float32]] = []
    held = 0
    for block in recording.blocks(int(min(BLOCK_FRAMES, wanted))):
        mono = mixer.mono(block)[: int(min(len(block), wanted - held))]
        bad = first_non_finite(mono)
        if bad is not None:
            raise non_finite(recording.path, (first + held + bad) / recording.sample_rate)
        parts.append(mono)
        held += len(mono)
        if held == wanted:
            break
    if held < wanted and recording.failure is not None:
        raise recording.failure
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)

"""From a recording to mono samples: windows in constant memory (`iter_windows`), or one clip.

`read_clip` reads a part of a file for training and example sounds, `clip_array` one of samples.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio.arrays import ArrayRecording, Mixer, Resampler, parse_channel, resample
from NatureLM.audio.decode import BLOCK_FRAMES, Recording
from NatureLM.audio.errors import (
    AudioError,
    NonFiniteAudio,
    SampleRateError,
    TooShortAudio,
)
from NatureLM.audio.ultrasound import UltrasoundMeter
from NatureLM.audio.windows import (
    MINIMUM_CLIP_SECONDS,
    Window,
    WindowCutter,
    WindowPlan,
    to_fraction,
)
from NatureLM.errors import UsageError

logger = logging.getLogger(__name__)

# What a file's rate may be after time expansion.
MIN_HEARD_RATE, MAX_HEARD_RATE = 1_000, 5_000_000


def iter_windows(
    source: Any,
    *,
    input_sample_rate: float | None = None,
    sample_rate: int = 16_000,
    window_seconds: float = 10.0,
    hop_seconds: float = 10.0,
    channel: str | int = "mean",
    time_expansion: float = 1.0,
    warn: Callable[[str], None] | None = None,
    block_frames: int = BLOCK_FRAMES,
) -> Iterator[Window]:
    """Decode, mix to mono, resample and cut into windows, one window in memory at a time.

    Args:
        source: path of a file, or samples as `ArrayRecording` takes them.
        input_sample_rate: Hz, of an array; a file knows its own.
        sample_rate: Hz, of the model.
        window_seconds, hop_seconds: in heard time, that is after time expansion.
        channel: `mean`, or the number of a channel from 1 on.
        time_expansion: the recording is taken as if its sample rate were lower by this factor, so
            the sound is slower and lower (10 makes bats audible). Times of windows stay those of
            the recording.
        warn: told, at most once, if most of the sound is too high for the model; by default that
            is a warning in the log.
        block_frames: samples per channel to decode at once; changes no result.

    Raises:
        UsageError: a value makes no windows; raised by the call itself.
        AudioError: the recording cannot be used (further). Windows that could be decoded whole
            come before it.
    """
    plan = WindowPlan.of(sample_rate, window_seconds, hop_seconds, time_expansion)
    return _windows(
        source,
        input_sample_rate,
        plan,
        parse_channel(channel),
        warn or logger.warning,
        block_frames,
    )


def count_windows(
    duration: float, window_seconds: float, hop_seconds: float, time_expansion: float = 1.0
) -> int:
    """How many windows a recording of `duration` seconds gives (0 if it is too short)."""
    plan = WindowPlan.of(1, window_seconds, hop_seconds, time_expansion)
    return plan.count(to_fraction(duration) * plan.expansion)


def _windows(
    source: Any,
    input_sample_rate: float | None,
    plan: WindowPlan,
    channel: int | None,
    warn: Callable[[str], None],
    block_frames: int,
) -> Iterator[Window]:
    with _open(source, input_sample_rate) as recording:
        heard_per_frame = plan.expansion / to_fraction(recording.sample_rate)
        heard_rate = 1 / heard_per_frame
        _check_heard_rate(recording, float(heard_rate), plan)
        mixer = Mixer(recording.path, recording.channels, channel)
        resampler = Resampler(float(heard_rate), plan.sample_rate)
        cutter = WindowCutter(plan)
        meter = UltrasoundMeter(
            recording.path, recording.sample_rate, plan.sample_rate, float(plan.expansion), warn
        )
        frames = 0
        failure: AudioError | None = None
        for block in recording.blocks(block_frames):
            mono = mixer.mono(block)
            bad = first_non_finite(mono)
            if bad is not None:
                mono = mono[:bad]
                failure = non_finite(recording.path, (frames + bad) / recording.sample_rate)
            frames += len(mono)
            meter.push(mono)
            cutter.push(resampler.push(mono))
            if failure is not None:
                break
            yield from cutter.whole(frames * heard_per_frame)
        meter.finish()
        cutter.push(resampler.finish())
        heard = frames * heard_per_frame
        failure = failure or recording.failure
        if failure is not None:
            yield from cutter.whole(heard, flushed=True)
            raise failure
        check_length(recording.path, heard, plan.expansion)
        yield from cutter.rest(heard)


def first_non_finite(mono: NDArray[np.float32]) -> int | None:
    """Position of the first NaN or infinity."""
    finite = np.isfinite(mono)
    return None if finite.all() else int(finite.argmin())


def non_finite(path: Any, seconds: float) -> NonFiniteAudio:
    """The error for a sample at this time that is NaN or infinite."""
    return NonFiniteAudio(
        path,
        f"the sample at {seconds:.3f} s is NaN or infinite",
        "The file is damaged, or a program computed it wrongly: save it again from its source",
    )


def check_length(path: Any, heard: Fraction, expansion: Fraction = Fraction(1)) -> None:
    """Raise `TooShortAudio` for less than one analysis frame of heard sound (seconds)."""
    if heard < to_fraction(MINIMUM_CLIP_SECONDS):
        slowed = "" if expansion == 1 else f" ({float(heard):.4f} s as heard)"
        raise TooShortAudio(
            path,
            f"the sound lasts {float(heard / expansion):.4f} s{slowed}, the shortest that can be "
            f"used is {MINIMUM_CLIP_SECONDS:g} s",
        )


def _open(source: Any, input_sample_rate: float | None) -> Recording | ArrayRecording:
    if isinstance(source, str | os.PathLike):
        return Recording(source)
    return ArrayRecording(source, input_sample_rate)


def _check_heard_rate(
    recording: Recording | ArrayRecording, heard_rate: float, plan: WindowPlan
) -> None:
    if not (math.isfinite(heard_rate) and MIN_HEARD_RATE <= heard_rate <= MAX_HEARD_RATE):
        rate, low, high = recording.sample_rate, MIN_HEARD_RATE, MAX_HEARD_RATE
        raise SampleRateError(
            recording.path,
            f"{rate:g} Hz with time expansion {float(plan.expansion):g} is as if recorded at "
            f"{heard_rate:g} Hz, which must be {low} to {high} Hz",
            f"Choose a time expansion of {rate / high:g} to {rate / low:g}",
        )


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
    first = round(to_fraction(start) * rate)
    frames = None if duration is None else round(to_fraction(duration) * rate)
    mono = _read_mono(recording, first, frames, mixer)
    if not len(mono) and first:
        raise TooShortAudio(
            recording.path, f"the clip starts at {start:g} s, at or after the end of the recording"
        )
    check_length(recording.path, len(mono) / to_fraction(rate))
    samples = resample(mono, rate, sample_rate)
    if duration is not None:
        samples = samples[: round(to_fraction(duration) * sample_rate)]
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

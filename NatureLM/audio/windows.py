"""From a recording to mono samples: windows in constant memory (`iter_windows`), or one clip.

Windows start at k · hop until one reaches the end of the recording. What then remains, sound that
no earlier window covers, makes a last window, zero-padded at its end, if it is at least 0.5 s long;
else it is left out. A window that fits whole is always kept, so that windows or hops under 0.5 s
work too. A recording of 25 ms to 0.5 s is one window.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import ARRAY_NAME, AudioError
from NatureLM.audio.container import time_expansion as expansion_of
from NatureLM.audio.decode import (
    BLOCK_FRAMES,
    NO_LIMITS,
    ArrayRecording,
    Block,
    Recording,
    SoundLimits,
    open_source,
    scale_note,
)
from NatureLM.audio.levels import LevelMeter, UltrasoundMeter
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.util import check_range, format_bytes

logger = logging.getLogger(__name__)

MINIMUM_TAIL_SECONDS = Fraction(1, 2)
MINIMUM_CLIP_SECONDS = Fraction(1, 40)  # one analysis frame of the audio encoder

# A window in memory, and no more windows of a recording than anybody could wait for.
MAXIMUM_WINDOW_SECONDS, MINIMUM_HOP_SECONDS = 3600, 0.01

# What a file's rate may be after time expansion.
MIN_HEARD_RATE, MAX_HEARD_RATE = 1_000, 5_000_000


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of a recording as the model hears it.

    index: k, the number of the window from 0 on
    start, end: seconds in the recording; `end` is where the recording ends, if it ends before the
        window does
    samples: float32 in [-1, 1], shape (window_seconds · sample_rate,), zeros after the end
    note: "silent", "constant" or "cancelled" where there is no sound (see `levels`), else ""
    """

    index: int
    start: float
    end: float
    samples: NDArray[np.float32]
    note: str = ""


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
    limits: SoundLimits = NO_LIMITS,
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
        warn: told, each at most once, that most of the sound is too high for the model, that it is
            clipped, that channels cancel, and how it was scaled; by default these are warnings in
            the log.
        block_frames: samples per channel to decode at once; changes no result.
        limits: of the file, for services; what is beyond is a TooLongAudio error.

    Raises:
        UsageError: a value makes no windows; raised by the call itself.
        AudioError: the recording cannot be used (further). Windows of what could be decoded come
            before it.
    """
    plan = WindowPlan.of(sample_rate, window_seconds, hop_seconds, time_expansion)
    number = parse_channel(channel)
    opened = partial(open_source, source, input_sample_rate, limits)
    return _windows(opened, plan, number, warn or logger.warning, block_frames)


def _windows(
    opened: Callable[[], Recording | ArrayRecording],
    plan: WindowPlan,
    channel: int | None,
    warn: Callable[[str], None],
    block_frames: int,
) -> Iterator[Window]:
    with opened() as recording:
        rate = recording.sample_rate
        heard_per_frame = plan.expansion / to_fraction(rate)
        _check_heard_rate(recording, float(1 / heard_per_frame), plan)
        mixer = Mixer(recording, channel)
        resampler = Resampler(float(1 / heard_per_frame), plan.sample_rate)
        cutter = WindowCutter(plan)
        levels = LevelMeter(recording, mixer.heard, plan.span)
        for note in filter(None, (scale_note(recording), _expansion_note(recording, plan))):
            warn(note)
        meter = None
        # Who speeds the sound up wants to hear lower than a person can, and knows what is lost.
        if plan.expansion >= 1 and plan.sample_rate * float(plan.expansion) < rate:
            expansion = float(plan.expansion)
            meter = UltrasoundMeter(recording.path, rate, plan.sample_rate, expansion, warn)
        frames = 0
        failure: AudioError | None = None
        for block in recording.blocks(block_frames):
            mono, failure = _until_non_finite(recording, mixer.mono(block), frames)
            frames += len(mono)
            levels.push(block[: len(mono), mixer.columns], mono)
            if meter is not None:
                meter.push(mono)
            cutter.push(resampler.push(mono))
            if failure is not None:
                break
            for window in cutter.whole(frames * heard_per_frame):
                yield replace(window, note=levels.note(window.index))
        if meter is not None:
            meter.finish()
        cutter.push(resampler.finish())
        heard = frames * heard_per_frame
        failure = failure or recording.failure
        if failure is None:
            _check_length(recording, heard, plan.expansion)
        # What a network did not give comes another time, and then its windows are whole.
        is_to_come = failure is not None and failure.kind == "RemoteError"
        if heard >= MINIMUM_CLIP_SECONDS and not is_to_come:
            for window in cutter.rest(heard):
                yield replace(window, note=levels.note(window.index))
        for note in levels.notes():
            warn(note)
        if failure is not None:
            raise failure


def _expansion_note(recording: Recording | ArrayRecording, plan: WindowPlan) -> str | None:
    """What is said of a file that is slowed down already, where nobody says how it is heard."""
    factor = 1.0 if recording.path is None else expansion_of(recording.path)
    if plan.expansion != 1 or factor in (0, 1):
        return None
    name = printable(recording.path)
    return (
        f"{name}: its GUANO data say TE: {factor:g}, so its sound is {factor:g} times slower "
        f"already, as with --time-expansion {factor:g}. It is heard and timed as it stands; "
        f"--time-expansion {1 / factor:g} gives the speed at which it was recorded."
    )


def read_clip(source: Any, **options: Any) -> NDArray[np.float32]:
    """The samples that `read_noted_clip` gives; that there is no sound in them is logged."""
    samples, note = read_noted_clip(source, **options)
    if note:
        name = options.get("name") or (source if isinstance(source, str | Path) else ARRAY_NAME)
        start = options.get("start", 0.0)
        _log_once(f"{name}: there is no sound {f'from {start:g} s on ' if start else ''}({note})")
    return samples


@lru_cache(maxsize=1 << 16)
def _log_once(note: str) -> None:
    """Training reads a clip again and again."""
    logger.warning(note)


def read_noted_clip(
    source: Any,
    *,
    input_sample_rate: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
    sample_rate: int = 16_000,
    channel: str | int = "mean",
    time_expansion: float = 1.0,
    name: str | None = None,
    limits: SoundLimits = NO_LIMITS,
) -> tuple[NDArray[np.float32], str]:
    """Read a clip as mono samples; no more is decoded than it needs.

    Args:
        source, input_sample_rate, channel, time_expansion, limits: as for `iter_windows`; `start`
            and `duration` are seconds of the recording.
        start: seconds from the start of the recording.
        duration: seconds; None reads to the end. Where the recording ends before, the clip is
            shorter.
        sample_rate: Hz, of the result.
        name: what the log calls the sound, where that is not its path.

    Returns:
        float32 in [-1, 1], shape (samples,), writable and the caller's own; and the note that a
        window of it would have.

    Raises:
        UsageError: a time is impossible.
        AudioError: the recording cannot be used, or the clip is damaged or shorter than 25 ms.
    """
    if not (math.isfinite(start) and start >= 0):
        raise UsageError(f"a clip cannot start at {start:g} s; give 0 or more")
    if duration is not None and not (math.isfinite(duration) and duration > 0):
        raise UsageError(f"a clip cannot last {duration:g} s; give more than 0, or nothing for all")
    with open_source(source, input_sample_rate, limits) as recording:
        rate = recording.sample_rate
        first = round(to_fraction(start) * rate)
        frames = None if duration is None else round(to_fraction(duration) * rate)
        scaled = scale_note(recording)
        if scaled:
            _log_once(scaled if name is None else f"{name}: {scaled.rpartition(': ')[2]}")
        mixer = Mixer(recording, parse_channel(channel))
        levels = LevelMeter(recording, mixer.heard, _all_of_it)
        expansion = to_fraction(time_expansion)
        resampler = Resampler(float(rate / expansion), sample_rate)
        parts, heard = [], 0
        for mono in _read_mono(recording, first, frames, mixer, levels):
            parts.append(resampler.push(mono))
            heard += len(mono)
    if not heard and first:
        reason = f"the clip starts at {start:g} s, at or after the end of the recording"
        raise AudioError(recording.path, reason, kind="TooShortAudio")
    _check_length(recording, heard / to_fraction(rate) * expansion, expansion)
    samples: NDArray[np.float32] = np.concatenate([*parts, resampler.finish()])
    if duration is not None:
        samples = samples[: round(to_fraction(duration) * expansion * sample_rate)]
    return samples.clip(-1.0, 1.0, out=samples), levels.note(0)


def read_upload(
    upload: bytes | str | os.PathLike[str],
    limits: SoundLimits,
    *,
    name: str = "the upload",
    **options: Any,
) -> tuple[NDArray[np.float32], str]:
    """What `read_noted_clip` gives of sound from a stranger: bytes, or a file of a service.

    limits: the file's are looked at before anything is read, those of the sound before and while
        it is decoded, so that no more than `limits.decoded_bytes` is ever held
    name: what errors call it, in place of a path of the service
    options: of `read_noted_clip`

    Raises UsageError and AudioError as that does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path: str | os.PathLike[str] = Path(folder, "upload")
        if not isinstance(upload, bytes):
            path = upload
        elif len(upload) <= limits.file_bytes:
            Path(path).write_bytes(upload)
        else:
            reason = f"the file has {format_bytes(len(upload))}"
            advice = f"At most {format_bytes(limits.file_bytes)} are taken: cut it"
            raise AudioError(name, reason, advice, "TooLongAudio")
        try:
            return read_noted_clip(path, name=name, limits=limits, **options)
        except AudioError as error:
            raise error.renamed(name) from None


def _all_of_it(index: int) -> tuple[Fraction, Fraction]:
    """A window that has no end, as spans of windows are given."""
    return Fraction(index * 10**12), Fraction((index + 1) * 10**12)


def _read_mono(
    recording: Recording | ArrayRecording,
    first: int,
    frames: int | None,
    mixer: Mixer,
    levels: LevelMeter,
) -> Iterator[NDArray[np.float32]]:
    """Decode `frames` samples (None: all) from sample `first` on, and measure them, in blocks."""
    recording.skip(first)
    wanted = math.inf if frames is None else frames
    held = 0
    for block in recording.blocks(int(min(BLOCK_FRAMES, wanted))):
        mono = mixer.mono(block)[: int(min(len(block), wanted - held))]
        mono, failure = _until_non_finite(recording, mono, first + held)
        if failure is not None:
            raise failure
        levels.push(block[: len(mono), mixer.columns], mono)
        yield mono
        held += len(mono)
        if held == wanted:
            break
    if held < wanted and recording.failure is not None:
        raise recording.failure


def _until_non_finite(
    recording: Recording | ArrayRecording, mono: NDArray[np.float32], first: int
) -> tuple[NDArray[np.float32], AudioError | None]:
    """Samples up to one that is NaN or infinite, and the error for it; `first` is their number."""
    finite = np.isfinite(mono)
    if finite.all():
        return mono, None
    bad = int(finite.argmin())
    return mono[:bad], AudioError(
        recording.path,
        f"the sample at {(first + bad) / recording.sample_rate:.3f} s is NaN or infinite",
        "The file is damaged, or a program computed it wrongly: save it again from its source",
        "NonFiniteAudio",
    )


def _check_length(
    recording: Recording | ArrayRecording, heard: Fraction, expansion: Fraction = Fraction(1)
) -> None:
    """Raise AudioError for less than one analysis frame of heard sound (seconds)."""
    if heard < MINIMUM_CLIP_SECONDS:
        slowed = "" if expansion == 1 else f" ({float(heard):.4f} s as heard)"
        raise AudioError(
            recording.path,
            f"the sound lasts {float(heard / expansion):.4f} s{slowed}, the shortest that can be "
            f"used is {float(MINIMUM_CLIP_SECONDS):g} s",
            kind="TooShortAudio",
        )


def _check_heard_rate(
    recording: Recording | ArrayRecording, heard_rate: float, plan: WindowPlan
) -> None:
    if not (math.isfinite(heard_rate) and MIN_HEARD_RATE <= heard_rate <= MAX_HEARD_RATE):
        rate, low, high = recording.sample_rate, MIN_HEARD_RATE, MAX_HEARD_RATE
        raise AudioError(
            recording.path,
            f"{rate:g} Hz with time expansion {float(plan.expansion):g} is as if recorded at "
            f"{heard_rate:g} Hz, which must be {low} to {high} Hz",
            f"Choose a time expansion of {rate / high:g} to {rate / low:g}",
            "SampleRateError",
        )


def to_fraction(value: float) -> Fraction:
    """The number that a person wrote: 0.1 is one tenth, not the binary fraction beside it."""
    return Fraction(repr(float(value)))


def count_windows(
    duration: float, window_seconds: float, hop_seconds: float, time_expansion: float = 1.0
) -> int:
    """How many windows a recording of `duration` seconds gives (0 if it is too short)."""
    plan = WindowPlan.of(1, window_seconds, hop_seconds, time_expansion)
    return plan.count(to_fraction(duration) * plan.expansion)


def check_windows(
    window_seconds: float, hop_seconds: float, named: Callable[[str], str] = str
) -> None:
    """Raise UsageError for windows that are too long, or too many of them."""
    window, hop = named("window_length_seconds"), named("hop_length_seconds")
    check_range(window, window_seconds, 0, MAXIMUM_WINDOW_SECONDS)
    check_range(hop, hop_seconds, MINIMUM_HOP_SECONDS)


@dataclass(frozen=True)
class WindowPlan:
    """Where windows lie. Seconds are heard time: of the sound as the model gets it.

    sample_rate: Hz, of the samples that windows are cut from
    window, hop: seconds
    expansion: heard seconds per second of the recording
    """

    sample_rate: int
    window: Fraction
    hop: Fraction
    expansion: Fraction

    @classmethod
    def of(
        cls, sample_rate: int, window_seconds: float, hop_seconds: float, time_expansion: float
    ) -> WindowPlan:
        """Check the values. Raises `UsageError` for those that make no windows."""
        for name, value in (
            ("window length", window_seconds),
            ("hop length", hop_seconds),
            ("time expansion", time_expansion),
            ("model's sample rate", sample_rate),
        ):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"the {name} is {value:g}; it must be above 0")
        check_windows(window_seconds, hop_seconds)
        window, hop, expansion = map(to_fraction, (window_seconds, hop_seconds, time_expansion))
        if window < MINIMUM_CLIP_SECONDS:
            raise UsageError(
                f"the window length is {window_seconds:g} s; the model needs at least "
                f"{float(MINIMUM_CLIP_SECONDS):g} s"
            )
        return cls(int(sample_rate), window, hop, expansion)

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return round(self.window * self.sample_rate)

    def first_sample(self, index: int) -> int:
        """The sample that window `index` starts at: rounded from the exact time, so no drift."""
        return round(self.hop * index * self.sample_rate)

    def span(self, index: int) -> tuple[Fraction, Fraction]:
        """Start and end of a window, seconds of the recording."""
        start = self.hop * index
        return start / self.expansion, (start + self.window) / self.expansion

    def count(self, heard: Fraction) -> int:
        """How many windows a recording gives that is heard for so many seconds."""
        if heard < MINIMUM_CLIP_SECONDS:
            return 0
        whole = max(0, (heard - self.window) // self.hop + 1)
        return whole + self.has_rest(whole, heard)

    def has_rest(self, index: int, heard: Fraction) -> bool:
        """Whether window `index`, which does not fit whole, is used nevertheless."""
        start, covered = self.hop * index, self.hop * (index - 1) + self.window
        return index == 0 or heard - max(start, covered) >= MINIMUM_TAIL_SECONDS


class WindowCutter:
    """Collects samples and cuts off windows; holds a window and what was pushed since."""

    def __init__(self, plan: WindowPlan) -> None:
        self._plan = plan
        self._index = 0  # of the next window
        self._chunks: list[NDArray[np.float32]] = []  # what is there of it
        self._held = 0
        self._position = 0  # of the first sample held

    def push(self, samples: NDArray[np.float32]) -> None:
        """Take the next samples."""
        # Where a hop is longer than a window, nothing is held, and what lies between goes.
        between = min(len(samples), self._plan.first_sample(self._index) - self._position)
        self._chunks.append(samples[between:])
        self._held += len(samples) - between
        self._position += between

    def whole(self, heard: Fraction, *, flushed: bool = False) -> Iterator[Window]:
        """Cut off the windows that end within the `heard` seconds.

        While the resampler still holds samples back, windows wait for them; `flushed` says that
        no more come.
        """
        plan = self._plan
        while plan.hop * self._index + plan.window <= heard:
            if self._held < plan.samples and not flushed:
                return
            yield self._cut(heard)

    def rest(self, heard: Fraction) -> Iterator[Window]:
        """At the end of the recording: cut off what is left of its windows."""
        yield from self.whole(heard, flushed=True)
        if self._plan.has_rest(self._index, heard):
            yield self._cut(heard)

    def _cut(self, heard: Fraction) -> Window:
        plan, index = self._plan, self._index
        held = self._chunks[0] if len(self._chunks) == 1 else np.concatenate(self._chunks)
        samples = np.zeros(plan.samples, dtype=np.float32)
        piece = held[: plan.samples]
        np.clip(piece, -1.0, 1.0, out=samples[: len(piece)])
        start = plan.hop * index
        end = min(start + plan.window, heard)
        self._index += 1
        past = min(len(held), plan.first_sample(self._index) - self._position)
        self._chunks, self._held = [held[past:]], len(held) - past
        self._position += past
        return Window(index, float(start / plan.expansion), float(end / plan.expansion), samples)


def parse_channel(channel: str | int) -> int | None:
    """The number of the channel, from 1 on, or None for the mean of all.

    Raises UsageError for what is neither `mean` nor an integer from 1 on.
    """
    text = str(channel).strip().lower()
    if text == "mean":
        return None
    if text.isascii() and text.isdigit() and int(text) >= 1:
        return int(text)
    raise UsageError(
        f"channel: {channel!r} is not known; give mean, or the number of a channel: 1, 2, ..."
    )


class Mixer:
    """Makes blocks (frames, channels) mono. Raises AudioError if there is no such channel."""

    def __init__(self, recording: Recording | ArrayRecording, channel: int | None) -> None:
        channels = recording.channels
        if channel is not None and channel > channels:
            has = "one channel" if channels == 1 else f"channels 1 to {channels}"
            raise AudioError(
                recording.path,
                f"channel {channel} was asked for, the recording has {has}",
                "Choose one of them, or mean",
                "ChannelError",
            )
        self._channel = channel = 1 if channels == 1 else channel
        # What is heard of a block, and how many channels that is.
        self.columns = slice(None) if channel is None else slice(channel - 1, channel)
        self.heard = channels if channel is None else 1
        self._weights = np.full(channels, 1 / channels, dtype=np.float32)

    def mono(self, block: Block) -> NDArray[np.float32]:
        """The samples (frames,) of the chosen channel or the mean."""
        if self._channel is not None:
            return np.ascontiguousarray(block[:, self._channel - 1])
        # A matrix product: ten times as fast as numpy's mean over a short axis.
        return block @ self._weights


class Resampler:
    """Turns mono blocks at `input_rate` into blocks at `output_rate` (Hz); passes equal rates on.

    Sample i of the output stands for the same moment as input i · input_rate / output_rate. The
    quality is soxr's HQ: 20 bits, more than float32 audio at these levels carries. The result does
    not depend on the size of the blocks.
    """

    def __init__(self, input_rate: float, output_rate: float) -> None:
        self._stream: Any = None
        if input_rate != output_rate:
            import soxr  # type: ignore[import-untyped, unused-ignore]

            self._stream = soxr.ResampleStream(
                input_rate, output_rate, 1, dtype="float32", quality="HQ"
            )

    def push(self, mono: NDArray[np.float32], *, last: bool = False) -> NDArray[np.float32]:
        """What the samples so far determine and was not returned yet."""
        samples: NDArray[np.float32] = mono
        if self._stream is not None:
            samples = self._stream.resample_chunk(mono, last=last)
        return samples

    def finish(self) -> NDArray[np.float32]:
        """The rest; the total is the input's duration, to half an output sample."""
        return self.push(np.zeros(0, dtype=np.float32), last=True)

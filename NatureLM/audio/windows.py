"""Cut a stream of samples into windows.

Windows start at k · hop until one reaches the end of the recording. What then remains, sound that
no earlier window covers, makes a last window, zero-padded at its end, if it is at least 0.5 s long;
else it is left out. A window that fits whole is always kept, so that windows or hops under 0.5 s
work too. A recording of 25 ms to 0.5 s is one window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from NatureLM.errors import UsageError

MINIMUM_TAIL_SECONDS = 0.5
MINIMUM_CLIP_SECONDS = 0.025  # one analysis frame of the audio encoder

Length = TypeVar("Length", int, float, Fraction)


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of a recording as the model hears it.

    Attributes:
        index: k, the number of the window from 0 on.
        start, end: seconds in the recording. `end` is where the recording ends, if it ends before
            the window does.
        samples: float32 in [-1, 1], shape (window_seconds · sample_rate,), zeros after the end.
    """

    index: int
    start: float
    end: float
    samples: NDArray[np.float32]


def window_starts(
    n_samples: Length,
    window: Length,
    hop: Length,
    minimum_tail: Length,
    minimum_clip: Length,
) -> list[Length]:
    """Return where windows start, all lengths in one unit (samples or seconds).

    The result is exact for integers and fractions. It is empty if there is less than
    `minimum_clip`.
    """
    starts: list[Length] = []
    index = 0
    if n_samples >= minimum_clip:
        starts.append(n_samples - n_samples)  # zero of the same type
    while starts:
        index += 1
        start = hop * index
        if not _is_kept(start, starts[-1] + window, n_samples, window, minimum_tail):
            break
        starts.append(start)
    return starts


def _is_kept(
    start: Length, covered: Length, length: Length, window: Length, minimum_tail: Length
) -> bool:
    """Whether a window at `start` is used; `covered` is where the one before it ends."""
    return start + window <= length or length - max(start, covered) >= minimum_tail


def to_fraction(value: float) -> Fraction:
    """The number that a person wrote: 0.1 is one tenth, not the binary fraction beside it."""
    return Fraction(repr(float(value)))


@dataclass(frozen=True)
class WindowPlan:
    """Where windows lie. Seconds are heard time: of the sound as the model gets it.

    Attributes:
        sample_rate: Hz, of the samples that windows are cut from.
        window, hop: seconds.
        expansion: heard seconds per second of the recording.
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
        if window_seconds < MINIMUM_CLIP_SECONDS:
            raise UsageError(
                f"the window length is {window_seconds:g} s; the model needs at least "
                f"{MINIMUM_CLIP_SECONDS:g} s"
            )
        return cls(
            int(sample_rate),
            to_fraction(window_seconds),
            to_fraction(hop_seconds),
            to_fraction(time_expansion),
        )

    @property
    def samples(self) -> int:
        """Samples of a window."""
        return round(self.window * self.sample_rate)

    def first_sample(self, index: int) -> int:
        """The sample that window `index` starts at: rounded from the exact time, so no drift."""
        return round(self.hop * index * self.sample_rate)

    def count(self, heard: Fraction) -> int:
        """How many windows a recording gives that is heard for so many seconds."""
        if heard < to_fraction(MINIMUM_CLIP_SECONDS):
            return 0
        whole = max(0, (heard - self.window) // self.hop + 1)
        return max(1, whole + self.has_rest(whole, heard))

    def has_rest(self, index: int, heard: Fraction) -> bool:
        """Whether window `index`, which does not fit whole, is used nevertheless."""
        start, covered = self.hop * index, self.hop * (index - 1) + self.window
        tail = to_fraction(MINIMUM_TAIL_SECONDS)
        return index == 0 or _is_kept(start, covered, heard, self.window, tail)


class WindowCutter:
    """Collects samples and cuts off windows; holds a window and what was pushed since.

    Args:
        plan: where windows lie.
    """

    def __init__(self, plan: WindowPlan) -> None:
        self._plan = plan
        self._index = 0  # of the next window
        self._chunks: list[NDArray[np.float32]] = []
        self._position = 0  # of the first sample held
        self._held = 0

    def push(self, samples: NDArray[np.float32]) -> None:
        """Take the next samples."""
        self._chunks.append(samples)
        self._held += len(samples)
        self._drop_before(self._plan.first_sample(self._index))

    def whole(self, heard: Fraction, *, flushed: bool = False) -> Iterator[Window]:
        """Cut off the windows that end within the `heard` seconds.

        While the resampler still holds samples back, windows wait for them; `flushed` says that
        no more come.
        """
        plan = self._plan
        while plan.hop * self._index + plan.window <= heard:
            missing = plan.first_sample(self._index) + plan.samples - self._position - self._held
            if missing > 0 and not flushed:
                return
            yield self._cut(heard)

    def rest(self, heard: Fraction) -> Iterator[Window]:
        """At the end of the recording: cut off what is left of its windows."""
        yield from self.whole(heard, flushed=True)
        if self._plan.has_rest(self._index, heard):
            yield self._cut(heard)

    def _cut(self, heard: Fraction) -> Window:
        plan = self._plan
        start = plan.hop * self._index
        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        samples = np.zeros(plan.samples, dtype=np.float32)
        if self._chunks:
            first = plan.first_sample(self._index) - self._position
            piece = self._chunks[0][first : first + plan.samples]
            np.clip(piece, -1.0, 1.0, out=samples[: len(piece)])
        window = Window(
            index=self._index,
            start=float(start / plan.expansion),
            end=float(min(start + plan.window, heard) / plan.expansion),
            samples=samples,
        )
        self._index += 1
        self._drop_before(plan.first_sample(self._index))
        return window

    def _drop_before(self, sample: int) -> None:
        while self._chunks and self._position < sample:
            chunk = self._chunks[0]
            count = min(len(chunk), sample - self._position)
            if count == len(chunk):
                self._chunks.pop(0)
            else:
                self._chunks[0] = chunk[count:]
            self._position += count
            self._held -= count

"""How loud a recording is: windows without sound, channels that cancel, clipping, ultrasound.

All is measured on decoded samples, before resampling, whose ringing would hide a constant.

- Windows. One is `silent` where the samples that are heard span no more than a step of 16 bits,
  around zero, and `constant` where they do so elsewhere (a dead microphone, a stuck converter). It
  is `cancelled` where that is so, or they lie 60 dB below the channels, only because the channels
  are mixed: a model answers all of these with a name, and none of it is heard.
- Channels of unrelated sound are 10 · log10(n) dB louder than their mean, as is one channel among
  silent ones. 10 dB more than that come about only where channels are each other's opposite.
- Clipping is judged in stretches as long as a window. At full scale one sample in a run of three is
  nothing that sound does: a wave that just reaches it touches it with one or two. From a thousandth
  of a stretch on (10 ms of 10 s) the flat tops of calls add overtones that names depend on; a bump
  or a single click stays below.

A model at 16 kHz hears up to 8 kHz; resampling takes away all above. A little energy is up there in
most recordings, so what counts is its share of the energy above 1 kHz (wind, handling noise and a
constant offset lie below, and can outweigh the calls even in a bat recording):

- At 96 kHz and more the recorder was set to ultrasound. Warn from a half on: bat recordings have a
  share of 0.99, and where nothing called the noise floor decides, rightly, since slowing the sound
  is what such a recording was made for. Birds taken with such a recorder stay below a half.
- At lower rates, or where the sound is slowed already, warn from nine tenths on. Songbirds, frogs
  and streams at 22 to 48 kHz have up to 0.17 and white noise at 48 kHz has 0.70; more than 0.9
  means that nearly all there is will not be heard.

The share is taken minute by minute, so that an hour of bats after a day of birds is noticed.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from heapq import merge
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import ARRAY_NAME
from NatureLM.audio.decode import ArrayRecording, Recording
from NatureLM.progress import printable

STEP = 2.0**-15 * 1.001  # of 16 bits; means of several channels are rounded
CANCELLED_SHARE = 1e-3  # 60 dB
CANCELLING_DB = 10.0
CLIPPED_SHARE = 1e-3
QUIET = 1e-3  # below it the model hears little
_STRETCH_SECONDS = 10

Samples = NDArray[np.float32]


def note_of(mix_low: float, mix_high: float, span: float, channels: int) -> str:
    """`silent`, `constant`, `cancelled`, or nothing where there is sound.

    mix_low, mix_high: of the samples that are heard
    span: of the channel that spans most
    """
    mix = mix_high - mix_low
    # Of one channel among silent ones the mean has an n-th.
    if span > channels * STEP and mix <= max(STEP, CANCELLED_SHARE * span):
        return "cancelled"
    if mix > STEP:
        return ""
    return "silent" if max(-mix_low, mix_high) <= STEP else "constant"


def _shown(path: str | os.PathLike[str] | None) -> str:
    """A recording as notes name it."""
    return ARRAY_NAME if path is None else printable(path)


class _Piece(NamedTuple):
    """Samples from `first` to the next edge of a window: lowest and highest of mix and channels."""

    first: int
    low: Samples
    high: Samples


class LevelMeter:
    """Listens to a recording as it streams by.

    channels: how many are heard
    spans: start and end of windows, in order, seconds of the recording
    """

    def __init__(
        self,
        recording: Recording | ArrayRecording,
        channels: int,
        spans: Callable[[int], tuple[Fraction, Fraction]],
    ) -> None:
        self._is_wide, self._full_scale = recording.is_wide, recording.full_scale
        self._path = recording.path
        self._channels, self._spans = channels, spans
        self._rate = Fraction(repr(float(recording.sample_rate)))
        self._stretch = max(1, round(_STRETCH_SECONDS * recording.sample_rate))
        self._frames = 0
        self._pieces: deque[_Piece] = deque()
        self._edges = self._all_edges()
        self._edge = next(self._edges)
        self._cancelled_from: float | None = None
        self._sums = np.zeros((2, channels + 1))  # of samples and squares, of mix and channels
        self._clipped: dict[int, int] = {}  # samples, by stretch
        self._tail = np.zeros((4, channels), dtype=np.int8)
        self._counted = -2
        self._low = np.full(channels + 1, np.inf)  # of mix and channels
        self._high = -self._low

    def push(self, block: Samples, mix: Samples) -> None:
        """Take the next samples: what is heard of the channels (frames, channels), and the mix."""
        start, stop = self._frames, self._frames + len(mix)
        cuts, peak = [start], 0.0
        while self._edge < stop:
            if self._edge > cuts[-1]:
                cuts.append(self._edge)
            self._edge = next(self._edges)
        # Rows of samples that lie side by side: over columns the same takes several times as long.
        rows = np.empty((self._channels + 1, len(mix)), dtype=np.float32)
        rows[0], rows[1:] = mix, block.T
        for first, last in zip(cuts, [*cuts[1:], stop], strict=True):
            part = rows[:, first - start : last - start]
            if part.size:
                low, high = part.min(axis=1), part.max(axis=1)
                self._pieces.append(_Piece(first, low, high))
                peak = max(peak, float(high[1:].max()), -float(low[1:].min()))
                self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        if self._channels > 1:
            wide = rows.astype(np.float64)
            self._sums += wide.sum(axis=1), np.einsum("cs,cs->c", wide, wide)
        self._frames = stop
        level = np.zeros(block.shape, dtype=np.int8)
        if peak >= self._full_scale:
            loud = np.abs(block)
            level += (loud >= self._full_scale).astype(np.int8) + (loud > 1)
        self._count_clipped(level)

    def note(self, index: int) -> str:
        """The note of a window, all of which was pushed; what lies before it is forgotten."""
        start, end = self._spans(index)
        first, last = self._frame(start), self._frame(end)
        while self._pieces and self._pieces[0].first < first:
            self._pieces.popleft()
        heard = [piece for piece in self._pieces if piece.first < last]
        if not heard:
            return ""
        low, high = (np.array([piece[side] for piece in heard]) for side in (1, 2))
        mix_low, *lows = low.min(axis=0)
        mix_high, *highs = high.max(axis=0)
        span = max(top - bottom for bottom, top in zip(lows, highs, strict=True))
        note = note_of(float(mix_low), float(mix_high), float(span), len(lows))
        if note == "cancelled" and self._cancelled_from is None:
            self._cancelled_from = float(start)
        return note

    @property
    def _name(self) -> str:
        return _shown(self._path)

    def notes(self) -> Iterator[str]:
        """What should be known about the recording, once it has ended."""
        cancelling = self._cancelling()
        if cancelling:
            yield f"{self._name}: {cancelling}. Choose one of them with --channel 1."
        loudest = float(np.max(self._high - self._low)) / 2
        if self._is_wide and 0 < loudest < QUIET:
            yield (
                f"{self._name}: quiet: its loudest sound is {-20 * math.log10(loudest):.0f} dB "
                "below full scale. If its values have another scale, multiply them."
            )
        self._count_clipped(np.zeros((2, self._channels), dtype=np.int8))  # two come late
        shares = {n: clipped / self._size(n) for n, clipped in self._clipped.items()}
        many = sum(share > CLIPPED_SHARE for share in shares.values())
        if many:
            worst = max(shares, key=shares.__getitem__)
            place = f" from {worst * _STRETCH_SECONDS} s on" if self._frames > self._stretch else ""
            others = f", and more than {CLIPPED_SHARE:.1%} in {many - 1} other stretches of 10 s"
            yield (
                f"{self._name}: clipped: {shares[worst]:.1%} of the samples{place} are at full "
                f"scale{others if many > 1 else ''}. Answers may be wrong; record with less gain."
            )

    def _cancelling(self) -> str:
        """How much the channels cancel, if they do."""
        if self._channels == 1 or not self._frames:
            return ""
        sums, squares = self._sums / self._frames
        mix, *channels = np.maximum(squares - sums**2, 0.0)
        below = 10 * math.log10(max(float(np.mean(channels)), 1e-30) / max(float(mix), 1e-30))
        if max(channels) > STEP**2 and below > 10 * math.log10(self._channels) + CANCELLING_DB:
            number = f"{below:.0f}" if below < 100 else "more than 100"
            return f"the channels cancel each other: their mean is {number} dB below them"
        if self._cancelled_from is None:
            return ""
        return f"the channels cancel each other from {self._cancelled_from:g} s on"

    def _count_clipped(self, level: NDArray[np.int8]) -> None:
        """Count samples above 1 (level 2) and in runs at full scale (1 or 2), two samples late."""
        rows = np.concatenate([self._tail, level])
        self._tail = rows[-4:]
        counted = self._counted
        self._counted += len(level)
        if not rows.any():
            return
        full = rows > 0
        runs = full[:-2] & full[1:-1] & full[2:]
        clipped = runs[:-2] | runs[1:-1] | runs[2:] | (rows[2:-2] == 2)
        places = (np.flatnonzero(clipped.any(axis=1)) + counted) // self._stretch
        for stretch, amount in zip(*np.unique(places, return_counts=True), strict=True):
            self._clipped[int(stretch)] = self._clipped.get(int(stretch), 0) + int(amount)

    def _size(self, stretch: int) -> int:
        """Samples of a stretch; of a short rest a run or two say nothing."""
        there = min(self._stretch, self._frames - stretch * self._stretch)
        return max(there, self._stretch // _STRETCH_SECONDS)

    def _frame(self, seconds: Fraction) -> int:
        """The first sample that is not before."""
        return math.ceil(seconds * self._rate)

    def _all_edges(self) -> Iterator[int]:
        starts = (self._spans(index)[0] for index in count())
        ends = (self._spans(index)[1] for index in count())
        return map(self._frame, merge(starts, ends))


# Sound that is too high for the model

LOW_CUT_HZ = 1_000.0
ULTRASONIC_RECORDER_HZ = 96_000
SHARE_OF_ULTRASONIC_RECORDING = 0.5
SHARE_OF_ANY_RECORDING = 0.9
SUGGESTED_EXPANSION = 10

_MINUTE = 60.0  # seconds of a stretch
_SHORTEST_STRETCH_SECONDS = 10.0  # a shorter rest at the end is too little to judge by
_FULL_SECONDS = 10.0  # of a stretch are looked at whole, then one segment in so many:
_SPARSE_STEP = 4
_RESOLUTION_HZ = 300.0


class UltrasoundMeter:
    """Listens to a recording as it streams by and warns at most once.

    path: the file, None for an array
    input_rate, model_rate: sample rates of the recording and the model, Hz; the model does not hear
        all that is in the recording
    expansion: by how much the sound is slowed before the model hears it
    warn: called with the message
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        input_rate: float,
        model_rate: float,
        expansion: float,
        warn: Callable[[str], None],
    ) -> None:
        self._path, self._rate = path, input_rate
        self._expansion, self._warn = expansion, warn
        self._limit = model_rate / 2 * expansion  # the highest frequency heard, in the recording
        ultrasonic = input_rate >= ULTRASONIC_RECORDER_HZ and expansion == 1
        self._share = SHARE_OF_ULTRASONIC_RECORDING if ultrasonic else SHARE_OF_ANY_RECORDING
        self._segment = 1 << max(6, int(np.ceil(np.log2(input_rate / _RESOLUTION_HZ))))
        self._taper = np.hanning(self._segment).astype(np.float32)
        frequencies = np.fft.rfftfreq(self._segment, 1 / input_rate)
        self._lost = frequencies >= self._limit
        self._heard = (frequencies >= LOW_CUT_HZ) & ~self._lost
        self._carried = np.zeros(0, dtype=np.float32)
        self._judged_any = self._done = False
        self._start_stretch()

    def push(self, mono: NDArray[np.float32]) -> None:
        """Take the next samples (frames,) of the recording, before resampling."""
        if self._done:
            return
        if len(self._carried):
            mono = np.concatenate([self._carried, mono])
        count = len(mono) // self._segment
        self._carried = mono[count * self._segment :]
        segments = mono[: count * self._segment].reshape(count, self._segment)
        if self._seconds >= _FULL_SECONDS:
            segments = segments[::_SPARSE_STEP]
        spectrum = np.fft.rfft(segments * self._taper, axis=1)
        weight = count / max(1, len(segments))
        power = (spectrum.real**2 + spectrum.imag**2).sum(axis=0) * weight
        self._lost_energy += float(power[self._lost].sum())
        self._heard_energy += float(power[self._heard].sum())
        self._seconds += count * self._segment / self._rate
        if self._seconds >= _MINUTE:
            self._judge()

    def finish(self) -> None:
        """The recording ended."""
        enough = self._seconds >= _SHORTEST_STRETCH_SECONDS or not self._judged_any
        if not self._done and enough:
            self._judge()

    def _start_stretch(self) -> None:
        self._seconds = self._lost_energy = self._heard_energy = 0.0

    def _judge(self) -> None:
        if self._lost_energy > self._share * (self._lost_energy + self._heard_energy):
            self._done = True
            self._warn(self._message())
        self._judged_any = True
        self._start_stretch()

    def _message(self) -> str:
        name = _shown(self._path)
        share = self._lost_energy / (self._lost_energy + self._heard_energy)
        if self._expansion < SUGGESTED_EXPANSION:
            remedy = f"--time-expansion {SUGGESTED_EXPANSION}"
        else:
            remedy = f"a --time-expansion above {self._expansion:g}"
        return (
            f"{name}: {share:.0%} of the sound above {LOW_CUT_HZ / 1000:g} kHz is above "
            f"{self._limit / 1000:g} kHz, which the model cannot hear. If these are bats or other "
            f"ultrasound, slow the sound down with {remedy}; times stay those of the recording."
        )

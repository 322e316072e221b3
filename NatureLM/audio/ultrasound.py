"""Tell when a recording has its sound where the model cannot hear it, as those of bats have.

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

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import ARRAY_NAME
from NatureLM.progress import printable

LOW_CUT_HZ = 1_000.0
ULTRASONIC_RECORDER_HZ = 96_000
SHARE_OF_ULTRASONIC_RECORDING = 0.5
SHARE_OF_ANY_RECORDING = 0.9
SUGGESTED_EXPANSION = 10

_STRETCH_SECONDS = 60.0
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
        if self._seconds >= _STRETCH_SECONDS:
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
        name = ARRAY_NAME if self._path is None else printable(self._path)
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

"""Resample in a stream: soxr in its HQ quality, whose result does not depend on the blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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

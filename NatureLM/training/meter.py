"""Running means of a run's numbers."""

from __future__ import annotations

import time

from torch import Tensor


class Meter:
    """Means since it was last read."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: Tensor | None = None
        self._updates, self._samples, self._rate = 0, 0, 0.0
        self._since = time.monotonic()

    def add(self, sums: Tensor, rate: float, *, samples: int) -> None:
        """Sums of an update: loss, answer tokens, right ones, gradient norm."""
        self._sums = sums if self._sums is None else self._sums + sums
        self._updates += 1
        self._samples += samples
        self._rate = rate

    def read(self) -> dict[str, float]:
        """The means, and start anew."""
        assert self._sums is not None
        loss, count, correct, norm = self._sums.tolist()
        numbers = {
            "loss": loss / count,
            "token_accuracy": correct / count,
            "gradient_norm": norm / self._updates,
            "learning_rate": self._rate,
            "samples_per_second": self._samples / max(time.monotonic() - self._since, 1e-9),
        }
        self._reset()
        return numbers

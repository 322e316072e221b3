"""What the loop needs of an objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from NatureLM.training.examples import Example
from NatureLM.training.samples import Sample


class StepOutput(NamedTuple):
    """Sums over a micro-batch, so that parts of a batch add up to the batch.

    loss: summed over answer tokens (or clips, for the encoder)
    total: number of these tokens or clips
    correct: how many were predicted right
    """

    loss: Tensor
    total: Tensor
    correct: Tensor


class Objective(Protocol):
    """A network with its loss, its batches and its files.

    module: `module(batch)` gives a `StepOutput`; what is trainable in it learns
    """

    module: nn.Module
    template: str
    sample_rate: int
    window_samples: int

    def collate(self, samples: Sequence[Sample]) -> Any:
        """What `module` takes, for a list of samples."""

    def length(self, example: Example) -> int | None:
        """How long a row is, for batches that pad little; None where it does not matter."""

    def train_mode(self) -> None:
        """Switch dropout on, in the parts that learn."""

    def answers(self, samples: Sequence[Sample]) -> list[str]:
        """Answers that the network gives to samples, for the accuracy."""

    def save(self, folder: Path) -> None:
        """Write the result."""

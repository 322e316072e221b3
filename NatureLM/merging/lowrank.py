"""Low-rank updates of linear layers: one of them, a source of many, several as one.

Shapes: O outputs and I inputs of the layer, K rank.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The update `scale · B A`, with A (K, I) and B (O, K)."""

    a_KI: Tensor
    b_OK: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a_KI.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> LowRank:
        """The same update elsewhere or in another precision."""
        return LowRank(self.a_KI.to(device, dtype), self.b_OK.to(device, dtype), self.scale)

    def dense(self) -> Tensor:
        """The update as a matrix (O, I)."""
        return (self.scale * self.b_OK) @ self.a_KI


class AdapterSource(Protocol):
    """An adapter whose updates are read one at a time."""

    @property
    def label(self) -> str:
        """How messages and cards call it."""

    @property
    def targets(self) -> Collection[str]:
        """Names of the linear layers it changes, such as `model.layers.0.self_attn.q_proj`."""

    def read(self, target: str) -> LowRank:
        """The update of one layer."""


def concatenate(parts: Sequence[tuple[float, LowRank]]) -> LowRank:
    """Σ weight · scale · B A of several updates as one, exactly: ranks add up, scale is 1.

    `[w₁s₁B₁, w₂s₂B₂, …] · [A₁; A₂; …]` is that sum; nothing is decomposed or rounded away.
    """
    return LowRank(
        torch.cat([one.a_KI for _, one in parts]),
        torch.cat([weight * one.scale * one.b_OK for weight, one in parts], dim=1),
        1.0,
    )

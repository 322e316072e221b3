"""Rows of different lengths in one batch: padding on the left, true positions.

Shapes: R rows, L positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded prompts: embeddings (R, L, D), mask (R, L; 1 where real), positions (R, L)."""

    embeds_RLD: Tensor
    mask_RL: Tensor
    positions_RL: Tensor
    lengths: tuple[int, ...]


def left_pad(rows_LD: Sequence[Tensor]) -> PromptBatch:
    """Pad rows on the left, so that every row's last position is its prompt's last."""
    lengths = tuple(row.shape[0] for row in rows_LD)
    longest = max(lengths)
    first = rows_LD[0]
    embeds = first.new_zeros(len(rows_LD), longest, first.shape[1])
    mask = torch.zeros(len(rows_LD), longest, dtype=torch.long, device=first.device)
    for index, row in enumerate(rows_LD):
        embeds[index, longest - row.shape[0] :] = row
        mask[index, longest - row.shape[0] :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    return PromptBatch(embeds, mask, positions, lengths)

"""Ways to combine the updates of several adapters into one matrix.

Shapes: O outputs and I inputs of a layer. Each update comes with a weight; adding a method is one
function and one entry of `METHODS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from NatureLM.merging.lowrank import LowRank, concatenate

Parts = Sequence[tuple[float, LowRank]]


@dataclass(frozen=True)
class Settings:
    """Numbers that the methods need.

    density: share of an update's entries that is kept, above 0 and at most 1
    seed: of the random choice of entries
    target: name of the layer, so that each has random numbers of its own
    """

    density: float
    seed: int
    target: str


def linear(parts: Parts, settings: Settings) -> Tensor:
    """Σ weight · update (O, I), by exact concatenation of the ranks."""
    return concatenate(parts).dense()


def ties(parts: Parts, settings: Settings) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect signs, merge what agrees.

    Of each update the largest `density` of its entries by magnitude stay. Each entry takes the sign
    of the weighted sum; its value is the weighted mean of the updates that stayed and agree.
    """
    total: Tensor | None = None
    trimmed = [(weight, trim(update.dense(), settings.density)) for weight, update in parts]
    for weight, update_OI in trimmed:
        total = weight * update_OI if total is None else total + weight * update_OI
    assert total is not None
    elected_OI = total.sign()
    merged_OI, mass_OI = torch.zeros_like(total), torch.zeros_like(total)
    for weight, update_OI in trimmed:
        agrees_OI = (update_OI.sign() == elected_OI) & (update_OI != 0)
        merged_OI += torch.where(agrees_OI, weight * update_OI, 0.0)
        mass_OI += weight * agrees_OI
    return torch.where(mass_OI > 0, merged_OI / mass_OI.clamp_min(torch.finfo().tiny), 0.0)


def trim(update_OI: Tensor, density: float) -> Tensor:
    """The update with all but its largest entries by magnitude set to zero.

    Exactly `round(density · entries)` stay, at least one.
    """
    if density >= 1:
        return update_OI
    kept = max(1, round(density * update_OI.numel()))
    flat = update_OI.flatten()
    places = flat.abs().topk(kept, sorted=False).indices
    out = torch.zeros_like(flat)
    out[places] = flat[places]
    return out.view_as(update_OI)


def dare(parts: Parts, settings: Settings) -> Tensor:
    """DARE (Yu et al. 2023, arXiv 2311.03099): drop entries at random, rescale, add up.

    Each entry stays with probability `density` and is then divided by it, so that the sum is right
    on average. What stays depends only on the seed, the layer's name and the place of the adapter
    among those that change the layer.
    """
    total: Tensor | None = None
    for place, (weight, update) in enumerate(parts):
        update_OI = update.dense()
        kept_OI = keep_mask(update_OI.shape, settings, place).to(update_OI.device)
        part = torch.where(kept_OI, update_OI * (weight / settings.density), 0.0)
        total = part if total is None else total + part
    assert total is not None
    return total


def keep_mask(shape: torch.Size, settings: Settings, place: int) -> Tensor:
    """Which entries DARE keeps, drawn on the processor so that every device gets the same."""
    name = f"{settings.seed}/{settings.target}/{place}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator) < settings.density


METHODS: dict[str, Callable[[Parts, Settings], Tensor]] = {
    "linear": linear,
    "ties": ties,
    "dare": dare,
}

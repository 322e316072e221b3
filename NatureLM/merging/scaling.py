"""α as data: how strongly the LoRA update acts, per call and per row, never as process state.

Merging interpolates between the base language model (α = 0) and the fine-tuned one (α = 1) by
scaling the low-rank update (Model Merging, arXiv 2511.05171): `W + α · scale · B A`. PEFT keeps
`scale` per layer and adapter; here that stored number is multiplied and never recomputed, so rsLoRA
and adapters with a scale of their own stay right.

The active α lives in a context variable: it ends with its `with` block, also after an exception,
and other threads do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from NatureLM.errors import UsageError

Alpha = float | Sequence[float] | Tensor

_active_alpha: ContextVar[float | Tensor] = ContextVar("naturelm_alpha", default=1.0)


class AlphaScaling(dict[str, float]):
    """PEFT's scale per adapter; reading an entry gives it times the active α."""

    def __getitem__(self, adapter: str) -> float | Tensor:  # type: ignore[override]
        return super().__getitem__(adapter) * _active_alpha.get()

    def stored(self, adapter: str) -> float:
        """The adapter's own scale, whatever α is active."""
        return super().__getitem__(adapter)


def install(language_model: nn.Module) -> None:
    """Make every LoRA layer of a model read its scale through the active α."""
    for module in language_model.modules():
        if isinstance(module, LoraLayer) and not isinstance(module.scaling, AlphaScaling):
            module.scaling = AlphaScaling(module.scaling)


@contextmanager
def active_alpha(alpha: float | Tensor) -> Iterator[None]:
    """Within the block, LoRA updates are scaled by `alpha`: a number, or a tensor (rows,)."""
    if isinstance(alpha, Tensor) and alpha.ndim == 1:
        alpha = alpha[:, None, None]
    token = _active_alpha.set(alpha)
    try:
        yield
    finally:
        _active_alpha.reset(token)


def alpha_per_row(alpha: Alpha, rows: int) -> list[float]:
    """One finite α for each row, from one number for all or from one per row."""
    if isinstance(alpha, (int, float)):
        values = [float(alpha)] * rows
    else:
        values = [float(value) for value in alpha]
    if len(values) != rows:
        raise UsageError(f"{len(values)} values of alpha were given for {rows} prompts")
    for value in values:
        if not math.isfinite(value):
            raise UsageError(f"alpha must be a finite number, got {value}")
    return values


def as_row_scale(
    alphas: Sequence[float], *, device: torch.device, dtype: torch.dtype
) -> float | Tensor:
    """What `active_alpha` takes for these rows: a plain number when they agree, else a tensor."""
    if len(set(alphas)) == 1:
        return alphas[0]
    return torch.tensor(list(alphas), device=device, dtype=dtype)

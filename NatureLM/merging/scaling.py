"""α as data: how strongly the LoRA update acts, per call and per row, never as process state.

Merging interpolates between the base language model (α = 0) and the fine-tuned one (α = 1) by
scaling the low-rank update (Model Merging, arXiv 2511.05171): `W + α · scale · B A`. PEFT keeps
`scale` per layer and adapter; here that stored number is multiplied and never recomputed, so rsLoRA
and adapters with a scale of their own stay right.

The active α lives in a context variable: it ends with its `with` block, also after an exception,
and other threads do not see it. So do the active adapter scales: a recipe as numbers, one for each
LoRA layer and adapter, which the active α multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from NatureLM.errors import UsageError

Alpha = float | Sequence[float] | Tensor
PEFT_PREFIX = "base_model.model."
"""Stands before a module's name when PEFT has wrapped the model."""

OWN_ADAPTER = "default"
"""What PEFT calls the model's own adapter; others act only where `AdapterScales` name them."""


AdapterScales = Mapping[tuple[str, str], float]
"""By (layer, adapter) the factor of the adapter's stored scale there, for a model whose adapters
are attached; what is not in it does not act."""

_active_alpha: ContextVar[float | Tensor | None] = ContextVar("naturelm_alpha", default=None)
_active_scales: ContextVar[AdapterScales | None] = ContextVar("naturelm_scales", default=None)


class AlphaScaling(dict[str, float]):
    """PEFT's scale per adapter; reading an entry gives it times the active α and factor.

    `layer` is the layer's name in the language model (`model.layers.0.self_attn.q_proj`).
    """

    def __init__(self, scales: Mapping[str, float], layer: str = "") -> None:
        super().__init__(scales)
        self.layer = layer
        self.folded = False

    def __getitem__(self, adapter: str) -> float | Tensor:  # type: ignore[override]
        if self.folded:
            raise UsageError(
                f"the adapter at {self.layer} is folded into the weights, and switching it on "
                "again would count it twice; unfold the model first"
            )
        alpha = _active_alpha.get()
        return self.stored(adapter) * self._factor(adapter) * (1.0 if alpha is None else alpha)

    def stored(self, adapter: str) -> float:
        """The adapter's own scale, whatever α is active."""
        return super().__getitem__(adapter)

    def _factor(self, adapter: str) -> float:
        scales = _active_scales.get()
        if scales is None:
            return 1.0 if adapter == OWN_ADAPTER else 0.0
        return scales.get((self.layer, adapter), 0.0)


def install(model: nn.Module) -> None:
    """Make every LoRA layer of a model read its scale through the active α and scales."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module.scaling, AlphaScaling):
            module.scaling = AlphaScaling(module.scaling, name.removeprefix(PEFT_PREFIX))


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


@contextmanager
def active_scales(scales: AdapterScales | None) -> Iterator[None]:
    """Within the block, adapters act as `scales` say (None: the model's own, everywhere)."""
    token = _active_scales.set(scales)
    try:
        yield
    finally:
        _active_scales.reset(token)


def active_scaling() -> tuple[float | Tensor | None, AdapterScales | None]:
    """The α and the scales that are active here; None for each that nobody has set."""
    return _active_alpha.get(), _active_scales.get()


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

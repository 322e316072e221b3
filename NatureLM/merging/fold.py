"""A merge plan written into the weights of a model in memory, and taken back bit for bit.

While a model is folded its adapters take no part: no adapter arithmetic runs at all. The originals
of the changed matrices are kept, and nothing else; for LoRA on q, k, v and o of Llama 3.1 8B that
is one sixth of the weights (2.7 of 16 GB in bfloat16), in host memory if asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from NatureLM.errors import UsageError
from NatureLM.merging.lora import linear_of, lora_layers
from NatureLM.merging.plan import MergePlan
from NatureLM.merging.scaling import AdapterScales, AlphaScaling, active_scaling


@dataclass
class Fold:
    """The state of a folded model; `undo` ends it. Works as a context manager."""

    language_model: nn.Module
    alpha: float
    name: str = ""
    on_undo: Callable[[], None] | None = None
    _originals: list[tuple[nn.Linear, nn.Parameter]] = field(default_factory=list)
    _layers: list[tuple[LoraLayer, bool]] = field(default_factory=list)
    _hook: RemovableHandle | None = None

    @property
    def kept_bytes(self) -> int:
        """Memory that the originals take beside the folded weights."""
        return sum(original.nbytes for _, original in self._originals)

    def check(self, alpha: float | Tensor | None, scales: AdapterScales | None = None) -> None:
        """Refuse what the folded weights do not answer: another α, a recipe."""
        if scales is not None:
            raise UsageError(
                f"the model is folded ({self}), so no other recipe can act; unfold it first "
                "(model.unfold())"
            )
        if alpha is None:
            return
        # α of several rows travels as a tensor in the model's dtype
        wanted = alpha if isinstance(alpha, Tensor) else torch.tensor(alpha, dtype=torch.float64)
        mine = torch.tensor(self.alpha, dtype=wanted.dtype, device=wanted.device)
        others = sorted(set(wanted[wanted != mine].tolist()))
        if others:
            raise UsageError(
                f"the model is folded ({self}), and alpha {', '.join(f'{a:g}' for a in others)} "
                "was asked for; ask for the folded one, or unfold it first (model.unfold())"
            )

    def undo(self) -> None:
        """Put the original weights back and the adapters to work again."""
        for linear, original in self._originals:
            now = linear.weight
            if now.device != original.device or now.dtype != original.dtype:
                original.data = original.data.to(now.device, now.dtype)  # the model was moved
            linear.weight = original
        self._originals.clear()
        for layer, was_disabled in self._layers:
            _switch(layer, folded=False, disabled=was_disabled)
        self._layers.clear()
        if self._hook is not None:
            self._hook.remove()
        if self.on_undo is not None:
            self.on_undo()
            self.on_undo = None  # a second undo must not touch what was folded since

    def __enter__(self) -> Fold:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        return f"{self.name}, alpha {self.alpha:g}" if self.name else f"at alpha {self.alpha:g}"


def fold(
    language_model: nn.Module,
    plan: MergePlan,
    *,
    alpha: float = 1.0,
    name: str = "",
    originals_on: torch.device | str | None = None,
) -> Fold:
    """Write a plan, times `alpha`, into a model's weights.

    name: what the plan is called in messages
    originals_on: device that the original matrices are kept on; where they are by default

    Raises UsageError when the plan does not fit the model; the model is then as it was.
    """
    state = Fold(language_model, alpha, name)
    try:
        for target in plan.alphas:
            if plan.changes(target, alpha):
                _write(state, target, plan, originals_on)
        for layer in lora_layers(language_model).values():
            state._layers.append((layer, layer.disable_adapters))
            _switch(layer, folded=True, disabled=True)
    except BaseException:
        state.undo()
        raise
    state._hook = language_model.register_forward_pre_hook(
        lambda module, inputs: state.check(*active_scaling())
    )
    return state


def _switch(layer: LoraLayer, *, folded: bool, disabled: bool) -> None:
    layer._disable_adapters = disabled
    cast(AlphaScaling, layer.scaling).folded = folded


@torch.no_grad()
def _write(
    state: Fold, target: str, plan: MergePlan, originals_on: torch.device | str | None
) -> None:
    linear = linear_of(state.language_model, target)
    original = cast(nn.Parameter, linear.weight)
    if not original.is_floating_point():
        raise UsageError(
            f"{target} is stored as {original.dtype}: quantised weights cannot take an update in"
        )
    merged = plan.merged(target, original.detach(), state.alpha)
    state._originals.append((linear, original))
    linear.weight = nn.Parameter(merged, requires_grad=False)
    if originals_on is not None:
        original.data = original.data.to(originals_on)

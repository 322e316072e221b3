"""Layers of a language model that a card has no room for stay in RAM, and run on the card.

A layer is copied there before it runs and is gone after it, so that α, adapters and rounded weights
act as ever and answers are the same; what it costs is the copy, each time. (Hooks of accelerate do
so, too, but empty the card's cache at every tensor.) Nothing is folded into such weights, and no
steps are captured.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn


def copy_to_run(layers: Iterable[nn.Module], device: torch.device) -> int:
    """Let layers whose tensors stay where they are run on a device; returns how many there are."""
    count = 0
    for layer in layers:
        if device.type == "cuda":
            _pin(layer)
        _Copies(layer, device)
        count += 1
    return count


def _pin(layer: nn.Module) -> None:
    """Move its tensors to memory that a card reads directly, at several times the rate."""
    with suppress(RuntimeError):  # the system gives no more of it
        for parameter in layer.parameters():
            parameter.data = parameter.data.pin_memory()


class _Copies:
    """The tensors of one layer, which are copies on a device while it runs."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        self._device = device
        self._homes: list[tuple[Any, str, Tensor]] = []
        layer.register_forward_pre_hook(self._bring)
        layer.register_forward_hook(self._take_back, always_call=True)

    def _bring(self, layer: nn.Module, *_: Any) -> None:
        for module in layer.modules():
            for held in cast(Any, (module._parameters, module._buffers)):
                for name, tensor in held.items():
                    if tensor is not None:
                        self._homes.append((held, name, tensor))
                        held[name] = self._copy(tensor)

    def _copy(self, tensor: Tensor) -> Tensor:
        """A parameter of the same values, since layers look at `requires_grad`."""
        copied = tensor.detach().to(self._device, non_blocking=True, copy=True)
        return nn.Parameter(copied, requires_grad=False)

    def _take_back(self, *_: Any) -> None:
        while self._homes:
            held, name, tensor = self._homes.pop()
            held[name] = tensor

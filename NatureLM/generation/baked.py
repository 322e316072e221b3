"""What a recorded step holds of the model's state, to tell when it no longer is the model's."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from NatureLM.merging.scaling import AlphaScaling, asked_for


class ModelState:
    """Where the weights lie, and which adapters act how strongly.

    A graph reads weights at their addresses, so weights that change in place are no change; other
    addresses are (folding, moving), and so is every number and branch of the adapters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._holders = [
            (module._parameters, name)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._profile = asked_for()[1]
        self._facts = self._read()
        self.reads_alpha = any(not layer.disable_adapters for layer in self._layers)
        """Whether adapters act at runtime. Those of a folded model do not, and α is checked there
        in a way that cannot be recorded for a tensor."""

    def is_same(self) -> bool:
        """Whether the model is still as it was. Takes a fraction of a step."""
        return asked_for()[1] is self._profile and self._read() == self._facts

    def _read(self) -> tuple[Any, ...]:
        return (
            self._model.training,
            [_address(holder.get(name)) for holder, name in self._holders],
            [
                (layer.disable_adapters, layer.merged, *layer.active_adapters, *_scales(layer))
                for layer in self._layers
            ],
        )


def _address(parameter: nn.Parameter | None) -> int:
    return 0 if parameter is None else parameter.data_ptr()


def _scales(layer: LoraLayer) -> list[tuple[str, float]]:
    scales = layer.scaling
    if isinstance(scales, AlphaScaling):
        return [(name, scales.stored(name)) for name in scales]
    return list(scales.items())

"""What learns and how fast: parameter groups, schedule, clipping, moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.config.training import OptimsConfig
from NatureLM.errors import ConfigError

PARTS = ("beats", "qformer", "projection", "lora", "language_model")
NamedParameters = list[tuple[str, nn.Parameter]]


def part_of(name: str) -> str:
    """The part of the model that a parameter of this name belongs to."""
    if ".lora_" in name:
        return "lora"
    pieces = name.split(".")
    if "beats" in pieces:
        return "beats"
    if "audio_llama_proj" in pieces:
        return "projection"
    if {"ln_audio", "audio_Qformer", "audio_query_tokens"} & set(pieces):
        return "qformer"
    return "language_model"


def trainable(module: nn.Module) -> NamedParameters:
    """Parameters that learn, by name, each once."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def has_decay(parameter: Tensor) -> bool:
    """Weight decay is for matrices: not for norms, biases, gates and learned queries."""
    return sum(size > 1 for size in parameter.shape) >= 2


def make_optimizer(parameters: NamedParameters, config: OptimsConfig) -> torch.optim.AdamW:
    """AdamW, a group per part and kind; groups carry their `rate` relative to the schedule."""
    unknown = sorted(set(config.part_rates) - set(PARTS))
    if unknown:
        raise ConfigError(
            f"run.optims.part_rates names {', '.join(unknown)}; parts are {', '.join(PARTS)}"
        )
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        groups.setdefault((part_of(name), has_decay(parameter)), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": members,
            "weight_decay": config.weight_decay if decays else 0.0,
            "rate": config.part_rates.get(part, 1.0),
        }
        for (part, decays), members in groups.items()
    ]
    return torch.optim.AdamW(settings, lr=config.init_lr, betas=(config.beta1, config.beta2))


def learning_rate(step: int, total: int, config: OptimsConfig) -> float:
    """Rate of update `step` (from 0): linear warm-up, then a cosine down to `min_lr`."""
    warmup = min(config.warmup_steps, total)
    if step < warmup:
        share = (step + 1) / warmup
        return config.warmup_start_lr + share * (config.init_lr - config.warmup_start_lr)
    share = (step - warmup + 1) / max(total - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.min_lr + cosine * (config.init_lr - config.min_lr)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def finish_gradients(
    parameters: Iterable[nn.Parameter], scale: Tensor, config: OptimsConfig
) -> Tensor:
    """Scale summed gradients, clip by norm and value as configured; the norm before clipping.

    A parameter that no sample of the step used gets a zero gradient, so that one process and
    several make the same update.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    torch._foreach_mul_(gradients, scale)
    members = [p for p in parameters if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(members, config.max_grad_norm or math.inf)
    if config.max_grad_value is not None:
        nn.utils.clip_grad_value_(members, config.max_grad_value)
    return norm


class MovingAverage:
    """Exponential moving average of parameters; the decay grows over the first steps."""

    def __init__(self, parameters: NamedParameters, decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self.values = {name: p.detach().clone() for name, p in parameters}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters:
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Put back what `values` held."""
        for name, value in self.values.items():
            value.copy_(values[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights are in the model inside this block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters:
            held = self.values[name]
            current = parameter.detach().clone()
            parameter.copy_(held)
            held.copy_(current)

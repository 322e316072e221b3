"""What learns and how fast: parameter groups, schedule, clipping, moving average of the weights.

Hidden matrices may be trained by Muon (Jordan et al., 2024), which makes an update of a matrix
orthogonal, so that all its directions learn alike; small models trained from nothing need about
half the steps of AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.config.schema import OptimsConfig
from NatureLM.errors import ConfigError
from NatureLM.training.parallel import copy_full, local_part, total_norm

PARTS = ("beats", "qformer", "projection", "lora", "language_model")
NamedParameters = list[tuple[str, nn.Parameter]]
_NEVER = ("embed", "lm_head", "lora_", "predictor", "relative_attention_bias", "query_tokens")


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


def make_optimizer(
    parameters: NamedParameters, config: OptimsConfig
) -> torch.optim.AdamW | MuonWithAdamW:
    """AdamW, a group per part and kind; groups carry their `rate` relative to the schedule.

    With `muon_lr`, hidden matrices are trained by Muon.
    """
    unknown = sorted(set(config.part_rates) - set(PARTS))
    if unknown:
        raise ConfigError(
            f"run.optims.part_rates names {', '.join(unknown)}; parts are {', '.join(PARTS)}"
        )
    groups: dict[tuple[str, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        muon = config.muon_lr is not None and is_hidden_matrix(name, parameter)
        groups.setdefault((part_of(name), has_decay(parameter), muon), []).append(parameter)
    muon_rate = (config.muon_lr or config.init_lr) / config.init_lr
    settings: list[dict[str, Any]] = [
        {
            "params": members,
            "weight_decay": config.weight_decay if decays else 0.0,
            "rate": config.part_rates.get(part, 1.0) * (muon_rate if muon else 1.0),
            "muon": muon,
        }
        for (part, decays, muon), members in groups.items()
    ]
    betas = (config.beta1, config.beta2)
    if config.muon_lr is not None:
        return MuonWithAdamW(settings, betas)
    return torch.optim.AdamW(settings, lr=config.init_lr, betas=betas)


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon may train it: weights between hidden layers, no embeddings, heads or LoRA."""
    return (
        parameter.ndim == 2
        and name.endswith(".weight")
        and not any(part in name for part in _NEVER)
    )


class MuonWithAdamW:
    """Groups whose `muon` is true go to Muon; each parameter has its state in one place."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"run.optims.muon_lr needs torch 2.9 or newer, and this is {torch.__version__}; "
                "set it to null for AdamW alone"
            )
        matrices = [group for group in groups if group["muon"]]
        others = [group for group in groups if not group["muon"]]
        self._members: list[torch.optim.Optimizer] = []
        if matrices:
            self._members.append(torch.optim.Muon(matrices))
        if others:
            self._members.append(torch.optim.AdamW(others, betas=betas))
        self.state: Any = self._members[0].state
        for member in self._members:
            member.state = self.state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of both."""
        return [group for member in self._members for group in member.param_groups]

    def step(self) -> None:
        """One update of everything."""
        for member in self._members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for member in self._members:
            member.zero_grad(set_to_none=set_to_none)


def learning_rate(step: int, total: int, config: OptimsConfig) -> float:
    """Rate of update `step` (from 0): linear warm-up, then a cosine down to `min_lr`."""
    warmup = min(config.warmup_steps, total)
    if step < warmup:
        share = (step + 1) / warmup
        return config.warmup_start_lr + share * (config.init_lr - config.warmup_start_lr)
    share = (step - warmup + 1) / max(total - warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.min_lr + cosine * (config.init_lr - config.min_lr)


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
    parts = [local_part(gradient) for gradient in gradients]
    torch._foreach_mul_(parts, scale)
    norm = total_norm(gradients)
    if config.max_grad_norm is not None:
        torch._foreach_mul_(parts, torch.clamp(config.max_grad_norm / (norm + 1e-6), max=1.0))
    if config.max_grad_value is not None:
        torch._foreach_clamp_min_(parts, -config.max_grad_value)
        torch._foreach_clamp_max_(parts, config.max_grad_value)
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
            local_part(self.values[name]).lerp_(local_part(parameter.detach()), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Put back what `values` held."""
        for name, value in self.values.items():
            copy_full(value, values[name])

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
            held, used = local_part(self.values[name]), local_part(parameter.detach())
            current = used.clone()
            used.copy_(held)
            held.copy_(current)

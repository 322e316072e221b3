"""Muon for hidden matrices and AdamW for everything else, behind the face of one optimiser.

Muon (Jordan et al., 2024) makes an update of a matrix orthogonal, so that all its directions learn
alike; small models trained from nothing need about half the steps of AdamW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from NatureLM.errors import ConfigError

_NEVER = ("embed", "lm_head", "lora_", "predictor", "relative_attention_bias", "query_tokens")


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
        members: list[torch.optim.Optimizer] = []
        if matrices:
            members.append(torch.optim.Muon(matrices))
        if others:
            members.append(torch.optim.AdamW(others, betas=betas))
        self._members = members
        self.state: Any = members[0].state
        for member in members:
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

"""First values of tensors that no file gives: each a pure function of the seed and its name.

BEATs as in its paper (DeepNorm's gains, BERT's normal distribution elsewhere), the Q-Former as
BERT, LoRA as in its paper (B is zero, so that training starts from the base model).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from NatureLM.models.checkpoint.names import Slot
from NatureLM.models.configuration import NatureLMConfig
from NatureLM.training.seeding import derive_seed

_DEEP_NORM = ("v_proj.", "out_proj.", "fc1.", "fc2.")


def initial_tensor(slot: Slot, config: NatureLMConfig, seed: int) -> Tensor:
    """The first value of a slot of the model, float32 on the CPU."""
    module, attribute = slot.places[0]
    name = slot.stored_name
    generator = torch.Generator().manual_seed(derive_seed(seed, "init", name))
    if slot.is_buffer:
        return torch.arange(slot.shape[-1])[None]
    if name.startswith("beats."):
        return beats_tensor(name.removeprefix("beats."), slot.shape, module, config, generator)
    if isinstance(module, nn.LayerNorm):
        return _norm(attribute, slot.shape)
    if ".lora_" in name:
        return _lora(name, slot.shape, generator)
    if name.startswith("audio_llama_proj."):
        bound = 1 / math.sqrt(_fan_in(module))
        return torch.empty(slot.shape).uniform_(-bound, bound, generator=generator)
    if attribute == "bias":
        return torch.zeros(slot.shape)
    spread = config.qformer.initializer_range
    return torch.empty(slot.shape).normal_(0, spread, generator=generator)


def beats_tensor(
    name: str,
    shape: tuple[int, ...],
    module: nn.Module,
    config: NatureLMConfig,
    generator: torch.Generator,
) -> Tensor:
    """The first value of a tensor of BEATs; `name` is its name within BEATs."""
    cfg = config.beats
    attribute = name.rpartition(".")[2]
    if isinstance(module, nn.LayerNorm):
        return _norm(attribute, shape)
    if name.endswith("grep_a"):
        return torch.ones(shape)
    if attribute == "weight_g":
        # the norm that weight_v has on average, so that both start as one normal weight
        width, groups = cfg.encoder_embed_dim, cfg.conv_pos_groups
        return torch.full(shape, _pos_conv_spread(config) * math.sqrt(width * width / groups))
    if attribute == "bias":
        return torch.zeros(shape)
    value = torch.empty(shape)
    if attribute == "weight_v":
        return value.normal_(0, _pos_conv_spread(config), generator=generator)
    if name.startswith("patch_embedding."):
        bound = 1 / math.sqrt(shape[1] * shape[2] * shape[3])
        return value.uniform_(-bound, bound, generator=generator)
    if cfg.deep_norm and ".layers." in name:
        if any(part in name for part in _DEEP_NORM):
            gain = (8 * cfg.encoder_layers) ** -0.25
            return nn.init.xavier_normal_(value, gain=gain, generator=generator)
        if "q_proj." in name or "k_proj." in name:
            return nn.init.xavier_normal_(value, generator=generator)
    return value.normal_(0, 0.02, generator=generator)


def _pos_conv_spread(config: NatureLMConfig) -> float:
    cfg = config.beats
    return math.sqrt(4 * (1 - cfg.dropout) / (cfg.conv_pos * cfg.encoder_embed_dim))


def _norm(attribute: str, shape: tuple[int, ...]) -> Tensor:
    return torch.ones(shape) if attribute == "weight" else torch.zeros(shape)


def _lora(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if ".lora_B." in name:
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _fan_in(module: nn.Module) -> int:
    return module.in_features if isinstance(module, nn.Linear) else 1

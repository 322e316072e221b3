"""Names of tensors: which are one tensor under several names, which may be absent, what the base
language model calls them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LANGUAGE_MODEL_PREFIXES = ("llama_model.base_model.model.", "llama_model.")
_UNUSED = (
    re.compile(r"^beats\.predictor\."),
    re.compile(r"^audio_Qformer\.bert\.embeddings\.(position_ids|word_embeddings|position_emb)"),
    re.compile(r"^audio_Qformer\.cls\."),
    re.compile(r"\.rotary_emb\.inv_freq$"),
)


@dataclass(frozen=True)
class Slot:
    """One tensor of a model: every (module, attribute) that holds it and every name it goes by."""

    names: tuple[str, ...]
    places: tuple[tuple[nn.Module, str], ...]
    shape: tuple[int, ...]
    is_buffer: bool

    @property
    def stored_name(self) -> str:
        """The name under which a checkpoint stores it: the first in sorted order."""
        return self.names[0]

    @property
    def tensor(self) -> Tensor:
        module, attribute = self.places[0]
        value: Tensor = getattr(module, attribute)
        return value

    def fill(self, tensor: Tensor) -> None:
        """Put `tensor` in all places, as one parameter (which keeps learning or not) or buffer."""
        if self.is_buffer:
            for module, attribute in self.places:
                module._buffers[attribute] = tensor
            return
        learns = self.tensor.requires_grad and tensor.is_floating_point()
        parameter = nn.Parameter(tensor, requires_grad=learns)
        for module, attribute in self.places:
            module._parameters[attribute] = parameter


def slots(model: nn.Module) -> list[Slot]:
    """All tensors of a model's state, shared ones once."""
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        held = [(a, p) for a, p in module._parameters.items() if p is not None]
        held += [
            (a, b)
            for a, b in module._buffers.items()
            if b is not None and a not in module._non_persistent_buffers_set
        ]
        for attribute, tensor in held:
            places.setdefault(id(tensor), []).append((prefix + attribute, module, attribute))
    return [_slot(found) for found in places.values()]


def _slot(found: list[tuple[str, nn.Module, str]]) -> Slot:
    found = sorted(found, key=lambda entry: entry[0])
    _, module, attribute = found[0]
    tensor = getattr(module, attribute)
    unique = {(id(m), a): (m, a) for _, m, a in found}
    return Slot(
        names=tuple(name for name, _, _ in found),
        places=tuple(unique.values()),
        shape=tuple(tensor.shape),
        is_buffer=attribute in module._buffers,
    )


def is_unused(name: str) -> bool:
    """Whether the reference's checkpoints hold a tensor of this name that nothing computes with."""
    return any(pattern.search(name) for pattern in _UNUSED)


def base_name(name: str) -> str | None:
    """What the base language model's own checkpoint calls a tensor; None if it is not of it."""
    if ".lora_" in name:
        return None
    for prefix in LANGUAGE_MODEL_PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :].replace(".base_layer.", ".")
    return None


def of_language_model(name: str) -> bool:
    """Whether a tensor plays no part in hearing."""
    return name.startswith(("llama_model.", "llama_embed_tokens."))


def part_dtype(name: str, explicit: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a tensor: as asked; else float32, and on accelerators bfloat16 for the
    language model, as the published model runs."""
    if explicit is not None:
        return explicit
    if of_language_model(name) and device.type != "cpu":
        return torch.bfloat16
    return torch.float32

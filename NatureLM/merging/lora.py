"""LoRA adapters in memory: low-rank updates, and adapters put into a model and taken out again.

Shapes: O outputs and I inputs of the layer, K rank.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from NatureLM.errors import UsageError
from NatureLM.merging.scaling import OWN_ADAPTER, AlphaScaling, install


@dataclass(frozen=True)
class LoraDelta:
    """The update `scale · B A`, with A (K, I) and B (O, K)."""

    a_KI: Tensor
    b_OK: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a_KI.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> LoraDelta:
        """The same update elsewhere or in another precision."""
        return LoraDelta(self.a_KI.to(device, dtype), self.b_OK.to(device, dtype), self.scale)

    def dense(self) -> Tensor:
        """The update as a matrix (O, I)."""
        return (self.scale * self.b_OK) @ self.a_KI


AdapterDeltas = Mapping[str, LoraDelta]
"""The updates of an adapter by the linear layer that they change, such as
`model.layers.0.self_attn.q_proj`; those of files are read as they are asked for."""


def concatenate(parts: Sequence[tuple[float, LoraDelta]]) -> LoraDelta:
    """Σ weight · scale · B A of several updates as one, exactly: ranks add up, scale is 1.

    `[w₁s₁B₁, w₂s₂B₂, …] · [A₁; A₂; …]` is that sum; nothing is decomposed or rounded away.
    """
    return LoraDelta(
        torch.cat([delta.a_KI for _, delta in parts]),
        torch.cat([weight * delta.scale * delta.b_OK for weight, delta in parts], dim=1),
        1.0,
    )


def lora_layers(language_model: nn.Module, adapter: str | None = None) -> dict[str, LoraLayer]:
    """The layers that PEFT has wrapped, by name; with `adapter` only those it changes."""
    return {
        name: module
        for name, module in language_model.named_modules()
        if isinstance(module, LoraLayer) and (adapter is None or adapter in module.lora_A)
    }


def lora_deltas(language_model: nn.Module, adapter: str = OWN_ADAPTER) -> AdapterDeltas:
    """The updates of an adapter of a model in memory; they share its tensors."""
    return {
        name: LoraDelta(
            _matrix(layer.lora_A, adapter).detach(),
            _matrix(layer.lora_B, adapter).detach(),
            cast(AlphaScaling, layer.scaling).stored(adapter),
        )
        for name, layer in lora_layers(language_model, adapter).items()
    }


def _matrix(matrices: nn.ModuleDict, adapter: str) -> Tensor:
    return cast(Tensor, matrices[adapter].weight)


def linear_shapes(language_model: nn.Module) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear layer by name, whether PEFT has wrapped it or not."""
    wrapped = lora_layers(language_model)
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in language_model.named_modules():
        inside = any(part in ("base_layer", "lora_A", "lora_B") for part in name.split("."))
        linear = wrapped[name].get_base_layer() if name in wrapped else module
        if isinstance(linear, nn.Linear) and not inside:
            shapes[name] = (linear.out_features, linear.in_features)
    return shapes


def linear_of(language_model: nn.Module, target: str) -> nn.Linear:
    """The linear layer itself, below what PEFT put around it."""
    module = language_model.get_submodule(target)
    linear = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if not isinstance(linear, nn.Linear):
        raise UsageError(f"{target} is a {type(linear).__name__}; only linear layers are merged")
    return linear


def lora_config(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    linears: Collection[str],
    *,
    use_rslora: bool = False,
    dropout: float = 0.0,
    base: str | None = None,
) -> LoraConfig:
    """PEFT's configuration of an adapter with these ranks and alphas (by target).

    The most frequent rank and alpha stand for all; others become patterns.
    """
    rank, alpha = _most_frequent(ranks), _most_frequent(alphas)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
        r=rank,
        lora_alpha=_integer_if_whole(alpha),
        lora_dropout=dropout,
        use_rslora=use_rslora,
        target_modules=_short_targets(ranks, linears),
        rank_pattern={target: one for target, one in ranks.items() if one != rank},
        alpha_pattern={t: _integer_if_whole(one) for t, one in alphas.items() if one != alpha},
    )


def _short_targets(targets: Collection[str], linears: Collection[str]) -> list[str]:
    """Names for PEFT's `target_modules`: last parts where these mean just the targets."""
    short = {target.rpartition(".")[2] for target in targets}
    meant = {name for name in linears if name.rpartition(".")[2] in short}
    return sorted(short) if meant == set(targets) else sorted(targets)


def _most_frequent(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _integer_if_whole(alpha: float) -> Any:
    return int(alpha) if alpha == int(alpha) else alpha


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT asks transformers for an attribute by a deprecated name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def attach(peft_model: nn.Module, name: str, deltas: AdapterDeltas) -> None:
    """Put another adapter into a model. It acts only under `AdapterScales` that name it."""
    if not isinstance(peft_model, PeftModel):
        raise UsageError(
            "this model has no adapter of its own beside which another could act; load it with "
            "from_pretrained(..., adapter=FOLDER)"
        )
    language_model = peft_model.get_base_model()
    updates = dict(deltas)
    config = lora_config(
        {target: update.rank for target, update in updates.items()},
        {target: update.scale * update.rank for target, update in updates.items()},
        linear_shapes(language_model),
    )
    with _keep_trainable(peft_model):
        with quiet_peft():
            peft_model.add_adapter(name, config)
        with torch.no_grad():
            for target, layer in lora_layers(language_model, name).items():
                update, like = updates[target], linear_of(language_model, target).weight
                for matrices, values in ((layer.lora_A, update.a_KI), (layer.lora_B, update.b_OK)):
                    matrices[name].to(like)
                    _matrix(matrices, name).copy_(values)
                layer.scaling[name] = update.scale
                layer.lora_dropout[name].eval()
        install(peft_model)
        _activate_all(language_model)


def detach(peft_model: PeftModel, name: str) -> None:
    """Take an attached adapter out again; layers that it alone changed become plain ones."""
    language_model = peft_model.get_base_model()
    with _keep_trainable(peft_model):
        peft_model.delete_adapter(name)
        for target, layer in lora_layers(language_model).items():
            if not layer.lora_A:
                parent, _, attribute = target.rpartition(".")
                setattr(language_model.get_submodule(parent), attribute, layer.get_base_layer())
        _activate_all(language_model)


@contextmanager
def _keep_trainable(model: nn.Module) -> Iterator[None]:
    """Afterwards the parameters learn, or not, as before; new ones do not."""
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    yield
    for parameter in model.parameters():
        parameter.requires_grad_(before.get(id(parameter), False))


def _activate_all(language_model: nn.Module) -> None:
    """Let every adapter of every layer take part; the scales say how strongly (0 without)."""
    for layer in lora_layers(language_model).values():
        layer.set_adapter(sorted(layer.lora_A))

"""LoRA in a model in memory: its layers, how strongly they act, adapters put in and taken out.

Merging interpolates between the base language model (α = 0) and the fine-tuned one (α = 1) by
scaling the low-rank update (Model Merging, arXiv 2511.05171): `W + α · scale · B A`. `scale` is
stored per layer and adapter; that number is multiplied and never recomputed, so rsLoRA and adapters
with a scale of their own stay right. Modules and tensors are named as PEFT names them, because
published checkpoints are.

α is data of a call and its rows, never state of the process. The active α lives in a context
variable: it ends with its `with` block, also after an exception, and other threads do not see it.
So do the active adapter scales: a recipe as numbers, which the active α multiplies.

Shapes: O outputs and I inputs of a layer, K rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from NatureLM.errors import UsageError

Alpha = float | Sequence[float] | Tensor
PEFT_PREFIX = "base_model.model."
"""Stands before a module's name in files of PEFT, and in an `AdaptedModel`."""

OWN_ADAPTER = "default"
"""What PEFT calls the one adapter of a model; others act only where `AdapterScales` name them."""

AdapterScales = Mapping[tuple[str, str], float]
"""By (layer, adapter) the factor of the adapter's stored scale there, for a model whose adapters
are attached; what is not in it does not act."""

# -- α while the model runs -----------------------------------------------------------------

_active_alpha: ContextVar[float | Tensor | None] = ContextVar("naturelm_alpha", default=None)
_active_scales: ContextVar[AdapterScales | None] = ContextVar("naturelm_scales", default=None)


class AlphaScaling(dict[str, float]):
    """The scale of each adapter of a layer; reading one gives it times the active α and factor.

    `layer` is the layer's name in the language model (`model.layers.0.self_attn.q_proj`).
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def __getitem__(self, adapter: str) -> float | Tensor:  # type: ignore[override]
        alpha, scales = active_scaling()
        if scales is None:
            factor = 1.0 if adapter == OWN_ADAPTER else 0.0
        else:
            factor = scales.get((self.layer, adapter), 0.0)
        return self.stored(adapter) * factor * (1.0 if alpha is None else alpha)

    def stored(self, adapter: str) -> float:
        """The adapter's own scale, whatever α is active."""
        return super().__getitem__(adapter)


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


@dataclass(frozen=True)
class Fold:
    """The state of a model with α written into its weights; `undo`, or the end of a `with` block,
    ends it. `originals` are the matrices that were changed, as they were."""

    alpha: float
    name: str
    originals: list[nn.Parameter]
    undoing: ExitStack

    @property
    def kept_bytes(self) -> int:
        """Memory that the originals take beside the folded weights."""
        return sum(original.nbytes for original in self.originals)

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
        """Put the original weights back and the adapters to work again; once, however often."""
        self.undoing.close()

    def __enter__(self) -> Fold:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()

    def __str__(self) -> str:
        return f"{self.name}, alpha {self.alpha:g}" if self.name else f"at alpha {self.alpha:g}"


# -- layers ---------------------------------------------------------------------------------


class LoraLinear(nn.Module):
    """A linear layer with the updates of adapters beside it.

    name: the layer's name in the language model
    """

    def __init__(self, base_layer: nn.Linear, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_dropout, self.lora_A, self.lora_B = (nn.ModuleDict() for _ in range(3))
        self.scaling = AlphaScaling(name)
        self.is_folded = False
        """Whether the updates are in the weights of `base_layer`, and take no part here."""

    def add_adapter(self, name: str, rank: int, scale: float, dropout: float = 0.0) -> None:
        """An update that is zero, and learns from random directions; precision is the layer's."""
        linear, like = self.base_layer, _floating(self.base_layer)
        lora_A = nn.Linear(linear.in_features, rank, bias=False)
        lora_B = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.kaiming_uniform_(lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(lora_B.weight)
        self.lora_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_A[name], self.lora_B[name] = lora_A.to(like), lora_B.to(like)
        self.scaling[name] = scale

    def remove_adapter(self, name: str) -> None:
        for parts in (self.lora_dropout, self.lora_A, self.lora_B, self.scaling):
            del parts[name]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (..., O) of inputs (..., I)."""
        out: Tensor = self.base_layer(x)
        if self.is_folded:
            return out
        dtype = out.dtype
        for name in sorted(self.lora_A):
            lora_A = cast(nn.Linear, self.lora_A[name])
            x = x.to(lora_A.weight.dtype)
            update: Tensor = self.lora_B[name](lora_A(self.lora_dropout[name](x)))
            out = out + update * self.scaling[name]
        return out.to(dtype)


class AdaptedModel(nn.Module):
    """A language model with LoRA layers in it; its tensors have the names that PEFT gives them."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": language_model})

    def get_base_model(self) -> nn.Module:
        return self.base_model["model"]


def add_adapter(
    language_model: nn.Module,
    name: str,
    layers: Mapping[str, tuple[int, float]],
    dropout: float = 0.0,
) -> None:
    """Put an adapter that changes nothing yet into linear layers: {layer: (rank, scale)}."""
    for target, (rank, scale) in layers.items():
        layer = language_model.get_submodule(target)
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(linear_of(language_model, target), target)
            language_model.set_submodule(target, layer)
        layer.add_adapter(name, rank, scale, dropout)


# -- updates and the layers that they change ------------------------------------------------


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
`model.layers.0.self_attn.q_proj`; those of files are mapped from them."""


def concatenate(parts: Sequence[tuple[float, LoraDelta]]) -> LoraDelta:
    """Σ weight · scale · B A of several updates as one, exactly: ranks add up, scale is 1.

    `[w₁s₁B₁, w₂s₂B₂, …] · [A₁; A₂; …]` is that sum; nothing is decomposed or rounded away.
    """
    return LoraDelta(
        torch.cat([delta.a_KI for _, delta in parts]),
        torch.cat([weight * delta.scale * delta.b_OK for weight, delta in parts], dim=1),
        1.0,
    )


def lora_layers(language_model: nn.Module, adapter: str | None = None) -> dict[str, LoraLinear]:
    """The layers that have adapters, by name; with `adapter` only those it changes."""
    return {
        name: module
        for name, module in language_model.named_modules()
        if isinstance(module, LoraLinear) and (adapter is None or adapter in module.lora_A)
    }


def lora_deltas(language_model: nn.Module, adapter: str = OWN_ADAPTER) -> AdapterDeltas:
    """The updates of an adapter of a model in memory; they share its tensors."""
    return {
        name: LoraDelta(
            cast(Tensor, layer.lora_A[adapter].weight).detach(),
            cast(Tensor, layer.lora_B[adapter].weight).detach(),
            layer.scaling.stored(adapter),
        )
        for name, layer in lora_layers(language_model, adapter).items()
    }


def linear_shapes(language_model: nn.Module) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear layer by name, whether adapters change it or not."""
    wrapped = lora_layers(language_model)
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in language_model.named_modules():
        inside = any(part in ("base_layer", "lora_A", "lora_B") for part in name.split("."))
        linear = wrapped[name].base_layer if name in wrapped else module
        if isinstance(linear, nn.Linear) and not inside:
            shapes[name] = (linear.out_features, linear.in_features)
    return shapes


def linear_of(language_model: nn.Module, target: str) -> nn.Linear:
    """The linear layer itself, without the adapters that change it."""
    module = language_model.get_submodule(target)
    linear = module.base_layer if isinstance(module, LoraLinear) else module
    if not isinstance(linear, nn.Linear):
        raise UsageError(f"{target} is a {type(linear).__name__}; only linear layers are merged")
    return linear


def _floating(linear: nn.Linear) -> Tensor:
    """A tensor of a layer of the device and precision that it computes in: of one with weights of
    integers (`models.quantized`) that is what scales them."""
    return next(one for one in linear.parameters() if one.is_floating_point())


# -- adapters in a model --------------------------------------------------------------------


def attach(model: nn.Module, name: str, deltas: AdapterDeltas) -> None:
    """Put another adapter into a model. It acts only under `AdapterScales` that name it, and what
    of the model learns, or does not, stays so."""
    if not isinstance(model, AdaptedModel):
        raise UsageError(
            "this model has no adapter of its own beside which another could act; load it with "
            "from_pretrained(..., adapter=FOLDER)"
        )
    language_model = model.get_base_model()
    add_adapter(
        language_model, name, {target: (one.rank, one.scale) for target, one in deltas.items()}
    )
    with torch.no_grad():
        for target, layer in lora_layers(language_model, name).items():
            update = deltas[target]
            for matrices, values in ((layer.lora_A, update.a_KI), (layer.lora_B, update.b_OK)):
                cast(Tensor, matrices[name].weight).requires_grad_(False).copy_(values)


def detach(model: AdaptedModel, name: str) -> None:
    """Take an attached adapter out again; layers that it alone changed become plain ones."""
    language_model = model.get_base_model()
    for target, layer in lora_layers(language_model, name).items():
        layer.remove_adapter(name)
        if not layer.lora_A:
            language_model.set_submodule(target, layer.base_layer)

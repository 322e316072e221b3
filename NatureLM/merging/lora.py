"""LoRA in a model in memory: how strongly it acts, adapters put in and taken out, folded weights.

Merging interpolates between the base language model (α = 0) and the fine-tuned one (α = 1) by
scaling the low-rank update (Model Merging, arXiv 2511.05171): `W + α · scale · B A`. PEFT keeps
`scale` per layer and adapter; here that stored number is multiplied and never recomputed, so rsLoRA
and adapters with a scale of their own stay right.

α is data of a call and its rows, never state of the process. The active α lives in a context
variable: it ends with its `with` block, also after an exception, and other threads do not see it.
So do the active adapter scales: a recipe as numbers, which the active α multiplies.

Shapes: O outputs and I inputs of a layer, K rank.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from NatureLM.errors import UsageError

Alpha = float | Sequence[float] | Tensor
PEFT_PREFIX = "base_model.model."
"""Stands before a module's name when PEFT has wrapped the model."""

OWN_ADAPTER = "default"
"""What PEFT calls the model's own adapter; others act only where `AdapterScales` name them."""

AdapterScales = Mapping[tuple[str, str], float]
"""By (layer, adapter) the factor of the adapter's stored scale there, for a model whose adapters
are attached; what is not in it does not act."""

# -- α while the model runs -----------------------------------------------------------------

_active_alpha: ContextVar[float | Tensor | None] = ContextVar("naturelm_alpha", default=None)
_active_scales: ContextVar[AdapterScales | None] = ContextVar("naturelm_scales", default=None)


class AlphaScaling(dict[str, float]):
    """PEFT's scale per adapter; reading an entry gives it times the active α and factor.

    `layer` is the layer's name in the language model (`model.layers.0.self_attn.q_proj`).
    """

    def __init__(self, scales: Mapping[str, float], layer: str = "") -> None:
        super().__init__(scales)
        self.layer = layer
        self.folded = False

    def __getitem__(self, adapter: str) -> float | Tensor:  # type: ignore[override]
        if self.folded:
            raise UsageError(
                f"the adapter at {self.layer} is folded into the weights, and switching it on "
                "again would count it twice; unfold the model first"
            )
        alpha, scales = active_scaling()
        if scales is None:
            factor = 1.0 if adapter == OWN_ADAPTER else 0.0
        else:
            factor = scales.get((self.layer, adapter), 0.0)
        return self.stored(adapter) * factor * (1.0 if alpha is None else alpha)

    def stored(self, adapter: str) -> float:
        """The adapter's own scale, whatever α is active."""
        return super().__getitem__(adapter)


def install(model: nn.Module) -> None:
    """Make every LoRA layer of a model read its scale through the active α and scales."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module.scaling, AlphaScaling):
            module.scaling = AlphaScaling(module.scaling, name.removeprefix(PEFT_PREFIX))


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
            cast(Tensor, layer.lora_A[adapter].weight).detach(),
            cast(Tensor, layer.lora_B[adapter].weight).detach(),
            cast(AlphaScaling, layer.scaling).stored(adapter),
        )
        for name, layer in lora_layers(language_model, adapter).items()
    }


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


def _floating(linear: nn.Linear) -> Tensor:
    """A tensor of a layer of the device and precision that it computes in: of one with weights of
    integers (`models.quantized`) that is what scales them."""
    return next(one for one in linear.parameters() if one.is_floating_point())


# -- adapters in a model --------------------------------------------------------------------


def lora_config(
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    linears: Collection[str],
    **settings: Any,
) -> LoraConfig:
    """PEFT's configuration of an adapter with these ranks and alphas (by target).

    The most frequent rank and alpha stand for all; others become patterns. Targets go by their last
    parts where these mean no other of the linear layers.
    """
    ((rank, _),) = Counter(ranks.values()).most_common(1)
    ((alpha, _),) = Counter(alphas.values()).most_common(1)
    short = {target.rpartition(".")[2] for target in ranks}
    meant = {name for name in linears if name.rpartition(".")[2] in short}
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=_integer_if_whole(alpha),
        target_modules=sorted(short if meant == set(ranks) else ranks),
        rank_pattern={target: one for target, one in ranks.items() if one != rank},
        alpha_pattern={t: _integer_if_whole(one) for t, one in alphas.items() if one != alpha},
        **settings,
    )


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
    config = lora_config(
        {target: update.rank for target, update in deltas.items()},
        {target: update.scale * update.rank for target, update in deltas.items()},
        linear_shapes(language_model),
    )
    with _changed_adapters(peft_model), torch.no_grad():
        with quiet_peft():
            peft_model.add_adapter(name, config)
        for target, layer in lora_layers(language_model, name).items():
            update, like = deltas[target], _floating(linear_of(language_model, target))
            for matrices, values in ((layer.lora_A, update.a_KI), (layer.lora_B, update.b_OK)):
                matrices[name].to(like)
                cast(Tensor, matrices[name].weight).copy_(values)
            layer.scaling[name] = update.scale
            layer.lora_dropout[name].eval()
        install(peft_model)


def detach(peft_model: PeftModel, name: str) -> None:
    """Take an attached adapter out again; layers that it alone changed become plain ones."""
    language_model = peft_model.get_base_model()
    with _changed_adapters(peft_model):
        peft_model.delete_adapter(name)
        for target, layer in lora_layers(language_model).items():
            if not layer.lora_A:
                parent, _, attribute = target.rpartition(".")
                setattr(language_model.get_submodule(parent), attribute, layer.get_base_layer())


@contextmanager
def _changed_adapters(model: PeftModel) -> Iterator[None]:
    """Afterwards every adapter of every layer takes part (the scales say how strongly), and the
    parameters learn, or not, as before; new ones do not."""
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    yield
    for layer in lora_layers(model).values():
        layer.set_adapter(sorted(layer.lora_A))
    for parameter in model.parameters():
        parameter.requires_grad_(before.get(id(parameter), False))

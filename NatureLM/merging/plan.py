"""A recipe applied to a model: α in every layer, and the merged weight of each.

A plan knows names and tensors only, so that it serves weights in memory (`fold`), weights streamed
from files (export) and running models (`MergePlan.scales`). Adding a way to combine several
adapters is one function here, one entry of `METHODS` and its name in `recipe.Recipe.method`.

Shapes: O outputs and I inputs of a layer. Each update comes with a weight.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import cast

import torch
from torch import Tensor, nn

from NatureLM.errors import UsageError
from NatureLM.merging.lora import (
    AdapterDeltas,
    AdapterScales,
    Fold,
    LoraDelta,
    active_scaling,
    concatenate,
    linear_of,
    lora_layers,
)
from NatureLM.merging.recipe import ParameterRule, Recipe, Weight
from NatureLM.util import digest

Parts = Sequence[tuple[float, LoraDelta]]


@dataclass(frozen=True)
class MergePlan:
    """A recipe, the adapters it names (in its order) and the depth of the model."""

    recipe: Recipe
    adapters: Sequence[AdapterDeltas]
    layers: int

    @cached_property
    def alphas(self) -> dict[str, float]:
        """α of every module that the adapters change; see `place_alphas`."""
        targets = sorted({target for adapter in self.adapters for target in adapter})
        return place_alphas(self.recipe, targets, self.layers)

    def changes(self, target: str, alpha: float = 1.0) -> bool:
        """Whether the weight of a module changes at all."""
        return self.alphas.get(target, 0.0) * alpha != 0.0

    def merged(self, target: str, weight_OI: Tensor, alpha: float = 1.0) -> Tensor:
        """The weight of a module with its update in it, in the weight's dtype (a new tensor).

        `alpha` multiplies the recipe's own. Computed in float32 at least.
        """
        exact = torch.promote_types(weight_OI.dtype, torch.float32)
        strength = self.alphas[target] * alpha
        parts = [(w, part.to(weight_OI.device, exact)) for w, part in self._parts(target)]
        if self.recipe.method == "linear":
            whole = concatenate(parts)
            merged = torch.addmm(weight_OI.to(exact), whole.b_OK, whole.a_KI, alpha=strength)
        else:
            update_OI = METHODS[self.recipe.method](parts, self.recipe, target)
            merged = weight_OI.to(exact) + strength * update_OI
        return merged.to(weight_OI.dtype)

    def combined(self, target: str) -> LoraDelta:
        """The update of a module, α included, as one low-rank update; exact, of linear recipes."""
        alpha, parts = self.alphas[target], self._parts(target)
        return concatenate(
            [(weight * alpha, part.to(part.a_KI.device, torch.float32)) for weight, part in parts]
        )

    def _parts(self, target: str) -> Parts:
        """The updates of a module with the weights of their adapters."""
        pairs = zip(self.recipe.adapters, self.adapters, strict=True)
        return [(entry.weight, deltas[target]) for entry, deltas in pairs if target in deltas]

    def scales(self, names: Sequence[str]) -> AdapterScales:
        """The recipe for a running model; `names` are those of the attached adapters, in order.

        Raises UsageError for methods that need whole matrices.
        """
        if self.recipe.method != "linear":
            raise UsageError(
                f"method {self.recipe.method} works on whole weight matrices, so it cannot act "
                "while the model runs; fold the recipe, or export it with `naturelm merge`"
            )
        factors: dict[tuple[str, str], float] = defaultdict(float)
        for entry, deltas, name in zip(self.recipe.adapters, self.adapters, names, strict=True):
            for target in deltas:
                factors[target, name] += self.alphas[target] * entry.weight
        return dict(factors)


_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def layer_of(target: str) -> int | None:
    """The number of the transformer layer that a module lies in; None outside of them."""
    found = _LAYER.search(target)
    return int(found[1]) if found else None


def place_alphas(recipe: Recipe, targets: Iterable[str], layers: int) -> dict[str, float]:
    """α at each target of a model with so many layers; of several rules that fit, the last.

    Raises UsageError for rules that fit nothing, layers that are not there and gradients over what
    lies in no layer.
    """
    targets = list(targets)
    strengths: dict[str, tuple[Weight, tuple[int, int]]] = dict.fromkeys(
        targets, (recipe.alpha, (0, layers - 1))
    )
    for number, rule in enumerate(recipe.rules):
        first, last = rule.layers or (0, layers - 1)
        if last >= layers:
            raise UsageError(
                f"rules[{number}].layers: there is no layer {last}; the model has layers 0 to "
                f"{layers - 1}"
            )
        fitting = [target for target in targets if _fits(rule, target)]
        if not fitting:
            known = ", ".join(sorted({target.rpartition(".")[2] for target in targets}))
            raise UsageError(
                f"rules[{number}] ({_shown(rule)}) fits no module that the adapters change; they "
                f"change {known}"
            )
        strengths |= dict.fromkeys(fitting, (rule.alpha, (first, last)))
    return {
        target: _value(strength, target, *span) for target, (strength, span) in strengths.items()
    }


def _fits(rule: ParameterRule, target: str) -> bool:
    """Modules go by q, q_proj, self_attn.q_proj, or the full name."""
    if rule.layers is not None:
        layer = layer_of(target)
        if layer is None or not rule.layers[0] <= layer <= rule.layers[1]:
            return False
    return rule.modules is None or any(
        target.endswith((f".{name}", f".{name}_proj")) or target in (name, f"{name}_proj")
        for name in rule.modules
    )


def _shown(rule: ParameterRule) -> str:
    parts = [f"layers {rule.layers[0]} to {rule.layers[1]}"] if rule.layers else []
    parts += [f"modules {', '.join(rule.modules)}"] if rule.modules else []
    return "; ".join(parts) or "all layers and modules"


def _value(strength: Weight, target: str, first: int, last: int) -> float:
    if isinstance(strength, float):
        return strength
    layer = layer_of(target)
    if layer is None:
        raise UsageError(
            f"{target} lies in no layer, so a gradient of alpha says nothing about it; give it a "
            "number with a rule for this module"
        )
    if first == last:
        return strength[0]
    place = (layer - first) / (last - first) * (len(strength) - 1)
    below = min(int(place), len(strength) - 2)
    part = place - below
    return (1 - part) * strength[below] + part * strength[below + 1]


def ties(parts: Parts, recipe: Recipe, target: str) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect signs, merge what agrees.

    Of each update the largest `density` of its entries by magnitude stay. Each entry takes the sign
    of the weighted sum; its value is the weighted mean of the updates that stayed and agree.
    """
    trimmed = [(weight, trim(update.dense(), recipe.density or 1.0)) for weight, update in parts]
    elected_OI = reduce(torch.add, (weight * update_OI for weight, update_OI in trimmed)).sign()
    merged_OI, mass_OI = torch.zeros_like(elected_OI), torch.zeros_like(elected_OI)
    for weight, update_OI in trimmed:
        agrees_OI = (update_OI.sign() == elected_OI) & (update_OI != 0)
        merged_OI += torch.where(agrees_OI, weight * update_OI, 0.0)
        mass_OI += weight * agrees_OI
    return torch.where(mass_OI > 0, merged_OI / mass_OI.clamp_min(torch.finfo().tiny), 0.0)


def trim(update_OI: Tensor, density: float) -> Tensor:
    """The update with all but its largest entries by magnitude set to zero.

    Exactly `round(density · entries)` stay, at least one.
    """
    if density >= 1:
        return update_OI
    kept = max(1, round(density * update_OI.numel()))
    flat = update_OI.flatten()
    places = flat.abs().topk(kept, sorted=False).indices
    out = torch.zeros_like(flat)
    out[places] = flat[places]
    return out.view_as(update_OI)


def dare(parts: Parts, recipe: Recipe, target: str) -> Tensor:
    """DARE (Yu et al. 2023, arXiv 2311.03099): drop entries at random, rescale, add up.

    Each entry stays with probability `density` and is then divided by it, so that the sum is right
    on average. What stays depends only on the seed, the layer's name and the place of the adapter
    among those that change the layer.
    """
    density = recipe.density or 1.0

    def dropped(place: int, weight: float, update_OI: Tensor) -> Tensor:
        name = f"{recipe.seed or 0}/{target}/{place}"
        kept_OI = keep_mask(update_OI.shape, density, name).to(update_OI.device)
        return torch.where(kept_OI, update_OI * (weight / density), 0.0)

    return reduce(
        torch.add, (dropped(i, weight, one.dense()) for i, (weight, one) in enumerate(parts))
    )


def keep_mask(shape: torch.Size, density: float, name: str) -> Tensor:
    """Which entries DARE keeps, drawn by a name on the CPU: every device gets the same."""
    generator = torch.Generator().manual_seed(int.from_bytes(digest(name, size=8), "big") >> 1)
    return torch.rand(shape, generator=generator) < density


METHODS: dict[str, Callable[[Parts, Recipe, str], Tensor]] = {"ties": ties, "dare": dare}
"""Methods on whole matrices: updates with weights, recipe and layer → combined update (O, I).
`linear`, which keeps the low rank, is in `MergePlan` itself."""


# -- written into weights in memory ---------------------------------------------------------


@torch.no_grad()
def fold(
    language_model: nn.Module,
    plan: MergePlan,
    *,
    alpha: float = 1.0,
    name: str = "",
    originals_on: torch.device | str | None = None,
) -> Fold:
    """Write a plan, times `alpha`, into a model's weights, in a way that is undone bit for bit.

    While it is folded the adapters take no part: no adapter arithmetic runs at all. Of the original
    weights those that change are kept; for LoRA on q, k, v and o of Llama 3.1 8B that is one sixth
    (2.7 of 16 GB in bfloat16).

    name: what the plan is called in messages
    originals_on: device that the original matrices are kept on; where they are by default

    Raises UsageError when the plan does not fit the model; the model is then as it was.
    """
    originals: list[nn.Parameter] = []
    with ExitStack() as undoing:
        undoing.callback(originals.clear)
        for target in plan.alphas:
            if not plan.changes(target, alpha):
                continue
            linear = linear_of(language_model, target)
            original = cast(nn.Parameter, linear.weight)
            if not original.is_floating_point():
                raise UsageError(
                    f"{target} is stored as {original.dtype}: quantised weights cannot take an "
                    "update in, which would be rounded away; let the adapter act beside them, or "
                    "merge it into the model (`naturelm merge`) and quantise that"
                )
            merged = plan.merged(target, original.detach(), alpha)
            undoing.callback(_restore, linear, original)
            originals.append(original)
            linear.weight = nn.Parameter(merged, requires_grad=False)
            if originals_on is not None:
                original.data = original.data.to(originals_on)
        for layer in lora_layers(language_model).values():
            undoing.callback(setattr, layer, "is_folded", False)
            layer.is_folded = True
        state = Fold(alpha, name, originals, undoing.pop_all())
    hook = language_model.register_forward_pre_hook(lambda *_: state.check(*active_scaling()))
    state.undoing.callback(hook.remove)
    return state


def _restore(linear: nn.Linear, original: nn.Parameter) -> None:
    now = linear.weight
    if now.device != original.device or now.dtype != original.dtype:
        original.data = original.data.to(now.device, now.dtype)  # the model was moved
    linear.weight = original

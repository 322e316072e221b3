"""A recipe applied to a model: α at every place, and the merged weight of every layer.

Works on names and tensors only, so that it serves weights in memory (`fold`), weights streamed from
files (export) and running models (`profile`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.merging.combine import METHODS, Settings
from NatureLM.merging.lowrank import AdapterSource, LowRank, concatenate
from NatureLM.merging.recipe import Recipe, Rule, Strength
from NatureLM.merging.scaling import Profile

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def layer_of(target: str) -> int | None:
    """The number of the transformer layer that a module lies in; None outside of them."""
    found = _LAYER.search(target)
    return int(found[1]) if found else None


def is_module(target: str, name: str) -> bool:
    """Whether a recipe's name (q, q_proj, self_attn.q_proj, or the full one) means a module."""
    return target.endswith((f".{name}", f".{name}_proj")) or target in (name, f"{name}_proj")


def place_alphas(recipe: Recipe, targets: Iterable[str], layers: int) -> dict[str, float]:
    """α at each target of a model with so many layers; of several rules that fit, the last.

    Raises UsageError for rules that fit nothing, layers that are not there and gradients over what
    lies in no layer.
    """
    targets = list(targets)
    fits = [[target for target in targets if _fits(rule, target)] for rule in recipe.rules]
    for number, (rule, fitting) in enumerate(zip(recipe.rules, fits, strict=True)):
        last = rule.layers[1] if rule.layers else 0
        if last >= layers:
            raise UsageError(
                f"rules[{number}].layers: there is no layer {last}; the model has layers 0 to "
                f"{layers - 1}"
            )
        if not fitting:
            known = ", ".join(sorted({target.rpartition(".")[2] for target in targets}))
            raise UsageError(
                f"rules[{number}] ({_shown(rule)}) fits no module that the adapters change; they "
                f"change {known}"
            )
    alphas: dict[str, float] = {}
    for target in targets:
        strength: Strength = recipe.alpha
        first, last = 0, layers - 1
        for rule, fitting in zip(recipe.rules, fits, strict=True):
            if target in fitting:
                strength = rule.alpha
                first, last = rule.layers or (0, layers - 1)
        alphas[target] = _value(strength, target, first, last)
    return alphas


def _fits(rule: Rule, target: str) -> bool:
    if rule.layers is not None:
        layer = layer_of(target)
        if layer is None or not rule.layers[0] <= layer <= rule.layers[1]:
            return False
    return rule.modules is None or any(is_module(target, name) for name in rule.modules)


def _shown(rule: Rule) -> str:
    parts = [f"layers {rule.layers[0]} to {rule.layers[1]}"] if rule.layers else []
    parts += [f"modules {', '.join(rule.modules)}"] if rule.modules else []
    return "; ".join(parts) or "all layers and modules"


def _value(strength: Strength, target: str, first: int, last: int) -> float:
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


@dataclass(frozen=True)
class MergePlan:
    """A recipe, the adapters it names (in its order) and the depth of the model."""

    recipe: Recipe
    sources: Sequence[AdapterSource]
    layers: int
    alphas: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        assert len(self.sources) == len(self.recipe.adapters)
        targets = sorted({target for source in self.sources for target in source.targets})
        object.__setattr__(self, "alphas", place_alphas(self.recipe, targets, self.layers))

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
            recipe = self.recipe
            settings = Settings(recipe.density or 1.0, recipe.seed or 0, target)
            update_OI = METHODS[recipe.method](parts, settings)
            merged = weight_OI.to(exact) + strength * update_OI
        return merged.to(weight_OI.dtype)

    def combined(self, target: str) -> LowRank:
        """The update of a module, α included, as one low-rank update; exact, of linear recipes."""
        parts = [
            (weight * self.alphas[target], part.to(part.a_KI.device, torch.float32))
            for weight, part in self._parts(target)
        ]
        return concatenate(parts)

    def _parts(self, target: str) -> list[tuple[float, LowRank]]:
        pairs = zip(self.recipe.adapters, self.sources, strict=True)
        return [
            (adapter.weight, source.read(target))
            for adapter, source in pairs
            if target in source.targets
        ]

    def profile(self, names: Sequence[str]) -> Profile:
        """The recipe for a running model; `names` are those of the attached adapters, in order.

        Raises UsageError for methods that need whole matrices.
        """
        if self.recipe.method != "linear":
            raise UsageError(
                f"method {self.recipe.method} works on whole weight matrices, so it cannot act "
                "while the model runs; fold the recipe, or export it with `naturelm merge`"
            )
        factors: dict[tuple[str, str], float] = {}
        for adapter, source, name in zip(self.recipe.adapters, self.sources, names, strict=True):
            for target in source.targets:
                before = factors.get((target, name), 0.0)
                factors[target, name] = before + self.alphas[target] * adapter.weight
        return Profile(factors)

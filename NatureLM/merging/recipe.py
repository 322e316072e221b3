"""Recipes: what to merge and how strongly, as YAML checked into typed data; needs no torch.

alpha: 0.6                    # everywhere; a list is a gradient from first to last layer
rules:                        # where several fit, the last one counts
  - layers: [0, 7]            # first and last, both included
    modules: [q, k]           # or full names: self_attn.q_proj
    alpha: [0.0, 0.6]         # a gradient over these layers
adapters:                     # without this, the model's own
  - path: own
    weight: 0.7
  - path: adapters/frogs      # a folder in PEFT's format
    weight: 0.3
method: linear                # or ties, dare (with density; dare with a seed)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from NatureLM.config.load import checked, not_among, show
from NatureLM.config.schema import Section, Text
from NatureLM.config.strict_yaml import KeyPath, Source, read_yaml

BASE_ADAPTER = "own"
"""The path that stands for the model's own adapter."""

Weight = float | tuple[float, ...]
"""α at all layers, or a gradient: values spread evenly over them, straight lines between."""

_STRENGTH = "a number, or a list of at least two numbers (a gradient over the layers)"


def _strength(value: Any) -> Weight:
    several = isinstance(value, (list, tuple)) and len(value) >= 2
    numbers = list(value) if several else [value]
    kinds = [isinstance(one, (int, float)) and not isinstance(one, bool) for one in numbers]
    if all(kinds) and all(map(math.isfinite, numbers)):
        return tuple(map(float, numbers)) if several else float(value)
    raise ValueError(f"it must be {_STRENGTH}")


def _layer_range(value: Any) -> tuple[int, int]:
    ends = list(value) if isinstance(value, (list, tuple)) else [value, value]
    if len(ends) == 2 and all(type(one) is int for one in ends) and 0 <= ends[0] <= ends[1]:
        return (ends[0], ends[1])
    raise ValueError("it must be a layer (from 0), or [first, last] with both included")


_AS_DATA = PlainSerializer(lambda value: list(value) if isinstance(value, tuple) else value)


class ParameterRule(Section):
    """α for some layers, some modules or both; without `layers` all, without `modules` all."""

    layers: Annotated[tuple[int, int] | None, PlainValidator(_layer_range), _AS_DATA] = None
    modules: Annotated[list[Text] | None, Field(min_length=1)] = Field(
        default=None,
        json_schema_extra={"allowed": "a list of names such as q, v_proj or self_attn.o_proj"},
    )
    alpha: Annotated[Weight, PlainValidator(_strength), _AS_DATA] = Field(
        json_schema_extra={"allowed": _STRENGTH}
    )


class RecipeAdapter(Section):
    """An adapter that takes part, and its weight in the sum."""

    path: Text = Field(
        default=BASE_ADAPTER,
        json_schema_extra={"allowed": "a folder, or own for the model's own adapter"},
    )
    weight: float = Field(default=1.0, json_schema_extra={"allowed": "a finite number"})


class Recipe(Section):
    """A whole recipe; `Recipe(alpha=0.4)` is plain merging at 0.4."""

    alpha: Annotated[Weight, PlainValidator(_strength), _AS_DATA] = 1.0
    rules: list[ParameterRule] = Field(
        default=[],
        json_schema_extra={"allowed": "a list of sections with the keys layers, modules, alpha"},
    )
    adapters: Annotated[list[RecipeAdapter], Field(min_length=1)] = Field(
        default=[RecipeAdapter()],
        json_schema_extra={"allowed": "a list of sections with keys path, weight; at least one"},
    )
    method: Literal["linear", "ties", "dare"] = Field(
        default="linear", json_schema_extra={"allowed": "one of linear, ties, dare"}
    )
    density: Annotated[float | None, Field(gt=0, le=1)] = Field(
        default=None,
        json_schema_extra={"allowed": "a number above 0 and at most 1"},
        validate_default=True,
    )
    seed: Annotated[int | None, Field(ge=0)] = Field(
        default=None, json_schema_extra={"allowed": "an integer, at least 0"}
    )

    @field_validator("adapters")
    @classmethod
    def _each_once(cls, adapters: list[RecipeAdapter]) -> list[RecipeAdapter]:
        paths = [one.path for one in adapters]
        for i, path in enumerate(paths):
            if path in paths[:i]:
                raise ValueError(f"{path} is in the list twice; add the weights up in one entry")
        return adapters

    @field_validator("density")
    @classmethod
    def _density_fits(cls, value: float | None, info: ValidationInfo) -> float | None:
        method = info.data.get("method")
        if method in ("ties", "dare") and value is None:
            raise ValueError(f"method {method} needs a density, such as 0.5")
        if method == "linear" and value is not None:
            raise ValueError("method linear keeps everything; leave density out")
        weights = [one.weight for one in info.data.get("adapters", [])]
        if method == "ties" and any(weight <= 0 for weight in weights):
            raise ValueError("method ties needs weights above 0")
        return value

    @field_validator("seed")
    @classmethod
    def _seed_fits(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("method") != "dare":
            raise ValueError("only method dare draws random numbers; leave seed out")
        return value

    @property
    def is_own_only(self) -> bool:
        """Whether the model's own adapter, unweighted, is all that takes part."""
        return self.method == "linear" and self.adapters == [RecipeAdapter()]

    def values(self) -> list[float]:
        """Every α that the recipe names, for notes about them."""
        found: list[float] = []
        for strength in (self.alpha, *(rule.alpha for rule in self.rules)):
            found += [strength] if isinstance(strength, float) else strength
        return found


def load_recipe(path: str | Path) -> Recipe:
    """The recipe of a YAML file; adapters' relative paths count from the file's folder, if there
    is such a folder there, else from the working folder.

    Raises ConfigError with all problems: file, key, line, value and what is allowed.
    """
    source = read_yaml(Path(path))
    recipe = checked(Recipe, source, _problem)
    adapters = []
    for adapter in recipe.adapters:
        beside = Path(path).parent / adapter.path
        there = adapter.path != BASE_ADAPTER and beside.is_dir()
        adapters.append(adapter.model_copy(update={"path": str(beside)}) if there else adapter)
    return recipe.model_copy(update={"adapters": adapters})


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, without what is at its default."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(
        {"alpha": data.pop("alpha", 1.0), **data}, sort_keys=False, allow_unicode=True, width=100
    )


def extrapolation_note(alphas: float | Sequence[float]) -> str | None:
    """One sentence for α outside 0 to 1, which is allowed; None if there is nothing to say."""
    values = [alphas] if isinstance(alphas, (int, float)) else list(alphas)
    outside = sorted({value for value in values if not 0 <= value <= 1})
    if not outside:
        return None
    listed = ", ".join(f"{value:g}" for value in outside[:4]) + (", …" if outside[4:] else "")
    return (
        f"alpha {listed} lies outside 0 to 1: this extrapolates beyond the base (0) and the "
        "adapted model (1), where answers may fall apart"
    )


_SECTIONS: dict[str | int, type[Section]] = {"rules": ParameterRule, "adapters": RecipeAdapter}


def _problem(detail: Any, source: Source) -> str:
    """A pydantic error in words: key, line, value and what is allowed."""
    path: KeyPath = tuple(detail["loc"])
    kind, value = detail["type"], detail["input"]
    place = source.place(path)
    section = _SECTIONS.get(path[0], Recipe) if len(path) > 2 else Recipe
    if kind == "extra_forbidden":
        return f"{place}: {not_among(str(path[-1]).lower(), section.model_fields, value)}"
    # below a key stand only items of a list, which the key's words cover
    key = next((str(part) for part in reversed(path) if part in section.model_fields), None)
    extra = section.model_fields[key].json_schema_extra if key is not None else None
    allowed = extra.get("allowed") if isinstance(extra, dict) else None
    if kind == "missing":
        return f"{place}: missing; it must be {allowed}"
    if kind != "value_error":
        return f"{place}: {show(value)} is not allowed; it must be {allowed or detail['msg']}"
    reason = detail["ctx"]["error"]
    if value is None or isinstance(value, dict):
        return f"{place}: {reason}"
    if isinstance(value, list):
        value = [one.model_dump() if isinstance(one, Section) else one for one in value]
    return f"{place}: {show(value)} is not allowed: {reason}"

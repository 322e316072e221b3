"""What a loaded model can do with adapters: fold, attach, act by a recipe, save.

Functions over a `NatureLM`, whose methods of the same names call them and say what they do.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft import PeftModel
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.merging.fold import Fold
from NatureLM.merging.fold import fold as fold_plan
from NatureLM.merging.lora import AdapterDeltas, attach, detach, linear_shapes, lora_deltas
from NatureLM.merging.plan import MergePlan
from NatureLM.merging.recipe import BASE_ADAPTER, Recipe, dump_recipe, load_recipe
from NatureLM.merging.scaling import (
    OWN_ADAPTER,
    AdapterScales,
    Alpha,
    active_scaling,
    alpha_per_row,
)
from NatureLM.models.checkpoint.peft_io import open_adapter, write_adapter
from NatureLM.util import digest

if TYPE_CHECKING:
    from NatureLM.models.modeling import NatureLM

_attaching = threading.Lock()


# -- folded ---------------------------------------------------------------------------------


def fold(
    model: NatureLM,
    alpha: float,
    recipe: Recipe | str | Path | None,
    originals_on: torch.device | str | None,
) -> Fold:
    if model.folded is not None:
        raise UsageError(f"the model is folded already ({model.folded}); unfold it first")
    (alpha,) = alpha_per_row(alpha, 1)
    recipe = _loaded(recipe) if recipe is not None else Recipe()
    plan = merge_plan(model, recipe)
    name = "" if recipe == Recipe() else f"with a recipe ({_shown(recipe)})"
    state = fold_plan(model.language_model, plan, alpha=alpha, name=name, originals_on=originals_on)
    before = model.fingerprint

    def on_undo() -> None:
        model.folded, model.fingerprint = None, before

    model.folded, state.on_undo = state, on_undo
    if name and before is not None:
        model.fingerprint = f"{before}+{digest(_contents(recipe, plan), size=4).hex()}"
    return state


def alphas_for(model: NatureLM, alpha: Alpha | None, rows: int) -> list[float]:
    folded = model.folded
    if alpha is None:
        alpha = 1.0 if folded is None else folded.alpha
    alphas = alpha_per_row(alpha, rows)
    if folded is not None:
        folded.check(torch.tensor(alphas, dtype=torch.float64), active_scaling()[1])
    elif not model.config.lora and any(value != 1.0 for value in alphas):
        raise UsageError("this model has no LoRA adapter (it was merged); alpha must be 1")
    return alphas


def refuse_folded(model: NatureLM, wish: str) -> None:
    """Raise UsageError while a model is folded; `wish` is what was asked for."""
    if model.folded is not None:
        raise UsageError(
            f"the model is folded ({model.folded}): unfold it (model.unfold()) to {wish}"
        )


# -- adapters -------------------------------------------------------------------------------


def attach_adapter(model: NatureLM, folder: str | Path, name: str | None) -> str:
    refuse_folded(model, "attach an adapter")
    chosen = name or re.sub(r"\W", "_", Path(folder).name) or "adapter"
    with _attaching:
        taken = {OWN_ADAPTER, BASE_ADAPTER, *model.attached}
        if name is None:
            while chosen in taken:
                chosen += "_"
        if chosen in taken or not re.fullmatch(r"\w+", chosen):
            raise UsageError(
                f"an adapter cannot be called {chosen!r}: letters, digits and _ are allowed, "
                f"and {', '.join(sorted(taken))} are taken"
            )
        deltas = open_adapter(folder, linear_shapes(model.language_model))
        attach(model.llama_model, chosen, deltas)
        model.attached = {**model.attached, chosen: _resolved(folder)}
    return chosen


def detach_adapter(model: NatureLM, name: str) -> None:
    refuse_folded(model, "detach an adapter")
    with _attaching:
        if name not in model.attached:
            known = ", ".join(model.attached) or "none"
            raise UsageError(f"no adapter {name!r} is attached (attached: {known})")
        detach(cast(PeftModel, model.llama_model), name)
        model.attached = {one: path for one, path in model.attached.items() if one != name}


def save_adapter(model: NatureLM, folder: str | Path) -> None:
    linears = linear_shapes(model.language_model)
    write_adapter(Path(folder), _own_adapter(model), linears, config=model.config)


def check_savable(model: NatureLM) -> None:
    """Only a model that is what its configuration says is written."""
    refuse_folded(model, "save it; `naturelm merge` writes a merged model")
    if model.attached:
        raise UsageError(
            f"adapters are attached ({', '.join(model.attached)}): detach them to save the "
            "model; `naturelm merge --recipe` writes one with adapters combined"
        )


# -- recipes --------------------------------------------------------------------------------


def adapter_scales(model: NatureLM, recipe: Recipe | str | Path) -> AdapterScales:
    refuse_folded(model, "use a recipe")
    recipe = _loaded(recipe)
    for adapter in recipe.adapters:
        known = adapter.path == BASE_ADAPTER or _attached_name(model, adapter.path) is not None
        if recipe.method == "linear" and not known:
            attach_adapter(model, adapter.path, None)
    names = [_attached_name(model, adapter.path) or OWN_ADAPTER for adapter in recipe.adapters]
    return merge_plan(model, recipe).scales(names)


def merge_plan(model: NatureLM, recipe: Recipe) -> MergePlan:
    """A recipe with the adapters that it names, for a model; those of files are read lazily."""
    adapters = [_adapter(model, adapter.path) for adapter in recipe.adapters]
    return MergePlan(recipe, adapters, model.language_model.config.num_hidden_layers)


def _adapter(model: NatureLM, path: str) -> AdapterDeltas:
    if path == BASE_ADAPTER:
        return _own_adapter(model)
    name = _attached_name(model, path)
    if name is not None:
        return lora_deltas(model.language_model, name)
    return open_adapter(path, linear_shapes(model.language_model))


def _own_adapter(model: NatureLM) -> AdapterDeltas:
    if not model.config.lora:
        raise UsageError("this model has no LoRA adapter (it was merged)")
    return lora_deltas(model.language_model)


def _attached_name(model: NatureLM, path: str) -> str | None:
    """The attached adapter that a recipe's path or name means."""
    meant = {path, _resolved(path)}
    return next((name for name, at in model.attached.items() if meant & {at, name}), None)


def _loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _resolved(folder: str | Path) -> str:
    """A folder under one name however it is spelt; a Hub id as it is."""
    return str(Path(folder).resolve()) if Path(folder).is_dir() else str(folder)


def _shown(recipe: Recipe) -> str:
    """A recipe in a few words."""
    words = [recipe.method, f"{len(recipe.adapters)} adapters"] if not recipe.is_own_only else []
    words += [f"{len(recipe.rules)} rules"] if recipe.rules else []
    return ", ".join(words) or "own adapter"


def _contents(recipe: Recipe, plan: MergePlan) -> Iterator[str | bytes]:
    """A recipe and the contents of its adapters, wherever these lie, for a digest."""
    yield dump_recipe(recipe.model_copy(update={"adapters": []}))
    for adapter, deltas in zip(recipe.adapters, plan.adapters, strict=True):
        yield repr(adapter.weight)
        if adapter.path != BASE_ADAPTER:
            for target in sorted(deltas):
                update = deltas[target]
                yield from map(_bytes, (update.a_KI, update.b_OK))
                yield f"{target} {update.scale!r}"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()

"""What a loaded model can do with adapters: fold, attach, act by a recipe, save."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from NatureLM.errors import UsageError
from NatureLM.generation.audio_cache import tensor_bytes
from NatureLM.merging.lora import (
    OWN_ADAPTER,
    AdaptedModel,
    AdapterDeltas,
    AdapterScales,
    Fold,
    active_scales,
    alpha_per_row,
    attach,
    detach,
    linear_shapes,
    lora_deltas,
)
from NatureLM.merging.plan import MergePlan, fold
from NatureLM.merging.recipe import BASE_ADAPTER, Recipe, dump_recipe, load_recipe
from NatureLM.models.checkpoint.peft_io import open_adapter, write_adapter
from NatureLM.models.configuration import NatureLMConfig
from NatureLM.util import digest

_attaching = threading.Lock()


class AdapterMixin:
    """The methods of `NatureLM` that concern adapters.

    folded: the state of a folded model, None while it is not
    attached: adapters beside the model's own: their names, and where they lie
    """

    if TYPE_CHECKING:  # what else a `NatureLM` has
        config: NatureLMConfig
        fingerprint: str | None
        llama_model: nn.Module

        @property
        def language_model(self) -> PreTrainedModel: ...

    folded: Fold | None
    attached: Mapping[str, str]

    def fold(
        self,
        alpha: float = 1.0,
        recipe: Recipe | str | Path | None = None,
        *,
        originals_on: torch.device | str | None = None,
    ) -> Fold:
        """Write the adapter, scaled by α, into the weights, so that no adapter arithmetic runs.

        `recipe` (or its YAML file) says more than one α can: by layer and module, with other
        adapters; `alpha` then multiplies all of it. `unfold`, or the end of the `with` block that
        this opens, puts the original weights back bit for bit. They are kept meanwhile, only those
        that change (`Fold.kept_bytes`), on the device `originals_on` if named.

        While folded, asking for another α or recipe raises UsageError. It changes the weights that
        all threads see, so fold before requests are served, not among them.
        """
        if self.folded is not None:
            raise UsageError(f"the model is folded already ({self.folded}); unfold it first")
        (alpha,) = alpha_per_row(alpha, 1)
        recipe = _loaded(recipe) if recipe is not None else Recipe()
        plan = self._merge_plan(recipe)
        name = "" if recipe == Recipe() else f"with a recipe ({_shown(recipe)})"
        state = fold(self.language_model, plan, alpha=alpha, name=name, originals_on=originals_on)
        before = self.fingerprint

        def forget() -> None:
            self.folded, self.fingerprint = None, before

        state.undoing.callback(forget)
        self.folded = state
        if name and before is not None:
            self.fingerprint = f"{before}+{digest(_contents(recipe, plan), size=4).hex()}"
        return state

    def unfold(self) -> None:
        """Put the original weights back, bit for bit; nothing happens if nothing is folded."""
        if self.folded is not None:
            self.folded.undo()

    def attach_adapter(self, folder: str | Path, name: str | None = None) -> str:
        """Put the adapter of a folder beside the model's own, and return its name.

        It acts only under a recipe that names `folder` (or `name`): see `use_recipe`. This changes
        the model's modules, so attach before requests are served, not among them.
        """
        self._refuse_folded("attach an adapter")
        chosen = name or re.sub(r"\W", "_", Path(folder).name) or "adapter"
        with _attaching:
            taken = {OWN_ADAPTER, BASE_ADAPTER, *self.attached}
            while name is None and chosen in taken:
                chosen += "_"
            if chosen in taken or not re.fullmatch(r"\w+", chosen):
                raise UsageError(
                    f"an adapter cannot be called {chosen!r}: letters, digits and _ are allowed, "
                    f"and {', '.join(sorted(taken))} are taken"
                )
            found = open_adapter(folder, linear_shapes(self.language_model))
            attach(self.llama_model, chosen, found.deltas)
            self.attached = {**self.attached, chosen: _resolved(folder)}
        return chosen

    def detach_adapter(self, name: str) -> None:
        """Take an attached adapter out; the model is then as before."""
        self._refuse_folded("detach an adapter")
        with _attaching:
            if name not in self.attached:
                known = ", ".join(self.attached) or "none"
                raise UsageError(f"no adapter {name!r} is attached (attached: {known})")
            detach(cast(AdaptedModel, self.llama_model), name)
            self.attached = {one: path for one, path in self.attached.items() if one != name}

    @property
    def adapters(self) -> list[str]:
        """Names of the attached adapters; the model's own is not among them."""
        return list(self.attached)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the model's own adapter in PEFT's format: adapter_config.json and safetensors.

        `peft.PeftModel.from_pretrained(base, folder)` reads it.
        """
        linears = linear_shapes(self.language_model)
        write_adapter(Path(folder), self._deltas(BASE_ADAPTER), linears, config=self.config)

    @contextmanager
    def use_recipe(self, recipe: Recipe | str | Path) -> Iterator[AdapterScales]:
        """Within the block, and only in this thread, the adapters act as a recipe says.

        The α of a call multiplies the recipe's. Adapters that it names are attached once and stay
        attached. Raises UsageError for methods that need whole matrices (TIES, DARE).
        """
        scales = self.adapter_scales(recipe)
        with active_scales(scales):
            yield scales

    def adapter_scales(self, recipe: Recipe | str | Path) -> AdapterScales:
        """A recipe as numbers for this model, for `merging.lora.active_scales`."""
        self._refuse_folded("use a recipe")
        recipe = _loaded(recipe)
        for adapter in recipe.adapters:
            known = adapter.path == BASE_ADAPTER or self._attached_name(adapter.path) is not None
            if recipe.method == "linear" and not known:
                self.attach_adapter(adapter.path)
        names = [self._attached_name(adapter.path) or OWN_ADAPTER for adapter in recipe.adapters]
        return self._merge_plan(recipe).scales(names)

    def _refuse_folded(self, wish: str) -> None:
        if self.folded is not None:
            raise UsageError(
                f"the model is folded ({self.folded}): unfold it (model.unfold()) to {wish}"
            )

    def _check_savable(self) -> None:
        """Only a model that is what its configuration says is written."""
        self._refuse_folded("save it; `naturelm merge` writes a merged model")
        if self.attached:
            raise UsageError(
                f"adapters are attached ({', '.join(self.attached)}): detach them to save the "
                "model; `naturelm merge --recipe` writes one with adapters combined"
            )

    def _merge_plan(self, recipe: Recipe) -> MergePlan:
        """A recipe with the adapters that it names; those of files are read lazily."""
        adapters = [self._deltas(adapter.path) for adapter in recipe.adapters]
        return MergePlan(recipe, adapters, self.language_model.config.num_hidden_layers)

    def _deltas(self, path: str) -> AdapterDeltas:
        name = OWN_ADAPTER if path == BASE_ADAPTER else self._attached_name(path)
        if name is None:
            return open_adapter(path, linear_shapes(self.language_model)).deltas
        if name == OWN_ADAPTER and not self.config.lora:
            raise UsageError("this model has no LoRA adapter (it was merged)")
        return lora_deltas(self.language_model, name)

    def _attached_name(self, path: str) -> str | None:
        """The attached adapter that a recipe's path or name means."""
        meant = {path, _resolved(path)}
        return next((name for name, at in self.attached.items() if meant & {at, name}), None)


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


def _contents(recipe: Recipe, plan: MergePlan) -> Iterator[str | memoryview]:
    """A recipe and the contents of its adapters, wherever these lie, for a digest."""
    yield dump_recipe(recipe.model_copy(update={"adapters": []}))
    for adapter, deltas in zip(recipe.adapters, plan.adapters, strict=True):
        yield repr(adapter.weight)
        if adapter.path != BASE_ADAPTER:
            for target in sorted(deltas):
                update = deltas[target]
                yield from map(tensor_bytes, (update.a_KI, update.b_OK))
                yield f"{target} {update.scale!r}"

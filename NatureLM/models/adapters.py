"""What a loaded model can do with adapters: fold, attach, act by a recipe, save."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.merging.fold import Fold, fold
from NatureLM.merging.lora import AdapterSource, LayersAdapter, attach, detach, linear_shapes
from NatureLM.merging.plan import MergePlan
from NatureLM.merging.recipe import BASE_ADAPTER, Recipe, dump_recipe, load_recipe
from NatureLM.merging.scaling import (
    OWN_ADAPTER,
    AdapterScales,
    Alpha,
    active_profile,
    active_scaling,
    alpha_per_row,
)
from NatureLM.util import digest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from NatureLM.models.configuration import NatureLMConfig


_attaching = threading.Lock()


@dataclass(frozen=True)
class _Attached:
    """An adapter beside the model's own: PEFT's name of it, and where it came from."""

    name: str
    path: str


class Mergeable:
    """The part of `NatureLM` that works on adapters."""

    if TYPE_CHECKING:
        config: NatureLMConfig
        llama_model: nn.Module
        fingerprint: str | None

        @property
        def language_model(self) -> PreTrainedModel: ...

    _fold: Fold | None = None
    _attached: tuple[_Attached, ...] = ()

    # -- folded -----------------------------------------------------------------------------

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
        if self._fold is not None:
            raise UsageError(f"the model is folded already ({self._fold}); unfold it first")
        (alpha,) = alpha_per_row(alpha, 1)
        recipe = _loaded(recipe) if recipe is not None else Recipe()
        plan = self.plan(recipe)
        name = "" if recipe == Recipe() else f"with a recipe ({_shown(recipe)})"
        state = fold(self.language_model, plan, alpha=alpha, name=name, originals_on=originals_on)
        before = self.fingerprint

        def on_undo() -> None:
            self._fold, self.fingerprint = None, before

        self._fold, state.on_undo = state, on_undo
        if name and before is not None:
            self.fingerprint = f"{before}+{_digest(recipe, plan)}"
        return state

    def unfold(self) -> None:
        """Put the original weights back, bit for bit; nothing happens if nothing is folded."""
        if self._fold is not None:
            self._fold.undo()

    @property
    def folded(self) -> Fold | None:
        """The state of a folded model; None while adapters act at runtime."""
        return self._fold

    def alphas_for(self, alpha: Alpha | None, rows: int) -> list[float]:
        """α of every row: as asked, else the folded one, else 1; checked against the model."""
        folded = self._fold
        if alpha is None:
            alpha = 1.0 if folded is None else folded.alpha
        alphas = alpha_per_row(alpha, rows)
        if folded is not None:
            folded.check(torch.tensor(alphas, dtype=torch.float64), active_scaling()[1])
        elif not self.config.lora and any(value != 1.0 for value in alphas):
            raise UsageError("this model has no LoRA adapter (it was merged); alpha must be 1")
        return alphas

    # -- adapters ---------------------------------------------------------------------------

    def attach_adapter(self, where: str | Path, name: str | None = None) -> str:
        """Put the adapter of a folder beside the model's own, and return its name.

        It acts only under a recipe that names `where` (or `name`): see `use_recipe`. This changes
        the model's modules, so attach before requests are served, not among them.
        """
        from NatureLM.models.checkpoint.peft_io import open_adapter

        self._refuse_folded("attach an adapter")
        chosen = name or re.sub(r"\W", "_", Path(where).name) or "adapter"
        with _attaching:
            taken = {OWN_ADAPTER, BASE_ADAPTER, *(one.name for one in self._attached)}
            if name is None:
                while chosen in taken:
                    chosen += "_"
            if chosen in taken or not re.fullmatch(r"\w+", chosen):
                raise UsageError(
                    f"an adapter cannot be called {chosen!r}: letters, digits and _ are allowed, "
                    f"and {', '.join(sorted(taken))} are taken"
                )
            source = open_adapter(where, linear_shapes(self.language_model))
            attach(self.llama_model, chosen, source)
            self._attached = (*self._attached, _Attached(chosen, _whole_path(where)))
        return chosen

    def detach_adapter(self, name: str) -> None:
        """Take an attached adapter out; the model is then as before."""
        self._refuse_folded("detach an adapter")
        with _attaching:
            if name not in self.adapters:
                known = ", ".join(self.adapters) or "none"
                raise UsageError(f"no adapter {name!r} is attached (attached: {known})")
            detach(self.llama_model, name)
            self._attached = tuple(one for one in self._attached if one.name != name)

    @property
    def adapters(self) -> list[str]:
        """Names of the attached adapters; the model's own is not among them."""
        return [one.name for one in self._attached]

    def save_adapter(self, folder: str | Path) -> None:
        """Write the model's own adapter in PEFT's format: adapter_config.json and safetensors.

        `peft.PeftModel.from_pretrained(base, folder)` reads it.
        """
        from NatureLM.models.checkpoint.peft_io import write_adapter

        source = self._own_adapter()
        write_adapter(Path(folder), source, linear_shapes(self.language_model), config=self.config)

    # -- recipes ----------------------------------------------------------------------------

    @contextmanager
    def use_recipe(self, recipe: Recipe | str | Path) -> Iterator[AdapterScales]:
        """Within the block, and only in this thread, the adapters act as a recipe says.

        The α of a call multiplies the recipe's. Adapters that it names are attached once and stay
        attached. Raises UsageError for methods that need whole matrices (TIES, DARE).
        """
        profile = self.profile(recipe)
        with active_profile(profile):
            yield profile

    def profile(self, recipe: Recipe | str | Path) -> AdapterScales:
        """A recipe as numbers for this model, for `merging.scaling.active_profile`."""
        self._refuse_folded("use a recipe")
        recipe = _loaded(recipe)
        for adapter in recipe.adapters:
            known = adapter.path == BASE_ADAPTER or self._named(adapter.path) is not None
            if recipe.method == "linear" and not known:
                self.attach_adapter(adapter.path)
        names = [self._named(adapter.path) or OWN_ADAPTER for adapter in recipe.adapters]
        return self.plan(recipe).profile(names)

    def plan(self, recipe: Recipe) -> MergePlan:
        """A recipe with the adapters that it names, for this model; adapters are read lazily."""
        sources = [self._source(adapter.path) for adapter in recipe.adapters]
        return MergePlan(recipe, sources, self.language_model.config.num_hidden_layers)

    def _source(self, path: str) -> AdapterSource:
        from NatureLM.models.checkpoint.peft_io import open_adapter

        if path == BASE_ADAPTER:
            return self._own_adapter()
        name = self._named(path)
        if name is not None:
            return LayersAdapter(self.language_model, name, path)
        return open_adapter(path, linear_shapes(self.language_model))

    def _own_adapter(self) -> LayersAdapter:
        if not self.config.lora:
            raise UsageError("this model has no LoRA adapter (it was merged)")
        return LayersAdapter(self.language_model)

    def _named(self, path: str) -> str | None:
        """The attached adapter that a recipe's path or name means."""
        meant = {path, _whole_path(path)}
        return next((one.name for one in self._attached if meant & {one.path, one.name}), None)

    def _refuse_folded(self, wish: str) -> None:
        if self._fold is not None:
            raise UsageError(
                f"the model is folded ({self._fold}): unfold it (model.unfold()) to {wish}"
            )

    def _check_savable(self) -> None:
        """Only a model that is what its configuration says is written."""
        self._refuse_folded("save it; `naturelm merge` writes a merged model")
        if self._attached:
            raise UsageError(
                f"adapters are attached ({', '.join(self.adapters)}): detach them to save the "
                "model; `naturelm merge --recipe` writes one with adapters combined"
            )


def _loaded(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(recipe)


def _whole_path(where: str | Path) -> str:
    """A folder under one name however it is spelt; a Hub id as it is."""
    return str(Path(where).resolve()) if Path(where).is_dir() else str(where)


def _shown(recipe: Recipe) -> str:
    """A recipe in a few words."""
    words = [recipe.method, f"{len(recipe.adapters)} adapters"] if not recipe.is_own_only else []
    words += [f"{len(recipe.rules)} rules"] if recipe.rules else []
    return ", ".join(words) or "own adapter"


def _digest(recipe: Recipe, plan: MergePlan) -> str:
    """Short name of a recipe and the contents of its adapters, wherever these lie."""

    def contents() -> Iterator[str | bytes]:
        yield dump_recipe(recipe.model_copy(update={"adapters": []}))
        for adapter, source in zip(recipe.adapters, plan.sources, strict=True):
            yield repr(adapter.weight)
            if adapter.path != BASE_ADAPTER:
                for target in sorted(source.targets):
                    update = source.read(target)
                    yield from map(_bytes, (update.a_KI, update.b_OK))
                    yield f"{target} {update.scale!r}"

    return digest(contents(), size=4).hex()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()

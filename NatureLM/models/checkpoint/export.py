"""The model card of a merged model: recipe, and hashes of what it was made from.

A merged model as a plain checkpoint: the adapter in the weights, nothing of PEFT left.

Tensors go from the source files to the new ones one at a time, so memory holds a few of them,
whatever the size of the model. The result appears under its name only when it is whole.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from NatureLM import __version__
from NatureLM.errors import UsageError
from NatureLM.merging.lora import LoraDelta, linear_shapes
from NatureLM.merging.plan import MergePlan, layer_of
from NatureLM.merging.recipe import BASE_ADAPTER, Recipe, dump_recipe
from NatureLM.models.checkpoint.hub import is_hub_id
from NatureLM.models.checkpoint.load import (
    CheckpointReader,
    build_on_meta,
    choose_tensors,
    fit_rows,
    open_checkpoint,
    read_config,
    rename_language_model,
    without_lora,
)
from NatureLM.models.checkpoint.peft_io import (
    WEIGHTS_FILE,
    StoredAdapter,
    adapter_settings,
    open_adapter,
    stored_adapter,
    write_adapter,
)
from NatureLM.models.checkpoint.save import LazyTensor, stream_tensors
from NatureLM.models.checkpoint.tensors import (
    CheckpointError,
    StoredTensor,
    TensorRef,
    base_name,
    slots,
)
from NatureLM.models.modeling import NatureLM
from NatureLM.models.registry import find
from NatureLM.util import digest

_BLOCK = 4 * 2**20


@dataclass(frozen=True)
class SourceFile:
    """A file that a model was made from: whose it is, name, bytes, SHA-256."""

    part: str
    name: str
    size: int
    sha256: str


def hashed(part: str, path: Path) -> SourceFile:
    """Read a whole file for its hash."""
    with path.open("rb") as file:
        whole = digest(iter(lambda: file.read(_BLOCK), b""))
    return SourceFile(part, path.name, path.stat().st_size, whole.hex())


def public_name(where: str | Path) -> str:
    """A folder by its last name, without its place on this machine; a Hub id as it is."""
    return Path(where).name if Path(where).exists() else str(where)


def merged_card(
    title: str,
    source: str,
    recipe: Recipe,
    plan: MergePlan,
    files: Sequence[SourceFile],
    adapter: str | None = None,
) -> str:
    """The text of the card; `adapter` is the name of the one that stood for the model's own."""
    entry = find(source)
    license_line = entry.license if entry is not None else f"that of `{source}`"
    parts = [
        "---\nlibrary_name: naturelm-audio\ntags:\n- bioacoustics\n- merge\n---",
        f"# {title}",
        f"Made with `naturelm merge`, naturelm-audio {__version__}, from `{source}`"
        + (f" with the adapter `{adapter}` in place of its own" if adapter else "")
        + ": the adapter is written into the weights of the language model, so that it loads "
        "without PEFT and answers as the unmerged model does at this recipe. Its α is fixed.",
        'Use it with `naturelm infer --model <this folder> --audio-path <recordings> --query "…"` '
        "or `NatureLM.from_pretrained(<this folder>)`.",
        "## Recipe",
        f"```yaml\n{_anonymous(recipe).strip()}\n```",
        _strengths(plan),
        "## Made from",
        "| of | file | bytes | SHA-256 |\n|---|---|---:|---|\n"
        + "\n".join(f"| {f.part} | `{f.name}` | {f.size} | `{f.sha256}` |" for f in files),
        "## License",
        f"License: {license_line}; those of the base language model and of all adapters apply, "
        "too.",
    ]
    return "\n\n".join(parts) + "\n"


def _anonymous(recipe: Recipe) -> str:
    """The recipe as YAML, with the names of the adapters' folders in place of their paths."""
    adapters = [one.model_copy(update={"path": public_name(one.path)}) for one in recipe.adapters]
    return dump_recipe(recipe.model_copy(update={"adapters": adapters}))


def _strengths(plan: MergePlan) -> str:
    """What the recipe comes to: one α, or a table over the layers."""
    values = set(plan.alphas.values())
    if len(values) == 1:
        return f"α = {values.pop():g} in all {len(plan.alphas)} changed matrices."
    kinds = sorted({target.rpartition(".")[2] for target in plan.alphas})
    rows: dict[int | None, dict[str, float]] = {}
    for target, alpha in plan.alphas.items():
        rows.setdefault(layer_of(target), {})[target.rpartition(".")[2]] = alpha
    lines = [f"| layer | {' | '.join(kinds)} |", "|---:" * (len(kinds) + 1) + "|"]
    for layer in sorted(rows, key=lambda one: -1 if one is None else one):
        shown = [f"{rows[layer][kind]:.4g}" if kind in rows[layer] else "" for kind in kinds]
        lines.append(f"| {'' if layer is None else layer} | {' | '.join(shown)} |")
    return "\n".join(["α by layer and module:", "", *lines])


_CPU = torch.device("cpu")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Merged:
    """What was written: the folder, its bytes of weights, and the layers that were changed."""

    folder: Path
    weight_bytes: int
    changed: int


def export_merged(
    path_or_id: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    adapter: str | Path | None = None,
    llama_path: str | Path | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "5GB",
    overwrite: bool = False,
    report: Report | None = None,
) -> Merged:
    """Write a model with a recipe merged into it as a plain checkpoint that needs no PEFT.

    path_or_id: a checkpoint of any layout; its base is found as by `NatureLM.from_pretrained`
    adapter: a folder whose adapter stands for the model's own
    dtype: of all weights; by default each tensor keeps the one it is stored in
    overwrite: replace a model that stands in `output`; other folders are never touched
    report: takes a line for each file

    Raises UsageError for an output that cannot be written, CheckpointError for sources that do not
    fit. A run that is broken off leaves nothing behind.
    """
    say = report or (lambda line: None)
    opened = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    target = _check_output(Path(output), overwrite, sources=(opened.checkpoint, opened.base))
    model = build_on_meta(without_lora(opened.config), opened.tokenizer)
    linears = linear_shapes(model.language_model)
    sources = _sources(recipe, opened, adapter, linears)
    plan = MergePlan(recipe, sources, model.language_model.config.num_hidden_layers)
    model_slots = slots(model)
    chosen = choose_tensors(opened, model_slots, rename_language_model(opened.stored, model_slots))
    planned = {
        slot.stored_name: _planned(slot, chosen[slot.stored_name], plan, dtype)
        for slot in model_slots
        if slot.stored_name in chosen
    }
    size = sum(one.size for one in planned.values())
    _check_space(target.parent, size)
    files = _hash_sources(opened, chosen, sources, say)
    with _built_aside(target) as folder:
        stream_tensors(
            planned,
            folder,
            max_shard_size=max_shard_size,
            on_file=lambda name, length: say(f"writing {name} ({_bytes(length)})"),
        )
        _write_settings(model, opened, folder)
        card = merged_card(
            *(target.name, public_name(path_or_id), recipe, plan, files),
            adapter=public_name(adapter) if adapter is not None else None,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    changed = sum(plan.changes(name) for name in plan.alphas)
    return Merged(target, size, changed)


def export_adapter(
    path_or_id: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    adapter: str | Path | None = None,
    llama_path: str | Path | None = None,
    revision: str | None = None,
) -> Merged:
    """Write what a linear recipe adds to the base as one adapter in PEFT's format.

    Ranks are put beside each other, so that nothing is lost: loaded with α = 1 it is the recipe.
    Raises UsageError for methods whose result has no low rank, and for a folder in use.
    """
    if recipe.method != "linear":
        raise UsageError(
            f"method {recipe.method} works on whole weight matrices, and its result fits no "
            "adapter; write a merged model instead"
        )
    target = Path(output)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise UsageError(f"{output} is there and not empty; name another folder")
    opened = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    model = build_on_meta(without_lora(opened.config), None)
    linears = linear_shapes(model.language_model)
    sources = _sources(recipe, opened, adapter, linears)
    plan = MergePlan(recipe, sources, model.language_model.config.num_hidden_layers)
    config = copy.deepcopy(opened.config)
    config.use_rslora, config.lora_dropout = False, 0.0
    write_adapter(target, _Combined(plan), linears, config=config)
    size = (target / WEIGHTS_FILE).stat().st_size
    return Merged(target, size, len(plan.alphas))


@dataclass(frozen=True)
class _Combined:
    """All that a plan adds, as one adapter."""

    plan: MergePlan
    label: str = "combined"

    @property
    def targets(self) -> Collection[str]:
        return self.plan.alphas.keys()

    def read(self, target: str) -> LoraDelta:
        return self.plan.combined(target)


def _sources(
    recipe: Recipe,
    opened: CheckpointReader,
    adapter: str | Path | None,
    linears: dict[str, tuple[int, int]],
) -> list[StoredAdapter]:
    """The adapters of a recipe; that of another folder stands for the model's own if asked."""

    def source(path: str) -> StoredAdapter:
        if path != BASE_ADAPTER:
            return open_adapter(path, linears)
        if adapter is not None:
            return open_adapter(adapter, linears)
        own = [tensor for name, tensor in opened.stored.items() if ".lora_" in name]
        if not own:
            raise UsageError(
                f"{opened.checkpoint} has no adapter of its own (it was merged), so there is "
                "nothing to merge; name one with --adapter or in a recipe"
            )
        return stored_adapter(BASE_ADAPTER, own, adapter_settings(opened.config), linears)

    return [source(one.path) for one in recipe.adapters]


def _planned(
    slot: TensorRef, stored: StoredTensor, plan: MergePlan, dtype: torch.dtype | None
) -> LazyTensor:
    """How one tensor of the merged model is made from the stored one."""
    kind = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype
    modules = {(base_name(name) or "").removesuffix(".weight") for name in slot.names}
    target = next((name for name in modules if name in plan.alphas), None)
    if target is not None and len(modules) > 1:
        raise UsageError(
            f"{target} shares its weights with {', '.join(sorted(modules - {target}))}, so an "
            "adapter of it alone cannot be merged into them"
        )

    def make() -> Tensor:
        if target is None or not plan.changes(target):
            return fit_rows(stored.read(kind, _CPU), slot.shape)
        # merged in the more exact of both dtypes, so that a cast comes last
        exact = torch.promote_types(kind, stored.dtype)
        return plan.merged(target, fit_rows(stored.read(exact, _CPU), slot.shape)).to(kind)

    return LazyTensor(kind, slot.shape, make)


def _write_settings(model: NatureLM, opened: CheckpointReader, folder: Path) -> None:
    """Configuration, generation settings and tokenizer."""
    config = model.config
    config.architectures = [type(model).__name__]
    if config.llama_path and not is_hub_id(config.llama_path):
        config.llama_path = None  # a folder here, which nobody needs any more
    config.save_pretrained(folder)
    generation = model.language_model.generation_config
    if (opened.base / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(opened.base)
    if generation is not None:
        generation.save_pretrained(folder)
    assert model.processor is not None
    model.processor.save_pretrained(folder)


def _hash_sources(
    opened: CheckpointReader,
    chosen: dict[str, StoredTensor],
    sources: list[StoredAdapter],
    say: Report,
) -> list[SourceFile]:
    """Every file that the merged model is made from, with its hash."""
    parts: list[tuple[str, Path]] = [("model", opened.checkpoint / "config.json")]
    used = {tensor.path for tensor in chosen.values()}
    used |= {tensor.path for name, tensor in opened.stored.items() if ".lora_" in name}
    for path in sorted(used):
        parts.append(("model" if path.parent == opened.checkpoint else "base", path))
    for source in sources:
        parts += [(f"adapter {public_name(source.label)}", path) for path in source.files]
    size = sum(path.stat().st_size for _, path in parts)
    say(f"hashing {len(parts)} source files ({_bytes(size)})")
    return [hashed(part, path) for part, path in dict.fromkeys(parts)]


# -- the output folder ----------------------------------------------------------------------


def _check_output(output: Path, overwrite: bool, *, sources: tuple[Path, ...]) -> Path:
    """Where to write; refuses what would destroy something."""
    target = output.resolve()
    if target.is_file():
        raise UsageError(f"{output} is a file; name a folder to write the merged model to")
    for source in sources:
        if target == source.resolve() or target in source.resolve().parents:
            raise UsageError(
                f"{output} holds the model that is merged ({source}); name another folder"
            )
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise UsageError(
                f"{output} is not empty; name another folder, or replace the model in it with "
                "--overwrite"
            )
        try:
            read_config(target)
        except CheckpointError as error:
            raise UsageError(
                f"--overwrite replaces a model only, and {output} holds something else: {error}"
            ) from None
    return target


def _check_space(folder: Path, needed: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"the merged model takes {_bytes(needed)}, and {folder} has only {_bytes(free)} free"
        )


@contextmanager
def _built_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well, else goes."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        if target.exists():
            old = aside.with_name(f"{aside.name}.old")
            target.rename(old)
            try:
                aside.rename(target)
            except OSError:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            aside.rename(target)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"{target} could not be written: {error}") from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"

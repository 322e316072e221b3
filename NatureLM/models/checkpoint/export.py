"""Models made of others: with the adapter in the weights, nothing of PEFT left; with weights of 8
or 4 bits; or as safetensors of a training checkpoint of the reference (`.pth`, a pickle).

Tensors go from the source files to the new ones one at a time. The result appears under its name
only when it is whole, with a model card; of a merged one it holds the recipe and hashes of all that
it was made from.
"""

from __future__ import annotations

import copy
import json
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from NatureLM import __version__
from NatureLM.config import load_config
from NatureLM.errors import UsageError
from NatureLM.merging.lora import linear_shapes
from NatureLM.merging.plan import MergePlan, layer_of
from NatureLM.merging.recipe import BASE_ADAPTER, Recipe, dump_recipe
from NatureLM.models.checkpoint.load import (
    CheckpointReader,
    build_on_meta,
    check_weights,
    choose_tensors,
    commits,
    fit_rows,
    open_checkpoint,
    without_lora,
)
from NatureLM.models.checkpoint.peft_io import (
    StoredAdapter,
    adapter_settings,
    open_adapter,
    stored_adapter,
    write_adapter,
)
from NatureLM.models.checkpoint.tensors import (
    LazyTensor,
    StoredTensor,
    TensorRef,
    tensor_refs,
    write_tensors,
)
from NatureLM.models.modeling import NatureLM
from NatureLM.models.quantized import (
    QUANTIZERS,
    QuantizedLinear,
    check_quantization,
    quantize_layers,
)
from NatureLM.models.registry import (
    PICKLE_SUFFIXES,
    CheckpointError,
    find,
    first_line,
    is_hub_id,
    named,
    one_line,
    pickle_refusal,
    read_config,
    read_json,
)
from NatureLM.util import file_sha256, format_bytes, shown, write_text, writing

_CPU = torch.device("cpu")
_SCALES = torch.bfloat16  # holds them exactly


def export_merged(
    path_or_id: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    adapter: str | Path | None = None,
    llama_path: str | Path | None = None,
    revision: str | None = None,
    weights_hash: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "5GB",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> int:
    """Write a model with a recipe merged into it as a plain checkpoint that needs no PEFT.

    path_or_id: a checkpoint of any layout; its base is found as by `NatureLM.from_pretrained`
    adapter: a folder whose adapter stands for the model's own
    revision, weights_hash: see `NatureLM.from_pretrained`; of the model without `adapter`
    dtype: of all weights; by default each tensor keeps the one it is stored in
    overwrite: replace a model that stands in `output`; other folders are never touched
    report: takes a line for each file

    Returns how many matrices the recipe changes. Raises UsageError for an output that cannot be
    written, CheckpointError for sources that do not fit. A run that is broken off leaves nothing
    behind.
    """
    reader = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    target = check_output(Path(output), overwrite, sources=(reader.checkpoint, reader.base))
    model, adapters, plan = plan_merge(reader, recipe, adapter)
    refs = tensor_refs(model)
    chosen = choose_plain(reader, refs, weights_hash)
    tensors = {
        ref.stored_name: lazy_tensor(ref, chosen[ref.stored_name], plan, dtype)
        for ref in refs
        if ref.stored_name in chosen
    }
    check_space(target.parent, sum(one.nbytes for one in tensors.values()))
    files = _source_files(reader, chosen, adapters)
    source_size = sum(path.stat().st_size for _, path in files)
    report(f"hashing {len(files)} source files ({format_bytes(source_size)})")
    source, lines = public_name(named(path_or_id, revision)), commit_lines(reader, adapters)
    card = _card(target.name, source, recipe, plan, files, adapter, lines)
    write_model(target, model, reader, tensors, card, max_shard_size, report)
    return sum(plan.changes(name) for name in plan.alphas)


def write_model(
    target: Path,
    model: NatureLM,
    reader: CheckpointReader,
    tensors: Mapping[str, Any],
    card: str,
    max_shard_size: str | int,
    report: Callable[[str], None],
) -> None:
    """Write tensors and settings of a model that was read from elsewhere; whole or not at all."""
    with built_aside(target) as folder:
        write_tensors(tensors, folder, max_shard_size=max_shard_size, report=report)
        if model.config.llama_path and not is_hub_id(model.config.llama_path):
            model.config.llama_path = None  # a folder here, which nobody needs any more
        if generation := reader.generation_config:
            model.language_model.generation_config = generation
        model.save_settings(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


def export_adapter(
    path_or_id: str | Path,
    output: str | Path,
    recipe: Recipe,
    *,
    adapter: str | Path | None = None,
    llama_path: str | Path | None = None,
    revision: str | None = None,
    weights_hash: str | None = None,
) -> None:
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
    reader = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    model, adapters, plan = plan_merge(reader, recipe, adapter)
    if weights_hash is not None:
        choose_plain(reader, tensor_refs(model), weights_hash)
    config = copy.deepcopy(reader.config)
    config.use_rslora, config.lora_dropout = False, 0.0
    deltas = {name: plan.combined(name) for name in plan.alphas}
    write_adapter(target, deltas, linear_shapes(model.language_model), config=config)
    source = public_name(named(path_or_id, revision))
    card = card_text(
        target.name,
        f"Made with `naturelm merge --as-adapter`, naturelm-audio {__version__}, of `{source}`.",
        *commit_lines(reader, adapters),
        f"## Recipe\n\n{_recipe_block(recipe)}",
        library="peft",
    )
    write_text(target / "README.md", card)


def commit_lines(reader: CheckpointReader, adapters: Iterable[StoredAdapter] = ()) -> list[str]:
    """A line of a card for each part that came from the Hub, with the commit that it had."""
    names = {"revision": "the model", "base_revision": "its base"}
    found = {names[key]: commit for key, commit in reader.revisions.items()}
    folders = {one.label: one.files[0].parent for one in adapters if one.files}
    found |= {f"the adapter {name}": commit for name, commit in commits(folders).items()}
    return [f"Commit of {name}: `{commit}`." for name, commit in found.items()]


def choose_plain(
    reader: CheckpointReader, refs: Sequence[TensorRef], weights_hash: str | None
) -> dict[str, StoredTensor]:
    """The tensors of the model without LoRA; `weights_hash` is what all it has must be."""
    if reader.config.quantized is not None:
        raise UsageError(
            f"the weights of {reader.checkpoint} are {reader.config.quantized}, and what is merged "
            "into them would be rounded away; name the model that they were quantised from, and "
            "quantise what is made of it"
        )
    lora = {name: one for name, one in reader.stored.items() if ".lora_" in name}
    plain = {name: one for name, one in reader.stored.items() if name not in lora}
    chosen = choose_tensors(reader, refs, plain)
    if weights_hash is not None:
        used = {one.path for one in (*chosen.values(), *lora.values())}
        check_weights([reader.checkpoint / "config.json", *used], weights_hash, reader.checkpoint)
    return chosen


def plan_merge(
    reader: CheckpointReader, recipe: Recipe, adapter: str | Path | None
) -> tuple[NatureLM, list[StoredAdapter], MergePlan]:
    """The model without LoRA (no storage), the adapters of the recipe, and how they are merged.

    The adapter of another folder stands for the model's own if asked.
    """
    model = build_on_meta(NatureLM, without_lora(reader.config), reader.tokenizer)
    linears = linear_shapes(model.language_model)

    def opened(path: str) -> StoredAdapter:
        found = adapter_of(reader, adapter if path == BASE_ADAPTER else path, linears)
        if found is None:
            raise UsageError(
                f"{reader.checkpoint} has no adapter of its own (it was merged), so there is "
                "nothing to merge; name one with --adapter or in a recipe"
            )
        return found

    adapters = [opened(one.path) for one in recipe.adapters]
    layers = model.language_model.config.num_hidden_layers
    return model, adapters, MergePlan(recipe, [one.deltas for one in adapters], layers)


def adapter_of(
    reader: CheckpointReader, path: str | Path | None, linears: Mapping[str, tuple[int, int]]
) -> StoredAdapter | None:
    """The adapter that is named, else the checkpoint's own; None without any."""
    if path is not None:
        return open_adapter(path, linears)
    own = [tensor for name, tensor in reader.stored.items() if ".lora_" in name]
    if not own:
        return None
    return stored_adapter(BASE_ADAPTER, own, adapter_settings(reader.config.to_dict()), linears)


def plain_tensor(ref: TensorRef, stored: StoredTensor, dtype: torch.dtype | None) -> LazyTensor:
    """One tensor of a model as it is stored, in `dtype` if that is named and it is no integer."""
    kind = dtype if dtype is not None and stored.dtype.is_floating_point else stored.dtype
    return LazyTensor(kind, ref.shape, lambda: fit_rows(stored.read(kind, _CPU), ref.shape))


def lazy_tensor(
    ref: TensorRef, stored: StoredTensor, plan: MergePlan, dtype: torch.dtype | None
) -> LazyTensor:
    """How one tensor of the merged model is made from the stored one."""
    plain = plain_tensor(ref, stored, dtype)
    kind = plain.dtype
    modules = {name.removesuffix(".weight") for name in ref.base_names}
    target = next((name for name in modules if name in plan.alphas), None)
    if target is not None and len(modules) > 1:
        raise UsageError(
            f"{target} shares its weights with {', '.join(sorted(modules - {target}))}, so an "
            "adapter of it alone cannot be merged into them"
        )

    if target is None or not plan.changes(target):
        return plain

    def make() -> Tensor:
        # merged in the more exact of both dtypes, so that a cast comes last
        exact = torch.promote_types(kind, stored.dtype)
        return plan.merged(target, fit_rows(stored.read(exact, _CPU), ref.shape)).to(kind)

    return LazyTensor(kind, ref.shape, make)


# -- quantised ------------------------------------------------------------------------------


def quantize_checkpoint(
    path_or_id: str | Path,
    output: str | Path,
    kind: str,
    *,
    llama_path: str | Path | None = None,
    revision: str | None = None,
    weights_hash: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: str | int = "2GB",
    overwrite: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write a model with the weights of its language model as integers of 8 or 4 bits.

    All but the rounded matrices, the adapter among them, is as it was.

    kind: int8 or int4
    dtype: of all other weights; by default each keeps the one it is stored in
    path_or_id, llama_path, revision, weights_hash, overwrite, report: see `export_merged`

    Raises UsageError for an output that cannot be written and a model that is quantised already,
    CheckpointError for sources that do not fit. A run that is broken off leaves nothing behind.
    """
    chosen_kind = check_quantization(kind)
    reader = open_checkpoint(path_or_id, llama_path=llama_path, revision=revision)
    if reader.config.quantized is not None:
        raise UsageError(
            f"the weights of {path_or_id} are {reader.config.quantized} already; name the model "
            "that they were quantised from"
        )
    target = check_output(Path(output), overwrite, sources=(reader.checkpoint, reader.base))
    model = build_on_meta(NatureLM, reader.config, reader.tokenizer, reader.most_modules)
    chosen = choose_tensors(reader, tensor_refs(model), reader.stored)
    files = {tensor.path for tensor in chosen.values()}
    check_weights([reader.checkpoint / "config.json", *files], weights_hash, reader.checkpoint)
    quantize_layers(model.language_model, chosen_kind)
    model.config.quantized = chosen_kind
    tensors = _quantized_tensors(tensor_refs(model), chosen, dtype)
    check_space(target.parent, sum(one.nbytes for one in tensors.values()))
    source = public_name(named(path_or_id, revision))
    card = _quantized_card(target.name, source, chosen_kind, commit_lines(reader))
    write_model(target, model, reader, tensors, card, max_shard_size, report)


def _quantized_tensors(
    refs: Sequence[TensorRef], chosen: Mapping[str, StoredTensor], dtype: torch.dtype | None
) -> dict[str, LazyTensor]:
    """How each tensor of the quantised model is made from the stored ones."""
    tensors: dict[str, LazyTensor] = {}
    rounded: dict[int, _Rounded] = {}
    for ref in refs:
        layer, attribute = ref.holders[0]
        if isinstance(layer, QuantizedLinear) and attribute != "bias":
            one = rounded.setdefault(id(layer), _Rounded(layer))
            if attribute == "weight":
                one.source = chosen[ref.stored_name]
            kind = ref.tensor.dtype if attribute == "weight" else _SCALES
            tensors[ref.stored_name] = LazyTensor(kind, ref.shape, one.maker(attribute))
        elif ref.stored_name in chosen:
            tensors[ref.stored_name] = plain_tensor(ref, chosen[ref.stored_name], dtype)
    return tensors


class _Rounded:
    """The two tensors of a layer, made together when the first of them is written."""

    source: StoredTensor

    def __init__(self, layer: QuantizedLinear) -> None:
        self._layer = layer
        self._made: dict[str, Tensor] = {}

    def maker(self, attribute: str) -> Callable[[], Tensor]:
        """Makes one of them; it is not kept."""

        def make() -> Tensor:
            if attribute not in self._made:
                layer = self._layer
                matrix = self.source.read(self.source.dtype, _CPU)
                matrix = fit_rows(matrix, (layer.out_features, layer.in_features))
                weight, scale = QUANTIZERS[layer.kind](matrix)
                self._made = {"weight": weight, layer.scale_name: scale.to(_SCALES)}
            return self._made.pop(attribute)

        return make


def _quantized_card(title: str, source: str, kind: str, commits: Sequence[str]) -> str:
    """The text of the model card; it names no place on this machine."""
    return card_text(
        title,
        f"Made with `naturelm quantize --to {kind}`, naturelm-audio {__version__}, from "
        f"`{source}`: the linear layers of the language model have weights of {kind[3:]} bits. "
        "The audio encoder, the embeddings and the adapter are as they were, and α works as "
        "before. Answers and confidences differ a little from those of the original.",
        HOW_TO_USE,
        *commits,
        f"License: {license_of(source)}; that of the base language model applies, too.",
        tags=("quantized",),
    )


# -- from pickles, on request only -----------------------------------------------------------


def convert_checkpoint(
    source: Path, output: Path, *, allow_pickle: bool = False, config: Path | None = None
) -> list[str]:
    """Write the tensors of a pickled training checkpoint to `output/model.safetensors`.

    The checkpoint holds the tensors under `model` (or is the mapping itself), named as the
    published ones; optimiser state is left behind. PyTorch's restricted reader is used, which
    builds tensors and plain containers only. `config` holds the sizes: a config.json of constructor
    arguments or a YAML file with a `model` section. Without it a config.json beside `source` is
    taken, else the published settings, which loading then checks against the tensors' shapes.
    Returns the stored names.
    """
    source, output = Path(source), Path(output)
    if not source.is_file():
        raise CheckpointError(f"{source} is not a file; give the .pth or .pt checkpoint itself")
    if source.suffix.lower() not in PICKLE_SUFFIXES:
        raise CheckpointError(
            f"{source} is no pickle checkpoint (one of {', '.join(PICKLE_SUFFIXES)})"
        )
    if not allow_pickle:
        raise CheckpointError(pickle_refusal(source))
    tensors = _unpickled_tensors(_read_pickle(source), source)
    settings = _settings_beside(config, source)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        write_tensors(tensors, output)
        (output / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return sorted(tensors)


_PICKLE_BYTES = 16 << 20  # of what is no tensor; that of the published checkpoint has 200 kB


def _read_pickle(source: Path) -> Any:
    _check_archive(source)
    try:
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the old, unzipped format cannot be mapped
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint ends in any way
        raise CheckpointError(
            f"{source} cannot be read as tensors and plain containers ({first_line(error)}); files "
            "that hold other objects are not opened"
        ) from None


def _check_archive(source: Path) -> None:
    """Refuse compressed parts, which may be a thousand times as long, and a long pickle."""
    members = []
    try:
        if zipfile.is_zipfile(source):  # before PyTorch 1.6 there was none
            with zipfile.ZipFile(source) as archive:
                members = archive.infolist()
    except Exception as error:
        raise CheckpointError(f"{source} cannot be read: {one_line(error)}") from None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{source}: {member.filename} is compressed, as PyTorch has none")
        if member.filename.endswith(".pkl") and member.file_size > _PICKLE_BYTES:
            raise CheckpointError(
                f"{source}: {member.filename} has {format_bytes(member.file_size)} beside the "
                f"tensors, and at most {format_bytes(_PICKLE_BYTES)} are read"
            )


def _unpickled_tensors(loaded: Any, source: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each shared one once, under the first of its names."""
    model = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(model, Mapping):
        raise CheckpointError(f"{source} holds no mapping of tensors, nor one under 'model'")
    tensors = {
        str(name).removeprefix("module."): value
        for name, value in model.items()
        if isinstance(value, Tensor)
    }
    for name, value in tensors.items():
        if not (value.layout == torch.strided and value.device.type == "cpu"):
            raise CheckpointError(f"{source}: tensor {shown(name)} has no plain numbers")
        if value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{source}: tensor {shown(name)} is of shape {tuple(value.shape)}, which is more "
                "than the file holds"
            )
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors under 'model'")
    kept: dict[tuple[int, torch.Size], str] = {}
    for name in sorted(tensors):
        kept.setdefault((tensors[name].data_ptr(), tensors[name].shape), name)
    size, room = sum(tensors[name].nbytes for name in kept.values()), source.stat().st_size
    if size > 2 * room:  # parts of one another may be tied
        raise CheckpointError(
            f"{source}: its tensors would take {format_bytes(size)}, and the file has "
            f"{format_bytes(room)}"
        )
    return {name: tensors[name] for name in kept.values()}


def _settings_beside(config: Path | None, source: Path) -> dict[str, Any]:
    """Constructor arguments to put beside the weights."""
    beside = source.parent / "config.json"
    path = config if config is not None else (beside if beside.is_file() else None)
    if path is None or path.suffix.lower() in (".yml", ".yaml"):
        return load_config(path).model.model_dump(mode="json", exclude_none=True)
    return read_json(path)


# -- the model card -------------------------------------------------------------------------


def _card(
    title: str,
    source: str,
    recipe: Recipe,
    plan: MergePlan,
    files: Iterable[tuple[str, Path]],
    adapter: str | Path | None,
    lines: Sequence[str],
) -> str:
    """The text of the card; `adapter` is the folder of the one that stood for the model's own.

    It names no place on this machine.
    """
    instead = f" with the adapter `{public_name(adapter)}` in place of its own" if adapter else ""
    return card_text(
        title,
        f"Made with `naturelm merge`, naturelm-audio {__version__}, from `{source}`{instead}"
        ": the adapter is written into the weights of the language model, so that it loads "
        "without PEFT and answers as the unmerged model does at this recipe. Its α is fixed.",
        HOW_TO_USE,
        "## Recipe",
        _recipe_block(recipe),
        _alphas(plan),
        "## Made from",
        *lines,
        "| of | file | bytes | SHA-256 |\n|---|---|---:|---|\n"
        + "\n".join(
            f"| {part} | `{path.name}` | {path.stat().st_size} | `{file_sha256(path)}` |"
            for part, path in files
        ),
        "## License",
        f"License: {license_of(source)}; those of the base language model and of all adapters "
        "apply, too.",
        tags=("merge",),
    )


HOW_TO_USE = (
    'Use it with `naturelm infer --model <this folder> --audio-path <recordings> --query "…"` '
    "or `NatureLM.from_pretrained(<this folder>)`."
)


def card_text(
    title: str, *parts: str, tags: Sequence[str] = (), library: str = "naturelm-audio"
) -> str:
    """A model card of a title and parts, with what the Hub reads in front."""
    lines = ["---", f"library_name: {library}", "tags:"]
    lines += [*(f"- {tag}" for tag in ("bioacoustics", *tags)), "---"]
    return "\n\n".join(["\n".join(lines), f"# {title}", *parts]) + "\n"


def license_of(source: str) -> str:
    """The licence of a model by its public name, in words."""
    entry = find(source)
    return entry.license if entry is not None else f"that of `{source}`"


def _recipe_block(recipe: Recipe) -> str:
    """The recipe with adapters by their last names."""
    used = [one.model_copy(update={"path": public_name(one.path)}) for one in recipe.adapters]
    anonymous = recipe.model_copy(update={"adapters": used})
    return f"```yaml\n{dump_recipe(anonymous).strip()}\n```"


def public_name(path_or_id: str | Path) -> str:
    """A folder by its last name, without its place on this machine; a Hub id as it is."""
    return Path(path_or_id).name if Path(path_or_id).exists() else str(path_or_id)


def _source_files(
    reader: CheckpointReader, chosen: Mapping[str, StoredTensor], adapters: list[StoredAdapter]
) -> list[tuple[str, Path]]:
    """Every file that the merged model is made from, after the part that it gives."""
    files = [("model", reader.checkpoint / "config.json")]
    used = {tensor.path for tensor in chosen.values()}
    used |= {tensor.path for name, tensor in reader.stored.items() if ".lora_" in name}
    for path in sorted(used):
        files.append(("model" if path.parent == reader.checkpoint else "base", path))
    for adapter in adapters:
        files += [(f"adapter {public_name(adapter.label)}", path) for path in adapter.files]
    return list(dict.fromkeys(files))


def _alphas(plan: MergePlan) -> str:
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


# -- the output folder ----------------------------------------------------------------------


def check_output(output: Path, overwrite: bool, *, sources: tuple[Path, ...]) -> Path:
    """Where to write; refuses what would destroy something."""
    target = output.resolve()
    if target.is_file():
        raise UsageError(f"{output} is a file; name a folder to write the model to")
    for source in sources:
        if target == source.resolve() or target in source.resolve().parents:
            raise UsageError(
                f"{output} holds the model that it is made from ({source}); name another folder"
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


def check_space(folder: Path, needed: int) -> None:
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UsageError(
            f"the model takes {format_bytes(needed)}, and {folder} has only "
            f"{format_bytes(free)} free"
        )


@contextmanager
def built_aside(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well, else goes."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        aside.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None
    try:
        yield aside
        old = aside.with_name(f"{aside.name}.old")
        if target.exists():
            target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise CheckpointError(f"{target} could not be written: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)

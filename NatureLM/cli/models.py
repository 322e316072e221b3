"""What there is (`naturelm models`, `cache`, `schema`), and checkpoints that are made of others
(`convert`, `merge`)."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import show
from NatureLM.util import check_place, format_bytes

_CHECK = "Does it fit"


def models(
    action: str = of.argument("list", "What to do.", "list|get"),
    name: str | None = of.argument(None, "Model to get.", "NAME"),
    check: str | None = of.option(
        None,
        "Say of a model, before it is loaded, in which precision it fits this device.",
        _CHECK,
        metavar="NAME",
    ),
    device: str = of.but(of.DEVICE, rich_help_panel=_CHECK),
    rows: int = of.option(
        2, "Rows decoded at once; a window has two (beams).", _CHECK, min=1, max=of.MAX_BATCH
    ),
    tokens: int = of.option(10, "Tokens of an answer.", _CHECK, min=1, max=100_000),
    revision: str | None = of.REVISION,
    llama_path: str | None = of.but(of.LLAMA_PATH, rich_help_panel=_CHECK),
    as_json: bool = of.option(False, "JSON in place of a table.", None, "--json"),
) -> None:
    """List the models that can be named, get what one of them needs that is not on this machine, or
    say whether it fits.

    naturelm models get naturelm-small
    naturelm models --check naturelm-tiny
    """
    of.check_choice("ACTION", action, ("list", "get"))
    if action == "get":
        _get(name)
        return
    if name is not None:
        raise UsageError(f"a list names no model ({name!r}); to get it: naturelm models get {name}")
    if check is not None:
        of.check_device(device, "auto")
        _check(check, device, rows, tokens, revision, llama_path, as_json)
        return
    from NatureLM.models.registry import MODELS

    rows_of_table = [
        [
            entry.name,
            "yes" if entry.is_here else "no",
            entry.parameters,
            _size(entry.size_bytes),
            entry.license,
            entry.description,
        ]
        for entry in MODELS
    ]
    columns = ["name", "on this machine", "parameters", "size", "license", "description"]
    if as_json:
        show(json.dumps([dict(zip(columns, row, strict=True)) for row in rows_of_table], indent=2))
        return
    of.print_table(columns, rows_of_table, right={"size"})
    show(
        "\n--model takes one of these names, an id on the Hugging Face Hub (owner/name), "
        "or a folder."
    )


def _check(
    name: str,
    device: str,
    rows: int,
    tokens: int,
    revision: str | None,
    llama_path: str | None,
    as_json: bool,
) -> None:
    """The table of a model's precisions on a device; a few seconds of measuring each that fits."""
    of.import_model()
    from NatureLM.inference.loading import pick_device
    from NatureLM.memory import free_memory
    from NatureLM.models.checkpoint.load import open_checkpoint, outline_of
    from NatureLM.models.modeling import NatureLM
    from NatureLM.models.speed import check_table

    reader = open_checkpoint(name, llama_path=llama_path, revision=revision)
    outline, _ = outline_of(NatureLM, reader)
    on = pick_device(device)
    free = free_memory(on)
    found = check_table(outline, on, free, rows=rows, tokens=tokens)
    if as_json:
        facts = {"model": name, "device": on, "free_bytes": free.bytes, "bound": free.what}
        show(json.dumps(facts | {"precisions": found}, indent=2, ensure_ascii=False))
        return
    table = [
        [
            one["precision"],
            format_bytes(one["weights_bytes"]),
            format_bytes(one["bytes"]),
            "yes" if one["fits"] else "no",
            "-" if one["seconds_per_window"] is None else f"{one['seconds_per_window']:.3g} s",
            one["option"],
        ]
        for one in found
    ]
    columns = ["precision", "weights", "needs", "fits", "a window", "option"]
    of.print_table(columns, table, right={"weights", "needs", "a window"})
    show(
        f"\n{name} on {on}: {format_bytes(free.bytes)} of {free.what} are free. A window of "
        f"{outline.model.config.window_seconds:g} s, with an answer of {tokens} tokens."
    )


def _get(name: str | None) -> None:
    from NatureLM.models.registry import MODELS, fetch_base, find, find_checkpoint

    with_base = [entry.name for entry in MODELS if entry.base is not None]
    if name is None:
        raise UsageError(f"name the model to get, such as naturelm models get {with_base[0]}")
    entry = find(name)
    if entry is None:
        known = ", ".join(entry.name for entry in MODELS)
        raise UsageError(f"no model {name!r} can be got by name; there are {known}")
    if entry.base is None:
        show(f"{name} is in {find_checkpoint(name)}")
        return
    where = "is here now" if fetch_base(entry.base) else "was here already"
    show(
        f"{entry.base.repository} {where}, with the right hash: {entry.base.path}\n"
        f"Use it with: naturelm infer --model {name}"
    )


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def cache(
    action: str = of.argument("info", "What to do.", "info|clear"),
    cache_dir: Path | None = of.option(
        None, "Folder of the cache.", show_default="the environment variable NATURELM_CACHE"
    ),
) -> None:
    """Show or clear the audio embeddings that are kept on disk.

    With NATURELM_CACHE set to a folder, sound that was heard once is not encoded again: neither by
    another command, nor at another α, nor with another language model behind the same audio
    encoder. At most 8 GB are kept; what was not used for longest leaves first.

    NATURELM_CACHE=~/.cache/naturelm beans --cfg-path configs/cbi.yml
    """
    from NatureLM.generation.audio_cache import EmbeddingFiles, cache_folder

    if action not in ("info", "clear"):
        raise UsageError(f"naturelm cache {action}: it must be info or clear")
    folder = cache_folder(cache_dir)
    if folder is None:
        show("Nothing is kept on disk: NATURELM_CACHE is not set to a folder.")
        return
    files = EmbeddingFiles(folder)
    show(f"Cleared {files.clear()}" if action == "clear" else str(files.info()))


def schema(
    output_path: Path | None = of.option(None, "File for the schema.", show_default="printed"),
) -> None:
    """Print the JSON Schema of configuration files, for editors and checkers.

    An editor that knows it completes keys, and marks those that are wrong while you type.
    """
    from NatureLM.config import json_schema
    from NatureLM.util import write_text

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if output_path is None:
        show(text)
        return
    show(f"Wrote {write_text(output_path, text + chr(10))}")


def convert(
    source: Path = of.argument(..., "Checkpoint to read.", "OLD.pth"),
    output: Path = of.argument(..., "Folder to write.", "OUT"),
    allow_pickle: bool = of.option(False, "Read the pickle file, weights only."),
    config: Path | None = of.option(
        None, "Configuration it was trained with, if the checkpoint has none."
    ),
) -> None:
    """Turn an old .pth or .pt checkpoint into a folder with safetensors, for --model."""
    if not source.exists():
        raise UsageError(f"{source}: there is no such checkpoint")
    if not allow_pickle:
        raise UsageError(
            f"{source} is a pickle, a kind of file that can run programs when it is read. If you "
            "trust where it comes from, add --allow-pickle: it is then read with all but plain "
            "weights refused, and written as safetensors, which hold nothing else."
        )
    check_place(output, "OUT", folder=True)
    from NatureLM.models.checkpoint.export import convert_checkpoint

    convert_checkpoint(source, output, allow_pickle=allow_pickle, config=config)
    show(f"{output}: converted. Use it with: naturelm infer --model {output}")


_WHAT = "What to merge"
_ADAPTER = of.option(
    None, "Folder with an adapter in PEFT's format, in place of the model's own.", _WHAT
)
_DTYPE = of.option(
    "auto",
    "Precision of the written weights; auto keeps what each is stored in.",
    of.OUTPUT,
    metavar="|".join(of.DTYPES),
)
_SHARD_SIZE = of.option("5GB", "Largest file, such as 500MB.", of.OUTPUT)
_OVERWRITE = of.option(False, "Replace the model in that folder.", of.OUTPUT)


def merge(
    *,
    output_path: Path = of.option(..., "Folder for the merged model.", of.OUTPUT),
    model: str = of.option("naturelm-tiny", of.MODEL_TEXT, _WHAT),
    which: of.RevisionOptions,
    alpha: float | None = of.option(
        None,
        "Share of the adapter: 0 is the base language model, 1 the adapted one.",
        _WHAT,
        *("--alpha", "--merging-alpha"),
    ),
    recipe: Path | None = of.option(
        None,
        "YAML file that says how much of which adapter goes where, in place of --alpha.",
        _WHAT,
    ),
    adapter: str | None = _ADAPTER,
    llama_path: str | None = of.but(of.LLAMA_PATH, rich_help_panel=_WHAT),
    dtype: str = _DTYPE,
    max_shard_size: str = _SHARD_SIZE,
    as_adapter: bool = of.option(
        False, "Write only what is added to the base, as one adapter in PEFT's format.", of.OUTPUT
    ),
    overwrite: bool = _OVERWRITE,
) -> None:
    """Write a model with its adapter merged into the weights: one folder that loads without PEFT.

    naturelm merge --alpha 0.4 --output-path merged
    """
    from NatureLM.merging.recipe import Recipe, extrapolation_note, load_recipe

    if (alpha is None) == (recipe is None):
        raise UsageError("say how much to merge: give either --alpha or --recipe")
    if alpha is not None and not math.isfinite(alpha):
        raise UsageError(f"--alpha is {alpha:g}, and it must be a finite number")
    if as_adapter and (overwrite or dtype != "auto"):
        raise UsageError("--as-adapter takes neither --overwrite nor --dtype")
    _check_written(output_path, dtype, max_shard_size)
    chosen = load_recipe(recipe) if recipe is not None else Recipe(alpha=alpha or 0.0)

    from NatureLM.models.checkpoint.export import export_adapter, export_merged

    note = extrapolation_note(chosen.values())
    if note is not None:
        show(f"Note: {note}.", err=True)
    source = {"adapter": adapter, "llama_path": llama_path, **vars(which)}
    if as_adapter:
        export_adapter(model, output_path, chosen, **source)
        show(f"{output_path}: an adapter. Use it with: --adapter {output_path}")
        return
    changed = export_merged(
        model,
        output_path,
        chosen,
        **source,
        **_written_as(dtype, max_shard_size, overwrite),
    )
    show(
        f"{output_path}: merged, {changed} matrices changed. "
        f"Use it with: naturelm infer --model {output_path}"
    )


def quantize(
    *,
    source: str = of.argument(
        ..., "Model: a name, a folder or an id on the Hub.", metavar="SOURCE"
    ),
    to: str = of.option(..., "Bits of the language model's weights.", metavar="int8|int4"),
    output_path: Path = of.option(..., "Folder for the quantised model.", of.OUTPUT),
    which: of.RevisionOptions,
    llama_path: str | None = of.but(of.LLAMA_PATH, rich_help_panel=None),
    dtype: str = of.but(
        _DTYPE, help="Precision of all other weights; auto keeps what each is stored in."
    ),
    max_shard_size: str = of.but(
        _SHARD_SIZE,
        default="2GB",
        help="Largest file, such as 500MB; so much memory is needed, too.",
    ),
    overwrite: bool = _OVERWRITE,
) -> None:
    """Write a model whose language model has weights of 8 or 4 bits: a folder that loads quickly.

    naturelm quantize naturelm-tiny --to int8 --output-path small
    """
    of.check_choice("--to", to, of.QUANTIZATIONS)
    _check_written(output_path, dtype, max_shard_size)

    from NatureLM.models.checkpoint.export import quantize_checkpoint

    quantize_checkpoint(
        source,
        output_path,
        to,
        llama_path=llama_path,
        **vars(which),
        **_written_as(dtype, max_shard_size, overwrite),
    )
    show(
        f"{output_path}: weights of {to[3:]} bits. "
        f"Use it with: naturelm infer --model {output_path}"
    )


def _check_written(
    output: Path, dtype: str, max_shard_size: str, named: str = "--output-path"
) -> None:
    """Raise UsageError for weights that cannot be written so, or not there."""
    of.check_choice("--dtype", dtype, of.DTYPES)
    if not re.fullmatch(r"[1-9]\d*\s*[KMGT]?B", max_shard_size.strip(), re.IGNORECASE):
        raise UsageError(
            f"--max-shard-size is {max_shard_size!r}, and it must be a size such as 500MB or 5GB"
        )
    for place in (output, output.resolve().parent):  # it is built beside its place
        check_place(place, named, folder=True)


def _written_as(dtype: str, max_shard_size: str, overwrite: bool) -> dict[str, Any]:
    """How weights are written, for the functions that do it."""
    import torch

    return {
        "dtype": None if dtype == "auto" else getattr(torch, dtype),
        "max_shard_size": max_shard_size.replace(" ", "").upper(),
        "overwrite": overwrite,
        "report": lambda line: show(line, err=True),
    }


# Models as folders of other programs: `naturelm export --to vllm`

_EXPORT = "Models for other programs (--to)"


@dataclass
class ModelExport:
    """Options of an exported model; `to` says for which program."""

    to: str | None = of.option(
        None,
        "Write a model in place of answers: for vLLM and transformers, into the folder that is "
        "named in place of ANSWERS.",
        _EXPORT,
        metavar="vllm",
    )
    model: str | None = of.option(None, of.MODEL_TEXT, _EXPORT, show_default="naturelm-tiny")
    revision: str | None = of.option(
        None, "Revision of the model on the Hub.", _EXPORT, metavar="COMMIT|TAG|BRANCH"
    )
    weights_hash: str | None = of.option(
        None, "Refuse other weights than those with this hash.", _EXPORT, metavar="HASH"
    )
    adapter: str | None = of.but(_ADAPTER, rich_help_panel=_EXPORT)
    llama_path: str | None = of.but(of.LLAMA_PATH, rich_help_panel=_EXPORT)
    alpha: str | None = of.option(
        None,
        "Shares of the adapter that can be asked for; each becomes an adapter of its own.",
        _EXPORT,
        metavar="NUMBER[,NUMBER...]",
        show_default="1.0",
    )
    fold: bool = of.option(False, "Write the only α into the weights, and no adapter.", _EXPORT)
    dtype: str = of.but(
        _DTYPE,
        help="Precision of the language model's weights; auto keeps what each is stored in.",
        rich_help_panel=_EXPORT,
    )
    max_shard_size: str = of.but(_SHARD_SIZE, rich_help_panel=_EXPORT)
    overwrite: bool = of.but(_OVERWRITE, rich_help_panel=_EXPORT)

    def check_unused(self) -> None:
        """Raise UsageError for options of models where a table is asked for."""
        default = ModelExport()
        for name, value in vars(self).items():
            if value != getattr(default, name):
                raise UsageError(
                    f"{of.option_name(name)} is for models: say which program with --to vllm"
                )


def export_model(output: Path, options: ModelExport) -> None:
    """Write the folder and say how it is served. Raises UsageError."""
    of.check_choice("--to", options.to or "", ("vllm",))
    alphas = _alphas(options.alpha)
    _check_written(output, options.dtype, options.max_shard_size, "OUT")

    from NatureLM.vllm.export import export_for_vllm

    exported = export_for_vllm(
        options.model or "naturelm-tiny",
        output,
        alphas=alphas,
        fold=options.fold,
        adapter=options.adapter,
        llama_path=options.llama_path,
        revision=options.revision,
        weights_hash=options.weights_hash,
        **_written_as(options.dtype, options.max_shard_size, options.overwrite),
    )
    show(f"{output}: a model for vLLM and transformers. Serve it with:")
    show(exported.command(output))


def _alphas(text: str | None) -> list[float]:
    if text is None:
        return [1.0]
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--alpha is {text!r}, and it must be numbers with commas between them, such as 0.4,1.0"
        ) from None

"""Checkpoints: old ones into safetensors (`convert`), adapters into the weights (`merge`)."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli import options as of
from NatureLM.errors import UsageError


def convert(
    source: Annotated[Path, typer.Argument(metavar="OLD.pth", help="Checkpoint to read.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    allow_pickle: Annotated[bool, of.option("Read the pickle file, weights only.")] = False,
    config: Annotated[
        Path | None,
        of.option("Configuration it was trained with, if the checkpoint has none."),
    ] = None,
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
    from NatureLM.models.checkpoint.convert import convert_checkpoint

    convert_checkpoint(source, output, allow_pickle=allow_pickle, config=config)
    typer.echo(f"{output}: converted. Use it with: naturelm infer --model {output}")


_WHAT = "What to merge"
_OUTPUT = "Output"


def merge(
    output_path: Annotated[
        Path,
        of.option("Folder for the merged model.", _OUTPUT),
    ],
    model: Annotated[
        str,
        of.option(
            "A name from `naturelm models`, an id on the Hugging Face Hub, or a folder.", _WHAT
        ),
    ] = "naturelm-tiny",
    alpha: Annotated[
        float | None,
        of.option(
            "Share of the adapter: 0 is the base language model, 1 the adapted one.",
            _WHAT,
            names=("--alpha", "--merging-alpha"),
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        of.option(
            "YAML file that says how much of which adapter goes where, in place of --alpha.", _WHAT
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        of.option("Folder with an adapter in PEFT's format, in place of the model's own.", _WHAT),
    ] = None,
    llama_path: Annotated[
        str | None,
        of.option("Base language model, where it is not where the checkpoint says.", _WHAT),
    ] = None,
    dtype: Annotated[
        str,
        of.option(
            "Precision of the written weights; auto keeps what each is stored in.",
            _OUTPUT,
            metavar="auto|float32|bfloat16|float16",
        ),
    ] = "auto",
    max_shard_size: Annotated[str, of.option("Largest file, such as 500MB.", _OUTPUT)] = "5GB",
    as_adapter: Annotated[
        bool,
        of.option(
            "Write only what is added to the base, as one adapter in PEFT's format.", _OUTPUT
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        of.option("Replace the model in that folder.", _OUTPUT),
    ] = False,
) -> None:
    """Write a model with its adapter merged into the weights: one folder that loads without PEFT.

    naturelm merge --alpha 0.4 --output-path merged
    """
    from NatureLM.merging.recipe import Recipe, load_recipe

    if (alpha is None) == (recipe is None):
        raise UsageError("say how much to merge: give either --alpha or --recipe")
    if alpha is not None and not math.isfinite(alpha):
        raise UsageError(f"--alpha is {alpha:g}, and it must be a finite number")
    if as_adapter and (overwrite or dtype != "auto"):
        raise UsageError("--as-adapter takes neither --overwrite nor --dtype")
    of.check_dtype(dtype)
    if not re.fullmatch(r"[1-9]\d*\s*[KMGT]?B", max_shard_size.strip(), re.IGNORECASE):
        raise UsageError(
            f"--max-shard-size is {max_shard_size!r}, and it must be a size such as 500MB or 5GB"
        )
    chosen = load_recipe(recipe) if recipe is not None else Recipe(alpha=alpha or 0.0)

    import torch

    from NatureLM.merging.recipe import extrapolation_note
    from NatureLM.models.checkpoint.export import export_adapter, export_merged

    note = extrapolation_note(chosen.values())
    if note is not None:
        typer.echo(f"Note: {note}.", err=True)
    if as_adapter:
        export_adapter(model, output_path, chosen, adapter=adapter, llama_path=llama_path)
        typer.echo(f"{output_path}: an adapter. Use it with: --adapter {output_path}")
        return
    changed = export_merged(
        model,
        output_path,
        chosen,
        adapter=adapter,
        llama_path=llama_path,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        max_shard_size=max_shard_size.replace(" ", "").upper(),
        overwrite=overwrite,
        report=lambda line: typer.echo(line, err=True),
    )
    typer.echo(
        f"{output_path}: merged, {changed} matrices changed. "
        f"Use it with: naturelm infer --model {output_path}"
    )

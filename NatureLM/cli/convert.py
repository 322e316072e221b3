"""`naturelm convert`: old checkpoints into safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from NatureLM.errors import UsageError


def convert(
    source: Annotated[Path, typer.Argument(metavar="OLD.pth", help="Checkpoint to read.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read the pickle file, weights only.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration it was trained with, if the checkpoint has none."),
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

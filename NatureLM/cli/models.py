"""What there is: `naturelm models`, `cache` (embeddings on disk) and `schema` (configuration)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli import options as of
from NatureLM.errors import UsageError


def models() -> None:
    """List the models that can be named: size, license, and whether they are on this machine."""
    from NatureLM.models.registry import MODELS

    of.print_table(
        ["name", "on this machine", "parameters", "size", "license", "description"],
        [
            [
                entry.name,
                "no" if entry.folder is None else "yes",
                entry.parameters,
                _size(entry.size_bytes),
                entry.license,
                entry.description,
            ]
            for entry in MODELS
        ],
        right={"size"},
    )
    typer.echo(
        "\n--model takes one of these names, an id on the Hugging Face Hub (owner/name), "
        "or a folder."
    )


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def cache(
    action: Annotated[str, typer.Argument(metavar="info|clear", help="What to do.")] = "info",
    cache_dir: Annotated[
        Path | None,
        of.option("Folder of the cache.", show_default="the environment variable NATURELM_CACHE"),
    ] = None,
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
        typer.echo("Nothing is kept on disk: NATURELM_CACHE is not set to a folder.")
        return
    files = EmbeddingFiles(folder)
    if action == "clear":
        typer.echo(f"Cleared {files.clear()}")
    else:
        typer.echo(str(files.info()))


def schema(
    output_path: Annotated[
        Path | None, of.option("File for the schema.", show_default="printed")
    ] = None,
) -> None:
    """Print the JSON Schema of configuration files, for editors and checkers.

    An editor that knows it completes keys, and marks those that are wrong while you type.
    """
    import json

    from NatureLM.config import json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if output_path is None:
        typer.echo(text)
        return
    try:
        output_path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output_path}: cannot be written: {error.strerror}") from None
    typer.echo(f"Wrote {output_path}")

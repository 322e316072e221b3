"""`naturelm cache`: audio embeddings that are kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cache(
    action: Annotated[str, typer.Argument(metavar="info|clear", help="What to do.")] = "info",
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the cache.", show_default="the environment variable NATURELM_CACHE"
        ),
    ] = None,
) -> None:
    """Show or clear the audio embeddings that are kept on disk.

    With NATURELM_CACHE set to a folder, sound that was heard once is not encoded again: neither by
    another command, nor at another α, nor with another language model behind the same audio
    encoder. At most 8 GB are kept; what was not used for longest leaves first.

    NATURELM_CACHE=~/.cache/naturelm beans --cfg-path configs/cbi.yml
    """
    from NatureLM.errors import UsageError
    from NatureLM.generation.embedding_files import EmbeddingFiles, cache_folder

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

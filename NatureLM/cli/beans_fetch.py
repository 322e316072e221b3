"""`beans fetch`: components of the benchmark onto this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from NatureLM.cli.errors import Stopped
from NatureLM.cli.experiment import BEANS_ZERO
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.beans.fetching import Piece, Shelf


def fetch(
    output_path: Annotated[Path, typer.Option(help="Folder for the data.", show_default=False)],
    components: Annotated[
        str | None,
        typer.Option(
            help="Components, set off by commas; `beans info` lists them.",
            show_default="all, about 180 GB",
        ),
    ] = None,
    repository: Annotated[str, typer.Option(help="Dataset on the Hugging Face Hub.")] = BEANS_ZERO,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before fetching.")] = False,
) -> None:
    """Fetch components of BEANS-Zero: says the size first, and goes on where it was stopped.

    beans fetch --components esc50,zf-indiv --output-path beans-zero
    """
    from NatureLM.beans.components import component
    from NatureLM.beans.fetching import Shelf
    from NatureLM.cli.scoring_options import listed

    wanted = None if components is None else listed("--components", components)
    if repository == BEANS_ZERO:
        for name in wanted or ():
            component(name)
    shelf = Shelf(repository)
    pieces = _pieces(shelf, wanted)
    missing = [piece for piece in pieces if not piece.is_there(output_path)]
    if _wants_more(pieces, missing, output_path, yes):
        _fetch(shelf, missing, output_path)
    typer.echo(f"All is there: beans --data-path {output_path} --output-path answers.jsonl")


def _pieces(shelf: Shelf, wanted: Sequence[str] | None) -> list[Piece]:
    with _bar() as bar:
        task = bar.add_task(f"looking at {shelf.name}", total=len(shelf.files))
        return shelf.pieces(wanted, lambda count: bar.advance(task, count))


def _wants_more(pieces: Sequence[Piece], missing: Sequence[Piece], folder: Path, yes: bool) -> bool:
    """Say what there is to fetch; whether it is to be fetched."""
    from NatureLM.beans.fetching import check_room, size_text

    names = sorted({name for piece in pieces for name in piece.components})
    size, left = (sum(piece.bytes for piece in some) for some in (pieces, missing))
    there = "" if left == size else f", {size_text(left)} of them still to fetch"
    typer.echo(f"{', '.join(names)}: {size_text(size)}{there}, into {folder}")
    if not missing:
        return False
    check_room(folder, left)
    if not yes and not _says_yes():
        raise UsageError("nothing was fetched (--yes fetches without asking)")
    return True


def _says_yes() -> bool:
    try:
        return typer.confirm("Fetch it?", err=True)
    except typer.Abort:  # nobody is there to answer
        return False


def _fetch(shelf: Shelf, missing: Sequence[Piece], folder: Path) -> None:
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    try:
        with _bar(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task("fetching", total=sum(piece.bytes for piece in missing))
            for piece in missing:
                shelf.fetch(piece, folder)
                bar.advance(task, piece.bytes)
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            f"Stopped. What is in {folder} is whole; the same command goes on from there.",
            interrupt,
        ) from None


def _bar(*columns: Any) -> Any:
    """A line on stderr that renews itself; where that is no terminal, only its end is shown."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    text = TextColumn("{task.description}")
    return Progress(text, BarColumn(), *columns, console=Console(stderr=True))

"""`beans make-mini`: a benchmark of one's own clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.beans.mini import MiniSummary

_MOST_SHOWN = 3


def make_mini(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER_OR_TABLE",
            help="A folder with a folder of clips for each class, or a table (CSV, JSON lines, "
            "Parquet) with a column for the recording and one for the label.",
            show_default=False,
        ),
    ],
    output_path: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=THEIRS",
            help="What a column is called, such as label=species, path=wav or caption=text. May "
            "be given several times.",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Only such rows, such as split=test. May be given several times.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[int, typer.Option(help="Labels, the most frequent ones.")] = 10,
    classification: Annotated[int, typer.Option(help="Clips with one label.")] = 60,
    detection: Annotated[int, typer.Option(help="Mixed windows with 0 to 3 labels.")] = 40,
    captioning: Annotated[int, typer.Option(help="Clips with a caption.")] = 40,
    caption: Annotated[
        str, typer.Option(help="Caption of a clip, where no column caption is named.")
    ] = "The sound of {label}.",
    window_seconds: Annotated[float, typer.Option(help="Longest clip, and mixed windows.")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that is drawn.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Make a benchmark in BEANS-Zero's schema: classification, detection and captioning.

    beans make-mini clips.csv --output-path mini
    """
    from NatureLM.beans.mini import Sizes
    from NatureLM.beans.mini import make_mini as make
    from NatureLM.config.tables import TableSource

    names = _pairs("--columns", columns or ())
    caption_column = names.pop("caption", None)
    made = make(
        TableSource(path=source, columns=names, where={**_pairs("--where", where or ())}),
        output_path,
        Sizes(classification, detection, captioning, classes),
        seed=seed,
        window_seconds=window_seconds,
        caption=caption,
        caption_column=caption_column,
        overwrite=overwrite,
    )
    _show(made, output_path)


def _show(made: MiniSummary, folder: Path) -> None:
    for why in list(made.unread.values())[:_MOST_SHOWN]:
        typer.echo(why, err=True)
    if made.unread:
        typer.echo(f"{len(made.unread)} clips could not be used.", err=True)
    for name, count in made.samples.items():
        typer.echo(f"{name:<22}{count:>5} samples")
    typer.echo(
        f"{len(made.labels)} labels: {', '.join(made.labels)}\n"
        f"Ask a model: beans --data-path {folder} --output-path answers.jsonl"
    )


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{option} {text}: write two names with = between")
        pairs[name.strip()] = value.strip()
    return pairs

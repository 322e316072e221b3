"""`naturelm export`: answers as a table for spreadsheets or for Raven."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli import options as of
from NatureLM.errors import UsageError


def export(
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="What `naturelm infer` wrote (.jsonl).")
    ],
    format_name: Annotated[
        str,
        of.option(
            "A table for spreadsheets, or a selection table for Raven.",
            names=("--format",),
            metavar="csv|raven",
        ),
    ] = "csv",
    output_path: Annotated[
        Path | None,
        of.option(
            "File to write; one that exists is replaced.",
            show_default="the name of ANSWERS with .csv or .selections.txt",
        ),
    ] = None,
) -> None:
    """Turn answers into a table: CSV for spreadsheets, or a selection table for Raven.

    naturelm export inference_output.jsonl --format raven
    """
    from NatureLM.results.rows import read_rows
    from NatureLM.results.tables import FORMATS, write_table

    if format_name not in FORMATS:
        raise UsageError(f"--format is {format_name!r}, and it must be one of {', '.join(FORMATS)}")
    if not answers.is_file():
        raise UsageError(f"{answers}: there is no such file of answers")
    table = FORMATS[format_name]
    target = output_path or answers.with_name(answers.stem + table.suffix)
    if target.resolve() == answers.resolve():
        raise UsageError(f"{target}: the answers themselves would be replaced")
    rows = list(read_rows(answers))
    if not rows:
        raise UsageError(f"{answers}: there is no answer of `naturelm infer` in it")
    count = write_table(target, table.encoding, lambda file: table.write(rows, file, answers))
    typer.echo(f"{count} {table.unit} in {target}")

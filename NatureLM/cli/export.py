"""`naturelm export`: answers as a table for spreadsheets or for Raven."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.results.rows import WindowRow
    from NatureLM.results.tables import RavenRecording

logger = logging.getLogger(__name__)
_FORMATS = {"csv": ".csv", "raven": ".selections.txt"}
_HEARD_RATE = 16_000


def export(
    answers: Annotated[
        Path, typer.Argument(metavar="ANSWERS", help="What `naturelm infer` wrote (.jsonl).")
    ],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="csv|raven",
            help="A table for spreadsheets, or a selection table for Raven.",
        ),
    ] = "csv",
    output_path: Annotated[
        Path | None,
        typer.Option(
            help="File to write; one that exists is replaced.",
            show_default="the name of ANSWERS with .csv or .selections.txt",
        ),
    ] = None,
) -> None:
    """Turn answers into a table: CSV for spreadsheets, or a selection table for Raven.

    naturelm export inference_output.jsonl --format raven
    """
    from NatureLM.results.rows import WindowRow, read_rows

    if format_name not in _FORMATS:
        raise UsageError(f"--format is {format_name!r}, and it must be one of csv, raven")
    if not answers.is_file():
        raise UsageError(f"{answers}: there is no such file of answers")
    target = output_path or answers.with_name(answers.stem + _FORMATS[format_name])
    if target.resolve() == answers.resolve():
        raise UsageError(f"{target}: the answers themselves would be replaced")
    rows = list(read_rows(answers))
    if not rows:
        raise UsageError(f"{answers}: there is no answer of `naturelm infer` in it")
    windows = [row for row in rows if isinstance(row, WindowRow)]
    if format_name == "csv":
        from NatureLM.results.tables import CSV_ENCODING, write_csv, write_table

        write_table(target, CSV_ENCODING, lambda file: write_csv(rows, file))
        typer.echo(f"{len(rows)} rows in {target}")
        return
    from NatureLM.results.settings import read_record
    from NatureLM.results.tables import write_raven, write_table

    record = read_record(answers)
    settings = {} if record is None else record.values
    heard = _HEARD_RATE / 2 * float(settings.get("time_expansion", 1.0))
    write_table(
        target,
        "utf-8",
        lambda file: write_raven(
            rows,
            file,
            _recordings(windows),
            channel=settings.get("channel", "mean"),
            heard_hz=heard,
        ),
    )
    typer.echo(f"{len(windows)} selections in {target}")


def _recordings(rows: Sequence[WindowRow]) -> list[RavenRecording]:
    """The recordings in the order of the answers, with their lengths where they still are."""
    from NatureLM.audio import AudioError, probe
    from NatureLM.results.tables import RavenRecording

    ends: dict[str, float] = {}
    for row in rows:
        ends[row.audio_path] = max(row.end, ends.get(row.audio_path, 0.0))
    found = []
    for path, end in ends.items():
        try:
            info = probe(path)
            found.append(RavenRecording(path, info.duration, info.sample_rate))
        except AudioError as error:
            logger.warning(
                "%s Its length is taken to be %g s, where the last answer ends.", error, end
            )
            found.append(RavenRecording(path, end, _HEARD_RATE))
    return found

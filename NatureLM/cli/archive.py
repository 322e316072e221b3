"""Archives: lists of recordings (`manifest`)."""

from __future__ import annotations

import logging
from pathlib import Path

import typer

from NatureLM.cli import options as of
from NatureLM.cli.errors import RESUMES, SOME_FAILED, stop_message
from NatureLM.progress import ProgressBar, printable, say

logger = logging.getLogger(__name__)
_NAMED = 10  # recordings that could not be read


def manifest(
    recordings: list[Path] = of.argument(..., "Recordings, or folders with recordings."),
    *,
    output_path: Path = of.option(
        Path("manifest.csv"),
        "The manifest. One that was made before is brought up to date. Parquet needs pyarrow.",
        None,
        *("--output-path", "--output", "-o"),
        metavar="X.csv|X.parquet|X.txt",
    ),
    deployments: Path | None = of.DEPLOYMENTS,
    file_times: Path | None = of.FILE_TIMES,
    workers: int = of.option(
        8, "Threads that read headers; more pay where the disk is far away.", None
    ),
    overwrite: bool = of.option(False, "Measure all recordings anew.", None),
) -> None:
    """List recordings with what their headers say: length, rate, channels, clock and site.

    naturelm manifest recordings/ --output-path manifest.csv

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    from NatureLM.audio import find_recordings
    from NatureLM.cli.recordings import field_clock
    from NatureLM.results.manifest import Entry, check_suffix, make_manifest
    from NatureLM.util import check_place, check_range, digest, format_bytes, format_duration

    check_suffix(output_path, "--output-path")
    check_place(output_path, "--output-path")
    check_range("--workers", workers, 1, 1024)
    found = find_recordings(recordings)
    clock = field_clock(deployments, file_times, found)
    tables = [digest(one.read_bytes()).hex() for one in (deployments, file_times) if one]
    bad = 0

    def told(entry: Entry) -> None:
        nonlocal bad
        bar.advance()
        if entry.error:
            bad += 1
            if bad <= _NAMED:
                say(f"{printable(entry.path)}: {printable(entry.error)}")

    columns = ("bar", "{task.completed}/{task.total} recordings,", "eta", "left")
    with (
        stop_message(f"Stopped. What was found is kept; {RESUMES}"),
        ProgressBar(*columns, total=len(found)) as bar,
    ):
        made = make_manifest(
            found,
            output_path,
            clock,
            workers=workers,
            tables=" ".join(tables),
            overwrite=overwrite,
            told=told,
        )
    if bad > _NAMED:
        say(f"and {bad - _NAMED} more that could not be read; the column error says why")
    parts = [
        f"{made.recordings} recording{'' if made.recordings == 1 else 's'}",
        f"{format_duration(made.seconds)} of sound",
        format_bytes(made.size),
        *([f"{made.kept} measured before"] if made.kept else []),
        *([f"{made.errors} error{'' if made.errors == 1 else 's'}"] if made.errors else []),
    ]
    say(f"{output_path}: {', '.join(parts)}")
    if made.errors:
        raise typer.Exit(SOME_FAILED)

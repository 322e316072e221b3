"""The answers of a job as files to take away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from NatureLM.app.jobs.library import JobLibrary
from NatureLM.app.jobs.view import JobView
from NatureLM.outputs.tables import (
    CSV_ENCODING,
    RavenRecording,
    write_csv,
    write_jsonl,
    write_raven,
    write_table,
)

DOWNLOADS_FOLDER = "downloads"


@dataclass(frozen=True)
class Downloads:
    """Files in the job's folder.

    csv: for spreadsheets; jsonl: as `naturelm infer` writes; raven: a selection table
    """

    csv: Path
    jsonl: Path
    raven: Path


def write_downloads(library: JobLibrary, view: JobView, sample_rate: int = 16_000) -> Downloads:
    """Write the files anew.

    sample_rate: in Hz, of the model: selections end at what it can hear

    Raises OutputError where they cannot be written.
    """
    job, names = view.job, view.names()
    folder = library.folder_of(job.id) / DOWNLOADS_FOLDER
    made = Downloads(
        folder / "answers.csv", folder / "answers.jsonl", folder / "answers.selections.txt"
    )

    def raven(file: TextIO) -> None:
        write_raven(
            view.rows,
            file,
            _recordings(library, view),
            names,
            channel=job.settings.channel,
            heard_hz=sample_rate / 2 * job.settings.time_expansion,
        )

    write_table(made.csv, CSV_ENCODING, lambda file: write_csv(view.rows, file, names))
    write_table(made.jsonl, "utf-8", lambda file: write_jsonl(view.rows, file, names))
    write_table(made.raven, "utf-8", raven)
    return made


def _recordings(library: JobLibrary, view: JobView) -> list[RavenRecording]:
    """The recordings that could be read, in the order in which Raven is to open them."""
    job = view.job
    return [
        RavenRecording(str(path), one.seconds, one.rate)
        for path, one in zip(library.recording_paths(job), job.recordings, strict=True)
        if one.seconds is not None and one.rate is not None
    ]

"""The CSV table of BirdNET-Analyzer, which many programs of its users read.

Read are also its R tables and what others add to them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from NatureLM.formats.annotated import ALIASES, context_cell, detections
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.tables import number, one_line, share, without_formula, write_table

COLUMNS = ("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File")
MORE = {"lat": "latitude", "lon": "longitude", "week": "week"}
"""Columns that BirdNET adds where it is asked to, and what of a detection's context they are."""


def write(answers: ResultFile, target: Path) -> int:
    """A line for each detection; how many. Raises OutputError.

    Place and week are there where a recording has them.
    """
    known = {key for one in answers.recordings for key in one.context}
    more = {column: key for column, key in MORE.items() if key in known}
    return write_table(target, "utf-8", lambda file: _write_lines(answers, file, more))


def _write_lines(answers: ResultFile, file: TextIO, more: dict[str, str]) -> int:
    writer = csv.writer(file)
    writer.writerow([*COLUMNS, *more])
    count = 0
    for count, one in enumerate(answers, start=1):  # noqa: B007
        writer.writerow(
            [
                number(one.start),
                number(one.end),
                without_formula(one_line(one.scientific_name)),
                without_formula(one_line(one.common_name)),
                share(one.confidence),
                without_formula(one.audio_path),
                *(context_cell(one, key) for key in more.values()),
            ]
        )
    return count


def read(path: Path) -> Iterator[Detection]:
    """The lines of a table, but those that say that nothing was heard. Raises DataError."""
    return detections(path, ALIASES)

"""Annotations as the Acoustic Workbench imports them: Ecosounds, and the A2O of Australia.

The server knows recordings by their names alone.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from NatureLM.formats.annotated import ALIASES, detections
from NatureLM.progress import printable
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.tables import number, one_line, share, without_formula, write_table

COLUMNS = (
    *("filename", "start_offset_seconds", "end_offset_seconds"),
    *("low_frequency_hertz", "high_frequency_hertz", "score", "Common name", "Scientific name"),
)


def write(answers: ResultFile, target: Path) -> int:
    """A line for each detection; how many. Raises OutputError."""
    return write_table(target, "utf-8", lambda file: _write_lines(answers, file))


def write_beside(answers: ResultFile, target: Path) -> list[str]:
    """Nothing; but names that several recordings have are said, as the server cannot tell them."""
    names = Counter(Path(one.path).name for one in answers.recordings)
    alike = [name for name, count in names.items() if count > 1]
    if not alike:
        return []
    return [
        f"Ecosounds knows recordings by their names, and {len(alike)} names are those of several "
        f"recordings, such as {printable(alike[0])}: import them apart, with --per-recording"
    ]


def _write_lines(answers: ResultFile, file: TextIO) -> int:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    count = 0
    for count, one in enumerate(answers, start=1):  # noqa: B007
        writer.writerow(
            [
                without_formula(Path(one.audio_path).name),
                number(one.start),
                number(one.end),
                *("" if hz is None else number(hz) for hz in (one.low_hz, one.high_hz)),
                share(one.confidence),
                without_formula(one_line(one.common_name)),
                without_formula(one_line(one.scientific_name)),
            ]
        )
    return count


def read(path: Path) -> Iterator[Detection]:
    """The lines of a table. Raises DataError."""
    return detections(path, ALIASES)

"""JSON lines: the rows as they are, which all commands read again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from NatureLM.formats.spreadsheet import called
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import Row, to_line
from NatureLM.results.tables import write_table


def write(answers: ResultFile, target: Path) -> int:
    """All rows of the answers; the number of lines. Raises OutputError."""
    return write_table(target, "utf-8", lambda file: _lines(answers.rows(), file))


def write_jsonl(rows: Iterable[Row], file: TextIO, names: Mapping[str, str] | None = None) -> int:
    """The rows as they are, under other names of the recordings where these are given."""
    return _lines((replace(row, audio_path=called(row, names)) for row in rows), file)


def _lines(rows: Iterable[Row], file: TextIO) -> int:
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007
        file.write(to_line(row).decode())
    return count


def read(path: Path) -> Iterator[Detection]:
    """The detections of a result file, with the full paths of their recordings."""
    yield from ResultFile(path)

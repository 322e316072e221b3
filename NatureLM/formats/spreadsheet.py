"""CSV for spreadsheets: all rows, a line each; `wide` says which columns there are."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from NatureLM.data.table import read_table
from NatureLM.formats import wide
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import Row, value_text
from NatureLM.results.tables import (
    CSV_ENCODING,
    alternatives_of,
    alternatives_text,
    number,
    share,
    with_formula,
    without_formula,
    write_table,
)

COLUMNS = (*wide.BEFORE, *wide.ANSWER, *wide.AFTER)
"""The header of answers to queries; a survey has its own columns in the middle."""


def write(answers: ResultFile, target: Path) -> int:
    """All rows of the answers; the number of lines. Raises OutputError."""
    columns = wide.columns_for(answers)
    return write_table(
        target, CSV_ENCODING, lambda file: write_csv(answers.rows(), file, columns=columns)
    )


def write_csv(
    rows: Iterable[Row],
    file: TextIO,
    names: Mapping[str, str] | None = None,
    *,
    columns: wide.Columns | None = None,
) -> int:
    """One line for each answer and each recording that could not be read; how many.

    file: open with `newline=""`; give it `CSV_ENCODING`
    names: what to call recordings, by `audio_path`
    columns: those that the rows need, where that is known: they are then written as they come

    Texts that a spreadsheet would run as a formula begin with an apostrophe.
    """
    if columns is None:
        rows = list(rows)
        columns = wide.columns_of(rows)
    writer = csv.writer(file)
    header = columns.names
    shares = {at for at, name in enumerate(header) if name in columns.shares}
    writer.writerow(map(without_formula, header))
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007
        cells = columns.cells(row)
        cells[0] = called(row, names)
        writer.writerow([_cell(cell, at in shares) for at, cell in enumerate(cells)])
    return count


def called(row: Row, names: Mapping[str, str] | None) -> str:
    """What a row's recording is called: without its folder where only some have names."""
    return row.audio_path if names is None else names.get(row.audio_path, Path(row.audio_path).name)


def _cell(value: Any, is_share: bool) -> str:
    if value is None:
        return ""
    if is_share:
        return share(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, tuple):
        value = alternatives_text(value)
    return without_formula(value_text(value))


def read(path: Path) -> Iterator[Detection]:
    """What a table says that is a detection. Raises DataError."""
    table = [row for _, row in read_table(path).rows]
    yield from wide.detections(
        ({name: with_formula(cell) for name, cell in row.items()} for row in table),
        path,
        wide.choices_in(table),
        alternatives_of,
    )

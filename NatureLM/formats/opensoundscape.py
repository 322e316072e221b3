"""Labels of clips for OpenSoundscape: a line for each window, a column for each class.

`CategoricalLabels.from_multihot_df` reads it, where the first three columns are the index, and so
do the functions that train or evaluate on labelled clips. A cell is 1 or 0, or, where all answers
have a confidence, that of the class: 0 then means that it was not among the likeliest.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from NatureLM.config.schema import TableSource
from NatureLM.data.table import Columns, DataError, read_table
from NatureLM.errors import UsageError
from NatureLM.results.detections import Detection, HeardRecording, ResultFile
from NatureLM.results.rows import ErrorRow
from NatureLM.results.tables import (
    both_names,
    number,
    one_line,
    with_formula,
    without_formula,
    write_table,
)

INDEX = ("file", "start_time", "end_time")
MOST_CLASSES = 5_000
"""Labels that make a table of classes; more are free answers."""

_READ: dict[str, tuple[str, ...]] = {
    **{"path": INDEX[:1], "start": INDEX[1:2], "end": INDEX[2:3]},
    **{"duration": (), "file_offset": ()},
}


def write(answers: ResultFile, target: Path) -> int:
    """A line for each window that was heard; how many. Raises OutputError, UsageError."""
    classes, is_scored = _classes(answers)
    return write_table(target, "utf-8", lambda file: _fill(answers, file, classes, is_scored))


def _classes(answers: ResultFile) -> tuple[list[str], bool]:
    """The labels in the order of the alphabet, and whether all have a confidence."""
    classes: set[str] = set()
    is_scored = True
    for one in answers:
        classes.add(_name(one.label))
        classes.update(_name(name) for name, _ in one.alternatives)
        is_scored &= one.confidence is not None
        if len(classes) > MOST_CLASSES:
            raise UsageError(
                f"{answers.path}: has more than {MOST_CLASSES} different answers, and a class is a "
                "column in a table for OpenSoundscape; --column takes the answers to one question, "
                "and --species-list keeps answers to a list"
            )
    return sorted(classes), is_scored and bool(classes)


def _name(label: str) -> str:
    """A label as the name of a column, which is none of the index."""
    text = one_line(label)
    return f"{text}_" if text.casefold() in INDEX else text


def _fill(answers: ResultFile, file: TextIO, classes: list[str], is_scored: bool) -> int:
    writer, count = csv.writer(file, lineterminator="\n"), 0
    writer.writerow([*INDEX, *map(without_formula, classes)])
    for recording in answers.recordings:
        for (start, end), found in sorted(_windows(answers, recording).items()):
            if is_scored:
                cells = [f"{found.get(name, 0.0):.6f}" for name in classes]
            else:
                cells = [str(int(name in found)) for name in classes]
            path = without_formula(recording.path)
            writer.writerow([path, number(start), number(end), *cells])
            count += 1
    return count


def _windows(
    answers: ResultFile, recording: HeardRecording
) -> dict[tuple[float, float], dict[str, float]]:
    """The windows of a recording, each with what was heard in it and how sure that is."""
    part = answers.of(recording)
    windows: dict[tuple[float, float], dict[str, float]] = {}
    for row in part.rows():
        if isinstance(row, ErrorRow):
            continue
        found = windows.setdefault((row.start, row.end), {})
        for one in part.detections_of(row):
            for label, share in (*one.alternatives, (one.label, one.confidence or 0.0)):
                found[_name(label)] = max(share, found.get(_name(label), 0.0))
    return windows


def read(path: Path) -> Iterator[Detection]:
    """What was heard, of a table of labels or of scores. Raises DataError."""
    table = read_table(path)
    columns = Columns(TableSource.named(str(path)), _READ)
    columns.decimal_comma = table.decimal_comma
    rows = list(table.rows)
    is_labelled = all(cell in ("0", "1") for _, row in rows for cell in _scores(row).values())
    for line, row in rows:
        where = f"{path}, line {line}"
        start, end = columns.stretch(row, where)
        recording = columns.recording(
            {**row, "file": with_formula(row["file"])}, path.parent, where
        )
        for name, cell in _scores(row).items():
            share = _share(cell, table.decimal_comma, f"{where}: {name}")
            if share > 0:
                label = with_formula(name)
                common, scientific = both_names(label)
                yield Detection(
                    audio_path=str(recording or ""),
                    start=start,
                    end=float("inf") if end is None else end,
                    label=label,
                    confidence=None if is_labelled else share,
                    common_name=common,
                    scientific_name=scientific,
                )


def _scores(row: dict[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name not in INDEX}


def _share(cell: str, decimal_comma: bool, where: str) -> float:
    text = {"true": "1", "false": "0", "": "0"}.get(cell.strip().lower(), cell.strip())
    try:
        return float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        raise DataError(f"{where} is {cell!r}: 0, 1 or a score is needed") from None

"""crowsetta's generic-seq: a CSV of labelled stretches, all columns in a strict order.

It has no confidence, no frequencies and no recordings without detections. Times always have a
decimal point: a column of whole numbers would be refused.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from NatureLM.config.schema import TableSource
from NatureLM.data.table import Columns, read_table
from NatureLM.results.detections import Detection, ResultFile, by_recording
from NatureLM.results.tables import both_names, one_line, with_formula, without_formula, write_table

COLUMNS = ("label", "onset_s", "offset_s", "notated_path", "annot_path", "sequence", "annotation")

_READ: dict[str, tuple[str, ...]] = {
    **{"label": COLUMNS[:1], "start": COLUMNS[1:2], "end": COLUMNS[2:3], "path": COLUMNS[3:4]},
    **{"duration": (), "file_offset": ()},
}


def write(answers: ResultFile, target: Path) -> int:
    """A line for each detection; how many. Raises OutputError.

    An annotation is what is said about a recording; the file of answers is where it is from.
    """
    return write_table(target, "utf-8", lambda file: _fill(answers, file))


def _fill(answers: ResultFile, file: TextIO) -> int:
    writer, count = csv.writer(file, lineterminator="\n"), 0
    source = without_formula(one_line(str(answers.path)))
    writer.writerow(COLUMNS)
    for annotation, (path, found) in enumerate(by_recording(answers)):
        name = without_formula(path)
        for one in sorted(found, key=lambda one: (one.start, one.end)):
            label = without_formula(one_line(one.label))
            times = f"{one.start:.6f}", f"{one.end:.6f}"
            writer.writerow([label, *times, name, source, 0, annotation])
            count += 1
    return count


def read(path: Path) -> Iterator[Detection]:
    """The labelled stretches. Raises DataError."""
    table = read_table(path)
    columns = Columns(TableSource.named(str(path)), _READ)
    columns.decimal_comma = table.decimal_comma
    for line, row in table.rows:
        where = f"{path}, line {line}"
        label = with_formula(columns.get(row, "label") or "")
        start, end = columns.stretch(row, where)
        if label and end is not None:
            common, scientific = both_names(label)
            recording = columns.recording(
                {**row, "notated_path": with_formula(row["notated_path"])}, path.parent, where
            )
            yield Detection(
                audio_path=str(recording or ""),
                start=start,
                end=end,
                label=label,
                common_name=common,
                scientific_name=scientific,
            )

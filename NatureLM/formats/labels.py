"""Labels for Audacity, crowsetta and OpenSoundscape: of stretches of recordings, or of windows.

- Audacity: start, end and text, a line each, of the one recording that is open.
- crowsetta's generic-seq: a CSV of labelled stretches, all columns in a strict order. It has no
  confidence, no frequencies and no recordings without detections. Times always have a decimal
  point: a column of whole numbers would be refused.
- OpenSoundscape: a line for each window, a column for each class. `CategoricalLabels` reads it
  (`from_multihot_df`, where the first three columns are the index), and so do the functions that
  train or evaluate on labelled clips. A cell is 1 or 0, or, where all answers have a confidence,
  that of the class: 0 then means that it was not among the likeliest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from NatureLM.config.schema import TableSource
from NatureLM.data.annotations import is_label_track, label_rows, named_like
from NatureLM.data.table import (
    Columns,
    DataError,
    Row,
    Table,
    decoded,
    read_bytes,
    read_table,
)
from NatureLM.errors import UsageError
from NatureLM.formats.annotated import positive, share_of
from NatureLM.results.detections import Detection, HeardRecording, ResultFile, by_recording
from NatureLM.results.rows import ErrorRow
from NatureLM.results.tables import (
    number,
    one_line,
    with_formula,
    without_formula,
    write_lines,
    write_rows,
)

# Audacity


def write_audacity(answers: ResultFile, target: Path) -> int:
    """A label for each detection of one recording, by start; how many. Raises OutputError.

    Frequencies stand on a line of their own below a label, as Audacity has them. Raises UsageError
    for several recordings.
    """
    recordings = answers.recordings
    if len(recordings) > 1:
        raise UsageError(
            f"{target}: labels of Audacity name no recording, and there are {len(recordings)}: "
            "write a file for each with --per-recording"
        )
    return write_lines(target, map(_label, sorted(answers, key=lambda one: one.start)))


def _label(one: Detection) -> str:
    label = f"{one.start:.6f}\t{one.end:.6f}\t{one_line(one.label)}\n"
    if one.low_hz is None and one.high_hz is None:
        return label
    low, high = (-1.0 if hz is None else hz for hz in (one.low_hz, one.high_hz))
    return f"{label}\\\t{low:.6f}\t{high:.6f}\n"


def read_audacity(path: Path) -> Iterator[Detection]:
    """The labels, those that mark a point among them. Raises DataError.

    Their recording is the one beside the file that is called like it, or has its name at least.
    """
    text, _ = decoded(read_bytes(path), path)
    if text.strip() and not is_label_track(text):
        raise DataError(f"{path}, line 1: is no label of Audacity: start, end and text, with tabs")
    beside = named_like(path, path.parent)
    recording = path.stem if beside is None else str(path.parent / beside)
    for line, row in label_rows(text, path, recording):
        start, end = (positive(row[key], decimal_comma=True) for key in ("start", "end"))
        if start is None or end is None or end < start:
            raise DataError(
                f"{path}, line {line}: a label from {row['start']} to {row['end']}; times are "
                "seconds of 0 or more, the end not before the start"
            )
        latin = {key: row[key] for key in ("scientific_name",) if key in row}
        yield Detection.named(
            row["label"],
            audio_path=recording,
            start=start,
            end=end,
            confidence=share_of(row.get("confidence", ""), decimal_comma=True),
            low_hz=positive(row.get("low_freq", ""), decimal_comma=True),
            high_hz=positive(row.get("high_freq", ""), decimal_comma=True),
            **latin,
        )


# Tables whose columns are all known: their rows, each with where it is


def _stretches(
    file: Path, table: Table, **columns: str
) -> Iterator[tuple[Row, str, dict[str, Any], str]]:
    """The rows of a table, where each stands, its recording, start and end (None: open), and label.

    columns: what the table calls `path`, `start`, `end` and, if it has one, `label`

    Raises DataError.
    """
    aliases = {name: (column,) for name, column in columns.items()}
    reader = Columns(TableSource.named(str(file)), {**aliases, "duration": (), "file_offset": ()})
    reader.decimal_comma, name = table.decimal_comma, columns["path"]
    for line, row in table.rows:
        where = f"{file}, line {line}"
        label = with_formula(reader.get(row, "label") or "") if "label" in columns else ""
        start, end = reader.stretch(row, where)
        found = reader.recording({**row, name: with_formula(row[name])}, file.parent, where)
        yield row, where, {"audio_path": str(found or ""), "start": start, "end": end}, label


# crowsetta

CROWSETTA = ("label", "onset_s", "offset_s", "notated_path", "annot_path", "sequence", "annotation")


def write_crowsetta(answers: ResultFile, target: Path) -> int:
    """A line for each detection; how many. Raises OutputError.

    An annotation is what is said about a recording; the file of answers is where it is from.
    """
    return write_rows(target, CROWSETTA, _crowsetta_rows(answers))


def _crowsetta_rows(answers: ResultFile) -> Iterator[Sequence[Any]]:
    source = without_formula(one_line(str(answers.path)))
    for annotation, (path, found) in enumerate(by_recording(answers)):
        for one in sorted(found, key=lambda one: (one.start, one.end)):
            label, name = without_formula(one_line(one.label)), without_formula(path)
            yield label, f"{one.start:.6f}", f"{one.end:.6f}", name, source, 0, annotation


def read_crowsetta(path: Path) -> Iterator[Detection]:
    """The labelled stretches. Raises DataError."""
    columns = dict(zip(("label", "start", "end", "path"), CROWSETTA, strict=False))
    for _, _, stretch, label in _stretches(path, read_table(path), **columns):
        if label and stretch["end"] is not None:
            yield Detection.named(label, **stretch)


# OpenSoundscape

INDEX = ("file", "start_time", "end_time")
MOST_CLASSES = 5_000
"""Labels that make a table of classes; more are free answers."""


def write_opensoundscape(answers: ResultFile, target: Path) -> int:
    """A line for each window that was heard; how many. Raises OutputError, UsageError."""
    classes, is_scored = _classes(answers)
    header = [*INDEX, *map(without_formula, classes)]
    return write_rows(target, header, _class_rows(answers, classes, is_scored))


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


def _class_rows(
    answers: ResultFile, classes: Sequence[str], is_scored: bool
) -> Iterator[Sequence[str]]:
    for recording in answers.recordings:
        for (start, end), found in sorted(_windows(answers, recording).items()):
            if is_scored:
                cells = [f"{found.get(name, 0.0):.6f}" for name in classes]
            else:
                cells = [str(int(name in found)) for name in classes]
            yield without_formula(recording.path), number(start), number(end), *cells


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


def read_opensoundscape(path: Path) -> Iterator[Detection]:
    """What was heard, of a table of labels or of scores. Raises DataError."""
    table = read_table(path)
    rows = list(table.rows)
    table.rows = iter(rows)
    is_labelled = all(cell in ("0", "1") for _, row in rows for cell in _scores(row).values())
    columns = dict(zip(("path", "start", "end"), INDEX, strict=True))
    for row, where, stretch, _ in _stretches(path, table, **columns):
        stretch["end"] = float("inf") if stretch["end"] is None else stretch["end"]
        for name, cell in _scores(row).items():
            share = _share(cell, table.decimal_comma, f"{where}: {name}")
            if share > 0:
                sure = None if is_labelled else share
                yield Detection.named(with_formula(name), confidence=sure, **stretch)


def _scores(row: Mapping[str, str]) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name not in INDEX}


def _share(cell: str, decimal_comma: bool, where: str) -> float:
    text = {"true": "1", "false": "0", "": "0"}.get(cell.strip().lower(), cell.strip())
    try:
        return float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        raise DataError(f"{where} is {cell!r}: 0, 1 or a score is needed") from None

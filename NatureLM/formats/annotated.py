"""What was heard, as tables and labels of programs that people annotate with.

Those of BirdNET, Ecosounds and Kaleidoscope have a line for each detection. Each is written in the
columns of its program; read are also those of other versions, and what people and other programs
add to them.

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

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from NatureLM.config.schema import TableSource
from NatureLM.data.annotations import (
    KALEIDOSCOPE,
    is_label_track,
    label_rows,
    named_like,
    names_no_recording,
    read_annotations,
)
from NatureLM.data.table import (
    CLIP_ALIASES,
    Columns,
    DataError,
    Row,
    Table,
    decoded,
    fold,
    read_bytes,
    read_table,
)
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.results.detections import Detection, HeardRecording, ResultFile, by_recording
from NatureLM.results.rows import ErrorRow
from NatureLM.results.tables import (
    alternatives_of,
    both_names,
    number,
    one_line,
    share,
    with_formula,
    without_formula,
    write_lines,
    write_rows,
)

logger = logging.getLogger(__name__)

ALIASES: dict[str, tuple[str, ...]] = {
    **{name: CLIP_ALIASES[name] for name in ("path", "start", "end", "duration", "file_offset")},
    "label": ("label", "common_name", "species", "annotation", "answer", "scientific_name"),
    "common_name": ("common_name",),
    "scientific_name": ("scientific_name",),
    "confidence": ("confidence", "score"),
    "low_hz": ("low_freq_(hz)", "low_freq", "low_frequency_hertz"),
    "high_hz": ("high_freq_(hz)", "high_freq", "high_frequency_hertz"),
    "channel": ("channel",),
    "question": ("question",),
    "note": ("note",),
    "alternatives": ("alternatives",),
    "windows": ("windows",),
    "mean_confidence": ("mean_confidence",),
}
"""Columns of a detection, and the names that each may bear; `fold` says what counts as equal."""

NUMBERS = ("low_hz", "high_hz", "channel", "windows")
SHARES = ("confidence", "mean_confidence")
TEXTS = (
    *("label", "common_name", "scientific_name", "question", "note", "alternatives"),
    *NUMBERS,
    *SHARES,
)

_NOTHING = frozenset({"nocall"})
"""What BirdNET writes into the table of a recording in which it heard nothing."""


def detections(
    path: Path, aliases: Mapping[str, tuple[str, ...]] = ALIASES, more: Callable[[Row], Row] = dict
) -> Iterator[Detection]:
    """The rows of a table that name something.

    aliases: as `ALIASES`, in the order of the program
    more: makes of a row one with columns that the aliases know

    Columns that nothing is known of are `values`. Raises DataError with file and line.
    """
    columns = Columns(TableSource.named(str(path)), aliases)
    table = read_annotations(path, path.parent)
    columns.decimal_comma = table.decimal_comma
    known = {fold(name) for names in aliases.values() for name in names}
    for line, row in table.rows:
        found = _detection(more(row), columns, known, path, line)
        if found.label.casefold() not in _NOTHING:
            yield found
    for note in table.notes:
        logger.warning(note)


def _detection(row: Row, columns: Columns, known: set[str], path: Path, line: int) -> Detection:
    where = f"{path}, line {line}"
    start, end = columns.stretch(row, where)
    said: dict[str, Any] = {name: _text(columns, row, name) for name in TEXTS}
    for name in NUMBERS:
        said[name] = positive(said[name], columns.decimal_comma)
    for name in SHARES:
        said[name] = share_of(said[name], columns.decimal_comma)
    channel, windows = said.pop("channel"), said.pop("windows")
    if said["label"] and not (said["common_name"] or said["scientific_name"]):
        said["common_name"], said["scientific_name"] = both_names(said["label"])
    return Detection(
        audio_path=_recording(columns, row, path, where),
        start=start,
        end=math.inf if end is None else end,
        channel=int(channel) if channel else None,
        windows=None if windows is None else int(windows),
        alternatives=alternatives_of(said.pop("alternatives")),
        values={
            name: with_formula(str(cell))
            for name, cell in row.items()
            if cell not in (None, "") and fold(name) not in known
        },
        **said,
    )


def _text(columns: Columns, row: Row, name: str) -> str:
    """The first cell of a column that has something in it, "" where none has."""
    value = columns.get(row, name)
    return "" if value is None else with_formula(str(value))


def _recording(columns: Columns, row: Row, path: Path, where: str) -> str:
    """The recording where it is there, else what the table calls it, else what itself is called."""
    named = columns.get(row, "path")
    if named is None:
        if not names_no_recording([*row]):
            raise DataError(f"{where}: names no recording")
        return path.stem
    if str(named).startswith("'"):
        row = {name: with_formula(one) if type(one) is str else one for name, one in row.items()}
    found = columns.recording(row, path.parent, where)
    return str(found) if found is not None and os.path.exists(found) else with_formula(str(named))


def positive(text: str, decimal_comma: bool = False) -> float | None:
    """The number of 0 or more that a text is; None where it is none."""
    try:
        value = float(text.replace(",", ".", 1) if decimal_comma else text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def share_of(text: str, decimal_comma: bool = False) -> float | None:
    """The confidence that a text is, 0 to 1; None where it is none, such as a score in dB."""
    value = positive(text, decimal_comma)
    return value if value is not None and value <= 1 else None


def with_names(aliases: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """`ALIASES` with some columns that are called otherwise."""
    return {**ALIASES, **{name: tuple(names) for name, names in aliases.items()}}


def context_cell(one: Detection, key: str) -> Any:
    """What is known of when and where a detection was, "" where nothing is."""
    value = one.context.get(key)
    return "" if value is None else value


def _write(
    answers: ResultFile, target: Path, header: Sequence[str], cells: Callable[[Detection], Row]
) -> int:
    """A line for each detection; how many. Texts are made cells that no spreadsheet runs."""
    rows = ([_cell(known.get(name, "")) for name in header] for known in map(cells, answers))
    return write_rows(target, header, rows, lineterminator="\r\n")


def _cell(value: Any) -> Any:
    return without_formula(value) if isinstance(value, str) else value


# BirdNET

BIRDNET = ("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File")
BIRDNET_MORE = {"lat": "latitude", "lon": "longitude", "week": "week"}
"""Columns that BirdNET adds where it is asked to, and what of a detection's context they are."""


def write_birdnet(answers: ResultFile, target: Path) -> int:
    """The table of BirdNET-Analyzer, which many programs of its users read. Raises OutputError.

    Place and week are there where a recording has them.
    """
    known = {key for one in answers.recordings for key in one.context}
    more = {column: key for column, key in BIRDNET_MORE.items() if key in known}

    def cells(one: Detection) -> Row:
        return {
            "Start (s)": number(one.start),
            "End (s)": number(one.end),
            "Scientific name": one_line(one.scientific_name),
            "Common name": one_line(one.common_name),
            "Confidence": share(one.confidence),
            "File": one.audio_path,
            **{column: context_cell(one, key) for column, key in more.items()},
        }

    return _write(answers, target, [*BIRDNET, *more], cells)


def read_birdnet(path: Path) -> Iterator[Detection]:
    """The lines of a table, but those that say that nothing was heard. Raises DataError."""
    return detections(path)


# Ecosounds and the A2O of Australia: the Acoustic Workbench knows recordings by their names alone

ECOSOUNDS = (
    *("filename", "start_offset_seconds", "end_offset_seconds"),
    *("low_frequency_hertz", "high_frequency_hertz", "score", "Common name", "Scientific name"),
)


def write_ecosounds(answers: ResultFile, target: Path) -> int:
    """The table that the Acoustic Workbench imports. Raises OutputError."""
    return _write(answers, target, ECOSOUNDS, _ecosounds_cells)


def _ecosounds_cells(one: Detection) -> Row:
    return {
        "filename": Path(one.audio_path).name,
        "start_offset_seconds": number(one.start),
        "end_offset_seconds": number(one.end),
        "low_frequency_hertz": "" if one.low_hz is None else number(one.low_hz),
        "high_frequency_hertz": "" if one.high_hz is None else number(one.high_hz),
        "score": share(one.confidence),
        "Common name": one_line(one.common_name),
        "Scientific name": one_line(one.scientific_name),
    }


def write_beside_ecosounds(answers: ResultFile, target: Path) -> list[str]:
    """Nothing; but names that several recordings have are said, as the server cannot tell them."""
    names = Counter(Path(one.path).name for one in answers.recordings)
    alike = [name for name, count in names.items() if count > 1]
    if not alike:
        return []
    return [
        f"Ecosounds knows recordings by their names, and {len(alike)} names are those of several "
        f"recordings, such as {printable(alike[0])}: import them apart, with --per-recording"
    ]


read_ecosounds = read_birdnet


# Kaleidoscope Pro, whose `id.csv` has a column for a person's word

KALEIDOSCOPE_ID = (
    *("INDIR", "FOLDER", "IN FILE", "CHANNEL", "OFFSET", "DURATION", "OUT FILE FS", "OUT FILE ZC"),
    *("DATE", "TIME", "HOUR", "DATE-12", "TIME-12", "HOUR-12", "AUTO ID*", "PULSES", "MATCHING"),
    *("MATCH RATIO", "MARGIN", "ALTERNATE 1", "ALTERNATE 2", "MANUAL ID"),
    *("scientific_name", "common_name"),
)
"""Those of the program, and both names as BirdNET adds them."""

_KALEIDOSCOPE_NAMES = with_names(
    {
        "path": ["path"],
        "start": ["offset"],
        "end": [],
        "label": ["label"],
        "common_name": ["common_name", "common"],
        "confidence": ["share"],
        "channel": ["number"],
        "low_hz": [],
        "high_hz": [],
        "apart": [
            *("is_manual", "indir", "folder", "in_file", "channel", "match_ratio", "top1dist"),
            *("confidence", "top1match", "top1match*", "auto_id*", "auto_id", "manual_id"),
        ],
    }
)


def write_kaleidoscope(answers: ResultFile, target: Path) -> int:
    """The `id.csv` of Kaleidoscope Pro. Raises OutputError."""
    return _write(answers, target, KALEIDOSCOPE_ID, _kaleidoscope_cells)


def _kaleidoscope_cells(one: Detection) -> Row:
    place = Path(one.audio_path)
    others = [one_line(name) for name, _ in one.alternatives]
    return {
        "INDIR": str(place.parent.parent),
        "FOLDER": place.parent.name,
        "IN FILE": place.name,
        "CHANNEL": str((one.channel or 1) - 1),  # Kaleidoscope counts from 0
        "OFFSET": number(one.start),
        "DURATION": number(one.end - one.start),
        "AUTO ID*": one_line(one.label),
        "MATCH RATIO": share(one.confidence),
        **dict(zip(("ALTERNATE 1", "ALTERNATE 2"), others, strict=False)),
        "scientific_name": one_line(one.scientific_name),
        "common_name": one_line(one.common_name),
        **_clock(str(one.context.get("local_time", ""))),
    }


def _clock(local_time: str) -> dict[str, str]:
    """Date and time, also twelve hours earlier, so that a night has one date."""
    if not local_time:
        return {}
    now = datetime.fromisoformat(local_time)
    cells = {}
    for behind, moment in (("", now), ("-12", now - timedelta(hours=12))):
        cells[f"DATE{behind}"] = moment.strftime("%Y-%m-%d")
        cells[f"TIME{behind}"] = moment.strftime("%H:%M:%S")
        cells[f"HOUR{behind}"] = moment.strftime("%H")
    return cells


def read_kaleidoscope(path: Path) -> Iterator[Detection]:
    """The lines that identify something, also of `cluster.csv` and of BirdNET. Raises DataError.

    MANUAL ID wins over AUTO ID. MATCH RATIO is the confidence of AUTO ID; TOP1DIST is one where
    another program wrote it, and a distance in Kaleidoscope's own tables.
    """
    return detections(path, _KALEIDOSCOPE_NAMES, partial(_known, path))


def _known(path: Path, row: Row) -> Row:
    if "is_manual" not in row:
        raise DataError(
            f"{path}: is no table of Kaleidoscope, which has the columns {', '.join(KALEIDOSCOPE)}"
        )
    known = {**row, "share": "", "number": _channel(row)}
    if row["is_manual"]:  # other names are those of what the program took it for
        return {**known, **dict.fromkeys(("common_name", "scientific_name"), "")}
    if "scientific_name" in row:
        known["common"] = row.get("TOP1MATCH", "")
    shares = [row.get("MATCH RATIO"), row.get("confidence")]
    shares += [row.get("TOP1DIST")] if "CHANNEL" not in row else []
    known["share"] = next(filter(None, shares), "")
    return known


def _channel(row: Row) -> str:
    """Its number, from 1 on; Kaleidoscope counts from 0."""
    cell = str(row.get("CHANNEL", "")).strip()
    return str(int(cell) + 1) if cell.isascii() and cell.isdecimal() else ""


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
            for label, sure in (*one.alternatives, (one.label, one.confidence or 0.0)):
                found[_name(label)] = max(sure, found.get(_name(label), 0.0))
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

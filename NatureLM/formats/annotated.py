"""Tables with a line for each detection: BirdNET's, Ecosounds', Kaleidoscope's, and alike ones.

Each is written in the columns of its program; read are also those of other versions, and what
people and other programs add to them.
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
from NatureLM.data.annotations import KALEIDOSCOPE, names_no_recording, read_annotations
from NatureLM.data.table import CLIP_ALIASES, Columns, DataError, Row, fold
from NatureLM.progress import printable
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.tables import (
    alternatives_of,
    both_names,
    number,
    one_line,
    share,
    with_formula,
    without_formula,
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

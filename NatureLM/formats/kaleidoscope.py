"""The `id.csv` of Kaleidoscope Pro: a line for each detection, with a column for a person's word.

Read are also its `cluster.csv`, and what BirdNET writes for it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TextIO

from NatureLM.data.annotations import KALEIDOSCOPE
from NatureLM.data.table import DataError, Row
from NatureLM.formats.annotated import detections, with_names
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.tables import number, one_line, share, without_formula, write_table

COLUMNS = (
    *("INDIR", "FOLDER", "IN FILE", "CHANNEL", "OFFSET", "DURATION", "OUT FILE FS", "OUT FILE ZC"),
    *("DATE", "TIME", "HOUR", "DATE-12", "TIME-12", "HOUR-12", "AUTO ID*", "PULSES", "MATCHING"),
    *("MATCH RATIO", "MARGIN", "ALTERNATE 1", "ALTERNATE 2", "MANUAL ID"),
    *("scientific_name", "common_name"),
)
"""Those of the program, and both names as BirdNET adds them."""

_NAMES = with_names(
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


def write(answers: ResultFile, target: Path) -> int:
    """A line for each detection; how many. Raises OutputError."""
    return write_table(target, "utf-8", lambda file: _write_lines(answers, file))


def _write_lines(answers: ResultFile, file: TextIO) -> int:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    count = 0
    for count, one in enumerate(answers, start=1):  # noqa: B007
        cells = _cells(one)
        writer.writerow(without_formula(cells.get(column, "")) for column in COLUMNS)
    return count


def _cells(one: Detection) -> dict[str, str]:
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


def read(path: Path) -> Iterator[Detection]:
    """The lines that identify something. Raises DataError.

    MANUAL ID wins over AUTO ID. MATCH RATIO is the confidence of AUTO ID; TOP1DIST is one where
    another program wrote it, and a distance in Kaleidoscope's own tables.
    """
    return detections(path, _NAMES, partial(_known, path))


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

"""Tables of annotations with a header, in whichever columns a program has them, as detections."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from NatureLM.config.schema import TableSource
from NatureLM.data.annotations import names_no_recording, read_annotations
from NatureLM.data.table import CLIP_ALIASES, Columns, DataError, Row, fold
from NatureLM.results.detections import Detection
from NatureLM.results.tables import alternatives_of, both_names, with_formula

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
    path: Path, aliases: Mapping[str, tuple[str, ...]], more: Callable[[Row], Row] = dict
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
    for number, row in table.rows:
        found = _detection(more(row), columns, known, path, number)
        if found.label.casefold() not in _NOTHING:
            yield found
    for note in table.notes:
        logger.warning(note)


def _detection(row: Row, columns: Columns, known: set[str], path: Path, number: int) -> Detection:
    where = f"{path}, line {number}"
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

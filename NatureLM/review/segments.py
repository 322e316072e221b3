"""The folder of clips that people review: `segments.csv` in it says what each clip is.

`naturelm segments` writes it (`review.cutting`), `naturelm review` and `naturelm calibrate` read
it. Clips lie in a folder for each species.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from NatureLM.data.table import csv_rows, decoded, delimiter_of, read_bytes
from NatureLM.errors import UsageError
from NatureLM.results.tables import CSV_ENCODING, cell, with_formula, write_rows

INDEX_NAME = "segments.csv"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A clip, and the answer about it that is reviewed.

    clip: path from the folder on, with slashes; the key of verdicts
    recording: full path of the recording that it was cut from
    start, end: seconds in the recording, of what the answer is about
    clip_start, clip_end: seconds in the recording, of the clip, which has context around that
    label, common_name, scientific_name: the answer, and its names as far as they are known
    confidence: 0 to 1; None where it is not known
    question: that was answered, or column of a questionnaire
    model, run: name of the model, fingerprint of the run
    weights, merging_alpha: what thresholds hold for; empty or None where that is lost
    time_expansion: the model heard the sound so many times slower than the clip plays it
    site, local_time: where and when `start` was, as far as that is known
    """

    clip: str
    recording: str
    start: float
    end: float
    clip_start: float
    clip_end: float
    label: str
    common_name: str = ""
    scientific_name: str = ""
    confidence: float | None = None
    question: str = ""
    model: str = ""
    run: str = ""
    weights: str = ""
    merging_alpha: float | None = None
    time_expansion: float = 1.0
    site: str = ""
    local_time: str = ""


COLUMNS = tuple(one.name for one in fields(Segment))
_NUMBERS = ("start", "end", "clip_start", "clip_end", "time_expansion")
_MAYBE_NUMBERS = ("confidence", "merging_alpha")
_NEEDED = ("clip", "recording", "start", "end", "label", "confidence")


def index_path(folder: str | Path) -> Path:
    """Where the index of a folder of clips lies."""
    return Path(folder) / INDEX_NAME


def write_segments(folder: str | Path, segments: Iterable[Segment]) -> Path:
    """Write the index, whole or not at all; its path. Raises OutputError."""
    target = index_path(folder)
    rows = ([cell(getattr(one, name)) for name in COLUMNS] for one in segments)
    write_rows(target, COLUMNS, rows, encoding=CSV_ENCODING)
    return target


def read_segments(folder: str | Path) -> list[Segment]:
    """The clips of a folder, in the order of its index.

    Columns that are not known are passed over: people add notes of their own. Raises UsageError
    where there is no index, or one that cannot be read; the message names file, line and column.
    """
    path = index_path(folder)
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no such file, so {folder} is no folder of clips; make one with "
            "`naturelm segments` (one that was stopped goes on when it is called again)"
        )
    text, _ = decoded(read_bytes(path), path)
    header, rows = csv_rows(text, path, delimiter_of(text))
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise UsageError(
            f"{path}: lacks the columns {', '.join(missing)}, which `naturelm segments` writes"
        )
    found: dict[str, Segment] = {}
    for line, cells in rows:
        one = _segment(dict(zip(header, cells, strict=True)), f"{path}, line {line}")
        if found.setdefault(one.clip, one) is not one:
            raise UsageError(f"{path}, line {line}: {one.clip} is there twice; take one out")
    return list(found.values())


def _segment(row: dict[str, str], place: str) -> Segment:
    texts = {
        name: with_formula(row[name])
        for name in COLUMNS
        if name in row and name not in (*_NUMBERS, *_MAYBE_NUMBERS)
    }
    clip = texts["clip"].replace("\\", "/")
    parts = clip.split("/")
    if not clip or clip.startswith("/") or ":" in clip or not {"", ".", ".."}.isdisjoint(parts):
        raise UsageError(f"{place}: clip is {clip!r}, and it must be a path within the folder")
    texts["clip"] = clip
    numbers = {name: _number(row.get(name, ""), name, place) for name in _NUMBERS}
    start, end = numbers["start"], numbers["end"]
    if start is None or end is None:
        raise UsageError(f"{place}: start and end must be seconds in the recording")
    maybe = {name: _number(row.get(name, ""), name, place) for name in _MAYBE_NUMBERS}
    sure = maybe["confidence"]
    if sure is not None and not 0 <= sure <= 1:
        raise UsageError(f"{place}: confidence is {sure:g}, and it must be between 0 and 1")
    clip_start, clip_end = numbers["clip_start"], numbers["clip_end"]
    return Segment(
        **texts,
        start=start,
        end=end,
        clip_start=start if clip_start is None else clip_start,
        clip_end=end if clip_end is None else clip_end,
        time_expansion=numbers["time_expansion"] or 1.0,
        confidence=sure,
        merging_alpha=maybe["merging_alpha"],
    )


def _number(text: str, name: str, place: str) -> float | None:
    """The number of a cell, also as spreadsheets with a decimal comma save it."""
    if not text.strip():
        return None
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{place}: {name} is {text!r}, and it must be a number")
    return value

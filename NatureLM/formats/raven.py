"""Selection tables of Raven: tab-separated, right for both ways in which Raven opens one.

Opened with the recordings as one sound, `Begin Time (s)` counts from the start of the first;
opened as a sound selection table, `Begin Path` and `File Offset (s)` say where a selection is.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate, chain, count
from pathlib import Path
from typing import Any

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.data.table import Row
from NatureLM.formats.annotated import context_cell, detections, with_names
from NatureLM.progress import printable
from NatureLM.results.detections import Detection, HeardRecording, ResultFile, by_recording
from NatureLM.results.rows import value_text
from NatureLM.results.tables import (
    alternatives_text,
    one_line,
    share,
    without_formula,
    write_lines,
    write_rows,
)

logger = logging.getLogger(__name__)

COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
    *("Low Freq (Hz)", "High Freq (Hz)", "Begin Path", "File Offset (s)", "Begin File"),
    *("Common Name", "Scientific Name", "Confidence", "Alternatives", "Question", "Note"),
)
"""What every table has, before what some have, and `Annotation`, which is the last."""
LAST = "Annotation"
EVENT = ("Windows", "Mean Confidence")
CLAIM = ("Claim", "Agrees")
CONTEXT = {"site": "Site", "local_time": "Local Time", "utc_time": "UTC Time"}
SUFFIX = ".selections.txt"

_NAMES = with_names({"view": ["selection", "view"]})


def write(answers: ResultFile, target: Path) -> int:
    """A selection for each detection; how many. Raises OutputError."""
    counted = [one for one in answers.recordings if one.seconds]
    heard_hz, channel = answers.heard_hz, answers.channel
    return write_selections(answers, target, counted, heard_hz=heard_hz, channel=channel)


def write_beside(answers: ResultFile, target: Path) -> list[str]:
    """Write the list by which Raven opens the recordings as one sound; what to say about it.

    A full path on each line, in the order of the table; a single recording needs no list. The log
    names recordings that count although they could not be read, and those that do not count.
    """
    counted = [one.path for one in answers.recordings if one.seconds]
    for one in answers.recordings:
        if one.error:
            logger.warning("%s", _on_length(one))
    if len(counted) < 2:
        return []
    stem = target.name.removesuffix(SUFFIX).removesuffix(".txt")
    listed = target.with_name(f"{stem}.files.txt")
    write_lines(listed, (f"{path}\n" for path in counted))
    return [f"Open the recordings in Raven as one sound, by the list {listed}"]


def _on_length(recording: HeardRecording) -> str:
    """How a recording with an error counts in the times."""
    name = printable(recording.path)
    try:
        probe(recording.path)
    except AudioError as error:
        if not recording.seconds:
            return f"{error} It is not counted: neither in the times nor in the list for Raven."
        return (
            f"{error} Its length is taken to be {recording.seconds:g} s, where the last answer "
            "ends."
        )
    return f"{name}: not all of it was read; its {recording.seconds:g} s count, as its header says"


def write_selections(
    found: Iterable[Detection],
    target: Path,
    recordings: Sequence[HeardRecording],
    *,
    heard_hz: float = 8000.0,
    channel: int = 1,
) -> int:
    """A header and a selection for each detection; how many. They come by recording.

    recordings: in the order in which Raven opens them as one sound, with the keys of detections
    heard_hz: highest frequency that the model hears; selections end there or where the sound does
    channel: of detections that do not say theirs

    Raises OutputError, and KeyError for a detection in a recording that is not among `recordings`.
    """
    begins = accumulate((Fraction(one.seconds) for one in recordings), initial=Fraction(0))
    places = {one.path: (begin, one) for one, begin in zip(recordings, begins, strict=False)}
    groups = by_recording(found)
    first = next(groups, None)
    header = _header(recordings, first[1][0] if first else None)

    def rows() -> Iterator[list[object]]:
        numbers = count(1)
        for path, group in chain([first] if first else [], groups):
            before, recording = places[path]
            top = min(heard_hz, recording.sample_rate / 2)
            for one in sorted(group, key=lambda one: one.start):
                cells = _cells(one, next(numbers), before, top, channel)
                yield [cells[column] for column in header]

    unquoted: dict[str, Any] = {"quoting": csv.QUOTE_NONE, "quotechar": None}
    return write_rows(target, header, rows(), delimiter="\t", **unquoted)


def _header(recordings: Sequence[HeardRecording], first: Detection | None) -> list[str]:
    """The columns: what a first detection, or a recording, does not have, none has."""
    known = {key for one in recordings for key in one.context}
    return [
        *COLUMNS,
        *(EVENT if first is not None and first.windows is not None else ()),
        *(CLAIM if first is not None and first.claim else ()),
        *(title for key, title in CONTEXT.items() if key in known),
        LAST,
    ]


def _cells(
    one: Detection, number: int, before: Fraction, top_hz: float, channel: int
) -> dict[str, object]:
    start, end = Fraction(one.start), Fraction(one.end)
    texts = {
        "Common Name": one.common_name,
        "Scientific Name": one.scientific_name,
        "Alternatives": alternatives_text(one.alternatives),
        "Question": one.question,
        "Note": one.note,
        "Claim": str(one.claim.get("label", "")),
        LAST: one.label,
    }
    return {
        "Selection": number,
        "View": "Spectrogram 1",
        "Channel": one.channel or channel,
        "Begin Time (s)": _seconds(before + start),
        "End Time (s)": _seconds(before + end),
        "Low Freq (Hz)": f"{one.low_hz or 0:.1f}",
        "High Freq (Hz)": f"{top_hz if one.high_hz is None else one.high_hz:.1f}",
        "Begin Path": without_formula(_path(one.audio_path)),
        "File Offset (s)": _seconds(start),
        "Begin File": without_formula(_path(Path(one.audio_path).name)),
        "Confidence": share(one.confidence),
        "Windows": "" if one.windows is None else one.windows,
        "Mean Confidence": share(one.mean_confidence),
        "Agrees": value_text(one.claim.get("agrees")),
        **{title: context_cell(one, key) for key, title in CONTEXT.items()},
        **{column: without_formula(one_line(text)) for column, text in texts.items()},
    }


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}"


def _path(text: str) -> str:
    """A path without what would end the cell or the line."""
    return "".join(" " if c in "\t\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029" else c for c in text)


def read(path: Path) -> Iterator[Detection]:
    """The selections of a table, those of both views once. Raises DataError.

    `File Offset (s)` says where a selection is; without it `Begin Time (s)` does, if all are of
    one recording.
    """
    for one in detections(path, _NAMES, _labelled):
        known = {key: one.values[title] for key, title in CONTEXT.items() if title in one.values}
        yield replace(one, context=known) if known else one


def _labelled(row: Row) -> Row:
    """A row whose label is `Annotation`, where that is our own column."""
    return {**row, "label": row[LAST]} if {LAST, "Alternatives"} <= row.keys() else row

"""Selection tables of Raven: tab-separated, times counted over all recordings as one sound."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import TextIO

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.formats.spreadsheet import called
from NatureLM.results.detections import MODEL_RATE, ResultFile
from NatureLM.results.recordings import Identity, KnownRecordings
from NatureLM.results.rows import Row, WindowRow, read_record
from NatureLM.results.tables import (
    alternatives_text,
    one_line,
    share,
    without_formula,
    write_table,
)

logger = logging.getLogger(__name__)

COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
    *("Low Freq (Hz)", "High Freq (Hz)", "Begin File", "File Offset (s)"),
    *("Answer", "Confidence", "Alternatives", "Question"),
)
SUFFIX = ".selections.txt"


@dataclass(frozen=True)
class RavenRecording:
    """A recording that selections are in.

    seconds: its length
    sample_rate: in Hz
    """

    path: str
    seconds: float
    sample_rate: float


def write(answers: ResultFile, target: Path) -> int:
    """A selection for each answer; how many. Raises OutputError."""
    windows, recordings, names = _sequence(answers.rows(), answers.path)
    channel, heard_hz = answers.settings.get("channel", "mean"), answers.heard_hz
    write_table(
        target,
        "utf-8",
        lambda file: write_raven(
            windows, file, recordings, names, channel=channel, heard_hz=heard_hz
        ),
    )
    return len(windows)


def write_beside(answers: ResultFile, target: Path) -> list[str]:
    """Write the list by which Raven opens the recordings as one sound; what to say about it.

    A full path on each line, in the order of the table. A single recording needs none.
    Notes say which recordings count by their headers, or not at all.
    """
    _, recordings, _ = _sequence(answers.rows(), answers.path, says=logger.warning)
    if len(recordings) < 2:
        return []
    stem = target.name.removesuffix(SUFFIX).removesuffix(".txt")
    listed = target.with_name(f"{stem}.files.txt")
    write_table(listed, "utf-8", lambda file: file.writelines(f"{r.path}\n" for r in recordings))
    return [f"Open the recordings in Raven as one sound, by the list {listed}"]


def write_raven(
    rows: Iterable[Row],
    file: TextIO,
    recordings: Sequence[RavenRecording],
    names: Mapping[str, str] | None = None,
    *,
    channel: str | int = "mean",
    heard_hz: float = 8000.0,
    has_notes: bool | None = None,
) -> None:
    """A selection table, tab-separated: a selection for each window and question.

    A window without sound has a note in place of an answer; the column `Note` is there if one has.

    recordings: in the order in which Raven opens them as one sound: `Begin Time (s)` counts from
        the start of the first, `File Offset (s)` from the start of `Begin File`
    channel: the one that was read; a mix of all is given as channel 1
    heard_hz: highest frequency that the model hears; selections end there or where the sound does
    has_notes: as for `write_csv`

    Raises KeyError for an answer about a recording that is not among `recordings`.
    """
    begins = accumulate((Fraction(one.seconds) for one in recordings), initial=Fraction(0))
    places = {one.path: (begin, one) for one, begin in zip(recordings, begins, strict=False)}
    writer = csv.writer(
        file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None
    )
    windows: Iterable[WindowRow] = (row for row in rows if isinstance(row, WindowRow))
    if has_notes is None:
        windows = list(windows)
        has_notes = any(row.note for row in windows)
    writer.writerow([*COLUMNS, *(["Note"] if has_notes else [])])
    for number, row in enumerate(windows, start=1):
        before, recording = places[row.audio_path]
        writer.writerow(
            [
                number,
                "Spectrogram 1",
                1 if channel == "mean" else channel,
                _seconds(before + Fraction(row.start)),
                _seconds(before + Fraction(row.end)),
                "0.0",
                f"{min(heard_hz, recording.sample_rate / 2):.1f}",
                one_line(called(row, names)),
                _seconds(Fraction(row.start)),
                without_formula(one_line(row.text)),
                share(row.confidence),
                without_formula(one_line(alternatives_text(row.alternatives))),
                without_formula(one_line(row.query)),
                *([row.note] if has_notes else []),
            ]
        )


def _sequence(
    rows: Iterable[Row], answers: Path, says: Callable[..., None] = lambda *_: None
) -> tuple[list[WindowRow], list[RavenRecording], dict[str, str]]:
    """Answers, recordings and their names, in the order of the recordings' full paths.

    Recordings without an answer take their time, too. Paths in the answers are the full ones.
    """
    record = read_record(answers)
    known = KnownRecordings(answers, None if record is None else record.folder)
    names: dict[str, str] = {}
    ends: dict[str, float] = {}
    windows = []
    for row in rows:
        before = Identity(row.audio_bytes, row.audio_modified, row.audio_digest)
        path = known.add(row.audio_path, before, row.audio_folder)
        names.setdefault(path, row.audio_path)
        if isinstance(row, WindowRow):
            ends[path] = max(row.end, ends.get(path, 0.0))
            windows.append(replace(row, audio_path=path))
    found = []
    for path in sorted(names, key=lambda one: Path(one).parts):
        try:
            info = probe(path)
        except AudioError as error:
            if path not in ends:
                says("%s It is not counted: neither in the times nor in the list for Raven.", error)
                continue
            end, rate = ends[path], float(MODEL_RATE)
            says("%s Its length is taken to be %g s, where the last answer ends.", error, end)
            found.append(RavenRecording(path, end, rate))
            continue
        if path not in ends:
            says("%s: has no answer; its %g s count, as its header says", path, info.duration)
        found.append(RavenRecording(path, info.duration, info.sample_rate))
    place = {one.path: number for number, one in enumerate(found)}
    windows.sort(key=lambda row: (place[row.audio_path], row.start))
    return windows, found, names


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}"

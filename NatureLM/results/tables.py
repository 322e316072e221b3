"""Answers for other programs: CSV for spreadsheets, JSON lines, selection tables for Raven.

All writers take rows as `read_rows` gives them and write them to an open file in this order.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import TextIO, TypeVar

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.results.recordings import Identity, KnownRecordings
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    Row,
    SurveyRow,
    WindowRow,
    read_record,
    to_line,
)
from NatureLM.util import atomic_write

logger = logging.getLogger(__name__)

CSV_COLUMNS = (
    *("recording", "start", "end", "query", "text", "confidence", "alternatives"),
    *("merging_alpha", "model", "error"),
)
RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
    *("Low Freq (Hz)", "High Freq (Hz)", "Begin File", "File Offset (s)"),
    *("Answer", "Confidence", "Alternatives", "Question"),
)
_MODEL_RATE = 16_000  # Hz
CSV_ENCODING = "utf-8-sig"
"""Spreadsheets take a file without this mark for one in the encoding of the machine."""

# Spreadsheets run a cell that begins so as a formula; the last four are full-width forms. One with
# apostrophes in front gets one more, so that taking one away gives what it was.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001


@dataclass(frozen=True)
class RavenRecording:
    """A recording that selections are in.

    seconds: its length
    sample_rate: in Hz
    """

    path: str
    seconds: float
    sample_rate: float


def write_csv(
    rows: Iterable[Row],
    file: TextIO,
    names: Mapping[str, str] | None = None,
    *,
    has_notes: bool | None = None,
) -> None:
    """One row for each answer and each recording that could not be read.

    file: open with `newline=""`; give it `CSV_ENCODING`
    names: what to call recordings, by `audio_path`
    has_notes: whether a row has one, where that is known: the rows are then written as they come

    There is a column `note` where a row has one. Texts that a spreadsheet would run as a formula
    begin with an apostrophe.
    """
    writer = csv.writer(file)
    if has_notes is None:
        rows = list(rows)
        has_notes = any(isinstance(row, WindowRow) and row.note for row in rows)
    writer.writerow([*CSV_COLUMNS, *(["note"] if has_notes else [])])
    for row in rows:
        answer, error = [""] * 6, ""
        if isinstance(row, ErrorRow):
            error = row.error
        else:
            texts = (row.query, row.text, _confidence(row), alternatives_text(row))
            answer = [_number(row.start), _number(row.end), *map(without_formula, texts)]
        name, model, error = map(without_formula, (_name(row, names), row.model, error))
        note = [getattr(row, "note", "")] if has_notes else []
        writer.writerow([name, *answer, _number(row.merging_alpha), model, error, *note])


def write_jsonl(rows: Iterable[Row], file: TextIO, names: Mapping[str, str] | None = None) -> None:
    """The rows as they are, under other names of the recordings where these are given."""
    for row in rows:
        file.write(to_line(replace(row, audio_path=_name(row, names))).decode())


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
    writer.writerow([*RAVEN_COLUMNS, *(["Note"] if has_notes else [])])
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
                _cell(_name(row, names)),
                _seconds(Fraction(row.start)),
                without_formula(_cell(row.text)),
                _confidence(row),
                without_formula(_cell(alternatives_text(row))),
                without_formula(_cell(row.query)),
                *([row.note] if has_notes else []),
            ]
        )


@dataclass(frozen=True)
class TableFormat:
    """A format that `naturelm export` writes.

    suffix, encoding: of the file
    unit: what a line of it is called
    write: the rows of a file of answers into an open file; returns the number of lines
    """

    suffix: str
    encoding: str
    unit: str
    write: Callable[[Sequence[Row], TextIO, Path], int]


def _export_csv(rows: Sequence[Row], file: TextIO, answers: Path) -> int:
    write_csv(rows, file)
    return len(rows)


def _export_raven(rows: Sequence[Row], file: TextIO, answers: Path) -> int:
    windows, recordings, names = _sequence(rows, answers)
    record = read_record(answers)
    settings = {} if record is None else record.values
    heard_hz = _MODEL_RATE / 2 * float(settings.get("time_expansion", 1.0))
    channel = settings.get("channel", "mean")
    write_raven(windows, file, recordings, names, channel=channel, heard_hz=heard_hz)
    return len(windows)


def write_raven_list(rows: Sequence[Row], answers: Path, table: Path) -> Path | None:
    """Beside a selection table, the list by which Raven opens its recordings as one sound.

    A full path on each line, in the order of the table. None for a single recording, which needs
    no list. Notes say which recordings count by their headers, or not at all.
    """
    _, recordings, _ = _sequence(rows, answers, says=logger.warning)
    if len(recordings) < 2:
        return None
    stem = table.name.removesuffix(FORMATS["raven"].suffix).removesuffix(".txt")
    target = table.with_name(f"{stem}.files.txt")
    write_table(target, "utf-8", lambda file: file.writelines(f"{r.path}\n" for r in recordings))
    return target


FORMATS = {
    "csv": TableFormat(".csv", CSV_ENCODING, "rows", _export_csv),
    "raven": TableFormat(".selections.txt", "utf-8", "selections", _export_raven),
}


def _sequence(
    rows: Sequence[Row], answers: Path, says: Callable[..., None] = lambda *_: None
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
            end, rate = ends[path], float(_MODEL_RATE)
            says("%s Its length is taken to be %g s, where the last answer ends.", error, end)
            found.append(RavenRecording(path, end, rate))
            continue
        if path not in ends:
            says("%s: has no answer; its %g s count, as its header says", path, info.duration)
        found.append(RavenRecording(path, info.duration, info.sample_rate))
    place = {one.path: number for number, one in enumerate(found)}
    windows.sort(key=lambda row: (place[row.audio_path], row.start))
    return windows, found, names


Filled = TypeVar("Filled")


def write_table(target: Path, encoding: str, fill: Callable[[TextIO], Filled]) -> Filled:
    """Write a table whole or not at all; `fill` writes into the open file. Raises OutputError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(target) as unfinished,
            open(unfinished, "w", encoding=encoding, errors="backslashreplace", newline="") as file,
        ):
            return fill(file)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from None


def without_formula(text: str) -> str:
    """The text as a cell that no spreadsheet runs."""
    return f"'{text}" if _FORMULA.match(text) else text


def with_formula(cell: str) -> str:
    """The text that `without_formula` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def alternatives_text(row: WindowRow | SurveyRow) -> str:
    """Other answers with their confidences: `Barn Owl 0.21, Dog 0.04`."""
    return ", ".join(f"{name} {share:.3f}" for name, share in row.alternatives)


def _name(row: Row, names: Mapping[str, str] | None) -> str:
    return row.audio_path if names is None else names.get(row.audio_path, Path(row.audio_path).name)


def _confidence(row: WindowRow | SurveyRow) -> str:
    return "" if row.confidence is None else f"{row.confidence:.6f}"


def _number(value: float) -> str:
    """At most six decimals, and none that say nothing."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}"


def _cell(text: str) -> str:
    """Text without what would end the cell or the line; quotes are not special here."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()

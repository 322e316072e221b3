"""Annotations that other programs save, as rows of a table: what their own columns do not say.

Audacity's label tracks have no header and name no recording; Kaleidoscope names one in three
columns and a species in two; selection tables of Raven and tables of BirdNET that are about one
recording are called like it and do not name it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from NatureLM.audio.files import recordings_named_like
from NatureLM.data.table import (
    CLIP_ALIASES,
    DataError,
    Row,
    Table,
    clean,
    decoded,
    fold,
    read_bytes,
    read_table,
)

KALEIDOSCOPE = ("IN FILE", "OFFSET")
"""Columns that tell a table of Kaleidoscope."""
IDENTITIES = ("MANUAL ID", "AUTO ID", "TOP1MATCH", "COMMON_NAME", "SCIENTIFIC_NAME")
"""Its columns that name a species; the first that does wins."""

_TIME = re.compile(r"\s*[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
_SHARE = re.compile(r"(?:0(?:[.,]\d+)?|1(?:[.,]0+)?)", re.ASCII)
_LATIN_FIRST = re.compile(r"([A-Z][a-z-]+(?: [a-z-]+){1,2})(?:_|, )(\S.*)")
_HARMLESS = re.compile(r"'+\s*[=+\-@＝＋－＠]")  # noqa: RUF001
_NAMING = frozenset(map(fold, (*CLIP_ALIASES["path"], "files", "paths", "audio")))
_STARTS = frozenset(map(fold, (*CLIP_ALIASES["start"], *CLIP_ALIASES["file_offset"])))


def read_annotations(path: Path, folder: Path) -> Table:
    """A table of text whose rows name a recording and a label as far as the file tells them.

    folder: where recordings are that it does not name

    A label of Audacity that marks a point has no sound, and an empty one no name: they are left
    out, with a note. Raises DataError, also while the rows are read.
    """
    if path.suffix.lower() == ".txt":
        text, note = decoded(read_bytes(path), path)
        if is_label_track(text):
            table = Table(iter(()), [note] if note else [], decimal_comma=True)
            recording = named_like(path, folder)
            if recording is None:
                raise DataError(
                    f"{path}: is a label track, and in {folder} there is no recording called like "
                    "it: put it there, or give both the same name"
                )
            table.rows = _with_length(label_rows(text, path, recording), table.notes, path)
            return table
    table = read_table(path)
    if not path.suffix.lower().startswith(".json"):
        table.rows = _completed(table.rows, table.notes, path, folder)
    return table


def _completed(
    rows: Iterator[tuple[int, Row]], notes: list[str], path: Path, folder: Path
) -> Iterator[tuple[int, Row]]:
    """The rows of a table with a header, with what is known of them besides."""
    first = next(rows, None)
    if first is None:
        return
    rows, header = chain([first], rows), [*first[1]]
    if is_kaleidoscope(header):
        unnamed = 0
        for number, row in kaleidoscope_rows(rows):
            if row["label"]:
                yield number, row
            unnamed += not row["label"]
        if unnamed:
            notes.append(f"{path}: rows without an identification, left out: {unnamed}")
    elif names_no_recording(header) and (beside := named_like(path, folder)) is not None:
        yield from ((number, {**row, "path": beside}) for number, row in rows)
    else:
        yield from rows


def names_no_recording(header: Sequence[str]) -> bool:
    """Whether a table has times and no column that names a recording."""
    names = {fold(name) for name in header}
    return not names & _NAMING and bool(names & _STARTS)


def named_like(table: Path, folder: Path) -> str | None:
    """The recording in a folder that a table is called like. Raises DataError for several."""
    found = recordings_named_like(table, folder)
    if len(found) > 1:
        shown = ", ".join(one.name for one in found)
        raise DataError(
            f"{table}: names no recording, and several are called like it: {shown}; move or "
            "rename the others"
        )
    return found[0].name if found else None


# Audacity


def is_label_track(text: str) -> bool:
    """Whether a text is a label track: its first line has two times, and no column names."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    cells = first.split("\t")
    return len(cells) > 1 and all(_TIME.fullmatch(cell) for cell in cells[:2])


def label_rows(text: str, path: Path, recording: str) -> Iterator[tuple[int, Row]]:
    """(line, row) of each label: `path`, which is `recording`, `start`, `end` and `label`.

    There may be `low_freq` and `high_freq` (Hz), of the line that Audacity writes below a label;
    a `confidence`, which BirdNET writes behind one; and `scientific_name`, where a label has both
    names as BirdNET writes them. Raises DataError where a line is no label.
    """
    held: tuple[int, Row] | None = None
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if cells[0].strip() == "\\":
            if held is None or len(cells) < 3:
                raise DataError(
                    f"{path}, line {number}: frequencies (\\ low high) stand below their label"
                )
            held[1].update(low_freq=cells[1].strip(), high_freq=cells[2].strip())
            continue
        if held is not None:
            yield held
        if len(cells) < 2 or not all(_TIME.fullmatch(cell) for cell in cells[:2]):
            raise DataError(
                f"{path}, line {number}: a label is start, end and its text, with tabs between, "
                f"got {line[:60]!r}"
            )
        held = number, {"path": recording, **_label(cells)}
    if held is not None:
        yield held


def _label(cells: Sequence[str]) -> Row:
    row: Row = {"start": cells[0].strip(), "end": cells[1].strip()}
    said = list(cells[2:])
    if len(said) > 1 and _SHARE.fullmatch(said[-1].strip()):
        row["confidence"] = said.pop().strip()
    label = clean(" ".join(said))
    both = _LATIN_FIRST.fullmatch(label) if "confidence" in row else None
    if both:
        row["scientific_name"], label = both[1], clean(both[2])
    return {**row, "label": label}


def _with_length(
    rows: Iterator[tuple[int, Row]], notes: list[str], path: Path
) -> Iterator[tuple[int, Row]]:
    points = unnamed = 0
    for number, row in rows:
        is_point = row["start"] == row["end"]
        if is_point or not row["label"]:
            points += is_point
            unnamed += not is_point
        else:
            yield number, row
    for count, what in ((points, "mark a point"), (unnamed, "have no text")):
        if count:
            notes.append(f"{path}: labels that {what}, left out: {count}")


# Kaleidoscope


def is_kaleidoscope(header: Sequence[str]) -> bool:
    """Whether a header is one of Kaleidoscope."""
    return {*KALEIDOSCOPE} <= {_upper(name) for name in header}


def kaleidoscope_rows(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """The rows with a `path` of their three columns, and a `label`: what a person says, else what
    the program says, else ""; `is_manual` says which."""
    known: dict[str, str] = {}
    for number, row in rows:
        known = known or {_upper(name): name for name in reversed([*row])}
        cells = {name: _plain(str(row.get(there) or "")) for name, there in known.items()}
        folders = [cells.get(name, "").rstrip("/\\") for name in ("INDIR", "FOLDER")]
        slash = "\\" if "\\" in "".join(folders) or re.match("[A-Za-z]:", folders[0]) else "/"
        parts = [part for part in (*folders, cells["IN FILE"]) if part]
        root = slash if cells.get("INDIR") and not folders[0] else ""
        yield (
            number,
            {
                **row,
                "path": root + slash.join(parts) if cells["IN FILE"] else "",
                "label": next((cells[name] for name in IDENTITIES if cells.get(name)), ""),
                "is_manual": bool(cells.get("MANUAL ID")),
            },
        )


def _plain(cell: str) -> str:
    """A cell without the apostrophe that keeps spreadsheets from running it."""
    cell = cell.strip()
    return cell[1:] if _HARMLESS.match(cell) else cell


def _upper(name: str) -> str:
    return name.rstrip("*").strip().upper()

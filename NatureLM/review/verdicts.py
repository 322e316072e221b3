"""What reviewers say about clips: `review.csv` in the folder of clips, which only grows.

Each verdict is a row that is on the disk before it counts. A verdict that is changed or taken back
is one more row: the last one of a clip and a reviewer counts.
"""

from __future__ import annotations

import io
import logging
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from NatureLM.data.table import csv_of, read_bytes
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.results.store import JsonlAppender
from NatureLM.results.tables import CSV_ENCODING, without_formula
from NatureLM.util import csv_writer

logger = logging.getLogger(__name__)

REVIEW_NAME = "review.csv"
COLUMNS = ("clip", "reviewer", "verdict", "at")
Answer: TypeAlias = Literal["yes", "no", "unsure", ""]
"""Whether the clip holds what was answered; nothing where a verdict was taken back."""
ANSWERS: tuple[str, ...] = get_args(Answer)
_MOST_CHARACTERS = 80  # of a reviewer's name


@dataclass(frozen=True)
class Verdict:
    """What one reviewer said about one clip.

    clip: as the index of the folder calls it
    at: UTC, ISO 8601
    """

    clip: str
    reviewer: str
    verdict: str
    at: str


def review_path(folder: str | Path) -> Path:
    """Where the verdicts about a folder of clips lie."""
    return Path(folder) / REVIEW_NAME


def read_verdicts(folder: str | Path) -> list[Verdict]:
    """The verdicts that count, in the order in which they were given; none that was taken back.

    A last line without an end is passed over: it is being written, or its writing was cut off.
    Raises UsageError where nobody has reviewed the folder, or the file cannot be read.
    """
    path = review_path(folder)
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no such file, so nobody has reviewed the clips yet: "
            f"naturelm review {folder}"
        )
    data = read_bytes(path)
    rows = _parsed(_whole(data) if _is_own(data) else data, path)
    return [one for one in _counting(rows) if one.verdict]


def checked_reviewer(name: Any) -> str:
    """A reviewer's name as it is kept: one line, in one spelling. Raises UsageError."""
    text = name if isinstance(name, str) else ""
    kept = " ".join(unicodedata.normalize("NFC", printable(text)).split())
    if not kept or len(kept) > _MOST_CHARACTERS:
        raise UsageError(
            f"the reviewer's name has {len(kept)} characters, and it must have 1 to "
            f"{_MOST_CHARACTERS}"
        )
    return kept


class VerdictStore:
    """The open `review.csv` of a folder; one process at a time has it. Use it as a context manager.

    Several threads may use it at once. Raises OutputError where the file cannot be written or
    another process has it, and UsageError where it is no such table.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = review_path(folder)
        self._lock = threading.Lock()
        self._file = _ReviewFile(self.path, pads=False)
        try:
            self._counting = self._opened()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> VerdictStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. One that was made here and has no verdict is removed again."""
        with self._lock:
            self._file.close()

    def add(self, clip: str, reviewer: str, verdict: str) -> Verdict:
        """Keep a verdict; it is on the disk when this returns.

        verdict: one of `ANSWERS`; an empty one takes back what was said

        Raises UsageError for anything else, and NatureLMError where it cannot be written.
        """
        if verdict not in ANSWERS:
            raise UsageError(f"the verdict is {verdict!r}, and it must be yes, no or unsure")
        if printable(clip) != clip:
            raise UsageError(f"{printable(clip)}: rename this clip, which has a name of two lines")
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        made = Verdict(clip, checked_reviewer(reviewer), verdict, at)
        with self._lock:
            if not self._file.size:
                self._file.append(_line(*COLUMNS, encoding=CSV_ENCODING))
            self._file.append(_line(_cell(clip), _cell(made.reviewer), verdict, at))
            self._counting.pop((clip, made.reviewer), None)
            self._counting[clip, made.reviewer] = made
        return made

    def verdicts(self) -> list[Verdict]:
        """Those that count, in the order in which they were given."""
        with self._lock:
            return [one for one in self._counting.values() if one.verdict]

    def _opened(self) -> dict[tuple[str, str], Verdict]:
        """What the file holds; a last line that was cut off is taken out of it."""
        data = self._file.real.read_bytes()
        whole = _whole(data)
        if whole and not _is_own(whole):
            raise UsageError(
                f"{self.path}: begins with other columns than {','.join(COLUMNS)}; if another "
                "program has saved it, save it with these columns, commas and UTF-8, or move it "
                "away and begin anew"
            )
        found = {(one.clip, one.reviewer): one for one in _counting(_parsed(whole, self.path))}
        if len(whole) < len(data):
            logger.warning("%s: the last line was cut off and is taken out", self.path)
            self._file.truncate(len(whole))
        self._file.size = len(whole)
        return found


class _ReviewFile(JsonlAppender):
    WHAT = "verdicts"
    BUSY = (
        "another program has this review open; several people review at one address (see "
        "--host), or close the other one first"
    )
    OTHERWISE = "make the folder one that you may write into, or copy it"
    LATER = "the review goes on from there"
    SYNCED = True


def _whole(data: bytes) -> bytes:
    """The lines that have an end."""
    return data[: data.rfind(b"\n") + 1]


def _is_own(data: bytes) -> bool:
    """Whether a table has the header that is written here, and no other program's."""
    first = data.partition(b"\n")[0].rstrip(b"\r")
    return first in (_line(*COLUMNS, encoding=code).rstrip() for code in (CSV_ENCODING, "utf-8"))


def _parsed(data: bytes, path: Path) -> Iterator[Verdict]:
    """All rows of a table of verdicts, as its own or a spreadsheet's program saved it."""
    if not data:
        return
    header, rows = csv_of(data, path)
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UsageError(f"{path}: lacks the columns {', '.join(missing)} of a review")
    places = [header.index(name) for name in COLUMNS]
    for line, cells in rows:
        clip, reviewer, verdict, at = (cells[place] for place in places)
        verdict = verdict.strip().lower()
        if verdict not in ANSWERS:
            raise UsageError(
                f"{path}, line {line}: the verdict is {verdict!r}, and it must be yes, no, unsure "
                "or empty"
            )
        yield Verdict(_text(clip), _text(reviewer), verdict, at)


def _counting(rows: Iterator[Verdict]) -> list[Verdict]:
    """The last row of each clip and reviewer, in the order of these rows."""
    last: dict[tuple[str, str], Verdict] = {}
    for one in rows:
        last.pop((one.clip, one.reviewer), None)
        last[one.clip, one.reviewer] = one
    return list(last.values())


def _line(*cells: str, encoding: str = "utf-8") -> bytes:
    stream = io.StringIO(newline="")
    csv_writer(stream).writerow(cells)
    return stream.getvalue().encode(encoding)


def _cell(text: str) -> str:
    """A text as a cell that no spreadsheet runs, and of which `_text` makes the same again."""
    return f"'{text}" if without_formula(text) != text or _text(text) != text else text


def _text(cell: str) -> str:
    """The text of a cell: without the apostrophe that keeps it from being a formula."""
    rest = cell[1:]
    is_kept_apart = rest.startswith("'") or without_formula(rest) != rest
    return rest if cell.startswith("'") and is_kept_apart else cell

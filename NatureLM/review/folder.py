"""The folder of clips that people review: `segments.csv` says what each clip is, `review.csv` what
reviewers say about it.

`naturelm segments` writes the first (`review.cutting`), `naturelm review` and `naturelm calibrate`
read it. A clip is `<species>/<confidence>_<recording>_<start>s_<end>s.wav`, in names that every
system takes: Windows keeps some for devices, allows no dot at an end, and takes two spellings that
differ in case for one.

`review.csv` only grows. Each verdict is a row that is on the disk before it counts. A verdict that
is changed or taken back is one more row: the last one of a clip and a reviewer counts.
"""

from __future__ import annotations

import io
import logging
import math
import re
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias, get_args

from NatureLM.data.table import csv_of, read_bytes, read_csv
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.results.store import JsonlAppender
from NatureLM.results.tables import CSV_ENCODING, cell, with_formula, without_formula, write_rows
from NatureLM.util import csv_writer, digest

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
    header, rows = read_csv(path)
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


_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])", re.IGNORECASE)
_MOST_BYTES = 90  # of a part; a whole name has 255 at most, a path on Windows 260 characters
_MARK = 8  # hexadecimal digits that stand for what was cut off


def safe_name(text: str, otherwise: str = "unnamed") -> str:
    """The text as a part of a path, as near to itself as systems and spreadsheets allow.

    otherwise: what is called by nothing that can be written
    """
    name = unicodedata.normalize("NFC", text)
    name = "".join(one if one.isprintable() else " " for one in name)
    name = " ".join(_FORBIDDEN.sub("_", name).split()).strip(". ")
    name = re.sub(r"^[-=+@~＝＋－＠]", "_", name)  # noqa: RUF001
    if _DEVICES.fullmatch(name.partition(".")[0].strip()):
        name = f"_{name}"
    return _shortened(name) or otherwise


def _shortened(name: str) -> str:
    """A name that is too long, without its end and with a mark of what that was."""
    data = name.encode()
    if len(data) <= _MOST_BYTES:
        return name
    mark = digest(data, size=_MARK // 2).hex()
    kept = data[: _MOST_BYTES - _MARK - 1].decode("utf-8", "ignore")
    return f"{kept.rstrip('. ')}-{mark}"


def distinct_names(texts: Iterable[str], safe: Callable[[str], str] = safe_name) -> dict[str, str]:
    """A safe name for each text; of those that a disk would take for one, all but one are numbered.

    The same texts, in whatever order, have the same names.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for text in sorted(set(texts)):
        found[text] = free_name(safe(text), taken)
    return found


def free_name(name: str, taken: set[str], suffix: str = "") -> str:
    """The name, or with a number if that is taken; it is taken from now on."""
    made, number = name + suffix, 1
    while _folded(made) in taken:
        number += 1
        made = f"{name}-{number}{suffix}"
    taken.add(_folded(made))
    return made


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def recording_names(paths: Iterable[str]) -> dict[str, str]:
    """What recordings are called in names of clips: without suffix.

    Those of the same name, such as of two recorders, get the folders in front that tell them apart.
    """
    parts = {path: PurePath(path).with_suffix("").parts for path in sorted(set(paths))}
    deepest = max(map(len, parts.values()), default=0)
    names: dict[str, str] = {}
    for depth in range(1, min(deepest, 4) + 1):
        shown = {
            path: safe_name("-".join(one[-depth:]), "recording")
            for path, one in parts.items()
            if path not in names
        }
        counts = Counter(map(_folded, shown.values()))
        names |= {path: name for path, name in shown.items() if counts[_folded(name)] == 1}
    taken = set(map(_folded, names.values()))
    for path, one in parts.items():
        if path not in names:
            names[path] = free_name(safe_name("-".join(one[-2:]), "recording"), taken)
    return names


def clip_name(confidence: float | None, recording: str, start: float, end: float) -> str:
    """The name of a clip, without its suffix. start, end: seconds in the recording."""
    sure = "unscored" if confidence is None else f"{confidence:.3f}"
    return f"{sure}_{recording}_{_seconds(start)}s_{_seconds(end)}s"


def _seconds(value: float) -> str:
    """With one decimal at least, and three at most."""
    text = f"{value:.3f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text


def clip_paths(
    clips: Iterable[tuple[str, float | None, str, float, float]],
    recordings: Mapping[str, str],
) -> list[str]:
    """The path of each clip below the folder, with slashes, each another one.

    clips: label, confidence, path of the recording, start, end (seconds)
    recordings: what `recording_names` calls them
    """
    listed = list(clips)
    folders = distinct_names(label for label, *_ in listed)
    taken: set[str] = set()
    found = []
    for label, confidence, path, start, end in listed:
        name = clip_name(confidence, recordings[path], start, end)
        found.append(free_name(f"{folders[label]}/{name}", taken, ".wav"))
    return found


# Verdicts

logger = logging.getLogger(__name__)

REVIEW_NAME = "review.csv"
VERDICT_COLUMNS = ("clip", "reviewer", "verdict", "at")
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


def majority(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The last verdict on the side, yes or no, that has more about a clip; None for a tie."""
    sides: dict[str, list[Verdict]] = {"yes": [], "no": []}
    for one in verdicts:
        sides.get(one.verdict, []).append(one)
    fewer, more = sorted(sides.values(), key=len)
    return more[-1] if len(more) > len(fewer) else None


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
                self._file.append(_line(*VERDICT_COLUMNS, encoding=CSV_ENCODING))
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
                f"{self.path}: begins with other columns than {','.join(VERDICT_COLUMNS)}; if "
                "another program has saved it, save it with these columns, commas and UTF-8, or "
                "move it away and begin anew"
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
    return first in (
        _line(*VERDICT_COLUMNS, encoding=code).rstrip() for code in (CSV_ENCODING, "utf-8")
    )


def _parsed(data: bytes, path: Path) -> Iterator[Verdict]:
    """All rows of a table of verdicts, as its own or a spreadsheet's program saved it."""
    if not data:
        return
    header, rows = csv_of(data, path)
    missing = [name for name in VERDICT_COLUMNS if name not in header]
    if missing:
        raise UsageError(f"{path}: lacks the columns {', '.join(missing)} of a review")
    places = [header.index(name) for name in VERDICT_COLUMNS]
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

"""Tables as people save them: one reader for their bytes, rows, column names, times and labels.

Text is UTF-8, UTF-16 or, with a note, Windows-1252; separators are read off the header. What could
mean two things is refused with file and line. A column is known by many names, whatever their case,
blanks and units; one that looks like a time or a label and is not read is named in a note.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from NatureLM.audio.files import as_on_disk, recording_below
from NatureLM.config.schema import TableSource
from NatureLM.errors import UsageError

Row = dict[str, Any]

CLIP_ALIASES: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "file", "file_name", "audio_path", "file_path", "audio_file", "sound_file"),
        *("begin_path", "begin_file"),
    ),
    "start": (*("start", "begin", "start_time", "begin_time", "start_offset", "onset", "offset"),),
    "end": ("end", "end_time", "end_offset", "stop", "stop_time"),
    "duration": ("duration", "delta_time"),
    "file_offset": ("file_offset",),
    "task": ("task",),
    "id": ("id",),
}
"""Columns that every table of clips may have, and the names that each may bear."""
RATES = ("sampling_rate", "sample_rate")
"""Columns that may say the sample rate of sound that is stored as bare samples."""
TEXTS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
"""Suffixes of tables that are text."""

_TIMES = ("start", "end", "duration", "file_offset")
_MOST_COLUMNS = 100_000
_SAME = 0.05  # seconds that times of one table may differ by for being rounded
_DECIMALS = 9  # of seconds that are a sum
_REMEDY = "save it as UTF-8 (in Excel: CSV UTF-8)"
_START_WORDS = frozenset({"start", "begin", "beg", "onset", "offset"})
_END_WORDS = frozenset({"end", "stop", "finish"})
_TIME_WORDS = _START_WORDS | _END_WORDS | {"duration", "time", "sample", "frame", "ms"}
_BARE = frozenset({"from", "to", "tmin", "tmax", "t0", "t1"})
_LABEL_WORDS = frozenset({"label", "labels", "species", "class", "classes", "annotation"})
_UNITS = frozenset(
    {"sample", "samples", "samp", "frame", "frames", "ms", "msec", "millis", "milliseconds", "us"}
    | {"min", "mins", "minute", "minutes", "index", "idx", "hour", "hours", "ns"}
)
_SECONDS = re.compile(
    r"[ _]*[(\[] *(?:s|secs?|seconds?|h+:m+:s+(?:\.s+)?) *[)\]]$|[ _](?:s|secs?|seconds)$"
)
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_NUMBER = re.compile(r"\+?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:[.,]\d+)?)", re.ASCII)
_OF_OTHERS = (
    {"begin clock time", "end clock time", "delta time", "begin sample", "end sample"}
    | {"beg file samp", "end file samp", "local time", "utc time"}  # of Raven, and our own
    | {"time", "dur"}  # of Kaleidoscope
)


class DataError(UsageError):
    """Data cannot be read, are not there, or a row of them cannot be used."""


# Text


def clean(text: str) -> str:
    """The text in composed letters (NFC), without blanks at its ends."""
    return unicodedata.normalize("NFC", text).strip()


def decoded(data: bytes, name: str | Path, *, is_json: bool = False) -> tuple[str, str]:
    """A file's text, and a note where its encoding is a guess, else "".

    is_json: JSON is UTF-8 or UTF-16, never Windows-1252

    Raises DataError with the line and the remedy.
    """
    marked = (encoding for mark, encoding in _MARKS.items() if data.startswith(mark))
    encoding = next(marked, None) or _without_mark(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        is_utf8 = encoding.startswith("utf-8")
        line = data.count(b"\n", 0, error.start) + 1
        if is_json or not is_utf8 or _has_utf8(data):
            also = "" if is_json or not is_utf8 else " and no Windows-1252"
            remedy = "save it as UTF-8" if is_json else _REMEDY
            encoding = encoding.removesuffix("-sig").upper()
            raise DataError(f"{name}, line {line}: is no {encoding}{also}; {remedy}") from None
        return _ansi(data, name, line)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{name}, line {line}: is no text; {_REMEDY}")
    return text, ""


def _without_mark(data: bytes) -> str:
    """UTF-16 where every second byte of the beginning is zero as a rule, else UTF-8."""
    start = data[:4096]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if max(even, odd) * 4 > len(start) and min(even, odd) * 8 < len(start):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _has_utf8(data: bytes) -> bool:
    """Whether some letters beyond ASCII are UTF-8: Windows-1252 would read each as two."""
    return re.search(rb"[\xc3-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}", data) is not None


def _ansi(data: bytes, name: str | Path, line: int) -> tuple[str, str]:
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        text = "\0"
    if re.search(r"[\0-\x08\x0e-\x1f\x7f\xad]", text):
        raise DataError(
            f"{name}, line {line}: is no text in UTF-8, UTF-16 or Windows-1252; {_REMEDY}"
        )
    words = re.findall(r"[^\s,;\"]*[^\0-\x7f][^\s,;\"]*", text)
    shown = ", ".join(list(dict.fromkeys(words))[:3])
    note = f"{name}: is no UTF-8 and read as Windows-1252 ({shown}); if that is wrong, {_REMEDY}"
    return text, note


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises DataError."""
    try:
        return as_on_disk(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def parse_json(text: str) -> Any:
    """JSON in which no object has a key twice. Raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return row


# Rows


@dataclass
class Table:
    """Rows with their line or row numbers.

    notes: what to say about how it was read; all are there once the first row is
    decimal_comma: whether `1,5` in it is a number
    """

    rows: Iterator[tuple[int, Row]]
    notes: list[str] = field(default_factory=list)
    decimal_comma: bool = False


def read_table(path: Path) -> Table:
    """A table of text. Raises DataError, also while its rows are read."""
    suffix = path.suffix.lower()
    if suffix not in TEXTS:
        raise DataError(
            f"{path}: tables end in {', '.join(TEXTS)} or .parquet, or are folders of class "
            f"names; save a table of another program as CSV UTF-8"
        )
    is_json = suffix.startswith(".json")
    text, note = decoded(read_bytes(path), path, is_json=is_json)
    notes = [note] if note else []
    if is_json:
        rows = _json(text, path) if suffix == ".json" else _jsonl(text, path)
        return Table(rows, notes)
    mark = delimiter_of(text, tab_first=suffix != ".csv")
    if suffix == ".txt" and (mark != "\t" or mark not in text):
        raise DataError(
            f"{path}: tables end in {', '.join(TEXTS)}; one that ends in .txt has columns "
            "set off by tabs"
        )
    return Table(_csv(text, path, mark), notes, decimal_comma=mark != ",")


def _jsonl(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from None
        yield number, _columns(row, path, number)


def _json(text: str, path: Path) -> Iterator[tuple[int, Row]]:
    """A list of rows, or the reference's `{"annotation": [rows]}`."""
    try:
        content = parse_json(text)
    except json.JSONDecodeError:
        yield from _jsonl(text, path)  # the reference names JSON lines .json at times
        return
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    rows = content.get("annotation") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError(f'{path}: expected a list of rows, or {{"annotation": [rows]}}')
    for number, row in enumerate(rows, start=1):
        yield number, _columns(row, path, number)


def _columns(row: Any, path: Path, number: int) -> Row:
    if not isinstance(row, dict):
        raise DataError(f"{path}, row {number}: expected an object with columns, got {row!r}")
    names = [clean(name) for name in row]
    _check_header(names, f"{path}, row {number}")
    return dict(zip(names, row.values(), strict=True))


def _check_header(names: Sequence[str], where: str) -> None:
    """Raise DataError for a column that is there twice."""
    if len(names) > _MOST_COLUMNS:
        raise DataError(
            f"{where}: has {len(names):,} columns, and a table has at most {_MOST_COLUMNS:,}"
        )
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the column {twice!r} is there twice; rename one of them")


def delimiter_of(text: str, *, tab_first: bool = False) -> str:
    """What separates the columns of the header: comma, semicolon or tab."""
    header = next((line for line in io.StringIO(text, newline="") if line.strip()), "")
    if is_sep := re.fullmatch(r'"?sep=([,;\t])"?\s*', header, re.IGNORECASE):  # of Excel
        return is_sep[1]
    header = re.sub(r'"[^"]*"', "", header)
    return max("\t,;" if tab_first else ",;\t", key=header.count)


def read_csv(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header and rows of a table, whichever program saved it: see `csv_rows`."""
    return csv_of(read_bytes(path), path)


def csv_of(data: bytes, name: str | Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """As `read_csv`, of what stands in the file."""
    text, _ = decoded(data, name)
    return csv_rows(text, name, delimiter_of(text))


def csv_rows(
    text: str, name: str | Path, delimiter: str
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and (line, cells) of each row that is not blank, with as many cells.

    Selection tables of Raven have no quoting, others are read strictly. Raises DataError.
    """
    lines = _lines(text, name, delimiter)
    _, header = next(lines, (1, []))
    if re.match('"?sep=', "".join(header), re.IGNORECASE) and len(header) <= 2:
        _, header = next(lines, (1, []))
    header = [clean(cell) for cell in header]
    _check_header(header, str(name))
    return header, _rows(lines, header, name)


def _lines(text: str, name: str | Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    is_raven = delimiter == "\t" and text.lstrip().startswith("Selection\t")
    quoting: Any = csv.QUOTE_NONE if is_raven else csv.QUOTE_MINIMAL
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        strict=True,
        quoting=quoting,
        skipinitialspace=True,
    )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            said = {
                "unexpected end of data": "a quote is not closed",
                f"'{delimiter}' expected after '\"'": "there is text behind a closing quote, or a "
                "quote before it is not closed",
            }.get(str(error), str(error))
            raise DataError(f'{name}, line {line}: {said}; write quotes in a cell as ""') from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _rows(
    lines: Iterator[tuple[int, list[str]]], header: Sequence[str], name: str | Path
) -> Iterator[tuple[int, list[str]]]:
    for line, cells in lines:
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(header):
            what = "more" if len(cells) > len(header) else "fewer"
            raise DataError(
                f"{name}, line {line}: has {what} fields than the header has columns "
                f"({len(cells)}, not {len(header)}); a cell with the separator in it needs quotes"
            )
        yield line, cells


def _csv(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, Row]]:
    header, rows = csv_rows(text, path, delimiter)
    is_raw = header[:1] == ["Selection"]  # Raven has no quoting
    made = ((line, _cells(header, cells, f"{path}, line {line}", is_raw)) for line, cells in rows)
    yield from _selections(made) if {"Selection", "View"} <= {*header} else made


def _cells(header: Sequence[str], cells: Sequence[str], where: str, is_raw: bool) -> Row:
    for name, cell in zip(header, cells, strict=True):
        if cell.endswith('"') and cell.count('"') % 2 and fold(name) in _ONE_LINE and not is_raw:
            raise DataError(f"{where}: {name} ends in a quote that none begins: {cell}")
        if re.search(r"[\r\n]", cell.strip()) and fold(name) in _ONE_LINE:
            raise DataError(
                f"{where}: {name} goes on in the next line; if that is not meant, a quote is not "
                "closed"
            )
    return dict(zip(header, cells, strict=True))


def _selections(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """Selections of Raven, which stand in a table once for each view."""
    views: dict[str, str] = {}
    for line, row in rows:
        if views.setdefault(row["Selection"], row["View"]) == row["View"]:
            yield line, row


# Columns and cells


@cache
def fold(name: str) -> str:
    """The name of a column without what spellings differ in: `Begin Time (s)` is `begintime`.

    Seconds fall away, of whatever is no offset: that one is also counted from elsewhere.
    """
    text = unicodedata.normalize("NFKC", name).strip().lower()
    short = _SECONDS.sub("", text)
    if short == "offset":
        short = text
    return re.sub(r"[\s_.-]+", "", short)


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.findall(r"[a-z]+", _SECONDS.sub("", apart.lower()))


class Columns:
    """Finds the columns of one table, and reads its cells.

    aliases: how each column that is known may be called; `columns` of the configuration has one
        name that takes their place
    notes: what to say about the table; all are there once its rows are read
    """

    def __init__(self, config: TableSource, aliases: Mapping[str, tuple[str, ...]]) -> None:
        unknown = sorted(set(config.columns) - set(aliases))
        if unknown:
            raise DataError(
                f"{config.path}: columns maps {', '.join(unknown)}; known are {', '.join(aliases)}"
            )
        self._config = config
        self._mapped = {column: clean(name) for column, name in config.columns.items()}
        self.names = {**aliases, **{column: (name,) for column, name in self._mapped.items()}}
        self._folded = {
            column: [fold(name) for name in names]
            for column, names in self.names.items()
            if column not in self._mapped
        }
        self._known = {one for names in self._folded.values() for one in names}
        self._layouts: dict[tuple[str, ...], dict[str, list[str]]] = {}
        self._unread: dict[str, None] = {}
        self._several: tuple[str, str] | None = None
        self._found: dict[str, Path] = {}
        self.decimal_comma = False
        self.notes: list[str] = []

    def __contains__(self, name: object) -> bool:
        """Whether a column is of use, if only to say that it is not read."""
        text = clean(str(name))
        return (
            text in self._mapped.values()
            or text in self._config.where
            or text in RATES
            or fold(text) in self._known | _BARE
            or bool(_TIME_WORDS.intersection(_words(text)))
            or bool(_LABEL_WORDS.intersection(_words(text)))
        )

    def _places(self, row: Row, column: str) -> list[str]:
        """The columns of the row that are this one, the first choice first."""
        keys = tuple(row)
        layout = self._layouts.get(keys)
        if layout is None:
            layout = self._layouts[keys] = self._layout(keys)
        return layout[column]

    def _layout(self, keys: tuple[str, ...]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        folded = [(fold(key), key) for key in keys]
        onsets = any(name == "onset" for name, _ in folded)
        for column in self.names:
            if column in self._mapped:
                found[column] = [key for key in keys if key == self._mapped[column]]
                continue
            aliases = self._folded[column]
            if column == "start" and onsets:  # then the offset is the end
                aliases = [one for one in aliases if one != "offset"]
            found[column] = [key for one in aliases for name, key in folded if name == one]
            if column == "end" and onsets:
                found[column] += [key for key in keys if _words(key) == ["offset"]]
        self._look_at_others(keys, found)
        return found

    def _look_at_others(self, keys: tuple[str, ...], found: Mapping[str, list[str]]) -> None:
        """Keep the columns to be named in the note. Raises DataError for times in no seconds."""
        answer = "label" if "label" in found else "answer"
        read = {key for column, some in found.items() if column != answer for key in some}
        read |= {*found.get(answer, ())[:1], *self._config.where, *RATES, ""}
        if "duration" in found and not found["start"]:
            read -= set(found["duration"])
        for column in ("start", "end", "duration"):
            for key in (self._mapped[column],) if column in self._mapped else ():
                if _UNITS.intersection(_words(key)):
                    self._refuse_unit(key, column)
        for key in keys:
            words = set(_words(key))
            if key in read:
                continue
            if units := _UNITS & words:
                wanted = "start" if words & _START_WORDS else "end" if words & _END_WORDS else ""
                is_there = wanted and found.get(wanted)
                if wanted and units and not is_there and wanted in found:
                    self._refuse_unit(key, wanted)
            is_known = " ".join(_words(key)) in _OF_OTHERS and found.get("start")
            is_time = words & _TIME_WORDS and not words & {"rate", "id"} and not is_known
            if fold(key) == "annotation" and "commonname" in map(fold, keys):
                continue  # of Raven: what stands in it has a name
            if is_time or words & _LABEL_WORDS or fold(key) in _BARE:
                self._unread.setdefault(key)

    def _refuse_unit(self, key: str, column: str) -> None:
        raise DataError(
            f"{self._config.path}: the column {key!r} gives no seconds; write them into a column "
            f"{column!r}"
        )

    def finish(self) -> None:
        """Make the notes. Raises DataError for a mapped column that no row has."""
        for column, name in self._mapped.items():
            if column == "audio" or not self._layouts:  # sound is not read with the rows
                continue
            if not any(layout[column] for layout in self._layouts.values()):
                there = dict.fromkeys(key for keys in self._layouts for key in keys)
                raise DataError(
                    f"{self._config.path}: columns.{column} is {name!r}; there are "
                    f"{', '.join(there)}"
                )
        if self._unread:
            shown = [repr(name) for name in self._unread]
            more = f" and {len(shown) - 8} others" if len(shown) > 8 else ""
            name = next(iter(self._unread))
            words = set(_words(name))
            column = "label" if "label" in self.names else "answer"
            if words & _TIME_WORDS:
                column = "end" if words & (_END_WORDS | {"duration"}) else "start"
            self.notes.append(
                f"{self._config.path}: not read {'is' if len(shown) == 1 else 'are'} "
                f"{', '.join(shown[:8])}{more}; where one matters, say what it is, such as "
                f"--column {column}={name}, or columns: {{{column}: {name}}} in a configuration"
            )

    def has(self, row: Row, column: str) -> bool:
        """Whether the row has the column, if without a value."""
        return bool(self._places(row, column))

    def raw(self, row: Row, column: str) -> Any:
        """The first of the columns that has a value, as it is in the table."""
        values = (row[name] for name in self._places(row, column))
        return next((value for value in values if not _is_missing(value)), None)

    def get(self, row: Row, column: str) -> Any:
        """The first value of the column, strings cleaned; None if there is none."""
        value = self.raw(row, column)
        if isinstance(value, float) and math.isnan(value):
            return None
        return clean(value) if isinstance(value, str) else value

    def number(self, row: Row, column: str, where: str, default: float) -> float:
        """A cell as a number of 0 or more; times also as h:mm:ss. Raises DataError."""
        found = {
            name: self._number(row[name], column, where, name)
            for name in self._places(row, column)
            if not _is_missing(row[name])
        }
        first = next(iter(found.values()), default)
        if any(abs(value - first) > _SAME for value in found.values()):
            raise DataError(
                f"{where}: {' and '.join(found)} differ, and each may be the {column}; "
                f"columns.{column} says which one it is"
            )
        return first

    def _number(self, value: Any, column: str, where: str, name: str) -> float:
        number = math.nan
        if isinstance(value, str):
            text = value.strip()
            if self.decimal_comma and "." not in text:
                text = text.replace(",", ".", 1)
            clock = _CLOCK.fullmatch(text) if column in _TIMES else None
            if clock:
                hours, minutes, seconds = clock.groups()
                number = int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
            elif _NUMBER.fullmatch(text):
                number = float(text)
        elif isinstance(value, timedelta):
            number = value.total_seconds()
        elif not isinstance(value, bool):
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number) or number < 0:
            also = " (seconds, or h:mm:ss)" if column in _TIMES else ""
            said = column if name == column else f"{column} ({name})"
            raise DataError(f"{where}: {said} must be a number of 0 or more{also}, got {value!r}")
        return number

    def strings(self, row: Row, column: str) -> tuple[str, ...]:
        """A list cell: a list, a JSON list as a string, or one string."""
        value = self.raw(row, column)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = parse_json(value)
            except ValueError:
                return (value,)
        if isinstance(value, list):
            return tuple(map(str, value))
        return () if value is None else (str(value),)

    def label(self, row: Row, column: str, where: str) -> str | None:
        """The answer of a row; a list's items with commas between them. Raises DataError."""
        places = self._places(row, column)
        for name in places if column == "answer" else places[:1]:
            if not _is_missing(row[name]):
                return label_text(row[name], f"{where}: {name}")
        return None

    def recording(self, row: Row, folder: Path, where: str) -> Path | None:
        """The file that a row names, as the disk spells it.

        Where it is not there, as of another machine, it is looked for below the folder.
        """
        named: list[str] = []
        for name in self._places(row, "path"):
            value = row[name]
            if _is_missing(value):
                continue
            if not isinstance(value, str):
                raise DataError(f"{where}: {name} is {value!r}; the name of a file is needed")
            named.append(value)
        found = [self._on_disk(folder, name) for name in named]
        there = found if len(found) < 2 else [one for one in found if os.path.exists(one)]
        if any(not one.samefile(there[0]) for one in there[1:]):
            raise DataError(
                f"{where}: several columns name a recording, and not the same one "
                f"({', '.join(named)}); columns.path says which column does"
            )
        return next(iter(there or found), None)

    def _on_disk(self, folder: Path, name: str) -> Path:
        if name not in self._found:
            found = folder / name
            if not os.path.exists(found):
                found = as_on_disk(found, other_slashes=True)
            if not os.path.exists(found):
                found = recording_below(folder, name) or found
            self._found[name] = found
        return self._found[name]

    def stretch(self, row: Row, where: str) -> tuple[float, float | None]:
        """Start and end of a clip in its recording, in seconds; end None is the end of the file."""
        start = self.number(row, "start", where, 0.0)
        end = self.number(row, "end", where, math.inf)
        if self._places(row, "start") and "end" not in self._mapped:
            length = self.number(row, "duration", where, math.inf)
            if math.inf not in (end, length) and abs(start + length - end) > _SAME:
                raise DataError(
                    f"{where}: start {start:g} and duration {length:g} do not give the end {end:g};"
                    " columns.end says which column ends the clip, and then no duration is read"
                )
            end = round(start + length, _DECIMALS) if math.inf == end > length else end
        if end <= start:
            raise DataError(f"{where}: end {end:g} is not after start {start:g}")
        if "start" not in self._mapped:
            start, end = self._in_its_file(row, start, end, where)
        return start, None if end == math.inf else end

    def _in_its_file(self, row: Row, start: float, end: float, where: str) -> tuple[float, float]:
        """Times in the file, where those of the row count over several files, as Raven's do."""
        offset = self.number(row, "file_offset", where, math.inf)
        starts = self._places(row, "start")
        if offset < math.inf and starts:
            return offset, round(end - start + offset, _DECIMALS)
        if offset < math.inf:
            length = self.number(row, "duration", where, math.inf)
            return offset, end if end < math.inf else offset + length
        if starts and fold(starts[0]) == "begintime" and "Selection" in row:
            file = str(self.raw(row, "path"))
            if self._several is None:
                self._several = file, where
            if file != self._several[0]:
                raise DataError(
                    f"{where}: Begin Time (s) of a selection table counts over all of its files, "
                    "and there are several; save it with the column File Offset (s)"
                )
        return start, end


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def label_text(value: Any, where: str) -> str | None:
    """A label of a cell: text as it is, a whole number, or a list of them, joined by commas.

    Raises DataError for what is no name: truth values, fractions, objects.
    """
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            listed = ast.literal_eval(value.strip())  # as tables of pandas have them
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            listed = None
        value = listed if isinstance(listed, list) else value
    if isinstance(value, list):
        parts = [label_text(part, where) for part in value]
        if not parts or None in parts or any(isinstance(part, list) for part in value):
            raise DataError(f"{where} is {value!r:.60}: a list of names is needed; None is a name")
        if len(parts) > 1 and any("," in str(part) for part in parts):
            raise DataError(f"{where} is {value!r:.60}: several names, and a comma within one")
        return ", ".join(map(str, parts))
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where} is {value!r:.60}: a name is needed, so write it as text")
    return clean(value) or None


_ONE_LINE = frozenset(
    fold(name)
    for names in (
        *CLIP_ALIASES.values(),
        ("label", "labels", "output", "answer", "common_name", "species", "scientific_name"),
        ("dataset", "dataset_name", "cluster", "family", "group_id", "recording_id", "weight"),
    )
    for name in names
)
"""Columns whose cells have one line."""

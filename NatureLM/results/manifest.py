"""Manifests: lists of recordings with what their headers say, made once for all who ask about them.

A manifest is a table (.csv, .parquet) with the `COLUMNS`, of which only `path` is needed, or a text
with a path on each line. Relative paths count from the folder of the manifest. `make_manifest`
keeps what it has found in `<manifest>.parts.jsonl` until the manifest is whole, and measures no
recording again whose size and time of change are as before.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from NatureLM.audio import AudioError
from NatureLM.audio.container import tags_in
from NatureLM.audio.decode import probe
from NatureLM.audio.files import as_on_disk, identity
from NatureLM.data.table import CLIP_ALIASES, DataError, decoded, fold, read_bytes, read_table
from NatureLM.errors import UsageError
from NatureLM.field.clock import tags_of, tags_text
from NatureLM.field.context import FieldClock, Told
from NatureLM.results.rows import OutputError, json_line, read_lines
from NatureLM.results.store import JsonlAppender
from NatureLM.results.tables import (
    CSV_ENCODING,
    arrow_and_parquet,
    number,
    one_line,
    with_formula,
    without_formula,
    write_batches,
    write_lines,
    write_rows,
)
from NatureLM.storage import AnyPath, RemotePath, StorageError, join, local_copy
from NatureLM.util import parse_json, shown

SUFFIXES = (".csv", ".parquet", ".txt")
_ALIASES = {"path": CLIP_ALIASES["path"], "seconds": ("seconds", "duration", "length")}
_AT_A_TIME = 1024


class Entry(NamedTuple):
    """A recording of a manifest; None and "" are not known.

    path: counts from the folder of the manifest; one that lies elsewhere is a full path
    size: in bytes
    modified: when the file was last changed (UTC, ISO 8601)
    seconds: its length
    local_time, utc_time, clock_source: when it began, and what says so (`field.context`)
    header: the tags of it that a clock is read from (`field.clock.tags_text`)
    error: why it could not be read
    """

    path: str
    size: int | None = None
    modified: str = ""
    seconds: float | None = None
    sample_rate: float | None = None
    channels: int | None = None
    local_time: str = ""
    utc_time: str = ""
    clock_source: str = ""
    site: str = ""
    header: str = ""
    error: str = ""


COLUMNS = Entry._fields
_OF_CLOCK = ("local_time", "utc_time", "clock_source", "site")
_TYPES = {"size": int, "channels": int, "seconds": float, "sample_rate": float}


# Reading


def read_manifest(
    path: AnyPath, wanted: Callable[[str], bool] = lambda recording: True
) -> Iterator[Entry]:
    """The recordings of a manifest, in its order; of one made by hand, what it says.

    A UTF-8 .txt, a Parquet file and a .csv with none but our columns are read line by line. One
    that lies elsewhere is copied here for that time.

    wanted: whether a recording is, by what the manifest calls it; of others nothing is looked at

    Raises DataError for a file that is none, and UsageError for one that is not there.
    """
    check_suffix(path, "--manifest")
    kind = path.suffix.lower()
    read = {".csv": _csv_entries, ".parquet": _parquet_entries, ".txt": _text_entries}[kind]
    is_empty = True

    def noted(recording: str) -> bool:
        nonlocal is_empty
        is_empty = False
        return wanted(recording)

    with ExitStack() as stack:
        try:
            here = stack.enter_context(local_copy(path))
        except FileNotFoundError:
            here = Path()
        if not here.is_file():
            raise UsageError(f"{path}: there is no such manifest")
        yield from read(here, noted)
    if is_empty:
        raise DataError(f"{path}: names no recording")


def listed_in(
    path: AnyPath, wanted: Callable[[AnyPath], bool] = lambda recording: True
) -> Iterator[tuple[AnyPath, Entry]]:
    """The recordings of a manifest where they are, and what it says of them; read on the way.

    wanted: whether a recording is; of others nothing is looked at

    Nothing is opened: those that are not there show when they are to be heard.
    """

    def placed(name: str) -> AnyPath:
        found = join(path.parent, name, str(path))
        return as_on_disk(found, other_slashes=True) if isinstance(found, Path) else found

    for entry in read_manifest(path, lambda name: wanted(placed(name))):
        yield placed(entry.path), entry


def check_suffix(path: AnyPath, option: str) -> None:
    """Raise UsageError for a name that is not that of a manifest."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{option} is {path}, and its name must end in {', '.join(SUFFIXES)}")


def _text_entries(path: Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    with _opened(path) as lines:
        for line in lines:
            name = line.removesuffix("\n").removesuffix("\r")
            if name.strip() and wanted(name):
                yield Entry(name)


def _csv_entries(path: Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    with _opened(path) as file:
        lines = csv.reader(file)
        header = next(filter(None, lines), [])
        if "path" in header and set(header) <= set(COLUMNS):  # ours: nothing is to be guessed
            place = header.index("path")
            for some in filter(None, lines):
                if place >= len(some) or wanted(with_formula(some[place])):
                    row = dict(zip(header, map(with_formula, some), strict=False))
                    yield _entry(row, f"{path}, line {lines.line_num}")
            return
    table = read_table(path)
    names: dict[str, str] | None = None
    for line, row in table.rows:
        names = _named_columns(list(row), path) if names is None else names
        cells = {ours: with_formula(row.get(theirs) or "") for ours, theirs in names.items()}
        if table.decimal_comma:
            cells |= {name: cells[name].replace(",", ".") for name in _TYPES if name in cells}
        if wanted(cells["path"]):
            yield _entry(cells, f"{path}, line {line}")


def _opened(path: Path) -> TextIO:
    """A text that is read line by line; one that is no UTF-8 is in memory, and a guess."""
    there = as_on_disk(path)
    try:
        with open(there, encoding="utf-8") as file:
            is_utf8 = "\0" not in file.read(4)  # as UTF-16 has them
            while file.read(1 << 20):
                pass
    except UnicodeDecodeError:
        is_utf8 = False
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if is_utf8:
        return open(there, encoding="utf-8-sig", newline="")
    return io.StringIO(decoded(read_bytes(path), path)[0], newline="")


def _parquet_entries(path: Path, wanted: Callable[[str], bool]) -> Iterator[Entry]:
    arrow, parquet = arrow_and_parquet()
    try:
        with parquet.ParquetFile(path) as file:
            names = _named_columns(file.schema_arrow.names, path)
            row = 0
            for batch in file.iter_batches(_AT_A_TIME, columns=list(names.values())):
                paths = batch.column(names["path"]).to_pylist()
                kept = [place for place, one in enumerate(paths) if wanted(str(one or ""))]
                some = batch if len(kept) == len(paths) else batch.take(arrow.array(kept, "int64"))
                columns = [some.column(theirs).to_pylist() for theirs in names.values()]
                for place, cells in zip(kept, zip(*columns, strict=True), strict=True):
                    number = f"{path}, row {row + place + 1}"
                    yield _entry(dict(zip(names, cells, strict=True)), number)
                row += len(paths)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from None


def _named_columns(names: Sequence[str], path: Path) -> dict[str, str]:
    """Their names of our columns. Raises DataError where there is none of paths."""
    by_fold = {fold(name): name for name in reversed(names)}
    found = {}
    for ours in COLUMNS:
        for alias in _ALIASES.get(ours, (ours,)):
            if fold(alias) in by_fold:
                found[ours] = by_fold[fold(alias)]
                break
    if "path" not in found:
        raise DataError(
            f"{path}: has no column path; there are {', '.join(map(repr, names[:10]))}. A list of "
            "paths without a header is a .txt"
        )
    return found


def _entry(cells: Mapping[str, Any], place: str) -> Entry:
    values: dict[str, Any] = {}
    for name, cell in cells.items():
        if cell is None or cell == "" or cell != cell:
            continue
        kind = _TYPES.get(name)
        if kind is None:
            values[name] = str(cell)
            continue
        try:
            value = float(cell)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value < math.inf:
            raise DataError(f"{place}: {name} is {shown(cell)}, and it must be a number from 0 on")
        values[name] = kind(value)
    if not values.get("path", "").strip():
        raise DataError(f"{place}: has no path")
    return Entry(**values)


class ToldByManifest:
    """What a manifest says of recordings which are as it says: their size and time of change.

    It is looked at once whether a recording is. An entry without size and time, as in lists made by
    hand, is taken as it stands.
    """

    def __init__(self, entries: Mapping[AnyPath, Entry]) -> None:
        self._entries = entries
        self._is_fresh: dict[AnyPath, bool] = {}

    def __call__(self, recording: str | AnyPath) -> Told | None:
        path = Path(recording) if isinstance(recording, str) else recording
        entry = self._entries.get(path)
        if entry is None:
            return None
        if path not in self._is_fresh:
            self._is_fresh[path] = is_fresh(entry, path)
        if not self._is_fresh[path]:
            return None
        times = (entry.local_time, entry.utc_time, entry.clock_source)
        return Told(tags_of(entry.header), *times, entry.site)


def is_fresh(entry: Entry, recording: AnyPath) -> bool:
    """Whether a recording is as an entry says, as far as it does."""
    if entry.size is None and not entry.modified:
        return True
    now = identity(recording)
    return entry.size in (None, now.size) and entry.modified in ("", now.modified)


# Writing


def write_manifest(entries: Iterable[Entry], target: Path) -> int:
    """Write a manifest, whole or not at all; how many recordings it names. Raises OutputError."""
    kind = target.suffix.lower()
    if kind == ".parquet":
        arrow, _ = arrow_and_parquet()
        types = {int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
        schema = arrow.schema([(name, types[_TYPES.get(name, str)]) for name in COLUMNS])
        return write_batches(target, schema, entries, at_a_time=_AT_A_TIME)
    if kind == ".csv":
        lines = (map(_cell, entry) for entry in entries)
        return write_rows(target, COLUMNS, lines, encoding=CSV_ENCODING)
    return write_lines(target, (f"{entry.path}\n" for entry in entries))


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    return without_formula(value) if isinstance(value, str) else value


# Making


@dataclass
class Made:
    """What came of making a manifest.

    recordings: how many it names; kept: those of them that were not measured again
    seconds: of all; size: bytes of all
    errors: those that could not be read
    """

    recordings: int = 0
    kept: int = 0
    seconds: float = 0.0
    size: int = 0
    errors: int = 0

    def count(self, entry: Entry) -> None:
        """Count a recording in."""
        self.recordings += 1
        self.seconds += entry.seconds or 0.0
        self.size += entry.size or 0
        self.errors += bool(entry.error)


class _Journal(JsonlAppender):
    """What was found so far, a line for each recording."""

    WHAT = "a manifest"
    BUSY = "another process is making this manifest now; wait for its end"


def make_manifest(
    recordings: Sequence[AnyPath],
    target: Path,
    clock: FieldClock,
    *,
    workers: int,
    tables: str = "",
    overwrite: bool = False,
    told: Callable[[Entry], None] = lambda entry: None,
) -> Made:
    """Make a manifest of recordings, in their order, or go on with one.

    tables: names what the clock was told by tables; what a stopped run found by others is read anew
    told: of each recording

    Raises OutputError where the file there is no manifest, or another process makes it.
    """
    before = {} if overwrite else _known(target)
    journal_path = target.with_name(f"{target.name}.parts.jsonl")
    journal = _Journal(journal_path)
    try:
        found = {} if overwrite else _resumed(journal, tables)
        if overwrite:
            journal.truncate(0)
        made, entries = Made(), list[Entry]()
        folder = os.path.abspath(target.parent)

        def measured(recording: AnyPath) -> tuple[Entry, str]:
            return _measured(recording, _name_in(folder, recording), found, before, clock)

        with ThreadPoolExecutor(workers) as pool:
            for some in _pieces(recordings):
                for entry, kept in pool.map(measured, some):
                    if kept != _WHOLE:
                        journal.append(json_line({**entry._asdict(), "tables": tables}))
                    entries.append(entry)
                    made.count(entry)
                    made.kept += bool(kept)
                    told(entry)
        write_manifest(entries, target)
    except BaseException:
        journal.close()
        raise
    journal.truncate(0)
    journal.close()
    journal_path.unlink(missing_ok=True)
    return made


_HEADER, _WHOLE = "header", "whole"
"""What of an entry was measured earlier."""


def _pieces(recordings: Sequence[AnyPath]) -> Iterator[Sequence[AnyPath]]:
    for start in range(0, len(recordings), _AT_A_TIME):
        yield recordings[start : start + _AT_A_TIME]


def _name_in(folder: str, recording: AnyPath) -> str:
    """What a manifest in a folder calls a recording; one that lies elsewhere has its address."""
    if isinstance(recording, RemotePath):
        return recording.url
    full = os.path.abspath(recording)
    start = folder.rstrip(os.sep) + os.sep
    return (full[len(start) :] if full.startswith(start) else full).replace(os.sep, "/")


def _measured(
    recording: AnyPath,
    name: str,
    found: Mapping[str, Entry],
    before: Mapping[str, Entry],
    clock: FieldClock,
) -> tuple[Entry, str]:
    """What is known of a recording, and what of it was measured earlier."""
    if any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in name):
        why = "its name has an end of a line or is no UTF-8, and no list can hold it: rename it"
        return Entry(one_line(name).encode("utf-8", "backslashreplace").decode(), error=why), ""
    now = identity(recording)

    def same(known: Entry | None) -> Entry | None:
        if known is None or known.error or now.size is None:
            return None
        is_same = (known.size, known.modified) == (now.size, now.modified or "")
        return known if is_same else None

    whole = same(found.get(name))
    if whole is not None:
        return whole, _WHOLE
    entry, kept = Entry(name, now.size, now.modified or ""), ""
    known = same(before.get(name))
    if known is not None:
        entry, kept, tags = known, _HEADER, tags_of(known.header)
    else:
        try:
            info, tags = probe(recording), tags_in(recording)
        except (AudioError, StorageError) as error:
            why = one_line(str(error)).removeprefix(f"{one_line(str(recording))}: ")
            return entry._replace(error=why), ""
        entry = entry._replace(
            seconds=round(info.duration, 6),
            sample_rate=float(info.sample_rate),
            channels=info.channels,
        )
    context = clock.of(recording, tags)
    now_said = context.at(0)
    told = {key: now_said.get(key, "") for key in _OF_CLOCK}
    return entry._replace(**told, header=tags_text(context.clock.tags)), kept


def _known(target: Path) -> dict[str, Entry]:
    """What an earlier manifest of this name says. Raises OutputError where the file is none."""
    if not target.exists():
        return {}
    try:
        entries = list(read_manifest(target))
        is_ours = any(entry.modified or entry.error for entry in entries)
    except DataError:
        is_ours = False
    if not is_ours:
        raise OutputError(
            f"{target}: exists and was not made by `naturelm manifest`, so it is left as it is; "
            "give another --output-path, or --overwrite"
        )
    return {entry.path: entry for entry in entries}


def _resumed(journal: _Journal, tables: str) -> dict[str, Entry]:
    """What a stopped run found; a torn last line is cut off."""
    found: dict[str, Entry] = {}
    for line in read_lines(journal.path):
        try:
            values = parse_json(line)
            if values.pop("tables") == tables:
                found[values["path"]] = Entry(**values)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OutputError(
                f"{journal.path}: holds no work on a manifest; remove it, or give --overwrite"
            ) from None
        journal.count(line)
    journal.truncate(journal.size)
    return found

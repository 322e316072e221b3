"""Rows as Parquet parts in a folder, which one writer fills and everything that reads rows reads.

A part holds the rows of some windows: `row` is the JSON of a row as it stands in a `.jsonl`, the
other columns say whose it is. It is written under another name and moved, and its name follows from
the windows that it is about, so that a part that is written twice is there once. Its metadata names
the recordings that end in it, with the number of their windows: what is whole is known without
opening a recording. The settings stand beside the folder, in `<folder>.run.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from os.path import realpath
from pathlib import Path
from typing import Any

from NatureLM.audio.files import Identity
from NatureLM.errors import NatureLMError
from NatureLM.results.rows import OutputError, RunSettings, read_lines
from NatureLM.results.store import Resumed, RowFile, WindowStore, lock_beside, unlock
from NatureLM.storage import AnyPath
from NatureLM.util import atomic_write, digest, library

SUFFIX = ".parts"
_NAME = "part-*.parquet"
_WHOLE = b"whole"
_ROWS = 32  # bits of a place that count rows; those above them count parts
_NO_PYARROW = "Parts are Parquet, which needs pyarrow: pip install 'naturelm-audio[ray]'"


class JsonLines:
    """The whole lines of a file, and where they begin and end."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Bytes where a line begins and ends, and the line; a torn last one is left out."""
        position = 0
        for line in read_lines(self._path):
            yield position, position + len(line), line
            position += len(line)

    def between(self, start: int, stop: int) -> Iterator[bytes]:
        """The lines from one byte to another."""
        with open(self._path, "rb") as file:
            file.seek(start)
            while file.tell() < stop:
                yield file.readline()


class PartLines:
    """The rows of a folder of parts as lines, in the order of the names of the parts."""

    def __init__(self, folder: Path) -> None:
        self._parts = sorted(folder.glob(_NAME))
        self._read = lru_cache(maxsize=4)(read_part)

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Places where a line begins and ends, which `between` takes, and the line."""
        for number, part in enumerate(self._parts):
            for row, line in enumerate(read_part(part)[0]):
                place = (number << _ROWS) + row
                yield place, place + 1, line

    def between(self, start: int, stop: int) -> Iterator[bytes]:
        """The lines between two places of one part."""
        lines, _ = self._read(self._parts[start >> _ROWS])
        first = start & ((1 << _ROWS) - 1)
        yield from lines[first : first + stop - start]


def lines_of(path: Path) -> JsonLines | PartLines:
    """The rows of a result file or of a folder of parts, as lines."""
    return PartLines(path) if path.is_dir() else JsonLines(path)


def is_parts(path: Path) -> bool:
    """Whether a path is a folder of parts."""
    return path.is_dir() and next(path.glob(_NAME), None) is not None


def read_part(path: Path) -> tuple[list[bytes], dict[str, int]]:
    """The lines of a part, and how many windows the recordings have that end in it.

    Raises OutputError for a file that is no part.
    """
    parquet, arrow = library("pyarrow.parquet", _NO_PYARROW), library("pyarrow", _NO_PYARROW)
    try:
        table = parquet.read_table(path, columns=["row"], partitioning=None)
        whole = json.loads((table.schema.metadata or {}).get(_WHOLE, b"{}"))
        rows = table.column("row").to_pylist()
    except (OSError, ValueError, KeyError, arrow.ArrowException) as error:
        raise OutputError(f"{path}: cannot be read as a part of answers ({error})") from None
    return [row.encode() + b"\n" for row in rows], whole


class PartsFolder:
    """An open and locked folder of parts. Rows wait until `end_part` writes them.

    whole: how many windows recordings have that were heard to their end, by the keys of recordings
    numbers: place of recordings in the list of the run, by their names

    Raises OutputError where it cannot be written, is no folder, or is in use.
    """

    def __init__(self, folder: Path) -> None:
        library("pyarrow.parquet", _NO_PYARROW)
        self.path, self.real = folder, Path(realpath(folder))
        self.size = 0
        self.whole: dict[str, int] = {}
        self.numbers: Mapping[str, int] = {}
        self._waiting: list[dict[str, Any]] = []
        self._ended: dict[str, int] = {}
        if self.real.exists() and not self.real.is_dir():
            raise OutputError(f"{folder}: is a file, and parts need a folder; give another name")
        self._is_new = not self.real.exists()
        try:
            self.real.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be made a folder ({error.strerror})") from None
        self._lock = lock_beside(self.real, f"{folder}: another run is writing there now")
        for left in self.real.glob(f".{_NAME}.*.partial"):  # of a process that was killed
            left.unlink(missing_ok=True)

    def lines(self) -> Iterator[bytes]:
        """The rows of all parts; `whole` is known at their end."""
        for part in sorted(self.real.glob(_NAME)):
            lines, whole = read_part(part)
            self.whole |= whole
            yield from lines

    def count(self, line: bytes) -> None:
        """A line that is there counts."""
        self.size += len(line)

    def append(self, line: bytes) -> None:
        """A row of the next part."""
        row = json.loads(line)
        name = row["audio_path"]
        self._waiting.append(
            {
                "recording": self.numbers.get(name, 0),
                "audio_path": name,
                "start": row.get("start"),
                "end": row.get("end"),
                "row": line.rstrip().decode(),
            }
        )
        self.count(line)

    def ended(self, key: str, windows: int) -> None:
        """A recording was heard to its end: it has so many windows."""
        self._ended[key] = windows

    def end_part(self) -> None:
        """Write what waits as a part, whole or not at all."""
        if not (self._waiting or self._ended):
            return
        rows = sorted(self._waiting, key=lambda one: one["recording"])
        first = rows[0] if rows else {"recording": 0, "start": 0}
        asked = [[one["audio_path"], one["start"], _asked(one["row"])] for one in rows]
        content = digest(json.dumps([asked, sorted(self._ended)]), "blake2b", size=8).hex()
        start = round(1000 * (first["start"] or 0))
        name = f"part-{first['recording']:09d}-{start:012d}-{content}.parquet"
        self._write(self.real / name, rows, self._ended)
        self.whole |= self._ended
        self._waiting, self._ended = [], {}

    def truncate(self, size: int) -> None:
        """Only 0: remove all parts."""
        if size == 0:
            for part in self.real.glob(_NAME):
                part.unlink()
            self.whole.clear()
            self.size = 0

    def keep_lines(self, kept: Callable[[bytes, int], bytes | None]) -> None:
        """Write anew the parts of which `kept` leaves out or changes rows, each under its name."""
        number = 0
        for part in sorted(self.real.glob(_NAME)):
            lines, whole = read_part(part)
            now = [kept(line, number + n) for n, line in enumerate(lines, start=1)]
            number += len(lines)
            if now == lines:
                continue
            before = library("pyarrow.parquet", _NO_PYARROW).read_table(part, partitioning=None)
            rows = [
                {**row, "row": line.rstrip().decode()}
                for row, line in zip(before.to_pylist(), now, strict=True)
                if line is not None
            ]
            if rows:
                self._write(part, rows, whole)
            else:
                part.unlink()

    def close(self, *beside: Path) -> None:
        """Write what waits, and unlock the folder; one that was made here and is empty goes."""
        if self._lock.is_locked or self._waiting:
            self.end_part()
        if self._is_new and not is_parts(self.real):
            with contextlib.suppress(OSError):
                self.real.rmdir()
                for path in beside:
                    path.unlink(missing_ok=True)
        unlock(self._lock)

    def _write(self, path: Path, rows: Iterable[dict[str, Any]], whole: dict[str, int]) -> None:
        arrow = library("pyarrow", _NO_PYARROW)
        fields = [("recording", arrow.int64()), ("audio_path", arrow.string())]
        fields += [("start", arrow.float64()), ("end", arrow.float64()), ("row", arrow.string())]
        schema = arrow.schema(fields, metadata={_WHOLE: json.dumps(whole).encode()})
        table = arrow.Table.from_pylist(list(rows), schema=schema)
        try:
            with atomic_write(path) as unfinished:
                library("pyarrow.parquet", _NO_PYARROW).write_table(
                    table, unfinished, compression="zstd"
                )
        except OSError as error:
            raise NatureLMError(
                f"{path}: the rows cannot be written: {error.strerror or error}. What is there is "
                "whole; when this is fixed, the same command goes on from there."
            ) from None


def _asked(line: str) -> Any:
    """What of a window a row answers."""
    row = json.loads(line)
    return row.get("query"), (row.get("claim") or {}).get("label"), row.get("error")


class PartsStore(WindowStore):
    """The answers about windows of recordings, in parts.

    It refuses and resumes as a `WindowStore` does. Rows are written by `end_part`.
    """

    _file: PartsFolder

    def _open(self) -> RowFile:
        return PartsFolder(self.path)

    def begin(self, settings: RunSettings, recordings: Iterable[str | AnyPath] = ()) -> Resumed:
        """Start writing answers of a run, or resume it: see `WindowStore.begin`."""
        recordings = list(recordings)
        self._file.numbers = {str(one): number for number, one in enumerate(recordings)}
        resumed = super().begin(settings, recordings)
        questions = len(settings.values.get("queries") or [""])
        counts = Counter(key for key, *_ in self._done)
        whole = self._file.whole
        self._is_whole = {key for key, n in counts.items() if n == whole.get(key, 0) * questions}
        self._partly: dict[str, set[tuple[int, str]]] = {}
        for key, start, question in self._done:
            if key not in self._is_whole:
                self._partly.setdefault(key, set()).add((start, question))
        return resumed

    def is_whole(self, audio_path: str | os.PathLike[str]) -> bool:
        """Whether all windows of a recording were answered before this run."""
        return self._recordings.key(audio_path) in self._is_whole

    def answered(self, audio_path: str | os.PathLike[str]) -> set[tuple[int, str]]:
        """What was answered before of a recording that is not whole: starts of windows in
        microseconds, and questions (`question_key`)."""
        return self._partly.get(self._recordings.key(audio_path), set())

    def know(self, audio_path: str | os.PathLike[str], now: Identity) -> None:
        """A recording as who heard it found it."""
        self._identities[self._recordings.key(audio_path)] = now

    def ended(self, audio_path: str | os.PathLike[str], windows: int) -> None:
        """A recording was heard to its end: it has so many windows."""
        self._file.ended(self._recordings.key(audio_path), windows)

    def end_part(self) -> None:
        """Write the rows that were added since as a part."""
        self._file.end_part()

"""Where in result files the rows of each recording lie, kept on the disk: for files of any length.

`RowPlaces` is a SQLite file. It takes result files in, line by line, then the list of recordings
that were to be asked about, and gives the recordings back in the order of the list. What it has
done is kept, so that a process that was killed goes on where it was.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from NatureLM.audio.files import Identity, KnownRecordings, RealPaths
from NatureLM.errors import NatureLMError
from NatureLM.results.rows import from_line
from NatureLM.storage import AnyPath
from NatureLM.util import digest

_TABLES = """
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE recordings (number INTEGER PRIMARY KEY, key BLOB UNIQUE, name BLOB);
CREATE TABLE spans (
    recording INTEGER, file INTEGER, start INTEGER, stop INTEGER, line INTEGER,
    PRIMARY KEY (recording, file, start)
) WITHOUT ROWID;
CREATE TABLE listed (place INTEGER PRIMARY KEY, recording INTEGER UNIQUE, seconds REAL);
CREATE TABLE missing (place INTEGER PRIMARY KEY, path BLOB UNIQUE, seconds REAL);
"""
_CACHE_KIB = 16_384
_AT_A_TIME = 1000  # recordings
_KEPT_EVERY = 20_000  # lines, until it is on the disk


class Span(NamedTuple):
    """Lines that follow one another: bytes from start to stop of a file, and the first's number."""

    file: int
    start: int
    stop: int
    line: int


class Placed(NamedTuple):
    """A recording, its turn, and where its rows are.

    turn: place in the list, or, of recordings that are not in it, their key
    key: full path; name: what rows call it; seconds: length, as far as the list says
    """

    turn: int | str
    key: str
    name: str
    seconds: float | None
    spans: Sequence[Span]


class RowPlaces:
    """Where the rows of recordings lie in `files`.

    path: of the SQLite file, in a folder that is there and that nobody else works in
    files: result files, and the folders that their relative names count from, as far as known
    work: names what is done with them; what is there of other work, or of files that have changed
        since, is forgotten

    Raises NatureLMError where it cannot be written.
    """

    def __init__(self, path: Path, files: Sequence[tuple[Path, str | None]], work: str) -> None:
        self.path, self._files = path, files
        stats = [os.stat(file) for file, _ in files]
        self.bytes = sum(one.st_size for one in stats)
        names = [os.path.realpath(file) for file, _ in files]
        seen = [(one.st_size, one.st_mtime_ns) for one in stats]
        signature = digest(json.dumps([work, names, seen]), size=16).hex()
        self._database = self._opened(signature)
        self._real = RealPaths()

    def _opened(self, signature: str) -> sqlite3.Connection:
        # One process works here, kept by a lock that network disks know; SQLite's they may not.
        address = f"file:{quote(str(self.path.resolve()))}?nolock=1"
        for _ in range(2):
            database = sqlite3.connect(address, uri=True, isolation_level=None)
            try:
                for setting in (f"cache_size=-{_CACHE_KIB}", "journal_mode=TRUNCATE"):
                    database.execute(f"PRAGMA {setting}")
                found = database.execute("SELECT value FROM state WHERE name = 'of'").fetchone()
                if found is not None and found[0] == signature:
                    return database
            except sqlite3.DatabaseError:  # new, of other work, or damaged
                pass
            database.close()
            self.path.unlink(missing_ok=True)
            self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
            with self._writing(), sqlite3.connect(address, uri=True) as made:
                made.executescript(_TABLES)
                made.execute("INSERT INTO state VALUES ('of', ?)", [signature])
            made.close()
        raise NatureLMError(f"{self.path}: cannot be written and read again; look at the disk")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise NatureLMError(
                f"{self.path}: cannot be written ({error}). When this is fixed, the same command "
                "goes on from there."
            ) from None

    def close(self) -> None:
        """Close it; what was not kept is gone."""
        self._database.close()

    def state(self, name: str) -> Any:
        """What was kept under a name; None where nothing was."""
        found = self._database.execute("SELECT value FROM state WHERE name = ?", [name]).fetchone()
        return None if found is None else json.loads(found[0])

    @contextmanager
    def keeping(self) -> Iterator[Callable[[str, Any], None]]:
        """All that is written within the block is kept, or nothing; gives what keeps a state."""
        with self._writing():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield lambda name, value: self._put(name, value)
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise

    def _put(self, name: str, value: Any) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO state VALUES (?, ?)", [name, json.dumps(value)]
        )

    # Result files

    def take_in(self, told: Callable[[int], None] = lambda size: None) -> None:
        """Read the files, from where an earlier process came to.

        told: of bytes that were read

        Raises OutputError for a line that is no row.
        """
        begun, offset, line = self.state("taken in") or (0, 0, 0)
        told(sum(os.path.getsize(path) for path, _ in self._files[:begun]) + offset)
        for number in range(begun, len(self._files)):
            is_whole = False
            while not is_whole:
                with self.keeping() as keep:
                    before = offset
                    offset, line, is_whole = self._take_some(number, offset, line)
                    keep("taken in", [number, offset, line])
                told(offset - before)
            offset, line = 0, 0
        with self.keeping() as keep:
            keep("taken in", [len(self._files), 0, 0])

    def _take_some(self, number: int, offset: int, line: int) -> tuple[int, int, bool]:
        """Take in lines of a file from an offset on; where it came to, and whether that is all."""
        path, folder = self._files[number]
        known = KnownRecordings(path, folder, self._real)
        named: tuple[str, str | None] | None = None
        recording, start, first = 0, offset, line + 1
        spans: list[tuple[int, int, int, int, int]] = []
        is_whole = True
        with open(path, "rb") as file:
            file.seek(offset)
            for count, text in enumerate(file):
                if not text.endswith(b"\n"):
                    break
                if count == _KEPT_EVERY:
                    is_whole = False
                    break
                line += 1
                row = from_line(text, str(path), line)
                if (row.audio_path, row.audio_folder) != named:
                    if named is not None:
                        spans.append((recording, number, start, offset, first))
                    named, start, first = (row.audio_path, row.audio_folder), offset, line
                    before = Identity(row.audio_bytes, row.audio_modified, row.audio_digest)
                    key = known.locate(row.audio_path, before, row.audio_folder)
                    recording = self._number(key, row.audio_path)
                offset += len(text)
        if named is not None:
            spans.append((recording, number, start, offset, first))
        self._database.executemany("INSERT INTO spans VALUES (?, ?, ?, ?, ?)", spans)
        return offset, line, is_whole

    def _number(self, key: str, name: str) -> int:
        found = self._found(key)
        if found is not None:
            return found
        values = [_bytes(key), _bytes(name)]
        added = self._database.execute("INSERT INTO recordings VALUES (NULL, ?, ?)", values)
        return int(added.lastrowid or 0)

    def _found(self, key: str) -> int | None:
        found = self._database.execute("SELECT number FROM recordings WHERE key = ?", [_bytes(key)])
        row = found.fetchone()
        return None if row is None else int(row[0])

    def recordings_of_files(self) -> list[int]:
        """Of how many recordings each file has rows."""
        pairs = self._database.execute("SELECT DISTINCT recording, file FROM spans")
        counts = Counter(file for _, file in pairs)
        return [counts[number] for number in range(len(self._files))]

    # The list

    def take_list(self, listed: Iterable[tuple[AnyPath, float | None]]) -> str:
        """Take the list of what was to be asked about: recordings, and lengths as far as known.

        Each counts once. Gives what names the list.
        """
        with self.keeping():
            for table in ("listed", "missing"):
                self._database.execute(f"DELETE FROM {table}")
            name = ""
            for place, (path, seconds) in enumerate(listed):
                name = digest(f"{name}{path}\0{seconds}".encode("utf-8", "surrogatepass")).hex()
                number = self._found(self._real(path))
                self._database.execute(
                    f"INSERT OR IGNORE INTO {'listed' if number else 'missing'} VALUES (?, ?, ?)",
                    [place, number or _bytes(str(path)), seconds],
                )
            if self.missing()[0]:
                self._find_by_name()
        return name

    def _find_by_name(self) -> None:
        """Listed recordings that are not where rows say may be known by what rows call them."""
        self._database.execute("CREATE INDEX IF NOT EXISTS names ON recordings (name)")
        self._database.execute(
            "INSERT OR IGNORE INTO listed SELECT place, max(number), seconds FROM missing "
            "JOIN recordings ON name = path GROUP BY place"
        )
        self._database.execute("DELETE FROM missing WHERE path IN (SELECT name FROM recordings)")

    def missing(self, named: int = 0) -> tuple[int, list[str]]:
        """How many listed recordings have no rows, and the first ones."""
        count = self._database.execute("SELECT count(*) FROM missing").fetchone()[0]
        first = self._database.execute("SELECT path FROM missing ORDER BY place LIMIT ?", [named])
        return count, [_text(path) for (path,) in first]

    def unlisted(self, named: int = 0) -> tuple[int, list[str]]:
        """How many recordings have rows and are not in the list, and the first ones."""
        count = self._database.execute(f"SELECT count(*) {_UNLISTED}").fetchone()[0]
        first = self._database.execute(f"SELECT name {_UNLISTED} ORDER BY key LIMIT ?", [named])
        return count, [_text(name) for (name,) in first]

    def in_order(self, after: int | str | None = None) -> Iterator[Placed]:
        """Recordings in the order of the list, then the others in that of their paths.

        after: turn of the last one that is not wanted again
        """
        if not isinstance(after, str):
            place: int = -1 if after is None else after
            while page := self._page(_NEXT_LISTED, place):
                for place, number, key, name, seconds in page:
                    yield self._placed(place, number, key, name, seconds)
        last = _bytes(after) if isinstance(after, str) else b""
        while page := self._page(_NEXT_UNLISTED, last):
            for last, number, key, name, seconds in page:
                yield self._placed(_text(last), number, key, name, seconds)

    def _page(self, query: str, after: int | bytes) -> list[tuple[Any, int, bytes, bytes, Any]]:
        return self._database.execute(query, [after, _AT_A_TIME]).fetchall()

    def _placed(
        self, turn: int | str, number: int, key: bytes, name: bytes, seconds: float | None
    ) -> Placed:
        spans = self._database.execute(
            "SELECT file, start, stop, line FROM spans WHERE recording = ? ORDER BY file, start",
            [number],
        )
        return Placed(turn, _text(key), _text(name), seconds, list(map(Span._make, spans)))


_UNLISTED = (
    "FROM recordings WHERE NOT EXISTS (SELECT 1 FROM listed WHERE listed.recording = number)"
)
_NEXT_LISTED = (
    "SELECT place, number, key, name, seconds FROM listed JOIN recordings ON number = recording "
    "WHERE place > ? ORDER BY place LIMIT ?"
)
_NEXT_UNLISTED = f"SELECT key, number, key, name, NULL {_UNLISTED} AND key > ? ORDER BY key LIMIT ?"


def _bytes(path: str) -> bytes:
    """A path as bytes whose order is that of its parts: nothing sorts before the end of a name."""
    return path.replace(os.sep, "\0").encode("utf-8", "surrogatepass")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogatepass").replace("\0", os.sep)

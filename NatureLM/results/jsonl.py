"""A lock on an open file that the system lets go when the process ends, however it ends.

A file of lines that only grows, by whole lines, and that one process at a time writes.

Each line is one write to a file opened for appending, and lines are kept from crossing the pages of
memory through which the system writes (`padded`), so a killed process leaves whole lines. After a
loss of power, or with lines of several thousand characters, the last one may lack its end; whoever
goes on cuts it off.

What an existing result file holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TypeAlias

from NatureLM.results.rows import ErrorRow, OutputError, Row, WriteError, from_line

if sys.platform == "win32":
    import msvcrt

    # Windows keeps others from even reading a locked place, so the place is far behind the end.
    _FAR_AWAY = 1 << 40

    def try_lock(fd: int) -> bool:
        """Take the only lock of an open file; False if another process has it."""
        os.lseek(fd, _FAR_AWAY, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(fd, 0, os.SEEK_END)
        return True

else:
    import errno
    import fcntl

    def try_lock(fd: int) -> bool:
        """Take the only lock of an open file; False if another process has it.

        Some network file systems know no locks; there it is True without a lock.
        """
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        return True


def is_same_file(fd: int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file is (still) the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
_PAGE = 4096
"""Pages are at least so large, and multiples of it."""


def padded(line: bytes, offset: int, longest: int) -> bytes:
    """The line with spaces at its end where the next one would cross a page of memory.

    Linux stops a write of a killed process only between two pages: what lies within one page is
    written whole or not at all. offset: where in the file the line goes; longest: length that the
    next line is taken to have at most.
    """
    room = -(offset + len(line)) % _PAGE
    return line[:-1] + b" " * room + b"\n" if room < longest else line


class JsonlAppender:
    """An open and locked file; what is in it is nothing that it knows about.

    path: how messages name it; it is made, with its folders, if it is not there
    size: bytes of the lines that count; whoever reads the file sets it
    longest: bytes that a line is taken to have at most
    pads: whether lines are kept within pages; rows are then the same but for spaces at their ends

    Raises OutputError where it cannot be written, is no ordinary file, or is in use.
    """

    def __init__(self, path: Path, *, pads: bool = True) -> None:
        self.path = path
        self.real = Path(os.path.realpath(path))
        self.size = 0
        self.longest = 512
        self._pads = pads
        self._is_new = not self.real.exists()
        self._fd = _open_and_lock(self.real, str(path))

    def append(self, line: bytes) -> None:
        """Write one line, which ends with a line feed, whole or not at all."""
        if self._pads:
            line = padded(line, self.size, self.longest)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except BaseException as error:
            # The part of a line that is there goes away again, so that the file stays whole.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            if isinstance(error, OSError):
                raise WriteError(
                    f"{self.path}: the results cannot be written further: {error.strerror}. What "
                    "is there is whole; when this is mended, the same command goes on from there."
                ) from None
            raise
        self.size += len(line)
        self.longest = max(self.longest, len(line.rstrip()) + 1)

    def truncate(self, size: int) -> None:
        """Leave the first `size` bytes."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.size = size

    def keep_lines(self, is_kept: Callable[[bytes, int], bool]) -> None:
        """Put a file with only some of the lines in the place of this one, lock included.

        is_kept: takes a line and its number, from 1 on
        """
        temporary = self.real.with_name(self.real.name + ".tmp")
        fd = -1
        size = 0
        try:
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, _FLAGS, 0o666)
            try_lock(fd)
            with open(self.real, "rb") as old, open(fd, "ab", closefd=False) as new:
                for number, line in enumerate(old, start=1):
                    if is_kept(line, number):
                        size += new.write(line)
            os.fsync(fd)
            shutil.copymode(self.real, temporary)
            temporary.replace(self.real)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            temporary.unlink(missing_ok=True)
            raise WriteError(f"{self.path}: cannot be written: {error.strerror}") from None
        os.close(self._fd)
        self._fd, self.size = fd, size

    def close(self, *beside: Path) -> None:
        """Let go of the file. One that was made here and holds nothing is taken away again.

        beside: files that go with it then
        """
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):
            if self._is_new and os.fstat(fd).st_size == 0:
                for path in beside:
                    path.unlink(missing_ok=True)
                self.real.unlink()
            else:
                os.fsync(fd)
        os.close(fd)


def _open_and_lock(real: Path, name: str) -> int:
    """Open a file for appending, made with its folders if it is not there, and lock it."""
    if real.is_dir():
        raise OutputError(f"{name}: is a folder; give the name of a file, such as x.jsonl")
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(real, _FLAGS, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OutputError(f"{name}: is no ordinary file, and results need one")
                if not try_lock(fd):
                    raise OutputError(
                        f"{name}: another run is writing this file now; wait for its end, or give "
                        "another --output-path"
                    )
            except OutputError:
                os.close(fd)
                raise
            if is_same_file(fd, real):
                return fd
            os.close(fd)  # it was replaced between opening and locking
    except OSError as error:
        raise OutputError(
            f"{name}: results cannot be written there: {error.strerror}; give another --output-path"
        ) from None


Key: TypeAlias = tuple[str, int, str]
"""Recording, start of the window in microseconds, query."""

Identity: TypeAlias = tuple[int | None, str | None]
"""Size of a recording in bytes, and when it was last changed."""

OTHERWISE = "give another --output-path, or --overwrite to start anew"


@dataclass
class ExistingRows:
    """What was found in a file.

    end: size of the whole lines in bytes; torn: whether a piece of a line follows them
    run, model, alphas, queries: of the rows
    done: windows with an answer; failed: recordings with an error row
    heard: what each recording was when the answers were made
    longest: length of the longest line in bytes
    """

    end: int = 0
    torn: bool = False
    run: str | None = None
    model: str = ""
    alphas: set[float] = field(default_factory=set)
    queries: set[str] = field(default_factory=set)
    done: set[Key] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    heard: dict[str, Identity] = field(default_factory=dict)
    longest: int = 512

    def add(self, row: Row) -> None:
        """Take one row in."""
        self.run, self.model = row.run, row.model
        self.alphas.add(float(row.merging_alpha))
        path = absolute(row.audio_path)
        if isinstance(row, ErrorRow):
            self.failed.add(path)
            return
        self.queries.add(row.query)
        self.done.add(key(row.audio_path, row.start, row.query))
        self.heard[path] = (row.audio_bytes, row.audio_modified)


def absolute(audio_path: str | Path) -> str:
    """One spelling for every way to name a recording from this folder."""
    return os.path.abspath(audio_path)


def key(audio_path: str | Path, start: float, query: str) -> Key:
    """What a row answers."""
    return absolute(audio_path), round(start * 1_000_000), query


def identity(path: str | Path) -> Identity:
    """Size and time of change of a recording; (None, None) where it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None, None
    since_1970 = timedelta(microseconds=found.st_mtime_ns // 1000)
    changed = datetime(1970, 1, 1, tzinfo=timezone.utc) + since_1970
    return found.st_size, changed.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def read_contents(path: Path, name: str) -> ExistingRows:
    """Read a result file; `name` is what messages call it.

    Raises OutputError for a file that is no result file, or holds rows of several runs.
    """
    contents = ExistingRows()
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                refuse_other_files(line, name)
            if not line.endswith(b"\n"):
                contents.torn = True
                break
            try:
                row = from_line(line, name, number)
            except OutputError as error:
                raise OutputError(f"{error}; {OTHERWISE}") from None
            if contents.run not in (None, row.run):
                raise OutputError(
                    f"{name}, line {number}: the rows are of runs with different settings; "
                    f"{OTHERWISE}"
                )
            contents.add(row)
            contents.end += len(line)
            contents.longest = max(contents.longest, len(line.rstrip()) + 1)
    return contents


def refuse_other_files(first_line: bytes, name: str) -> None:
    """A file that was never a result file is left alone: its name may be a slip.

    Raises OutputError. An empty file and a first row that was cut off are taken for result files.
    """
    if not first_line or first_line.startswith(b'{"audio_path"'):
        return
    try:
        data = json.loads(first_line)
    except ValueError:
        data = None
    if not (isinstance(data, dict) and "audio_path" in data):
        raise OutputError(
            f"{name}: exists and is no result file of `naturelm infer`, so it is left as it is; "
            "give another --output-path"
        )

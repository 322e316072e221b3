"""A file of lines that only grows, by whole lines, and that one process at a time writes.

Each line is one write to a file opened for appending, and lines are kept from crossing the pages of
memory through which the system writes (`padded`), so a killed process leaves whole lines. After a
loss of power, or with lines of several thousand characters, the last one may lack its end; the run
that resumes cuts it off.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from NatureLM.results.rows import OutputError, WriteError
from NatureLM.util import atomic_write

if TYPE_CHECKING:
    from filelock import BaseFileLock

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
    """An open and locked file; the meaning of its lines is the caller's.

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
        if self.real.is_dir():
            raise OutputError(f"{path}: is a folder; give the name of a file, such as x.jsonl")
        try:
            self.real.parent.mkdir(parents=True, exist_ok=True)
            if self.real.exists() and not self.real.is_file():
                raise OutputError(f"{path}: is no ordinary file, and results need one")
            self._lock = _lock(self.real, str(path))
            try:
                self._fd = os.open(self.real, _FLAGS, 0o666)
            except OSError:
                _unlock(self._lock)
                raise
        except OSError as error:
            raise OutputError(
                f"{path}: results cannot be written there: {error.strerror}; give another "
                "--output-path"
            ) from None

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
                    "is there is whole; when this is fixed, the same command goes on from there."
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
        """Put a file with only some of the lines in the place of this one.

        is_kept: takes a line and its number, from 1 on
        """
        try:
            with (
                atomic_write(self.real, alone=True) as unfinished,
                open(self.real, "rb") as old,
                open(unfinished, "wb") as new,
            ):
                new.writelines(line for n, line in enumerate(old, start=1) if is_kept(line, n))
                new.flush()
                os.fsync(new.fileno())
                shutil.copymode(self.real, unfinished)
            fd = os.open(self.real, _FLAGS)
        except OSError as error:
            raise WriteError(f"{self.path}: cannot be written: {error.strerror}") from None
        os.close(self._fd)
        self._fd, self.size = fd, os.fstat(fd).st_size

    def close(self, *beside: Path) -> None:
        """Close and unlock the file. One that was made here and is empty is removed again.

        beside: files that are removed with it then
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
        _unlock(self._lock)


def _lock(real: Path, name: str) -> BaseFileLock:
    """Lock a file by one beside it; the system frees the lock when the process ends, in any way."""
    from filelock import FileLock, Timeout

    lock = FileLock(f"{real}.lock", thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise OutputError(
            f"{name}: another run is writing this file now; wait for its end, or give another "
            "--output-path"
        ) from None
    except OSError:
        pass  # some network file systems have no locks; what cannot be written shows on opening
    return lock


def _unlock(lock: BaseFileLock) -> None:
    with contextlib.suppress(OSError):
        if lock.is_locked:  # removed while it is held: others notice that it is gone
            os.unlink(lock.lock_file)
    lock.release()

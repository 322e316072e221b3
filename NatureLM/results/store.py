"""Resumable stores: JSONL files that grow by whole lines and are resumed after any stop.

- A file holds answers of one set of settings, whose fingerprint is in every row; the settings stand
  in `<file>.run.json` beside it. Others are refused, and it is said what differs.
- What has an answer is not asked again. Rows of errors are taken out before they are tried again.
- One process at a time writes, kept by a lock of the system that ends with the process.
- Nothing is overwritten unless that is asked for, and never a file that is no result file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from NatureLM.audio.files import UNTOLD, Identity, KnownRecordings, identity
from NatureLM.errors import NatureLMError
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    Prediction,
    Row,
    RunSettings,
    StoredRow,
    SurveyRow,
    WindowKey,
    WindowRow,
    bullets,
    differences,
    from_line,
    left_out,
    other_revisions,
    read_record,
    record_path,
    to_line,
    write_record,
)
from NatureLM.storage import AnyPath, is_absolute
from NatureLM.util import atomic_write, digest, parse_json

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


class RowFile(Protocol):
    """What a store keeps its rows in, as lines: a file, or a folder of parts.

    real: its full path
    size: bytes of the lines that count
    """

    real: Path
    size: int

    def lines(self) -> Iterator[bytes]:
        """The lines, the last one possibly torn."""

    def count(self, line: bytes) -> None:
        """A whole line that is there counts."""

    def append(self, line: bytes) -> None:
        """Write one line, which ends with a line feed."""

    def truncate(self, size: int) -> None:
        """Leave the first `size` bytes."""

    def keep_lines(self, kept: Callable[[bytes, int], bytes | None]) -> None:
        """Leave some of the lines, or put changed ones in their place."""

    def close(self, *beside: Path) -> None:
        """Close and unlock it."""


class JsonlAppender:
    """An open and locked file that grows by whole lines; their meaning is the caller's.

    Each line is one write to a file opened for appending, so a killed process leaves whole lines.
    After a loss of power, or with lines of several thousand characters, the last one may lack its
    end; whoever reads the file cuts it off with `truncate`.

    path: how messages name it; it is made, with its folders, if it is not there
    size: bytes of the lines that count; whoever reads the file sets it
    longest: bytes that a line is taken to have at most
    pads: whether lines are kept within pages; rows are then the same but for spaces at their ends

    WHAT, BUSY, OTHERWISE, LATER: the parts of messages that tell what the file is for
    SYNCED: whether each line is on the disk before `append` ends, so that a loss of power leaves it

    Raises OutputError where it cannot be written, is no ordinary file, or is in use.
    """

    WHAT: ClassVar[str] = "results"
    BUSY: ClassVar[str] = (
        "another run is writing this file now; wait for its end, or give another --output-path"
    )
    OTHERWISE: ClassVar[str] = "give another --output-path"
    LATER: ClassVar[str] = "the same command goes on from there"
    SYNCED: ClassVar[bool] = False

    def __init__(self, path: Path, *, pads: bool = True) -> None:
        self.path = path
        self.real = Path(os.path.realpath(path))
        self.size = 0
        self.longest = 512
        self._pads = pads
        try:
            with contextlib.suppress(FileNotFoundError):
                os.stat(record_path(self.real))  # a name that is too long shows here
            self._is_new = not self.real.exists()
            if self.real.is_dir():
                raise OutputError(f"{path}: is a folder; give the name of a file, such as x.jsonl")
            self.real.parent.mkdir(parents=True, exist_ok=True)
            if self.real.exists() and not self.real.is_file():
                raise OutputError(f"{path}: is no ordinary file, and {self.WHAT} need one")
            self._lock = lock_beside(self.real, f"{path}: {self.BUSY}")
            try:
                self._fd = os.open(self.real, _FLAGS, 0o666)
            except OSError:
                unlock(self._lock)
                raise
        except OSError as error:
            raise OutputError(
                f"{path}: {self.WHAT} cannot be written there: {error.strerror}; {self.OTHERWISE}"
            ) from None
        if self.SYNCED and self._is_new:
            _sync_folder(self.real.parent)

    def lines(self) -> Iterator[bytes]:
        """The lines of the file, the last one possibly torn."""
        with open(self.real, "rb") as file:
            yield from file

    def count(self, line: bytes) -> None:
        """A whole line that is in the file counts."""
        self.size += len(line)
        self.longest = max(self.longest, len(line.rstrip()) + 1)

    def append(self, line: bytes) -> None:
        """Write one line, which ends with a line feed, whole or not at all."""
        if self._pads:
            line = padded(line, self.size, self.longest)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
            if self.SYNCED:
                os.fsync(self._fd)
        except BaseException as error:
            # The part of a line that is there goes away again, so that the file stays whole.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            if isinstance(error, OSError):
                raise NatureLMError(
                    f"{self.path}: the {self.WHAT} cannot be written further: {error.strerror}. "
                    f"What is there is whole; when this is fixed, {self.LATER}."
                ) from None
            raise
        self.count(line)

    def truncate(self, size: int) -> None:
        """Leave the first `size` bytes."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise NatureLMError(f"{self.path}: cannot be written: {error.strerror}") from None
        self.size = size

    def keep_lines(self, kept: Callable[[bytes, int], bytes | None]) -> None:
        """Put a file with only some of the lines, or with changed ones, in the place of this one.

        kept: takes a line and its number, from 1 on; gives the line that stays, or None for none
        """
        try:
            with (
                atomic_write(self.real, alone=True) as unfinished,
                open(self.real, "rb") as old,
                open(unfinished, "wb") as new,
            ):
                lines = (kept(line, number) for number, line in enumerate(old, start=1))
                new.writelines(line for line in lines if line is not None)
                new.flush()
                os.fsync(new.fileno())
                shutil.copymode(self.real, unfinished)
            fd = os.open(self.real, _FLAGS)
        except OSError as error:
            raise NatureLMError(f"{self.path}: cannot be written: {error.strerror}") from None
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
                for path in (*beside, self.real):
                    path.unlink(missing_ok=True)
            else:
                os.fsync(fd)
        os.close(fd)
        unlock(self._lock)


def _sync_folder(folder: Path) -> None:
    """Let the name of a new file be on the disk, too; Windows and some disks have no way."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def lock_beside(real: Path, busy: str, seconds: float = 0.0) -> BaseFileLock:
    """Lock a file or folder by one beside it; the system frees it when the process ends in any way.

    Raises OutputError, with the sentence `busy`, where another process has it for so long.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(f"{real}.lock", thread_local=False)
    try:
        lock.acquire(timeout=seconds, poll_interval=0.03)
    except Timeout:
        raise OutputError(busy) from None
    except (OSError, NotImplementedError):
        pass  # some network file systems have no locks; what cannot be written shows on opening
    return lock


def unlock(lock: BaseFileLock) -> None:
    """Free what `lock_beside` locked."""
    with contextlib.suppress(OSError):
        if lock.is_locked:  # removed while it is held: others notice that it is gone
            os.unlink(lock.lock_file)
    lock.release()


RowT = TypeVar("RowT", bound=StoredRow)
StoreT = TypeVar("StoreT", bound="ResultStore[Any]")


class ResultStore(ABC, Generic[RowT]):
    """An open result file. Use it as a context manager.

    named: what messages call the file, if not by its path
    OTHERWISE: what messages advise where the file does not fit
    PADS: see `JsonlAppender`

    Raises OutputError where the file cannot be written, is not a result file, or is in use.
    """

    OTHERWISE: ClassVar[str]
    PADS: ClassVar[bool] = True

    def __init__(
        self, path: str | Path, *, overwrite: bool = False, named: AnyPath | None = None
    ) -> None:
        self.path = Path(path)
        self.named = named or self.path
        self._overwrite = overwrite
        self._settings: RunSettings  # once `begin` was called
        self._file = self._open()
        self._forget()
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def __enter__(self: StoreT) -> StoreT:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. One that was made here and is empty is removed again."""
        self._file.close(record_path(self._file.real))

    def _open(self) -> RowFile:
        """What the rows are kept in, opened and locked."""
        return JsonlAppender(self.path, pads=self.PADS)

    def finish(self, tables: Sequence[Path] = ()) -> list[str]:
        """All was asked, and tables were made; the addresses to which these went, if any."""
        return []

    @property
    def answers(self) -> int:
        """How many answers the file holds."""
        return len(self._done)

    @abstractmethod
    def _parse(self, line: bytes, number: int) -> RowT:
        """The row of a whole line; raises OutputError for one that is none."""

    @abstractmethod
    def _refuse_foreign(self, first_line: bytes) -> None:
        """Raise OutputError if a first line, whole or torn, is of a file of something else."""

    @abstractmethod
    def _take(self, row: RowT) -> None:
        """Count in a row that the file holds; the key of an answer goes into `_done`."""

    def _forget(self) -> None:
        """Count nothing in: the state for an empty file."""
        self._run: str | None = None
        self._done: set[Any] = set()
        self._is_torn = False

    def _read(self) -> None:
        """Read what the file holds; nothing is kept of what will be overwritten."""
        for number, line in enumerate(self._file.lines(), start=1):
            if number == 1:
                self._refuse_foreign(line)
                if self._overwrite:
                    return
            self._is_torn = not line.endswith(b"\n")
            if self._is_torn:
                return
            row = self._parse(line, number)
            if self._run not in (None, row.run):
                raise OutputError(
                    f"{self.named}, line {number}: the rows are of runs with different "
                    f"settings; {self.OTHERWISE}"
                )
            self._run = row.run
            self._take(row)
            self._file.count(line)

    def _record(self) -> RunSettings | None:
        """The settings that the rows were made with, where they are still known."""
        record = read_record(self._file.real)
        return record if record is not None and record.run == self._run else None

    def _refusal(self, problem: str, details: Sequence[str], advice: str = "") -> OutputError:
        """What is wrong with the rows that are there."""
        advice = advice or f"{self.OTHERWISE.capitalize()}."
        return OutputError(f"{self.named}: {problem}:\n{bullets(details)}\n{advice}")

    def _refuse_other_revisions(self, settings: RunSettings) -> None:
        """Raise OutputError where both know the commits that the model is of, and they differ."""
        found = other_revisions(self._record(), settings)
        if found:
            advice = f"Name the revision that is there, or {self.OTHERWISE}."
            raise self._refusal(
                "holds answers of another revision of the model, and these are not mixed",
                found,
                advice,
            )

    def _start(
        self, settings: RunSettings, kept: Callable[[bytes, int], bytes | None] | None = None
    ) -> None:
        """Cut a torn line off, take out or change lines (`keep_lines`), and write the settings."""
        if self._is_torn:
            self._file.truncate(self._file.size)
        if kept is not None:
            self._file.keep_lines(kept)
        write_record(self._file.real, settings)
        self._settings = settings


@dataclass(frozen=True)
class Resumed:
    """What an existing file already held.

    answers: rows of windows, which are not asked again
    retried: recordings with an error row, which are tried again
    repaired: those of them that have changed since and are asked anew from their beginning
    cut_off: whether a torn last line was taken off
    moved: how many recordings have another time or place now, as `context_of` says
    """

    answers: int = 0
    retried: int = 0
    repaired: tuple[str, ...] = ()
    cut_off: bool = False
    moved: int = 0


class WindowStore(ResultStore[Row]):
    """The answers about windows of recordings.

    A recording is the same however it is named, from whatever folder (`audio.files`). One
    whose content changed since it was read is refused, because old and new answers would be mixed;
    but one that had failed was repaired: all of it is asked anew. Where the file of settings is
    lost, the rows still decide.

    with WindowStore(path) as store:       # opened and locked: problems show before any work
        store.check(known_settings)        # refuse early what will be refused anyway
        store.begin(settings, recordings)  # from here on the file changes
        store.add(...)
    """

    OTHERWISE = "give another --output-path, or --overwrite to start anew"

    context_of: Callable[[str, float], Mapping[str, Any] | None] = staticmethod(lambda *_: None)
    """When and where a window was recorded, by its recording and its start in seconds."""
    renews_context = False
    """Whether rows that are there get the times and places that `context_of` gives now."""

    def _forget(self) -> None:
        super()._forget()
        self._model = ""
        self._alphas: set[float] = set()
        self._queries: set[str] = set()
        self._failed: set[str] = set()
        self._answered: set[str] = set()
        self._recordings = KnownRecordings(self.path)
        self._contexts: dict[str, tuple[float, bytes]] = {}  # of the first row of a recording
        self._identities: dict[str, Identity] = {}
        self._asked: dict[str, str | AnyPath] = {}

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise OutputError if the file was made with other values of these settings.

        For the settings that are known before the model is loaded; `begin` compares them all.
        """
        if not self._overwrite and self._run is not None:
            found = self._differences(RunSettings(values).values)
            if found:
                raise self._settings_refusal(found)

    def begin(self, settings: RunSettings, recordings: Iterable[str | AnyPath] = ()) -> Resumed:
        """Start writing answers of a run, or resume it.

        settings: all that changes answers; `model`, `merging_alpha` and `queries` by these names
        recordings: those that will be asked

        Raises OutputError, and leaves the file as it is, if it holds answers of other settings or
        of recordings that have changed.
        """
        if self._overwrite:
            self._file.truncate(0)
            self._forget()
        if self._run not in (None, settings.run):
            raise self._settings_refusal(self._differences(settings.values, all_of=True))
        self._refuse_other_revisions(settings)
        recordings = list(recordings)
        known = self._recordings
        known.match(recordings)
        self._asked = {known.key(one): one for one in recordings}
        asked = {known.key(path): str(path) for path in recordings}
        retried = self._failed & asked.keys()
        found = known.changed(recordings)
        changed = found.keys() - (self._failed - self._answered)
        if changed - retried:
            raise self._changed_refusal(asked, found, changed - retried)

        moved = self._moved(asked) if self.renews_context else set()

        def kept(line: bytes, number: int) -> bytes | None:
            row = self._parse(line, number)
            key = self._key_of(row)
            if key in changed or (isinstance(row, ErrorRow) and key in retried):
                return None
            if key not in moved or isinstance(row, ErrorRow):
                return line
            return to_line(replace(row, context=self.context_of(asked[key], row.start)))

        settings = replace(settings, folder=known.folder_of_names)
        self._start(settings, kept if retried or moved else None)
        if changed:
            self._done = {key for key in self._done if key[0] not in changed}
        repaired = tuple(sorted(asked[key] for key in changed))
        return Resumed(len(self._done), len(retried), repaired, self._is_torn, len(moved))

    def _moved(self, asked: Mapping[str, str]) -> set[str]:
        """The recordings of whose rows `context_of` says something else now.

        asked: paths of recordings by their keys
        """
        then = ((key, *one) for key, one in self._contexts.items() if key in asked)
        return {
            key
            for key, start, context in then
            if context != _fingerprint(self.context_of(asked[key], start))
        }

    def is_done(self, audio_path: str | Path, start: float, query: str, claim: str = "") -> bool:
        """Whether the file has an answer to the query about the window that starts there.

        claim: label of the detection that the query is about
        """
        return self._window(audio_path, start, query, claim) in self._done

    def add(self, answer: Prediction | SurveyRow) -> bool:
        """Write the row of a window; False, and no row, where there is one already."""
        key = self._window(answer.audio_path, answer.start, answer.query, answer.claimed)
        if key in self._done:
            return False
        about = {
            "context": self.context_of(answer.audio_path, answer.start),
            **self._origin(answer.audio_path),
        }
        if isinstance(answer, SurveyRow):
            row: Row = replace(answer, **about)
        else:
            row = WindowRow.of(answer, **about)
        self._file.append(to_line(row))
        self._done.add(key)
        return True

    def add_error(self, audio_path: str | Path, error: BaseException, merging_alpha: float) -> None:
        """Write the row of a recording that could not be read (to its end)."""
        row = ErrorRow(
            str(audio_path),
            str(error),
            getattr(error, "kind", type(error).__name__),
            merging_alpha,
            **self._origin(audio_path),
        )
        self._file.append(to_line(row))

    def _origin(self, audio_path: str | Path) -> dict[str, Any]:
        """The keys of a row that say which run made it, of which state of the recording."""
        key, folder = self._recordings.key(audio_path), os.getcwd()
        if key not in self._identities:
            self._identities[key] = identity(self._asked.get(key, audio_path), has_digest=True)
        size, modified, content = self._identities[key]
        is_told = is_absolute(str(audio_path)) or folder == self._settings.folder
        return {
            "model": self._settings.values["model"],
            "run": self._settings.run,
            "audio_bytes": size,
            "audio_modified": modified,
            "audio_digest": content,
            "audio_folder": None if is_told else folder,
        }

    def _window(
        self, audio_path: str | Path, start: float, query: str, claim: str = ""
    ) -> WindowKey:
        key = self._recordings.key(audio_path)
        return key, round(start * 1_000_000), question_key(query, claim)

    def _key_of(self, row: Row) -> str:
        """The recording of a row, which is counted in."""
        before = Identity(row.audio_bytes, row.audio_modified, row.audio_digest)
        return self._recordings.add(row.audio_path, before, row.audio_folder)

    def _refuse_foreign(self, first_line: bytes) -> None:
        """The name of a file that was never a result file may be a slip; it is left alone."""
        if first_line.startswith(b'{"audio_path"'):
            return
        try:
            data = parse_json(first_line)
        except ValueError:
            data = None
        if not (isinstance(data, dict) and "audio_path" in data):
            raise OutputError(
                f"{self.named}: exists and is no result file of `naturelm infer`, so it is left as "
                "it is; give another --output-path"
            )

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            return from_line(line, str(self.named), number)
        except OutputError as error:
            raise OutputError(f"{error}; {self.OTHERWISE}") from None

    def _take(self, row: Row) -> None:
        if not self._model:
            record = self._record()
            self._recordings.folder = None if record is None else record.folder
        self._model = row.model
        self._alphas.add(float(row.merging_alpha))
        key = self._key_of(row)
        if isinstance(row, ErrorRow):
            self._failed.add(key)
        else:
            question = question_key(row.query, row.claimed)
            self._done.add((key, round(row.start * 1_000_000), question))
            self._queries.add(row.query)
            self._answered.add(key)
            if key not in self._contexts:
                self._contexts[key] = (row.start, _fingerprint(row.context))

    def _differences(self, now: Mapping[str, Any], *, all_of: bool = False) -> list[str]:
        """What differs from the settings of the rows, or as far as the rows themselves show it.

        all_of: whether what `now` lacks is not set any more
        """
        record = self._record()
        if record is not None:
            gone = left_out(record.values, now) if all_of else []
            return differences(record.values, now) + gone
        before: dict[str, Any] = {"model": self._model}
        if len(self._alphas) == 1:
            before["merging_alpha"] = next(iter(self._alphas))
        if not self._queries <= set(now.get("queries", [])):
            before["queries"] = sorted(self._queries)
        return differences(before, {name: now[name] for name in before if name in now})

    def _settings_refusal(self, found: list[str]) -> OutputError:
        if self._record() is None:
            missing = record_path(self.path).name
            found = [*found, f"what else differs cannot be told, because {missing} is missing"]
        return self._refusal(
            "holds answers that were made with other settings, and these are not mixed", found
        )

    def _changed_refusal(
        self, asked: Mapping[str, str], found: Mapping[str, str], changed: set[str]
    ) -> OutputError:
        untold = [key for key in changed if found[key] == UNTOLD]
        advice = ""
        if untold:
            then = self._recordings.found[untold[0]].modified
            advice = (
                f"{self.OTHERWISE.capitalize()}. Of {len(untold)} only the time of change differs, "
                "and the version that wrote these answers did not keep what they hold. If they "
                f"are the same, set their times back: touch -d {then} {asked[untold[0]]}"
            )
        return self._refusal(
            "holds answers about recordings that have changed since",
            sorted(asked[key] for key in changed),
            advice,
        )


def _fingerprint(context: Mapping[str, Any] | None) -> bytes:
    """Of a time and place, in few bytes."""
    return digest(json.dumps(context or {}, sort_keys=True).encode(), size=8)


def question_key(query: str, claim: str) -> str:
    """What a row of a window answers: a query, about a detection of a table where there is one."""
    return f"{query}\0{claim}" if claim else query

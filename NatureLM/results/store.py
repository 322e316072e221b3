"""Resumable stores: JSONL files that grow by whole lines and are resumed after any stop.

`ResultStore` is what all stores share, whatever the type of their rows:

- Each row is one write of a whole line to a file opened for appending (`jsonl`), so a killed
  process leaves whole lines. A last line without its end, after a loss of power, is cut off when
  the run is resumed.
- A file holds answers of one run only: one set of settings that change answers. Every row has
  their fingerprint, and the settings stand in `<file>.run.json` beside it. Other settings are
  refused and it is said what differs.
- What has an answer is not asked again. Rows of errors are taken out before they are tried again.
- One writer at a time, kept by a lock of the system that ends with the process.
- Nothing is overwritten unless that is asked for, and never a file that is no result file.

`WindowStore` holds the answers about windows of recordings. A recording that changed since it was
read (size or time of change) is refused, because old and new answers would be mixed; but one that
had failed was repaired: all of it is asked anew. Where the file of settings is lost, the rows still
decide.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from NatureLM.results.jsonl import JsonlAppender
from NatureLM.results.rows import (
    ErrorRow,
    Identity,
    OutputError,
    Prediction,
    Row,
    StoredRow,
    WindowRow,
    from_line,
    identity,
    to_line,
    window_key,
)
from NatureLM.results.settings import (
    RunSettings,
    bullets,
    differences,
    left_out,
    read_record,
    record_path,
    write_record,
)

RowT = TypeVar("RowT", bound=StoredRow)
StoreT = TypeVar("StoreT", bound="ResultStore[Any]")


class ResultStore(ABC, Generic[RowT]):
    """An open result file. Use it as a context manager.

    OTHERWISE: what messages advise where the file does not fit
    PADS: see `JsonlAppender`

    Raises OutputError where the file cannot be written, is not a result file, or is in use.
    """

    OTHERWISE: ClassVar[str]
    PADS: ClassVar[bool] = True

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._settings: RunSettings | None = None
        self._file = JsonlAppender(self.path, pads=self.PADS)
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

    @property
    def answers(self) -> int:
        """How many answers the file holds."""
        return len(self._done)

    # what the subclasses say

    @abstractmethod
    def _parse(self, line: bytes, number: int) -> RowT:
        """The row of a whole line; raises OutputError for one that is none."""

    @abstractmethod
    def _refuse_foreign(self, first_line: bytes) -> None:
        """Raise OutputError if a first line, whole or torn, is of a file of something else."""

    @abstractmethod
    def _take(self, row: RowT) -> None:
        """Count in a row that the file holds; the key of an answer goes into `_done`."""

    # reading and resuming

    def _forget(self) -> None:
        """Count nothing in: the state for an empty file."""
        self._run: str | None = None
        self._done: set[Any] = set()
        self._is_torn = False

    def _read(self) -> None:
        """Read what the file holds; nothing is kept of what will be overwritten."""
        with open(self._file.real, "rb") as file:
            for number, line in enumerate(file, start=1):
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
                        f"{self.path}, line {number}: the rows are of runs with different "
                        f"settings; {self.OTHERWISE}"
                    )
                self._run = row.run
                self._take(row)
                self._file.size += len(line)
                self._file.longest = max(self._file.longest, len(line.rstrip()) + 1)

    def _record(self) -> RunSettings | None:
        """The settings that the rows were made with, where they are still known."""
        record = read_record(self._file.real)
        return record if record is not None and record.run == self._run else None

    def _refusal(self, problem: str, details: Sequence[str], advice: str = "") -> OutputError:
        """What is wrong with the rows that are there."""
        advice = advice or f"{self.OTHERWISE.capitalize()}."
        return OutputError(f"{self.path}: {problem}:\n{bullets(details)}\n{advice}")

    def _start(
        self, settings: RunSettings, is_kept: Callable[[bytes, int], bool] | None = None
    ) -> None:
        """Cut a torn line off, take out lines that are not kept, and write the settings."""
        if self._is_torn:
            self._file.truncate(self._file.size)
        if is_kept is not None:
            self._file.keep_lines(is_kept)
        write_record(self._file.real, settings)
        self._settings = settings

    @property
    def _begun(self) -> RunSettings:
        if self._settings is None:
            raise RuntimeError("begin() comes before the first row")
        return self._settings


@dataclass(frozen=True)
class Resumed:
    """What an existing file already held.

    answers: rows of windows, which are not asked again
    retried: recordings with an error row, which are tried again
    repaired: those of them that have changed since and are asked anew from their beginning
    cut_off: whether a torn last line was taken off
    """

    answers: int = 0
    retried: int = 0
    repaired: tuple[str, ...] = ()
    cut_off: bool = False


class WindowStore(ResultStore[Row]):
    """The answers about windows of recordings.

    with WindowStore(path) as store:       # opened and locked: problems show before any work
        store.check(known_settings)        # refuse early what will be refused anyway
        store.begin(settings, recordings)  # from here on the file changes
        store.add_answer(...)
    """

    OTHERWISE = "give another --output-path, or --overwrite to start anew"

    def _forget(self) -> None:
        super()._forget()
        self._model = ""
        self._alphas: set[float] = set()
        self._queries: set[str] = set()
        self._failed: set[str] = set()
        self._answered: dict[str, Identity] = {}
        self._identities: dict[str, Identity] = {}

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise OutputError if the file was made with other values of these settings.

        For the settings that are known before the model is loaded; `begin` compares them all.
        """
        if not self._overwrite and self._run is not None:
            found = self._differences(RunSettings(values).values)
            if found:
                raise self._settings_refusal(found)

    def begin(self, settings: RunSettings, recordings: Iterable[str | Path] = ()) -> Resumed:
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
            record = self._record()
            gone = [] if record is None else left_out(record.values, settings.values)
            raise self._settings_refusal(self._differences(settings.values) + gone)
        asked = {os.path.abspath(path): str(path) for path in recordings}
        retried = self._failed & asked.keys()
        changed = {path for path in asked if self._has_changed(path)}
        if changed - retried:
            raise self._refusal(
                "holds answers about recordings that have changed since",
                sorted(asked[path] for path in changed - retried),
            )

        def is_kept(line: bytes, number: int) -> bool:
            row = self._parse(line, number)
            path = os.path.abspath(row.audio_path)
            return path not in changed and not (isinstance(row, ErrorRow) and path in retried)

        self._start(settings, is_kept if retried else None)
        if changed:
            self._done = {key for key in self._done if key[0] not in changed}
        repaired = tuple(sorted(asked[path] for path in changed))
        return Resumed(len(self._done), len(retried), repaired, self._is_torn)

    def is_done(self, audio_path: str | Path, start: float, query: str) -> bool:
        """Whether the file has an answer to the query about the window that starts there."""
        return window_key(audio_path, start, query) in self._done

    def add_answer(self, answer: Prediction) -> bool:
        """Write the row of a window; False, and no row, where there is one already."""
        key = window_key(answer.audio_path, answer.start, answer.query)
        if key in self._done:
            return False
        size, modified = self._identity(answer.audio_path)
        confidence = answer.confidence
        row = WindowRow(
            audio_path=answer.audio_path,
            start=round(answer.start, 6),
            end=round(answer.end, 6),
            query=answer.query,
            text=answer.text,
            merging_alpha=answer.merging_alpha,
            model=self._begun.values["model"],
            run=self._begun.run,
            audio_bytes=size,
            audio_modified=modified,
            confidence=None if confidence is None else round(confidence, 6),
            alternatives=tuple((label, round(share, 6)) for label, share in answer.alternatives),
        )
        self._file.append(to_line(row))
        self._done.add(key)
        return True

    def add_error(self, audio_path: str | Path, error: BaseException, merging_alpha: float) -> None:
        """Write the row of a recording that could not be read (to its end)."""
        size, modified = self._identity(audio_path)
        row = ErrorRow(
            audio_path=str(audio_path),
            error=str(error),
            error_type=type(error).__name__,
            merging_alpha=merging_alpha,
            model=self._begun.values["model"],
            run=self._begun.run,
            audio_bytes=size,
            audio_modified=modified,
        )
        self._file.append(to_line(row))

    # reading

    def _refuse_foreign(self, first_line: bytes) -> None:
        """The name of a file that was never a result file may be a slip; it is left alone."""
        if first_line.startswith(b'{"audio_path"'):
            return
        try:
            data = json.loads(first_line)
        except ValueError:
            data = None
        if not (isinstance(data, dict) and "audio_path" in data):
            raise OutputError(
                f"{self.path}: exists and is no result file of `naturelm infer`, so it is left as "
                "it is; give another --output-path"
            )

    def _parse(self, line: bytes, number: int) -> Row:
        try:
            return from_line(line, str(self.path), number)
        except OutputError as error:
            raise OutputError(f"{error}; {self.OTHERWISE}") from None

    def _take(self, row: Row) -> None:
        self._model = row.model
        self._alphas.add(float(row.merging_alpha))
        path = os.path.abspath(row.audio_path)
        if isinstance(row, ErrorRow):
            self._failed.add(path)
        else:
            self._done.add(row.key)
            self._queries.add(row.query)
            self._answered[path] = (row.audio_bytes, row.audio_modified)

    # comparing with what is there

    def _differences(self, now: Mapping[str, Any]) -> list[str]:
        """What differs from the settings of the rows, or as far as the rows themselves show it."""
        record = self._record()
        if record is not None:
            return differences(record.values, now)
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

    def _has_changed(self, path: str) -> bool:
        now = self._identity(path)
        return self._answered.get(path, now) != now

    def _identity(self, path: str | Path) -> Identity:
        """Size and time of change of a recording, looked up once."""
        name = os.path.abspath(path)
        if name not in self._identities:
            self._identities[name] = identity(name)
        return self._identities[name]

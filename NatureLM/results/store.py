"""The result store: a JSONL file that grows by whole lines and can be gone on with.

Rules, so that a file can be trusted whatever happened to the run that wrote it:

- Each row is one write of a whole line to a file opened for appending, and lines are kept from
  crossing the pages of memory through which the system writes (`padded`), so a killed process
  leaves whole lines. A last line without its end, after a loss of power or from a row of several
  thousand characters, is cut off when the run goes on.
- A file holds answers of one run only: one set of settings that change answers. Every row has
  their fingerprint, and the settings stand in `<file>.run.json` beside it. Other settings are
  refused and it is said what differs; where that file is lost, the rows still decide.
- Windows that have an answer are not asked again. A recording with an error is tried again; its
  error row is taken out first, so that there is never more than one.
- A recording that changed since it was heard (size or time of change) is refused, because old and
  new answers would be mixed; but one that had failed was mended: all of it is asked anew.
- One writer at a time, kept by a lock of the system that ends with the process.
- Nothing is overwritten unless that is asked for, and never a file that is no result file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from NatureLM.results.jsonl import (
    OTHERWISE,
    ExistingRows,
    Identity,
    JsonlAppender,
    absolute,
    identity,
    key,
    read_contents,
    refuse_other_files,
)
from NatureLM.results.rows import ErrorRow, OutputError, Row, WindowRow, from_line, to_line
from NatureLM.results.settings import (
    RunSettings,
    differences,
    left_out,
    read_record,
    record_path,
    write_record,
)


@dataclass(frozen=True)
class Resumed:
    """What an existing file already held.

    answers: rows of windows, which are not asked again
    retried: recordings with an error row, which are tried again
    mended: those of them that have changed since and are asked anew from their beginning
    cut_off: whether a torn last line was taken off
    """

    answers: int = 0
    retried: int = 0
    mended: tuple[str, ...] = ()
    cut_off: bool = False


class ResultStore:
    """An open result file. Use it as a context manager.

        with ResultStore(path) as store:       # opened and locked: problems show before any work
            store.check(known_settings)        # refuse early what will be refused anyway
            store.begin(settings, recordings)  # from here on the file changes
            store.add_answer(...)

    Raises OutputError where the file cannot be written, is not a result file, or is in use.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        self._overwrite = overwrite
        self._settings: RunSettings | None = None
        self._identities: dict[str, Identity] = {}
        self._file = JsonlAppender(self.path)
        self._real = self._file.real
        try:
            self._contents = self._read()
        except BaseException:
            self.close()
            raise
        self._file.size, self._file.longest = self._contents.end, self._contents.longest

    def __enter__(self) -> ResultStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def answers(self) -> int:
        """Windows that have an answer in the file, one for each query."""
        return len(self._contents.done)

    def check(self, values: Mapping[str, Any]) -> None:
        """Raise OutputError if the file was made with other values of these settings.

        For the settings that are known before the model is loaded; `begin` compares them all.
        """
        if not self._overwrite and self._contents.run is not None:
            found = self._differences(RunSettings(values).values)
            if found:
                raise self._refusal(found)

    def begin(self, settings: RunSettings, recordings: Iterable[str | Path] = ()) -> Resumed:
        """Start writing answers of a run, or go on with it.

        settings: all that changes answers; `model`, `merging_alpha` and `queries` by these names
        recordings: those that will be asked

        Raises OutputError, and leaves the file as it is, if it holds answers of other settings or
        of recordings that have changed.
        """
        if self._overwrite:
            self._file.truncate(0)
            self._contents = ExistingRows()
        before = self._contents
        if before.run is not None and before.run != settings.run:
            raise self._refusal(
                self._differences(settings.values) + self._left_out(settings.values)
            )
        asked = {absolute(path): str(path) for path in recordings}
        retried = before.failed & asked.keys()
        changed = {path for path in asked if self._has_changed(path)}
        if changed - retried:
            raise self._changed_refusal(sorted(asked[path] for path in changed - retried))
        if before.torn:
            self._file.truncate(before.end)
        if retried:
            before.done = {done for done in before.done if done[0] not in changed}
            name = str(self.path)
            self._file.keep_lines(
                lambda line, number: _is_kept(from_line(line, name, number), retried, changed)
            )
        write_record(self._real, settings)
        self._settings = settings
        mended = tuple(sorted(asked[path] for path in changed))
        return Resumed(len(before.done), len(retried), mended, before.torn)

    def is_done(self, audio_path: str | Path, start: float, query: str) -> bool:
        """Whether the file has an answer to the query about the window that starts there."""
        return key(audio_path, start, query) in self._contents.done

    def add_answer(
        self,
        audio_path: str | Path,
        start: float,
        end: float,
        query: str,
        text: str,
        merging_alpha: float,
        confidence: float | None = None,
        alternatives: Iterable[tuple[str, float]] = (),
    ) -> bool:
        """Write the row of a window; False, and no row, where there is one already."""
        what = key(audio_path, start, query)
        if what in self._contents.done:
            return False
        size, modified = self._identity(audio_path)
        self._write(
            WindowRow(
                audio_path=str(audio_path),
                start=round(start, 6),
                end=round(end, 6),
                query=query,
                text=text,
                merging_alpha=merging_alpha,
                model=self._begun.values["model"],
                run=self._begun.run,
                audio_bytes=size,
                audio_modified=modified,
                confidence=None if confidence is None else round(confidence, 6),
                alternatives=tuple((label, round(share, 6)) for label, share in alternatives),
            )
        )
        self._contents.done.add(what)
        return True

    def add_error(self, audio_path: str | Path, error: BaseException, merging_alpha: float) -> None:
        """Write the row of a recording that could not be heard (to its end)."""
        size, modified = self._identity(audio_path)
        self._write(
            ErrorRow(
                audio_path=str(audio_path),
                error=str(error),
                error_type=type(error).__name__,
                merging_alpha=merging_alpha,
                model=self._begun.values["model"],
                run=self._begun.run,
                audio_bytes=size,
                audio_modified=modified,
            )
        )

    def close(self) -> None:
        """Let go of the file. A file that was made here and holds nothing is taken away again."""
        self._file.close(record_path(self._real))

    # going on with an existing file

    def _read(self) -> ExistingRows:
        if not self._overwrite:
            return read_contents(self._real, str(self.path))
        with open(self._real, "rb") as file:
            refuse_other_files(file.readline(), str(self.path))
        return ExistingRows()

    def _record(self) -> RunSettings | None:
        """The settings that the rows were made with, where they are still known."""
        record = read_record(self._real)
        return record if record is not None and record.run == self._contents.run else None

    def _differences(self, now: Mapping[str, Any]) -> list[str]:
        record = self._record()
        if record is not None:
            return differences(record.values, now)
        before: dict[str, Any] = {"model": self._contents.model}
        if len(self._contents.alphas) == 1:
            before["merging_alpha"] = next(iter(self._contents.alphas))
        if not self._contents.queries <= set(now.get("queries", [])):
            before["queries"] = sorted(self._contents.queries)
        return differences(before, {name: now[name] for name in before if name in now})

    def _left_out(self, now: Mapping[str, Any]) -> list[str]:
        record = self._record()
        return [] if record is None else left_out(record.values, now)

    def _refusal(self, found: list[str]) -> OutputError:
        if self._record() is None:
            missing = record_path(self.path).name
            found = [*found, f"what else differs cannot be told, because {missing} is missing"]
        return OutputError(
            f"{self.path}: holds answers that were made with other settings, and these are not "
            f"mixed:\n{_bullets(found)}\n{OTHERWISE.capitalize()}."
        )

    def _changed_refusal(self, changed: list[str]) -> OutputError:
        return OutputError(
            f"{self.path}: holds answers about recordings that have changed since:\n"
            f"{_bullets(changed)}\n{OTHERWISE.capitalize()}."
        )

    def _has_changed(self, path: str) -> bool:
        now = self._identity(path)
        return self._contents.heard.get(path, now) != now

    # writing

    @property
    def _begun(self) -> RunSettings:
        if self._settings is None:
            raise RuntimeError("begin() comes before the first row")
        return self._settings

    def _identity(self, path: str | Path) -> Identity:
        """Size and time of change of a recording, looked up once."""
        name = absolute(path)
        if name not in self._identities:
            self._identities[name] = identity(name)
        return self._identities[name]

    def _write(self, row: Row) -> None:
        self._file.append(to_line(row))


def _is_kept(row: Row, retried: set[str], changed: set[str]) -> bool:
    path = absolute(row.audio_path)
    return path not in changed and not (isinstance(row, ErrorRow) and path in retried)


def _bullets(lines: list[str]) -> str:
    shown = [*lines[:10], f"and {len(lines) - 10} more"] if len(lines) > 10 else lines
    return "\n".join(f"  - {line}" for line in shown)

"""What an existing result file holds."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TypeAlias

from NatureLM.outputs.errors import OutputError
from NatureLM.outputs.rows import ErrorRow, Row, from_line

Key: TypeAlias = tuple[str, int, str]
"""Recording, start of the window in microseconds, query."""

Identity: TypeAlias = tuple[int | None, str | None]
"""Size of a recording in bytes, and when it was last changed."""

OTHERWISE = "give another --output-path, or --overwrite to start anew"


@dataclass
class Contents:
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


def read_contents(path: Path, name: str) -> Contents:
    """Read a result file; `name` is what messages call it.

    Raises OutputError for a file that is no result file, or holds rows of several runs.
    """
    contents = Contents()
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

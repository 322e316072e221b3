"""Where vectors are kept while an index is being made, so that nothing is lost when it is stopped.

A folder with two files that only grow. `vectors.f32` holds the numbers of row after row;
`rows.jsonl` says whose they are, in whole lines (see `outputs.appending`). Numbers are written
before the line that counts them: after `kill -9` there may be numbers that no line counts, which
are cut off, and never a line without its numbers. After a loss of power there may be; such lines
are cut off too.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from NatureLM.embeddings.errors import VectorIndexError
from NatureLM.embeddings.index import Block
from NatureLM.embeddings.settings import IndexSettings
from NatureLM.outputs.appending import AppendingFile
from NatureLM.outputs.contents import Identity, identity
from NatureLM.outputs.errors import WriteError
from NatureLM.outputs.settings import differences
from NatureLM.whole import whole_file

_ROWS, _VECTORS, _SETTINGS = "rows.jsonl", "vectors.f32", "settings.json"
_CHUNK = 64  # rows of a line at most


class _Chunk(NamedTuple):
    """A line: windows of a recording from number `first` on, whose vectors begin at a row."""

    recording: int
    first: int
    row: int
    rows: int
    offset: int


class Journal:
    """The work so far on an index.

    folder: made if it is not there
    overwrite: forget what is in it

    Raises VectorIndexError where it holds vectors that were made otherwise.
    """

    def __init__(self, folder: Path, settings: IndexSettings, *, overwrite: bool = False) -> None:
        self.folder, self.settings = folder, settings
        self._bytes_of_row = 4 * settings.width
        self._recordings: dict[str, int] = {}
        self._windows: dict[str, int] = {}
        self._heard: dict[str, Identity] = {}
        self._done: set[str] = set()
        self._chunks: list[_Chunk] = []
        self.rows = 0
        self._lines = AppendingFile(folder / _ROWS)
        try:
            self._prepare(overwrite)
            self._vectors = open(folder / _VECTORS, "r+b", buffering=0)  # noqa: SIM115
        except BaseException:
            self._lines.close()
            raise

    def is_done(self, file: str) -> bool:
        """Whether all windows of a recording are there."""
        return file in self._done

    def unfinished(self) -> list[str]:
        """Recordings of which there are windows, but not all."""
        return [file for file in self._recordings if file not in self._done]

    def windows(self, file: str) -> int:
        """How many windows of a recording are there, from the first one on."""
        return self._windows.get(file, 0)

    def changed(self, files: Sequence[str]) -> list[str]:
        """Recordings that are others than when their windows were heard."""
        return [
            file for file in files if file in self._heard and identity(file) != self._heard[file]
        ]

    def add(
        self,
        file: str,
        starts: Sequence[float],
        ends: Sequence[float],
        vectors: NDArray[np.float32],
        *,
        heard: bool = True,
    ) -> None:
        """Append the next windows of a recording. heard: it is here to be looked at."""
        seen = identity(file) if heard else None
        for begin in range(0, len(starts), _CHUNK):
            end = begin + _CHUNK
            line = {
                "file": file,
                "first": self.windows(file),
                "starts": list(starts[begin:end]),
                "ends": list(ends[begin:end]),
                "heard": None if seen is None else list(seen),
            }
            self._write_vectors(np.ascontiguousarray(vectors[begin:end], np.float32))
            offset = self._lines.size
            self._lines.append(_line(line))
            self._take(line, offset)

    def finish(self, file: str) -> None:
        """All windows of a recording are there."""
        if file not in self._done:
            self._lines.append(_line({"done": file}))
            self._done.add(file)

    def blocks(self, rows: int) -> Iterator[Block]:
        """All rows, recording by recording, so many at a time (a few more at most)."""
        files = list(self._recordings)
        waiting: list[_Chunk] = []
        with open(self.folder / _ROWS, "rb") as lines, open(self.folder / _VECTORS, "rb") as data:
            for chunk in sorted(self._chunks):
                waiting.append(chunk)
                if sum(one.rows for one in waiting) >= rows:
                    yield self._block(waiting, files, lines, data)
                    waiting = []
            if waiting:
                yield self._block(waiting, files, lines, data)

    def close(self) -> None:
        """Let go of the files; what was written is on the disk."""
        if not self._vectors.closed:
            os.fsync(self._vectors.fileno())
            self._vectors.close()
        self._lines.close()

    def remove(self) -> None:
        """The index is there: the folder goes."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self, overwrite: bool) -> None:
        """Read what is there, and cut off what was not written whole."""
        path, vectors = self.folder / _SETTINGS, self.folder / _VECTORS
        if overwrite or not path.exists():
            self._lines.truncate(0)
            vectors.write_bytes(b"")
            with whole_file(path, alone=True) as unfinished:
                unfinished.write_text(self.settings.to_json() + "\n", encoding="utf-8")
            return
        before = IndexSettings.from_json(path.read_text(encoding="utf-8"), path)
        refuse_other_settings(self.folder, before, self.settings)
        vectors.touch()
        room = vectors.stat().st_size // self._bytes_of_row
        end = 0
        with open(self.folder / _ROWS, "rb") as lines:
            for text in lines:
                line = _parsed(text)
                if line is None or not self._take(line, end, room):
                    break
                end += len(text)
        self._lines.truncate(end)
        os.truncate(vectors, self.rows * self._bytes_of_row)

    def _take(self, line: dict[str, Any], offset: int, room: int | None = None) -> bool:
        """Count a line in; False if it speaks of vectors that are not there."""
        if "done" in line:
            self._done.add(line["done"])
            return True
        file, count = line["file"], len(line["starts"])
        if room is not None and self.rows + count > room:
            return False
        number = self._recordings.setdefault(file, len(self._recordings))
        self._chunks.append(_Chunk(number, line["first"], self.rows, count, offset))
        self._windows[file] = line["first"] + count
        if line["heard"] is not None:
            self._heard[file] = (line["heard"][0], line["heard"][1])
        self.rows += count
        return True

    def _write_vectors(self, vectors: NDArray[np.float32]) -> None:
        data = memoryview(vectors.tobytes())
        place = self.rows * self._bytes_of_row
        try:
            self._vectors.seek(place)
            while data:
                data = data[self._vectors.write(data) :]
        except OSError as error:
            raise WriteError(
                f"{self.folder}: the vectors cannot be written further: {error.strerror}. When "
                "this is mended, the same command goes on from there."
            ) from None

    def _block(self, chunks: Sequence[_Chunk], files: list[str], lines: Any, data: Any) -> Block:
        names: list[str] = []
        starts: list[float] = []
        ends: list[float] = []
        vectors: list[NDArray[np.float32]] = []
        for chunk in chunks:
            lines.seek(chunk.offset)
            line = json.loads(lines.readline())
            names += [files[chunk.recording]] * chunk.rows
            starts += line["starts"]
            ends += line["ends"]
            data.seek(chunk.row * self._bytes_of_row)
            raw = data.read(chunk.rows * self._bytes_of_row)
            vectors.append(np.frombuffer(raw, np.float32).reshape(chunk.rows, -1))
        return Block(names, np.array(starts), np.array(ends), np.concatenate(vectors))


def refuse_other_settings(path: Path, before: IndexSettings, now: IndexSettings) -> None:
    """Raise VectorIndexError where vectors of a file were made otherwise than those to come."""
    found = differences(before.deciding, now.deciding)
    if found:
        lines = "\n".join(f"  - {line}" for line in found)
        raise VectorIndexError(
            f"{path}: holds vectors that were made with other settings, and these are not mixed:\n"
            f"{lines}\nGive another --output-path, or --overwrite to start anew."
        )


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line; None if it is not whole."""
    if not text.endswith(b"\n"):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None

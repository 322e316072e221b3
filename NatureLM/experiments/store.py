"""The answers of an experiment on disk: a JSONL file that only grows and can be gone on with.

A row says what was answered to one cell of the plan; `naturelm beans score` and `naturelm report`
read it:

================  ==================================================================================
``prediction``    the answer
``label``         what is right
``id``            the sample
``dataset_name``  its dataset
``prompt``        the complete prompt
``query``         number of the query, from 0 on
``lora_scale``    α, exactly
``cluster``       samples of one recording or family share it
``task``          classification, detection or captioning, where the data say it
``audio_digest``  hash of the file of each clip in the prompt, where they are files
``cell``          stable name of the cell: a hash of all that decides the answer but the model
``run``           fingerprint of model and decoding; rows of one file have the same
================  ==================================================================================

Where a clip could not be read there is ``error`` (the message) and ``error_type`` in place of the
prediction; such cells are asked again when the run goes on. There are no times in the rows, so the
same run gives the same rows on any day, in whatever order. A line is one write, whole or cut off
and asked anew; one process writes at a time. A run may ask for more than the file holds, such as
more α or samples; one that leaves out cells that have an answer, has other settings, or is about
recordings or labels that have changed, is refused, and nothing is wiped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from NatureLM.data.dataset import FileSource
from NatureLM.experiments.plan import Trial
from NatureLM.results.jsonl import JsonlAppender
from NatureLM.results.rows import OutputError, json_line
from NatureLM.results.settings import (
    RunSettings,
    differences,
    read_record,
    record_path,
    write_record,
)

_OTHERWISE = "give another --output-path"


class _Answered(NamedTuple):
    """What a cell was about when it was answered; digests are those of its clips."""

    label: str
    cluster: str
    digests: list[str | None]


@dataclass
class _Found:
    """What the file held when it was opened."""

    end: int = 0
    run: str | None = None
    done: dict[str, _Answered] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)


class TrialStore:
    """An open file of answers. Use it as a context manager.

    Raises OutputError where the file cannot be written, holds something else, or is in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = JsonlAppender(path, pads=False)
        self._run = ""
        try:
            self._found = _read(self._file.real, str(path))
        except BaseException:
            self.close()
            raise
        self._file.size = self._found.end

    def __enter__(self) -> TrialStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def answers(self) -> int:
        """Cells that have an answer in the file."""
        return len(self._found.done)

    def begin(self, settings: RunSettings, cells: Iterable[Trial] = ()) -> None:
        """Start a run, or go on with it; a cut-off line and errors of before are taken out.

        cells: what the run asks: all that has an answer, about the same recordings, and more

        Raises OutputError, and leaves the file as it is, if it holds answers of other settings,
        about recordings that have changed, or to cells that are not asked.
        """
        found = self._found
        if found.run not in (None, settings.run):
            raise self._refusal(settings)
        unasked = set(found.done)
        for cell in cells if found.done else ():
            self._refuse_changed(cell)
            unasked.discard(cell.id)
        if unasked:
            raise self._unasked_refusal(settings, len(unasked))
        self._file.truncate(found.end)
        if found.failed:
            self._file.keep_lines(lambda line, number: b'"error"' not in line or not _failed(line))
        write_record(self._file.real, settings)
        self._run = settings.run

    def is_done(self, cell: Trial) -> bool:
        """Whether the file has an answer to the cell."""
        return cell.id in self._found.done

    def add(self, cell: Trial, prediction: str) -> None:
        """Write an answer."""
        self._file.append(json_line({"prediction": prediction, **self._facts(cell)}))
        self._found.done[cell.id] = _answered(cell)

    def add_error(self, cell: Trial, error: Exception) -> None:
        """Write why a cell has no answer."""
        why = {"error": str(error), "error_type": type(error).__name__}
        self._file.append(json_line({**why, **self._facts(cell)}))

    def close(self) -> None:
        """Let go of the file; one that was made here and holds nothing goes away again."""
        self._file.close(record_path(self._file.real))

    def _facts(self, cell: Trial) -> dict[str, Any]:
        assert self._run, "begin() comes before the first row"
        return {
            "label": cell.label,
            "id": cell.sample_id,
            "dataset_name": cell.dataset_name,
            "prompt": cell.prompt,
            "query": cell.query,
            "lora_scale": cell.alpha,
            "cluster": cell.cluster,
            **({"task": cell.task} if cell.task else {}),
            **({"audio_digest": digests} if (digests := _digests(cell)) else {}),
            "cell": cell.id,
            "run": self._run,
        }

    def _refuse_changed(self, cell: Trial) -> None:
        before = self._found.done.get(cell.id)
        if before is None:
            return
        for clip, old, new in zip(cell.audios, before.digests, _digests(cell), strict=False):
            if None not in (old, new) and old != new:
                raise OutputError(
                    f"{self.path}: holds answers about {clip.key}, which has changed since. "
                    f"{_OTHERWISE.capitalize()}."
                )
        for name in ("label", "cluster"):
            old, new = getattr(before, name), getattr(cell, name)
            if old != new:
                raise OutputError(
                    f"{self.path}: holds an answer to {cell.sample_id!r} of {cell.dataset_name}, "
                    f"whose {name} was {old!r} and is {new!r} now. {_OTHERWISE.capitalize()}."
                )

    def _record(self) -> RunSettings | None:
        """The settings that the rows were made with, where they are still known."""
        record = read_record(self._file.real)
        return record if record is not None and record.run == self._found.run else None

    def _refusal(self, settings: RunSettings) -> OutputError:
        record = self._record()
        if record is not None:
            found = differences(record.values, settings.values)
            found = found or ["they were made by another version of the program"]
        else:
            missing = record_path(self.path).name
            found = [f"what differs cannot be told, because {missing} is missing or damaged"]
        return OutputError(
            f"{self.path}: holds answers of another model or other settings, and these are not "
            f"mixed:\n{_bullets(found)}\n{_OTHERWISE.capitalize()}."
        )

    def _unasked_refusal(self, settings: RunSettings, count: int) -> OutputError:
        record = self._record()
        found = [] if record is None else differences(record.asked, settings.asked)
        # A hash says nothing to people where something else does.
        found = [line for line in found if not line.startswith("plan: ")]
        found = found or ["other samples, or other text around the questions"]
        return OutputError(
            f"{self.path}: holds answers that this run does not ask for ({count} of "
            f"{self.answers}), and what is asked may only grow:\n{_bullets(found)}\n"
            f"Ask for them, too, or {_OTHERWISE}."
        )


def _answered(cell: Trial) -> _Answered:
    return _Answered(cell.label, cell.cluster, _digests(cell))


def _digests(cell: Trial) -> list[str | None]:
    """Hashes of the files of a cell's clips; empty where none is a file."""
    sources = [clip.source for clip in cell.audios]
    found = [one.digest if isinstance(one, FileSource) else None for one in sources]
    return found if any(digest is not None for digest in found) else []


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"  - {line}" for line in lines)


def read_cells(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Offset, length and contents of each whole row of a file of answers.

    Raises OutputError for a line that is none.
    """
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield offset, len(line), _parsed(line, str(path), number)
            offset += len(line)


def _read(path: Path, name: str) -> _Found:
    found = _Found()
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if number == 1:
                    _refuse_foreign(line, name)
                break
            row = _parsed(line, name, number)
            if found.run not in (None, row["run"]):
                raise OutputError(
                    f"{name}, line {number}: the rows are of runs with different settings; "
                    f"{_OTHERWISE}"
                )
            found.run = row["run"]
            if "error" in row:
                found.failed.add(row["cell"])
            else:
                label, cluster = str(row.get("label")), str(row.get("cluster"))
                digests = row.get("audio_digest") or []
                found.done[row["cell"]] = _Answered(label, cluster, digests)
            found.end += len(line)
    return found


def _refuse_foreign(line: bytes, name: str) -> None:
    """A first line without an end may be a row that was cut off, or a file of something else."""
    starts = (b'{"prediction"', b'{"error"')
    if not any(line.startswith(start[: len(line)]) for start in starts):
        raise _foreign(name, 1)


def _parsed(line: bytes, name: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"cell", "run", "id"} <= row.keys():
        raise _foreign(name, number)
    return row


def _foreign(name: str, number: int) -> OutputError:
    return OutputError(
        f"{name}, line {number}: this is no row of an experiment, so the file is left as it is; "
        f"{_OTHERWISE}"
    )


def _failed(line: bytes) -> bool:
    return "error" in json.loads(line)

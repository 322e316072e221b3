"""What a classifier is taught with: labels of stretches of recordings, and their windows' vectors.

The one table of labels says what people say that stretches are, who said it and when. It is read
from tables of any program (`data.sample.open_samples`) and from folders of reviewed clips, and kept
as `labels.csv` beside the classifier that was taught with it; that file is itself a table to teach
with. A verdict "yes" says what a clip is, a "no" what it is not. A clip longer than a window
becomes several windows, which share its label.

Shapes: N windows, E width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.windows import Window
from NatureLM.config.schema import TableSource
from NatureLM.data.sample import FileSource, open_samples
from NatureLM.data.table import read_csv
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.results.tables import CSV_ENCODING, cell, with_formula, write_rows
from NatureLM.review.folder import (
    Segment,
    Verdict,
    index_path,
    majority,
    read_segments,
    read_verdicts,
)
from NatureLM.search.build import VectorMaker
from NatureLM.search.index import IndexSettings, VectorIndex, windows_like

LABELS_NAME = "labels.csv"
COLUMNS = ("recording", "start", "end", "label", "is_not", "family", "who", "at", "table")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A stretch of a recording, and what somebody says that it is.

    recording: path of the file
    end: None for the end of the recording
    label: the name, `NOTHING` for none of the names, "" where only `is_not` is known
    is_not: a name that is wrong
    group: stretches of one group are never on both sides of a test: a recording or a family
    who, at: reviewer and time (UTC, ISO 8601), as far as that is known
    table: where it was said
    """

    recording: str
    start: float = 0.0
    end: float | None = None
    label: str = ""
    is_not: str = ""
    group: str = ""
    who: str = ""
    at: str = ""
    table: str = ""

    @property
    def key(self) -> tuple[str, int, int]:
        """Names the stretch: what is said of it last holds."""
        end = -1 if self.end is None else round(self.end * 1000)
        return os.path.realpath(self.recording), round(self.start * 1000), end


def read_labelled(
    path: Path,
    *,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str | list[str]] | None = None,
) -> tuple[list[Labelled], list[str]]:
    """What a table or a folder of reviewed clips says, and notes about how it was read.

    columns, where: those of `TableSource`

    Raises UsageError, DataError with file and row.
    """
    if index_path(path).is_file():
        return _reviewed(path), []
    if is_label_table(path):
        return _kept(path), []
    source = TableSource.named(str(path), columns=dict(columns or {}), where=dict(where or {}))
    found = open_samples(source)
    made = []
    for sample in found.samples:
        clip, label = sample.clip, sample.label
        is_file = isinstance(clip.source, FileSource)
        if not is_file:
            raise UsageError(
                f"{path}: its sound lies in the table itself; teach takes tables that name files"
            )
        made.append(
            Labelled(
                recording=clip.source.name,
                start=clip.start,
                end=clip.end,
                label=named(label),
                group=sample.cluster,
                table=path.name,
            )
        )
    return made, list(found.notes)


def named(label: str) -> str:
    """A label as it is taught; however "none" is written, it is `NOTHING`."""
    return NOTHING if label.strip().casefold() == NOTHING.casefold() else label.strip()


def _reviewed(folder: Path) -> list[Labelled]:
    """The clips of a folder that reviewers agree on."""
    segments = {one.clip: one for one in read_segments(folder)}
    votes: dict[str, list[Verdict]] = {}
    for verdict in read_verdicts(folder):
        if verdict.clip in segments and verdict.verdict in ("yes", "no"):
            votes.setdefault(verdict.clip, []).append(verdict)
    return [
        _judged(segments[clip], last, folder)
        for clip, said in votes.items()
        if (last := majority(said)) is not None
    ]


def _judged(segment: Segment, verdict: Verdict, folder: Path) -> Labelled:
    name, is_right = named(segment.label), verdict.verdict == "yes"
    clip = folder / segment.clip
    # Where the recording is gone, its clip still holds the sound.
    there = os.path.exists(segment.recording)
    offset = 0.0 if there else segment.clip_start
    return Labelled(
        recording=segment.recording if there else str(clip),
        start=max(0.0, segment.start - offset),
        end=segment.end - offset,
        label=name if is_right else "",
        is_not="" if is_right else name,
        group=segment.recording,
        who=verdict.reviewer,
        at=verdict.at,
        table=folder.name,
    )


def is_label_table(path: Path) -> bool:
    """Whether a file is a table that `write_labels` wrote."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with open(path, encoding=CSV_ENCODING, errors="replace") as file:
        return file.readline().strip() == ",".join(COLUMNS)


def _kept(path: Path) -> list[Labelled]:
    header, rows = read_csv(path)
    made = []
    for line, cells in rows:
        row = {name: with_formula(one) for name, one in zip(header, cells, strict=True)}
        try:
            start, end = float(row["start"]), float(row["end"]) if row["end"] else None
        except ValueError:
            raise UsageError(
                f"{path}, line {line}: start and end must be seconds in the recording"
            ) from None
        made.append(
            Labelled(
                recording=os.path.join(path.parent, row["recording"]),
                start=start,
                end=end,
                label=row["label"],
                is_not=row["is_not"],
                group=row["family"],
                who=row["who"],
                at=row["at"],
                table=row["table"],
            )
        )
    return made


def merged(tables: Iterable[Sequence[Labelled]]) -> list[Labelled]:
    """All that was said, in order; of a stretch what was said of it last."""
    found: dict[tuple[str, int, int], Labelled] = {}
    for one in (one for table in tables for one in table):
        before = found.pop(one.key, None)
        if before is not None and one.is_not and before.label != one.is_not:
            one = replace(one, label=before.label)  # what it is was said; this says what it is not
        found[one.key] = one
    return list(found.values())


def write_labels(path: Path, labelled: Iterable[Labelled]) -> Path:
    """Write the table, whole or not at all. Raises OutputError."""
    about = ("start", "end", "label", "is_not", "group", "who", "at", "table")
    rows = (
        map(cell, (os.path.abspath(one.recording), *(getattr(one, name) for name in about)))
        for one in labelled
    )
    write_rows(path, COLUMNS, rows, encoding=CSV_ENCODING)
    return path


# Labelled sound as vectors

_LONGEST_SECONDS = 600.0  # of one example


class Place(NamedTuple):
    """A stretch of a recording, in seconds."""

    file: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows of labelled sound.

    vectors: (N, E) float32
    labels: what each window is; `NOTHING` where it is none of the names
    is_not: what a reviewer says that it is not, where nobody says what it is; else ""
    clips: number of the example that each is a window of
    recordings: which recording each is of, so that none is on both sides of a test
    places: where each is
    """

    vectors: NDArray[np.float32]
    labels: tuple[str, ...]
    is_not: tuple[str, ...]
    clips: tuple[int, ...]
    recordings: tuple[str, ...]
    places: tuple[Place, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are taught, in alphabetical order; `NOTHING` is none of them."""
        return tuple(sorted({*self.labels} - {NOTHING, ""}))

    def taken(self, rows: Sequence[int] | NDArray[Any]) -> Examples:
        """Only these windows."""
        numbers = [int(row) for row in np.arange(len(self))[rows]]
        columns = (tuple(column[row] for row in numbers) for column in self._columns)
        return Examples(self.vectors[numbers], *columns)

    @property
    def _columns(self) -> tuple[tuple[Any, ...], ...]:
        return self.labels, self.is_not, self.clips, self.recordings, self.places


def hear_examples(
    labelled: Sequence[Labelled],
    settings: IndexSettings,
    maker: VectorMaker,
    *,
    failed: Callable[[AudioError], None],
    done: Callable[[int, int], None] = lambda *_: None,
) -> Examples:
    """Make the vectors of labelled sound.

    settings: how it is cut into windows, and of which encoder the vectors are
    failed: told of each example that cannot be read or has no sound; the others count
    done: told how many examples were heard, of how many

    Raises UsageError where nothing is left.
    """
    windows: list[Window] = []
    rows: list[tuple[int, Place]] = []
    made: list[NDArray[np.float32]] = []

    def flush() -> None:
        if windows:
            made.append(maker.vectors(windows, settings.time_expansion))
            windows.clear()

    for place, one in enumerate(labelled):
        try:
            for window in windows_of(one, settings):
                windows.append(window)
                rows.append((place, Place(one.recording, window.start, window.end)))
                if len(windows) >= maker.batch:
                    flush()
        except AudioError as error:
            failed(error)
        done(place + 1, len(labelled))
    flush()
    if not made:
        raise UsageError("none of the examples can be heard, so there is nothing to learn from")
    return _examples(np.concatenate(made), rows, labelled)


def windows_of(one: Labelled, settings: IndexSettings) -> Iterator[Window]:
    """The windows of an example that hold sound, with times in its recording.

    Raises AudioError where it cannot be read, or has no sound.
    """
    length = None if one.end is None else min(one.end - one.start, _LONGEST_SECONDS)
    none = ("this example holds no sound", "Take it out")
    for window in windows_like(settings, one.recording, none, start=one.start, duration=length):
        start, end = (
            one.start + time / settings.time_expansion for time in (window.start, window.end)
        )
        yield Window(window.index, start, end, window.samples)


def indexed_examples(
    labelled: Sequence[Labelled], index: VectorIndex, key: Callable[[str], str]
) -> tuple[Examples, list[Labelled]]:
    """Examples whose windows stand in an index, without hearing them; and those that are not there.

    key: names the recording of a path, the same however it is written

    A window of the index counts where at least half of it, or half of the example, is the other.
    """
    wanted: dict[str, list[tuple[int, Labelled]]] = {}
    for place, one in enumerate(labelled):
        wanted.setdefault(key(one.recording), []).append((place, one))
    rows: list[tuple[int, Place]] = []
    vectors: list[NDArray[np.float32]] = []
    for block in index.blocks():
        for row, file in enumerate(block.files):
            start, end = float(block.starts[row]), float(block.ends[row])
            for number, one in wanted.get(key(file), ()):
                if block.vectors[row].any() and _is_of(start, end, one):
                    rows.append((number, Place(file, start, end)))
                    vectors.append(block.vectors[row])
    found = {number for number, _ in rows}
    missing = [one for number, one in enumerate(labelled) if number not in found]
    width = index.settings.width
    matrix = np.stack(vectors) if vectors else np.empty((0, width), np.float32)
    return _examples(matrix, rows, labelled), missing


def _is_of(start: float, end: float, one: Labelled) -> bool:
    shared = min(end, one.end if one.end is not None else end) - max(start, one.start)
    length = (one.end if one.end is not None else end) - one.start
    return shared > 0 and shared >= 0.5 * min(end - start, length)


def _examples(
    vectors: NDArray[np.float32],
    rows: Sequence[tuple[int, Place]],
    labelled: Sequence[Labelled],
) -> Examples:
    about = [labelled[number] for number, _ in rows]
    return Examples(
        vectors,
        tuple(one.label for one in about),
        tuple(one.is_not for one in about),
        tuple(number for number, _ in rows),
        tuple(one.group for one in about),
        tuple(place for _, place in rows),
    )


def joined(parts: Sequence[Examples]) -> Examples:
    """Examples of several sources as one; their clips have numbers of their own."""
    clips: list[int] = []
    for one in parts:
        first = max(clips, default=-1) + 1
        clips += [first + number for number in one.clips]
    columns = zip(*(one._columns for one in parts), strict=True)
    vectors = np.concatenate([one.vectors for one in parts])
    return replace(
        Examples(vectors, *map(tuple, map(chain.from_iterable, columns))), clips=tuple(clips)
    )


def counted(examples: Examples) -> Mapping[str, tuple[int, int]]:
    """By name: how many examples and how many recordings there are."""
    found: dict[str, tuple[set[int], set[str]]] = {}
    for label, clip, recording in zip(
        examples.labels, examples.clips, examples.recordings, strict=True
    ):
        clips, recordings = found.setdefault(label, (set(), set()))
        clips.add(clip)
        recordings.add(recording)
    return {label: (len(one), len(other)) for label, (one, other) in sorted(found.items())}

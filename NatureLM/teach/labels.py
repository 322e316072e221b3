"""The one table of labels: what people say that stretches of recordings are, who said it and when.

It is read from tables of any program (`data.sample.open_samples`) and from folders of reviewed
clips, and kept as `labels.csv` beside the classifier that was taught with it; that file is itself a
table to teach with. A verdict "yes" says what a clip is, a "no" what it is not.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from NatureLM.config.schema import TableSource
from NatureLM.data.sample import FileSource, open_samples
from NatureLM.data.table import read_csv
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.results.tables import CSV_ENCODING, number, with_formula, without_formula, write_table
from NatureLM.review.segments import Segment, index_path, read_segments
from NatureLM.review.verdicts import Verdict, read_verdicts
from NatureLM.util import csv_writer

LABELS_NAME = "labels.csv"
COLUMNS = ("recording", "start", "end", "label", "is_not", "family", "who", "at", "table")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A stretch of a recording, and what somebody says that it is.

    recording: path of the file
    source: what its sound is read from
    end: None for the end of the recording
    label: the name, `NOTHING` for none of the names, "" where only `is_not` is known
    is_not: a name that is wrong
    group: stretches of one group are never on both sides of a test: a recording or a family
    who, at: reviewer and time (UTC, ISO 8601), as far as that is known
    table: where it was said
    """

    recording: str
    source: Any = field(compare=False, repr=False)
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
                source=clip.source.name,
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
    made = []
    for clip, said in votes.items():
        counts = Counter(one.verdict for one in said)
        if counts["yes"] != counts["no"]:
            is_right = counts["yes"] > counts["no"]
            last = [one for one in said if (one.verdict == "yes") == is_right][-1]
            made.append(_judged(segments[clip], is_right, last, folder))
    return made


def _judged(segment: Segment, is_right: bool, verdict: Verdict, folder: Path) -> Labelled:
    name = named(segment.label)
    clip = folder / segment.clip
    # Where the recording is gone, its clip still holds the sound.
    there = os.path.exists(segment.recording)
    offset = 0.0 if there else segment.clip_start
    return Labelled(
        recording=segment.recording if there else str(clip),
        source=segment.recording if there else str(clip),
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
        row = {name: with_formula(cell) for name, cell in zip(header, cells, strict=True)}
        try:
            start, end = float(row["start"]), float(row["end"]) if row["end"] else None
        except ValueError:
            raise UsageError(
                f"{path}, line {line}: start and end must be seconds in the recording"
            ) from None
        recording = os.path.join(path.parent, row["recording"])
        made.append(
            Labelled(
                recording=recording,
                source=recording,
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

    def fill(file: TextIO) -> None:
        writer = csv_writer(file)
        writer.writerow(COLUMNS)
        for one in labelled:
            texts = (one.label, one.is_not, one.group, one.who, one.at, one.table)
            times = (number(one.start), "" if one.end is None else number(one.end))
            place = os.path.abspath(one.recording)
            writer.writerow([without_formula(place), *times, *map(without_formula, texts)])

    write_table(path, CSV_ENCODING, fill)
    return path

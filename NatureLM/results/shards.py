"""Shards: which part of an archive a process asks about, and all their answers as one file.

A recording's shard is the hash of its path below the folder or manifest that names it. So every
recording is in one shard, whoever asks, and those that are added later move none.

Result files of one set of settings are merged: the rows of a recording stay together, and
recordings come in the order of a list, else in that of their paths, so that what comes out is what
one run over all of them would have written. What is there twice is written once, and what is not
there is named and counted.

However long the files are, no more is in memory than the rows of one recording: where rows lie is
kept in `<output>.parts` (`results.places`), together with what was written so far. So a process
that was killed goes on where it was, and the folder goes when the result is whole.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import unicodedata
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from os.path import realpath
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.audio.files import as_on_disk
from NatureLM.audio.windows import count_windows
from NatureLM.errors import UsageError
from NatureLM.results.parts import is_parts, lines_of
from NatureLM.results.places import Placed, RowPlaces
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    Row,
    RunSettings,
    bullets,
    differences,
    from_line,
    left_out,
    other_revisions,
    read_record,
    to_line,
    write_record,
)
from NatureLM.results.store import JsonlAppender
from NatureLM.storage import AnyPath, PathT, RemotePath, as_path, full_path, is_absolute, is_url
from NatureLM.util import digest, writing

MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """One of `of` parts, counted from 1."""

    RECORDED: ClassVar[tuple[str, str]] = ("shard", "recordings_of_shards")
    """What the record of a shard's answers says of it, and of how many recordings each has."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that `3/8` names. Raises UsageError."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        shard = None if found is None else cls(int(found[1]), int(found[2]))
        if shard is None or not 1 <= shard.number <= shard.of <= MOST_SHARDS:
            raise UsageError(
                f"--shard is {text!r}, and it must be i/n, such as 1/4: the first of four parts, "
                f"with i from 1 to n and n at most {MOST_SHARDS:,}"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, name: str) -> bool:
        """Whether the recording of this name (`name_below`) is in it."""
        return shard_of(name, self.of) == self.number

    @staticmethod
    def named_in(name: str) -> tuple[str, Shard] | None:
        """Of the name of a file of a shard: that without it and its suffix, and the shard."""
        found = re.fullmatch(r"(.*)\.shard-(\d+)-of-(\d+)\.\w+", name, re.DOTALL)
        return None if found is None else (found[1], Shard(int(found[2]), int(found[3])))

    def file(self, output: PathT) -> PathT:
        """The file of its own that goes with an output: `x.shard-1-of-4.jsonl`."""
        name = f"{output.stem}.shard-{self.number}-of-{self.of}{output.suffix}"
        return output.with_name(name)


def shard_of(name: str, of: int) -> int:
    """The shard of a name, from 1 to `of`: the same on every machine and day."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
    return int.from_bytes(digest(text, "blake2b", size=8), "big") % of + 1


class ShardPicker:
    """Picks the recordings of a shard out of all, and counts those of each.

    folders: from which the names count that decide the shards
    """

    def __init__(self, shard: Shard, folders: Sequence[AnyPath]) -> None:
        self.shard = shard
        self._folders = [
            str(one) if isinstance(one, RemotePath) else os.path.abspath(as_on_disk(one))
            for one in folders
        ]
        # A few bytes for each recording: there are many, and each counts once.
        self._names, self._numbers = array("q"), array("l")

    def holds(self, recording: str | AnyPath) -> bool:
        """Whether the shard holds a recording, which is counted in."""
        full = full_path(recording)
        number = shard_of(name_below(full, self._folders), self.shard.of)
        self._names.append(hash(full))
        self._numbers.append(number)
        return number == self.shard.number

    def counts(self) -> list[int]:
        """How many recordings each shard has."""
        import numpy as np

        _, first = np.unique(np.array(self._names), return_index=True)
        numbers = np.array(self._numbers)[first]
        return [int(one) for one in np.bincount(numbers, minlength=self.shard.of + 1)[1:]]


def name_below(recording: str | AnyPath, folders: Sequence[str]) -> str:
    """The name that decides a recording's shard.

    folders: full paths that names count from, as they were named

    It is the path below the first of the folders that the recording is in, with `/` between its
    parts; of a recording that is in none, its own name.
    """
    full = full_path(recording)
    between = "/" if is_url(full) else os.sep
    for folder in folders:
        start = folder.rstrip(between) + between
        if full.startswith(start):
            return full[len(start) :].replace(between, "/")
    return full.rpartition(between)[2]


_CUT = ("window_length_seconds", "hop_length_seconds", "time_expansion")
_NAMED = 3
_OPEN_FILES = 64
_KEPT_EVERY = 5.0  # seconds, until what was written is on the disk


@dataclass
class Named:
    """How many there are of something, and the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(name)

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        more = f" and {self.count - len(self.first)} more" if self.count > len(self.first) else ""
        return f"{self.count} ({', '.join(self.first)}{more})"


@dataclass
class Merged:
    """What came of merging.

    rows, recordings: that are in the result
    duplicates: rows that were there again and are written once; other: those of them that answered
        something else, where the run that was named first counts
    unlisted: recordings that the list does not name; they come last
    Gaps: unread, recordings that could not be read (to their end); missing, recordings of the list
        without a row; short, recordings with too few windows for their length; shards, those that
        are not there; unfinished, shards that have not heard all of their recordings
    """

    rows: int = 0
    recordings: int = 0
    duplicates: int = 0
    other: Named = field(default_factory=Named)
    unlisted: Named = field(default_factory=Named)
    unread: Named = field(default_factory=Named)
    missing: Named = field(default_factory=Named)
    short: Named = field(default_factory=Named)
    shards: Named = field(default_factory=Named)
    unfinished: Named = field(default_factory=Named)

    @property
    def has_gaps(self) -> bool:
        """Whether something is not there that was to be asked about."""
        return any((self.unread, self.missing, self.short, self.shards, self.unfinished))

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Merged:
        """What `asdict` made plain."""
        made: dict[str, Any] = {
            key: Named(**one) if isinstance(one, dict) else one for key, one in values.items()
        }
        return cls(**made)


def merge_runs(
    runs: Sequence[Path],
    output: Path,
    *,
    listed: Iterable[tuple[AnyPath, float | None]] | None = None,
    overwrite: bool = False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Merged:
    """Write the rows of runs into one result file, whole or not at all.

    listed: all recordings that were to be asked about, with their lengths in seconds as far as
        these are known (others are measured, where the recording is there), in the order in which
        they are written; where no list is given, those that have rows, in the order of their paths
    told: of the bytes of rows that were read, of how many; each row is read twice

    Raises OutputError for runs of other settings, with what differs, and where `output` is
    something else than what this made of such runs earlier.
    """
    files = [RunFile.read(one) for one in dict.fromkeys(runs)]
    if not files:
        raise UsageError("there are no runs to merge: name the files that the shards wrote")
    made_with = _common_settings(files)
    held = _checked_output(output, files, made_with, overwrite)
    try:
        merged = _merged_in_parts(files, made_with, output, listed, told)
    finally:
        if held is not None:
            held.close()
    return merged


def _merged_in_parts(
    files: Sequence[RunFile],
    made_with: RunSettings,
    output: Path,
    listed: Iterable[tuple[AnyPath, float | None]] | None,
    told: Callable[[int, int], None],
) -> Merged:
    """Merge by way of the folder of parts, which stays where the work is not done."""
    parts = _folder_of_parts(output)
    with writing(parts):
        parts.mkdir(parents=True, exist_ok=True)
    part = _Part(parts / "rows.jsonl", pads=False)
    try:
        files = [one.unpacked(parts, number) for number, one in enumerate(files)]
        places = RowPlaces(
            parts / "places.sqlite", [(one.path, one.folder) for one in files], made_with.run
        )
        try:
            merged = _Merging(files, made_with, places, part, told).merge(listed)
        finally:
            places.close()
        if made_with.values:
            write_record(output, made_with)
        part.keep()
    except UsageError:  # it would be the same again
        part.close()
        shutil.rmtree(parts, ignore_errors=True)
        raise
    finally:
        part.close()
    with writing(output):
        os.replace(part.real, realpath(output))
    shutil.rmtree(parts, ignore_errors=True)
    return merged


class _Part(JsonlAppender):
    """What is written so far of the result."""

    WHAT: ClassVar[str] = "merged rows"
    BUSY: ClassVar[str] = "another process is merging into this file now; wait for its end"

    def keep(self) -> None:
        """Let it be on the disk."""
        os.fsync(self._fd)


# Which runs


@dataclass(frozen=True)
class RunFile:
    """A result file or a folder of parts, and the settings beside it.

    record: None where they are lost
    run: their fingerprint
    is_sorted: whether the rows of a recording stand in their order
    """

    path: Path
    record: RunSettings | None
    run: str
    is_sorted: bool = True

    @classmethod
    def read(cls, path: Path) -> RunFile:
        """Raises UsageError where there is no answer in it, OutputError where there is no row."""
        is_folder = is_parts(path)
        if not (is_folder or path.is_file()):
            raise UsageError(f"{path}: there is no such file of answers")
        line = next((line for *_, line in lines_of(path)), b"")
        if not line:
            raise UsageError(f"{path}: there is no answer of `naturelm infer` in it")
        record = read_record(path)
        run = from_line(line, str(path), 1).run
        return cls(path, record, run if record is None else record.run, not is_folder)

    def unpacked(self, folder: Path, number: int) -> RunFile:
        """The same with the rows of parts as lines of a file in a folder."""
        if not self.path.is_dir():
            return self
        target = folder / f"run-{number}.jsonl"
        with writing(target), open(target, "wb") as file:
            file.writelines(line for *_, line in lines_of(self.path))
        return replace(self, path=target)

    @property
    def folder(self) -> str | None:
        """Where relative names of its rows count from, as far as that is known."""
        return None if self.record is None else self.record.folder

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers were made with; empty where that is lost."""
        return {} if self.record is None else dict(self.record.values)


def _common_settings(files: Sequence[RunFile]) -> RunSettings:
    """The settings of all runs, without what says which shard. Raises OutputError."""
    record = next((one.record for one in files if one.record is not None), RunSettings({}))
    first = files[0]
    for other in files[1:]:
        if other.run != first.run:
            found = differences(first.settings, other.settings)
            found += left_out(first.settings, other.settings)
            lost = [one.path.name for one in (first, other) if one.record is None]
            found = found if not lost else [f"{name}.run.json is missing" for name in lost]
            raise OutputError(
                f"{other.path}: was made with other settings than {first.path}, and such answers "
                f"are not mixed (there: {first.path.name}; now: {other.path.name}):\n"
                f"{bullets(found)}"
            )
        found = other_revisions(first.record, other.record)
        if found:
            raise OutputError(
                f"{other.path}: was made by another revision of the model than {first.path}:\n"
                f"{bullets(found)}"
            )
    asked = {key: one for key, one in record.asked.items() if key not in Shard.RECORDED}
    return replace(record, asked={**asked, "merged": len(files)})


def _folder_of_parts(output: Path) -> Path:
    """Where a merge keeps what it has so far; it is removed at its end."""
    return output.with_name(f"{output.name}.parts")


def _checked_output(
    output: Path, files: Sequence[RunFile], made_with: RunSettings, overwrite: bool
) -> JsonlAppender | None:
    """The file that is to be replaced, locked; None where there is none. Raises OutputError."""
    if any(realpath(one.path) == realpath(output) for one in files):
        raise OutputError(f"{output}: is one of the runs; give another --output-path")
    if is_parts(parts := _folder_of_parts(output)):
        raise OutputError(
            f"{parts}: holds answers of a run, and what is merged into {output} would be kept in "
            "that folder meanwhile; give another --output-path"
        )
    if not output.exists():
        return None
    held = JsonlAppender(output)
    before = read_record(output)
    is_ours = before is not None and before.run == made_with.run and "merged" in before.asked
    if not is_ours and not overwrite:
        held.close()
        raise OutputError(
            f"{output}: exists and was not merged of such runs, so it is left as it is; give "
            "another --output-path, or --overwrite"
        )
    return held


def _check_shards(files: Sequence[RunFile], recordings: Sequence[int], merged: Merged) -> None:
    """Name shards that are not there or not at their end, by what the records of others say.

    recordings: of how many of them each file has rows
    """
    counts: dict[int, list[int]] = {}
    there: set[Shard] = set()
    for file, has_rows_of in zip(files, recordings, strict=True):
        shard, sizes = _shard_of(file)
        if shard is None:
            continue
        there.add(shard)
        known = counts.setdefault(shard.of, [0] * shard.of)
        counts[shard.of] = [max(pair) for pair in zip(known, sizes, strict=True)]
        if has_rows_of < sizes[shard.number - 1]:
            merged.unfinished.add(
                f"{shard}: rows of {has_rows_of} of {sizes[shard.number - 1]} recordings"
            )
    for of, sizes in sorted(counts.items()):
        for number, size in enumerate(sizes, start=1):
            if size and Shard(number, of) not in there:
                merged.shards.add(f"{number}/{of}, of {size} recordings")


def _shard_of(file: RunFile) -> tuple[Shard | None, Sequence[int]]:
    """The shard that a file is of, and how many recordings each shard has."""
    asked = {} if file.record is None else file.record.asked
    try:
        shard = Shard.parse(str(asked["shard"]))
        sizes = [int(one) for one in asked["recordings_of_shards"]]
    except (KeyError, TypeError, ValueError, UsageError):
        return None, ()
    return (shard, sizes) if len(sizes) == shard.of else (None, ())


# Rows


class _Merging:
    """Writes the rows of recording after recording, and counts what is there twice or not at all.

    places: where the rows lie; it keeps how far this came
    part: takes the rows
    """

    def __init__(
        self,
        files: Sequence[RunFile],
        made_with: RunSettings,
        places: RowPlaces,
        part: _Part,
        told: Callable[[int, int], None],
    ) -> None:
        self._files, self._places, self._part = files, places, part
        self._merged = Merged()
        self._folder = made_with.folder
        self._queries = list(made_with.values.get("queries") or [""])
        cut = [made_with.values.get(name) for name in _CUT]
        self._cut = [float(one) for one in cut if isinstance(one, int | float)]
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._told, self._done = told, 0

    def merge(self, listed: Iterable[tuple[AnyPath, float | None]] | None) -> Merged:
        """All of it, from where an earlier process came to."""
        self._places.take_in(self._tell)
        name = self._places.take_list(listed or ())
        kept = self._places.state("written") or {}
        turn = None
        if kept.get("list") == name and kept["bytes"] <= os.path.getsize(self._part.real):
            turn, self._merged = kept["turn"], Merged.from_plain(kept["merged"])
            self._part.truncate(kept["bytes"])
            self._tell(kept["bytes"])
        else:
            self._part.truncate(0)
            self._count_what_is_not_there(has_list=listed is not None)
        try:
            self._write(name, turn)
        finally:
            while self._open:
                self._open.popitem()[1].close()
        return self._merged

    def _tell(self, size: int) -> None:
        self._done += size
        self._told(min(self._done, 2 * self._places.bytes), 2 * self._places.bytes)

    def _count_what_is_not_there(self, *, has_list: bool) -> None:
        _check_shards(self._files, self._places.recordings_of_files(), self._merged)
        self._merged.missing = Named(*self._places.missing(_NAMED))
        if has_list:
            self._merged.unlisted = Named(*self._places.unlisted(_NAMED))

    def _write(self, name: str, turn: int | str | None) -> None:
        """Write the rows of the recordings after the one whose turn it was last.

        name: of the list
        """
        begun = time.monotonic()
        for one in self._places.in_order(turn):
            self._part.append(b"".join(self._lines(one)))
            self._tell(sum(span.stop - span.start for span in one.spans))
            if time.monotonic() - begun >= _KEPT_EVERY:
                self._part.keep()
                with self._places.keeping() as keep:
                    written = {"list": name, "turn": one.turn, "bytes": self._part.size}
                    keep("written", {**written, "merged": asdict(self._merged)})
                begun = time.monotonic()

    def _lines(self, one: Placed) -> list[bytes]:
        """The lines of a recording, each answer once."""
        answers, error, is_sorted = self._answers(one)
        if not is_sorted:
            place = {query: number for number, query in enumerate(self._queries)}
            answers.sort(key=lambda one: (one[1].start, place.get(one[1].query, 0)))
        self._merged.recordings += 1
        lines = [line for line, _ in answers]
        if error is not None:
            self._merged.unread.add(one.name)
            lines.append(error)
        else:
            self._check_windows(one, [row for _, row in answers])
        self._merged.rows += len(lines)
        return lines

    def _rows_of(self, one: Placed) -> Iterator[tuple[int, bytes, Row]]:
        """The lines of a recording with the numbers of their files, and their rows."""
        for number, start, stop, line in one.spans:
            path = self._files[number].path
            if number not in self._open:
                self._open[number] = open(path, "rb")  # noqa: SIM115
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(number)
            file = self._open[number]
            file.seek(start)
            while start < stop:
                text = file.readline()
                yield number, text, from_line(text, str(path), line)
                start, line = start + len(text), line + 1

    def _answers(self, one: Placed) -> tuple[list[tuple[bytes, Any]], bytes | None, bool]:
        """The answers about a recording, as lines and rows; the line of the error where no run has
        heard it to its end; and whether the answers stand as a run wrote them."""
        answers: dict[tuple[int, str, str], tuple[bytes, Any]] = {}
        errors: dict[int, bytes] = {}
        runs = list(dict.fromkeys(span.file for span in one.spans))
        for number, line, row in self._rows_of(one):
            line = self._counted_from(line, row, self._files[number])
            if isinstance(row, ErrorRow):
                errors.setdefault(number, line)
                continue
            said = (round(row.start * 1_000_000), row.query, row.claimed)
            if said not in answers:
                answers[said] = line, row
                continue
            self._merged.duplicates += 1
            if _answer(answers[said][1]) != _answer(row):
                self._merged.other.add(f"{row.audio_path} at {row.start:g} s")
        error = errors[runs[0]] if len(errors) == len(runs) else None
        return list(answers.values()), error, len(runs) == 1 and self._files[runs[0]].is_sorted

    def _counted_from(self, line: bytes, row: Row, file: RunFile) -> bytes:
        """The line with the folder that its name counts from, where that is not all rows'."""
        folder = row.audio_folder or file.folder
        if is_absolute(row.audio_path) or folder == self._folder:
            folder = None
        if folder != row.audio_folder:
            return to_line(replace(row, audio_folder=folder))
        return line.rstrip() + b"\n"

    def _check_windows(self, one: Placed, rows: Sequence[Any]) -> None:
        """Name a recording whose length has more windows than there are rows."""
        if len(self._cut) < len(_CUT) or any(row.claimed for row in rows):
            return
        length = one.seconds
        if length is None:
            try:
                length = probe(as_path(one.key)).duration
            except (AudioError, UsageError):
                return
        wanted = count_windows(length, *self._cut)
        there = Counter(row.query for row in rows)
        least = min((there[query] for query in self._queries), default=0)
        if least < wanted:
            self._merged.short.add(f"{one.name}: {least} of {wanted} windows")


def _answer(row: Any) -> Any:
    return getattr(row, "answers", None) or row.text

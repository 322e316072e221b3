"""Several result files of one set of settings as one: the shards of an archive, above all.

The rows of a recording stay together, and recordings come in the order of a list, else in that of
their paths, so that what comes out is what one run over all of them would have written. Of each
file only the places of its recordings' rows are held. What is there twice is written once, and what
is not there is named and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import isabs, realpath
from pathlib import Path
from typing import Any

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.audio.windows import count_windows
from NatureLM.errors import UsageError
from NatureLM.results.detections import ResultFile
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    Row,
    RunSettings,
    bullets,
    differences,
    left_out,
    read_record,
    to_line,
    write_record,
)
from NatureLM.results.shards import Shard
from NatureLM.results.store import JsonlAppender
from NatureLM.util import atomic_write, writing

_CUT = ("window_length_seconds", "hop_length_seconds", "time_expansion")
_NAMED = 3


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


def merge_runs(
    runs: Sequence[Path],
    output: Path,
    *,
    listed: Sequence[Path] = (),
    seconds: Mapping[Path, float] | None = None,
    overwrite: bool = False,
) -> Merged:
    """Write the rows of runs into one result file, whole or not at all.

    listed: all recordings that were to be asked about, in the order in which they are written;
        where none are named, those that have rows, in the order of their paths
    seconds: lengths that are known; others are measured, where the recording is there

    Raises OutputError for runs of other settings, with what differs, and where `output` is
    something else than what this made of such runs earlier.
    """
    files = [ResultFile(one) for one in dict.fromkeys(runs)]
    if not files:
        raise UsageError("there are no runs to merge: name the files that the shards wrote")
    made_with = _common_settings(files)
    held = _checked_output(output, files, made_with, overwrite)
    try:
        merged = Merged()
        _check_shards(files, merged)
        merging = _Merging(files, made_with, merged, dict(seconds or {}))
        if made_with.values:
            write_record(output, made_with)
        output.parent.mkdir(parents=True, exist_ok=True)
        with writing(output), atomic_write(output) as unfinished, open(unfinished, "wb") as target:
            for lines in merging.recordings(listed):
                target.writelines(lines)
    finally:
        if held is not None:
            held.close()
    return merged


# Which runs


def _run_of(file: ResultFile) -> str:
    return file.record.run if file.record is not None else next(file.rows()).run


def _common_settings(files: Sequence[ResultFile]) -> RunSettings:
    """The settings of all runs, without what says which shard. Raises OutputError."""
    record = next((one.record for one in files if one.record is not None), RunSettings({}))
    first = files[0]
    for other in files[1:]:
        if _run_of(other) != _run_of(first):
            found = differences(first.settings, other.settings)
            found += left_out(first.settings, other.settings)
            lost = [one.path.name for one in (first, other) if one.record is None]
            found = found if not lost else [f"{name}.run.json is missing" for name in lost]
            raise OutputError(
                f"{other.path}: was made with other settings than {first.path}, and such answers "
                f"are not mixed (there: {first.path.name}; now: {other.path.name}):\n"
                f"{bullets(found)}"
            )
        then = {} if first.record is None else first.record.revisions
        now = {} if other.record is None else other.record.revisions
        found = differences(then, {key: one for key, one in now.items() if key in then})
        if found:
            raise OutputError(
                f"{other.path}: was made by another revision of the model than {first.path}:\n"
                f"{bullets(found)}"
            )
    asked = {key: one for key, one in record.asked.items() if key not in Shard.RECORDED}
    return replace(record, asked={**asked, "merged": len(files)})


def _checked_output(
    output: Path, files: Sequence[ResultFile], made_with: RunSettings, overwrite: bool
) -> JsonlAppender | None:
    """The file that is to be replaced, locked; None where there is none. Raises OutputError."""
    if any(realpath(one.path) == realpath(output) for one in files):
        raise OutputError(f"{output}: is one of the runs; give another --output-path")
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


def _check_shards(files: Sequence[ResultFile], merged: Merged) -> None:
    """Name shards that are not there or not at their end, by what the records of others say."""
    counts: dict[int, list[int]] = {}
    there: set[Shard] = set()
    for file in files:
        shard, sizes = _shard_of(file)
        if shard is None:
            continue
        there.add(shard)
        known = counts.setdefault(shard.of, [0] * shard.of)
        counts[shard.of] = [max(pair) for pair in zip(known, sizes, strict=True)]
        if len(file.names) < sizes[shard.number - 1]:
            merged.unfinished.add(
                f"{shard}: rows of {len(file.names)} of {sizes[shard.number - 1]} recordings"
            )
    for of, sizes in sorted(counts.items()):
        for number, size in enumerate(sizes, start=1):
            if size and Shard(number, of) not in there:
                merged.shards.add(f"{number}/{of}, of {size} recordings")


def _shard_of(file: ResultFile) -> tuple[Shard | None, Sequence[int]]:
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
    """Finds the rows of recording after recording, and counts what is there twice or not at all."""

    def __init__(
        self,
        files: Sequence[ResultFile],
        made_with: RunSettings,
        merged: Merged,
        seconds: Mapping[Path, float],
    ) -> None:
        self._files, self._merged = files, merged
        self._folder = made_with.folder
        self._queries = list(made_with.values.get("queries") or [""])
        cut = [made_with.values.get(name) for name in _CUT]
        self._cut = [float(one) for one in cut if isinstance(one, int | float)]
        self._where: dict[str, list[int]] = {}
        self._called: dict[str, str] = {}
        for number, file in enumerate(files):
            for key, name in file.names.items():
                self._where.setdefault(key, []).append(number)
                self._called[name] = key
        lengths = ((self._key(path), length) for path, length in seconds.items())
        self._seconds = {key: length for key, length in lengths if key is not None}

    def recordings(self, listed: Sequence[Path]) -> Iterator[list[bytes]]:
        """The lines of each recording."""
        order = dict[str, None]()
        for path in listed:
            key = self._key(path)
            if key is None:
                self._merged.missing.add(str(path))
            else:
                order[key] = None
        rest = sorted(self._where.keys() - order.keys(), key=lambda key: Path(key).parts)
        for key in rest if listed else ():
            self._merged.unlisted.add(self._name(key))
        for key in [*order, *rest]:
            yield self._lines(key)

    def _key(self, path: Path) -> str | None:
        """What the rows of a recording are known by: its path, or, elsewhere, what they call it."""
        key = realpath(path)
        return key if key in self._where else self._called.get(str(path))

    def _name(self, key: str) -> str:
        return self._files[self._where[key][0]].names[key]

    def _lines(self, key: str) -> list[bytes]:
        """The lines of a recording, each answer once."""
        answers, error, is_sorted = self._answers(key)
        if not is_sorted:
            place = {query: number for number, query in enumerate(self._queries)}
            answers.sort(key=lambda one: (one[1].start, place.get(one[1].query, 0)))
        self._merged.recordings += 1
        lines = [line for line, _ in answers]
        if error is not None:
            self._merged.unread.add(self._name(key))
            lines.append(error)
        else:
            self._check_windows(key, [row for _, row in answers])
        self._merged.rows += len(lines)
        return lines

    def _answers(self, key: str) -> tuple[list[tuple[bytes, Any]], bytes | None, bool]:
        """The answers about a recording, as lines and rows; the line of the error where no run has
        heard it to its end; and whether the answers stand as a run wrote them."""
        answers: dict[tuple[int, str, str], tuple[bytes, Any]] = {}
        errors: dict[int, bytes] = {}
        runs = self._where[key]
        for number in runs:
            for line, row in self._files[number].lines_of(key):
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
        return list(answers.values()), error, len(runs) == 1

    def _counted_from(self, line: bytes, row: Row, file: ResultFile) -> bytes:
        """The line with the folder that its name counts from, where that is not all rows'."""
        folder = row.audio_folder or (None if file.record is None else file.record.folder)
        if isabs(row.audio_path) or folder == self._folder:
            folder = None
        if folder != row.audio_folder:
            return to_line(replace(row, audio_folder=folder))
        return line.rstrip() + b"\n"

    def _check_windows(self, key: str, rows: Sequence[Any]) -> None:
        """Name a recording whose length has more windows than there are rows."""
        if len(self._cut) < len(_CUT) or any(row.claimed for row in rows):
            return
        length = self._seconds.get(key)
        if length is None:
            try:
                length = probe(key).duration
            except AudioError:
                return
        wanted = count_windows(length, *self._cut)
        there = Counter(row.query for row in rows)
        least = min((there[query] for query in self._queries), default=0)
        if least < wanted:
            self._merged.short.add(f"{self._name(key)}: {least} of {wanted} windows")


def _answer(row: Any) -> Any:
    return getattr(row, "answers", None) or row.text

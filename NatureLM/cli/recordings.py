"""Recordings that a command asks about: which they are, when and where they were made, and what a
table of another program says about them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.errors import UsageError
from NatureLM.progress import printable, say
from NatureLM.storage import AnyPath, PathT, RemotePath

if TYPE_CHECKING:
    from NatureLM.field.context import FieldClock
    from NatureLM.inference.pipeline import Fill
    from NatureLM.inference.windows import AskOptions, RecordingWindow
    from NatureLM.results.detections import Detection
    from NatureLM.results.manifest import Entry
    from NatureLM.results.shards import Shard, ShardPicker
    from NatureLM.results.store import Resumed, WindowStore

logger = logging.getLogger(__name__)
_NAMED = 3  # recordings that a summary names


@dataclass
class Listed:
    """The recordings that --audio-path, --manifest and --shard name, each once.

    entries: what a manifest says of those that it names
    shards: how many recordings each shard has, of all that were named; empty without --shard
    shard: the one that these are of
    """

    recordings: list[AnyPath]
    entries: Mapping[AnyPath, Entry] = field(default_factory=dict)
    shards: Sequence[int] = ()
    shard: Shard | None = None

    @classmethod
    def read(cls, paths: Sequence[AnyPath], manifest: AnyPath | None, shard: str | None) -> Listed:
        """Of a manifest no more is held than the recordings of the shard.

        A list at an address among the paths is a manifest, too.

        Raises UsageError for recordings that are not there, and a manifest that is none.
        """
        from NatureLM.audio.files import find_anywhere
        from NatureLM.results.manifest import SUFFIXES, listed_in
        from NatureLM.results.recordings import RealPaths

        lists: list[AnyPath] = [
            one for one in paths if isinstance(one, RemotePath) and one.suffix.lower() in SUFFIXES
        ]
        paths = [one for one in paths if one not in lists]
        lists = [*([] if manifest is None else [manifest]), *lists]
        picker = _picker(shard, [*paths, *(one.parent for one in lists)])
        wanted = (lambda one: True) if picker is None else picker.holds
        entries: dict[AnyPath, Entry] = {}
        for one in lists:
            entries |= listed_in(one, wanted)
        recordings = list(entries)
        if paths or not lists:
            real = RealPaths()
            known = set(map(real, recordings))
            found = find_anywhere(paths)
            recordings += [one for one in found if real(one) not in known and wanted(one)]
        return cls(recordings, entries)._of(picker)

    def part(self, shard: str | None, folders: Sequence[AnyPath]) -> Listed:
        """The recordings of a shard; all of them where none is named.

        folders: from which the names count that decide the shards
        """
        picker = _picker(shard, folders)
        kept = [one for one in self.recordings if picker is None or picker.holds(one)]
        return Listed(kept, self.entries)._of(picker)

    def _of(self, picker: ShardPicker | None) -> Listed:
        """These recordings as those that were picked."""
        if picker is None:
            return self
        counts = picker.counts()
        if not self.recordings:
            say(f"Shard {picker.shard} holds none of the {sum(counts)} recordings")
        return Listed(self.recordings, self.entries, counts, picker.shard)

    @property
    def seconds(self) -> Mapping[AnyPath, float]:
        """Lengths of those whose manifest gives them."""
        return {
            path: entry.seconds for path, entry in self.entries.items() if entry.seconds is not None
        }

    @property
    def asked(self) -> dict[str, Any]:
        """What the record of the answers says of it."""
        if self.shard is None:
            return {}
        values = (str(self.shard), list(self.shards))
        return dict(zip(self.shard.RECORDED, values, strict=True))


def _picker(shard: str | None, folders: Sequence[AnyPath]) -> ShardPicker | None:
    from NatureLM.results.shards import Shard, ShardPicker

    return None if shard is None else ShardPicker(Shard.parse(shard), folders)


@dataclass
class FieldRecordings:
    """The recordings of a run.

    recordings: in the order in which they are asked about
    clock: when and where they were made
    claims: detections of a table that are asked about, by recording; None to ask about windows
    settings: what of all this changes the answers
    needs_context: whether a question has a place for what only the context says
    has_tables: whether a table says when or where recordings were made
    listed: how they were named
    """

    recordings: list[AnyPath]
    clock: FieldClock
    claims: Mapping[AnyPath, tuple[Detection, ...]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    needs_context: bool = False
    has_tables: bool = False
    listed: Listed = field(default_factory=lambda: Listed([]))

    @classmethod
    def read(cls, request: Any, questions: Sequence[str]) -> FieldRecordings:
        """What --audio-path, --manifest, --shard, --from, --deployments and --file-times say.

        Raises UsageError for recordings that are not there, and for tables that cannot be read.
        """
        from NatureLM.field.context import asks_context
        from NatureLM.inference.windows import LABEL_PLACE

        claims, named = None, Listed([])
        if request.from_table is not None:
            if request.manifest is not None:
                named = Listed.read((), request.manifest, None)
            claims = _claims(request.from_table, [*request.audio_paths, *named.recordings])
        elif any(LABEL_PLACE in question for question in questions):
            raise UsageError(
                f"{LABEL_PLACE} in a question is what a table of detections says: give it with "
                "--from"
            )
        if claims is None:
            listed = Listed.read(request.audio_paths, request.manifest, request.shard)
        else:
            folder = [] if request.manifest is None else [request.manifest.parent]
            listed = Listed(list(claims), named.entries).part(
                request.shard, [*request.audio_paths, *folder]
            )
            claims = {one: claims[one] for one in listed.recordings}
        tables = (request.deployments, request.file_times)
        clock = field_clock(*tables, listed.recordings, listed.entries)
        has_tables = tables != (None, None)
        made = cls(listed.recordings, clock, claims, has_tables=has_tables, listed=listed)
        made.needs_context = any(map(asks_context, questions))
        if made.needs_context:  # the answers depend on what the tables say
            from NatureLM.util import digest

            made.settings["context"] = {
                name: None if one is None else digest(one.read_bytes(), size=8).hex()
                for name, one in zip(("deployments", "file_times"), tables, strict=True)
            }
        return made

    def claims_of(self, recording: AnyPath) -> tuple[Detection, ...] | None:
        """The detections of a recording; None where windows are asked about."""
        return None if self.claims is None else self.claims[recording]

    def context_of(self, audio_path: str, seconds: float) -> Mapping[str, Any] | None:
        """When and where a window was recorded, as rows say it."""
        return self.clock.of(self.path_of(audio_path)).at(seconds) or None

    def path_of(self, name: str) -> str | AnyPath:
        """The recording that rows call so; an address is one only if it was asked about."""
        return self._remote.get(name, name)

    @cached_property
    def _remote(self) -> dict[str, RemotePath]:
        return {one.url: one for one in self.recordings if isinstance(one, RemotePath)}

    @property
    def fill(self) -> Fill | None:
        """Puts what is known of a window into a question; None where no question needs it."""
        return self._filled if self.needs_context or self.claims is not None else None

    def _filled(self, question: str, heard: RecordingWindow) -> str:
        """Raises AudioError where too little is known."""
        from NatureLM.inference.windows import filled

        is_told = self.needs_context
        known = self.clock.of(self.path_of(heard.recording.name)) if is_told else None
        return filled(question, heard, known)

    def say_what_is_not_known(self) -> None:
        """Name clocks that disagree, and recordings whose place is not known."""
        conflicts, without = Counter[str](), Counter[str]()
        first: dict[str, str] = {}
        for recording in self.recordings:
            known = self.clock.of(recording)
            for counter, texts in ((conflicts, known.conflicts), (without, known.notes)):
                for text in texts:
                    counter[text] += 1
                    first.setdefault(text, printable(recording))
        for counter in (conflicts, without):
            for text, count in counter.most_common(_NAMED):
                more = f" (and {count - 1} more)" if count > 1 else ""
                say(f"Note: {first[text]}{more}: {text}")
            if len(counter) > _NAMED:
                say(f"Note: and {len(counter) - _NAMED} more of such notes; rows hold them")


def field_clock(
    deployments: Path | None,
    file_times: Path | None,
    recordings: Sequence[AnyPath],
    entries: Mapping[AnyPath, Entry] | None = None,
) -> FieldClock:
    """Where and when recordings were made, by the tables of --deployments and --file-times.

    entries: what a manifest says of the recordings
    """
    from NatureLM.field.context import FieldClock
    from NatureLM.field.deployments import FileTimes, read_deployments
    from NatureLM.results.manifest import ToldByManifest

    clock = FieldClock(
        None if deployments is None else read_deployments(deployments),
        None if file_times is None else FileTimes(file_times, recordings),
        ToldByManifest(entries) if entries else None,
    )
    for note in clock.notes:
        logger.warning(note)
    return clock


def output_of_shard(output: PathT, shard: str | None) -> PathT:
    """The file that a shard writes: one of its own, beside those of the others."""
    from NatureLM.results.shards import Shard

    return output if shard is None else Shard.parse(shard).file(output)


def _claims(table: Path, named: Sequence[AnyPath]) -> dict[AnyPath, tuple[Detection, ...]]:
    """The detections of a table by recording, in the order of their times."""
    audio_paths = [one for one in named if isinstance(one, Path)]
    if len(audio_paths) < len(named):
        raise UsageError(
            "--from takes recordings of this machine only; name those of stores without it"
        )
    from NatureLM.formats import read
    from NatureLM.formats.resolve import recordings_of

    found: dict[AnyPath, list[Detection]] = {}
    points = 0
    for one in recordings_of(read(table), table, audio_paths):
        if one.end > one.start:
            found.setdefault(Path(one.audio_path), []).append(one)
        points += one.end <= one.start
    if points:
        logger.warning("%s: labels that mark a point, which is not asked about: %d", table, points)
    if not found:
        raise UsageError(f"{table}: has no detection in the recordings that were named")
    return {
        path: tuple(sorted(found[path], key=lambda one: (one.start, one.end, one.label)))
        for path in sorted(found, key=str)
    }


def count_windows(asked_about: FieldRecordings, asked: AskOptions) -> int:
    """How many windows there will be, by a manifest or headers; bad recordings count none."""
    from NatureLM.audio import AudioError
    from NatureLM.audio import windows as audio_windows
    from NatureLM.audio.decode import probe

    if asked_about.claims is not None:
        return sum(map(len, asked_about.claims.values()))
    cut = (asked.window_length_seconds, asked.hop_length_seconds, asked.time_expansion)
    total, entries = 0, asked_about.listed.entries
    for path in asked_about.recordings:
        try:
            seconds = entries[path].seconds if path in entries else None
            seconds = probe(path).duration if seconds is None else seconds
            total += audio_windows.count_windows(seconds, *cut)
        except AudioError:
            continue
    return total


def checked_formats(names: Sequence[str], answers: Path) -> list[str]:
    """The formats of tables beside the answers, each once, before the work. Raises UsageError."""
    from NatureLM.cli.field import check_tables

    return list(check_tables(answers, names))


def note_what_was_there(resumed: Resumed, output: AnyPath) -> None:
    """Say what of an earlier run is in the file."""
    if resumed.cut_off:
        logger.warning("%s: the last line was not whole and has been taken off", output)
    if resumed.answers:
        logger.warning(
            "%s: has %d answers of this run; going on from there", output, resumed.answers
        )
    if resumed.retried:
        logger.warning("%s: %d recordings that had failed are tried again", output, resumed.retried)
    if resumed.moved:
        logger.warning(
            "%s: rows of %d recordings have the times and places of the tables given now",
            *(output, resumed.moved),
        )
    for path in resumed.repaired:
        logger.warning("%s: has changed since it failed; all of it is asked anew", path)


def finish(store: WindowStore, formats: Sequence[str], per_recording: bool) -> None:
    """Write the tables that --format asks for, beside the answers; also one a recording.

    Answers for a bucket are uploaded with them.
    """
    from NatureLM.cli.field import write_tables
    from NatureLM.formats import FORMATS

    made = write_tables(store.path, formats) if store.answers and formats else []
    apart = [name for name in formats if not FORMATS[name].is_one] if per_recording else []
    if store.answers and apart:
        made += write_tables(store.path, apart, per_recording=True)
    for address in store.finish([one.path for one in made]):
        say(f"{address}: uploaded")

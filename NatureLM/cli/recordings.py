"""Recordings that a command asks about: which they are, when and where they were made, and what a
table of another program says about them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.errors import UsageError
from NatureLM.progress import printable, say

if TYPE_CHECKING:
    from NatureLM.field.context import FieldClock
    from NatureLM.inference.windows import AskOptions, RecordingWindow
    from NatureLM.results.detections import Detection
    from NatureLM.results.store import Resumed

logger = logging.getLogger(__name__)
_NAMED = 3  # recordings that a summary names


@dataclass
class FieldRecordings:
    """The recordings of a run.

    recordings: in the order in which they are asked about
    clock: when and where they were made
    claims: detections of a table that are asked about, by recording; None to ask about windows
    settings: what of all this changes the answers
    needs_context: whether a question has a place for what only the context says
    has_tables: whether a table says when or where recordings were made
    """

    recordings: list[Path]
    clock: FieldClock
    claims: Mapping[Path, tuple[Detection, ...]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    needs_context: bool = False
    has_tables: bool = False

    @classmethod
    def read(cls, request: Any, questions: Sequence[str]) -> FieldRecordings:
        """What the options --audio-path, --from, --deployments and --file-times say.

        Raises UsageError for recordings that are not there, and for tables that cannot be read.
        """
        from NatureLM.audio import find_recordings
        from NatureLM.field.context import FieldClock, asks_context
        from NatureLM.field.deployments import read_deployments
        from NatureLM.field.times import FileTimes
        from NatureLM.inference.claims import LABEL_PLACE

        claims = None
        if request.from_table is not None:
            claims = _claims(request.from_table, request.audio_paths)
        elif any(LABEL_PLACE in question for question in questions):
            raise UsageError(
                f"{LABEL_PLACE} in a question is what a table of detections says: give it with "
                "--from"
            )
        recordings = find_recordings(request.audio_paths) if claims is None else list(claims)
        tables = (request.deployments, request.file_times)
        clock = FieldClock(
            None if tables[0] is None else read_deployments(tables[0]),
            None if tables[1] is None else FileTimes(tables[1], recordings),
        )
        for note in clock.notes:
            logger.warning(note)
        made = cls(recordings, clock, claims, has_tables=tables != (None, None))
        made.needs_context = any(map(asks_context, questions))
        if made.needs_context:  # the answers depend on what the tables say
            from NatureLM.util import digest

            made.settings["context"] = {
                name: None if one is None else digest(one.read_bytes(), size=8).hex()
                for name, one in zip(("deployments", "file_times"), tables, strict=True)
            }
        return made

    def claims_of(self, recording: Path) -> tuple[Detection, ...] | None:
        """The detections of a recording; None where windows are asked about."""
        return None if self.claims is None else self.claims[recording]

    def context_of(self, audio_path: str, seconds: float) -> Mapping[str, Any] | None:
        """When and where a window was recorded, as rows say it."""
        return self.clock.of(audio_path).at(seconds) or None

    def fill(self, question: str, heard: RecordingWindow) -> str:
        """A question with what is known of a window. Raises AudioError where that is too little."""
        from NatureLM.audio import AudioError
        from NatureLM.field.context import fill
        from NatureLM.inference.claims import with_label

        if self.needs_context:
            name = heard.recording.name
            filled, missing = fill(question, self.clock.of(name).at(heard.window.start))
            if missing:
                advice = "Give a table with --deployments that says it, or ask without it"
                raise AudioError(name, missing, advice, "UnknownContext")
            question = filled
        return with_label(question, heard)

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


def _claims(table: Path, audio_paths: Sequence[Path]) -> dict[Path, tuple[Detection, ...]]:
    """The detections of a table by recording, in the order of their times."""
    from NatureLM.formats import read
    from NatureLM.formats.resolve import recordings_of

    found: dict[Path, list[Detection]] = {}
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
        for path in sorted(found)
    }


def count_windows(asked_about: FieldRecordings, asked: AskOptions) -> int:
    """How many windows there will be, by the headers of the recordings; bad ones count none."""
    from NatureLM.audio import AudioError
    from NatureLM.audio import windows as audio_windows
    from NatureLM.audio.decode import probe

    if asked_about.claims is not None:
        return sum(map(len, asked_about.claims.values()))
    cut = (asked.window_length_seconds, asked.hop_length_seconds, asked.time_expansion)
    total = 0
    for path in asked_about.recordings:
        try:
            total += audio_windows.count_windows(probe(path).duration, *cut)
        except AudioError:
            continue
    return total


def checked_formats(names: Sequence[str], answers: Path) -> list[str]:
    """The formats of tables beside the answers, each once, before the work. Raises UsageError."""
    from NatureLM.cli.field import check_tables

    return list(check_tables(answers, names))


def note_what_was_there(resumed: Resumed, output: Path) -> None:
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


def write_tables_at_the_end(answers: Path, formats: Sequence[str], per_recording: bool) -> None:
    """Write the tables that --format asks for, beside the answers; also one a recording."""
    from NatureLM.cli.field import write_tables
    from NatureLM.formats import FORMATS

    if formats:
        write_tables(answers, formats)
    apart = [name for name in formats if not FORMATS[name].is_one] if per_recording else []
    if apart:
        write_tables(answers, apart, per_recording=True)

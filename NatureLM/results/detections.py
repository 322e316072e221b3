"""What was said about stretches of recordings, read from a result file as often as needed.

`ResultFile` reads answers of `naturelm infer` and `naturelm survey`, and events, as rows or as
detections, in constant memory: it keeps where in the file the rows of each recording lie.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from NatureLM.audio import AudioError
from NatureLM.audio.decode import probe
from NatureLM.audio.files import (
    Identity,
    KnownRecordings,
    find_recordings,
    recording_below,
    recordings_named_like,
)
from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING, SEPARATOR
from NatureLM.progress import printable
from NatureLM.results.parts import is_parts, lines_of
from NatureLM.results.rows import (
    ErrorRow,
    Row,
    SurveyRow,
    WindowRow,
    from_line,
    read_record,
)
from NatureLM.results.tables import both_names
from NatureLM.util import did_you_mean

MODEL_RATE = 16_000  # Hz
_NAMING = ("choice", "yes_no")  # types of columns whose answers name something


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Something heard in a stretch of a recording, by a model, a person or another program.

    audio_path: the recording, as the source names it
    start, end: seconds in the recording; end may be infinite where a table does not say
    label: the name as it was answered or annotated
    confidence: 0 to 1
    common_name, scientific_name: as far as they are known
    question: query, or column of a questionnaire, that it answers
    low_hz, high_hz: frequencies
    channel: number from 1 on
    windows, mean_confidence: of an event, which joins windows; its confidence is their highest
    context: when and where, see `WindowRow.context`
    claim: what another program said, see `Prediction.claim`
    values: other columns, by name: of a questionnaire, or of the table that it was read from
    """

    audio_path: str
    start: float
    end: float
    label: str
    confidence: float | None = None
    common_name: str = ""
    scientific_name: str = ""
    question: str = ""
    low_hz: float | None = None
    high_hz: float | None = None
    channel: int | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    note: str = ""
    windows: int | None = None
    mean_confidence: float | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    claim: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def named(cls, label: str, **more: Any) -> Detection:
        """One whose label is its common or its scientific name, where `more` does not say both."""
        names = dict(zip(("common_name", "scientific_name"), both_names(label), strict=True))
        return cls(label=label, **{**names, **more})


@dataclass(frozen=True)
class HeardRecording:
    """A recording that a result file speaks of.

    path: full path, by which it is known
    name: as the rows call it
    seconds: its length; where the file is gone, the end of its last window
    error: why it, or the rest of it, could not be read
    context: of its beginning, as far as rows tell
    is_heard: whether there are rows about windows of it
    is_gone: it was read when it was asked, and cannot be read now; `error` says why
    """

    path: str
    name: str
    seconds: float
    sample_rate: float = float(MODEL_RATE)
    channels: int = 1
    error: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    is_heard: bool = True
    is_gone: bool = False


@dataclass(slots=True)
class _Place:
    """Where the rows of a recording are: spans of bytes, with the number of their first line."""

    name: str
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    end: float = 0.0
    is_heard: bool = False
    error: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)


class ResultFile:
    """The rows of a result file by recording.

    path: of the answers, a file or a folder of parts
    sounds: where recordings lie whose names in the rows are not their paths, by these names
    columns: the questions (columns of a questionnaire, or queries) whose answers are detections;
        None: of a questionnaire those that name species, or, where none does, those of type
        `choice` and `yes_no`; else all
    only: keys of the recordings that are read; None for all

    Iterating gives detections: answers that name something, recording by recording. Answers `None`
    or no, windows without sound and events without a label are none; `left_out` counts them by
    reason once the detections were read. Raises OutputError where a line is no row, UsageError
    where there is none.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        columns: Sequence[str] | None = None,
        sounds: Mapping[str, Path] | None = None,
    ) -> None:
        self.path = Path(path)
        self.record = read_record(self.path)
        self.left_out: Counter[str] = Counter()
        self._only: frozenset[str] | None = None
        self._sounds = sounds or {}
        self._known = KnownRecordings(
            self.path, None if self.record is None else self.record.folder
        )
        self._places: dict[str, _Place] = {}
        self._questions: dict[str, None] = {}
        self._names: dict[str, tuple[str, str]] = {}
        self.model, self.is_survey = "", False
        if not (self.path.is_file() or is_parts(self.path)):
            raise UsageError(f"{self.path}: there is no such file of answers")
        self._lines = lines_of(self.path)
        self._index()
        if not self._places:
            raise UsageError(f"{self.path}: there is no answer of `naturelm infer` in it")
        self.columns = self._chosen(columns)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the answers were made with; empty where that is lost."""
        return {} if self.record is None else self.record.values

    @property
    def questions(self) -> tuple[str, ...]:
        """The queries, or the columns of the questionnaire, that rows answer."""
        declared = self.settings.get("columns")
        return tuple(declared) if isinstance(declared, dict) else tuple(self._questions)

    @property
    def types(self) -> Mapping[str, Mapping[str, Any]]:
        """What each column of a questionnaire is, by its name, as far as that is recorded."""
        declared = self.settings.get("columns")
        return declared if isinstance(declared, dict) else {}

    @property
    def heard_hz(self) -> float:
        """The highest frequency that the model heard, in the recordings."""
        return MODEL_RATE / 2 * float(self.settings.get("time_expansion", 1.0))

    @property
    def channel(self) -> int:
        """The channel that was heard; 1 for a mix of all."""
        channel = self.settings.get("channel", "mean")
        return 1 if channel == "mean" else int(channel)

    @cached_property
    def recordings(self) -> tuple[HeardRecording, ...]:
        """All recordings, with and without answers, in the order of their full paths."""
        order = sorted(self._places, key=lambda path: Path(path).parts)
        return tuple(
            self._heard(path) for path in order if self._only is None or path in self._only
        )

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What rows call each recording, by its key (`key`); nothing is opened."""
        return {key: place.name for key, place in self._places.items()}

    def lines_of(self, key: str) -> Iterator[tuple[bytes, Row]]:
        """The lines of the recording with this key and their rows, in the order of the file."""
        for start, stop, first in self._places[key].spans:
            for number, line in enumerate(self._lines.between(start, stop), start=first):
                yield line, from_line(line, str(self.path), number)

    @property
    def failed(self) -> int:
        """How many recordings could not be read, or not to their end, when they were asked."""
        return sum(bool(one.error) for one in self._places.values())

    def of(self, recording: HeardRecording) -> ResultFile:
        """The same file with the rows of one recording only."""
        view = object.__new__(ResultFile)
        view.__dict__ = {**self.__dict__, "left_out": Counter(), "recordings": (recording,)}
        view._only = frozenset([recording.path])
        return view

    def key(self, name: str, row: Row) -> str:
        """The full path of a row's recording."""
        if name in self._sounds:
            return name
        return self._known.add(name, _identity(row), row.audio_folder)

    def rows(self) -> Iterator[Row]:
        """All rows, in the order of the file; of `of(recording)` those of the recording."""
        if self._only is None:
            for number, (*_, line) in enumerate(self._lines, start=1):
                yield from_line(line, str(self.path), number)
            return
        for recording in self.recordings:
            yield from (row for _, row in self.lines_of(recording.path))

    def __iter__(self) -> Iterator[Detection]:
        """Detections in the order of `recordings`, with the full paths of their recordings."""
        self.left_out.clear()
        for recording in self.recordings:
            for row in self.of(recording).rows() if self._only is None else self.rows():
                if not isinstance(row, ErrorRow):
                    for one in self.detections_of(row):
                        yield replace(one, audio_path=recording.path)

    def detections_of(self, row: WindowRow | SurveyRow) -> list[Detection]:
        """What a row says that is a detection; what is none is counted in `left_out`."""
        if isinstance(row, SurveyRow):
            answers = list(self._survey_answers(row))
        else:
            is_wanted = not self.columns or row.query in self.columns
            names = self._labels(row.text) if is_wanted else []
            answers = [(row.query, name, row.confidence) for name in names]
        found = []
        for question, label, confidence in answers:
            if row.note and not label:
                self.left_out[row.note] += 1
            elif not label or label == NOTHING:
                self.left_out[NOTHING] += 1
            else:
                found.append(self._detection(row, question, label, confidence))
        return found

    def _detection(
        self, row: WindowRow | SurveyRow, question: str, label: str, confidence: float | None
    ) -> Detection:
        common, scientific = self._both_names(label)
        values: dict[str, Any] = {}
        more: dict[str, Any] = {}
        if isinstance(row, SurveyRow):
            values = {name: value for name, value in row.answers.items() if name != question}
            others = (row.others or {}).get(question) or ()
            more = {"alternatives": tuple((str(label), float(share)) for label, share in others)}
        else:
            more = {
                "alternatives": row.alternatives,
                "windows": row.windows,
                "mean_confidence": row.mean_confidence,
            }
        return Detection(
            audio_path=row.audio_path,
            start=row.start,
            end=row.end,
            label=label,
            confidence=confidence,
            common_name=common,
            scientific_name=scientific,
            question=question,
            note=row.note,
            channel=self.channel,
            context=row.context or {},
            claim=row.claim or {},
            values=values,
            **more,
        )

    def _survey_answers(self, row: SurveyRow) -> Iterator[tuple[str, str, float | None]]:
        """Question, label and confidence of the columns that may name something."""
        for name in self.columns:
            if name not in row.answers:
                continue
            value, confidence = row.answers[name], (row.confidences or {}).get(name)
            if value is True:
                yield name, name, confidence  # `bird: true` is a detection of "bird"
            elif isinstance(value, list):
                yield from ((name, str(one), confidence) for one in value or [NOTHING])
            else:
                yield name, value if isinstance(value, str) else NOTHING, confidence

    def _labels(self, text: str) -> list[str]:
        """The label of an answer, or those of one that may be several."""
        is_list = (self.settings.get("choosing") or {}).get("several", False)
        return text.split(SEPARATOR) if is_list else [text]

    def _both_names(self, label: str) -> tuple[str, str]:
        """Common and scientific name, as far as the list of the run knows them."""
        if label not in self._names:
            asked = {} if self.record is None else self.record.asked
            latin: Mapping[str, str] = asked.get("scientific_names") or {}
            common = {name: one for one, name in latin.items()}
            if label in latin or label in common:
                self._names[label] = (common.get(label, label), latin.get(label, label))
            else:
                self._names[label] = both_names(label)
        return self._names[label]

    def _chosen(self, columns: Sequence[str] | None) -> tuple[str, ...]:
        """The questions that make detections. Raises UsageError for one that is not there."""
        known = self.questions
        for name in columns or ():
            if name not in known:
                hint = did_you_mean(name, known)
                raise UsageError(
                    f"{self.path}: has no answers to {name!r}{hint}; there are "
                    f"{', '.join(map(repr, known))}"
                )
            kind = self.types.get(name, {}).get("type")
            if kind in ("count", "number", "json"):
                usable = map(repr, self._of_type(*_NAMING, "text"))
                raise UsageError(
                    f"{self.path}: the column {name!r} is of type {kind}, which names nothing; "
                    f"those of type {', '.join(_NAMING)} or text are: {', '.join(usable) or 'none'}"
                )
        if columns is not None:
            return tuple(columns)
        species = tuple(one for one in known if self.types.get(one, {}).get("species"))
        return species or (self._of_type(*_NAMING) if self.is_survey else ())

    def _of_type(self, *types: str) -> tuple[str, ...]:
        """The columns of a questionnaire that are of these types; one that is lost is a choice."""
        kinds = {name: self.types.get(name, {}).get("type", "choice") for name in self.questions}
        return tuple(name for name, kind in kinds.items() if kind in types)

    @property
    def names_nothing(self) -> str:
        """Why no answer of a survey can be a detection; "" where one can."""
        if not self.is_survey or self.columns:
            return ""
        texts = ", ".join(map(repr, self._of_type("text")))
        hint = f"; --column takes one of type text: {texts}" if texts else ""
        return f"the questionnaire has no column of type {' or '.join(_NAMING)}{hint}"

    def _index(self) -> None:
        """Read the file once: where the rows of each recording are."""
        for number, (begin, end, line) in enumerate(self._lines, start=1):
            row = from_line(line, str(self.path), number)
            key = self.key(row.audio_path, row)
            place = self._places.setdefault(key, _Place(row.audio_path))
            if place.spans and place.spans[-1][1] == begin:
                start, _, first = place.spans[-1]
                place.spans[-1] = start, end, first
            else:
                place.spans.append((begin, end, number))
            self._count_in(row, place)

    def _count_in(self, row: Row, place: _Place) -> None:
        self.model = row.model
        if isinstance(row, ErrorRow):
            place.error = row.error
            return
        place.end, place.is_heard = max(place.end, row.end), True
        if row.context and not place.context:
            place.context = moved_context(row.context, -row.start)
        if isinstance(row, SurveyRow):
            self.is_survey = True
            self._questions.update(dict.fromkeys(row.answers))
        else:
            self._questions.setdefault(row.query)

    def _heard(self, path: str) -> HeardRecording:
        place = self._places[path]
        more: dict[str, Any] = {"context": place.context, "is_heard": place.is_heard}
        try:
            info = probe(self._sounds.get(path, path))
        except AudioError as error:
            more |= {"error": place.error or str(error), "is_gone": not place.error}
            return HeardRecording(path, place.name, place.end, **more)
        found = (info.duration, info.sample_rate, info.channels, place.error)
        return HeardRecording(path, place.name, *found, **more)


def _identity(row: Row) -> Identity:
    return Identity(row.audio_bytes, row.audio_modified, row.audio_digest)


def moved_context(context: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The context of a moment so many seconds later than the one whose context it is."""
    moved = dict(context)
    for key in ("local_time", "utc_time"):
        if isinstance(moved.get(key), str):
            text = moved[key]
            time = datetime.fromisoformat(text.replace("Z", "+00:00")) + timedelta(seconds=seconds)
            moved[key] = time.isoformat().replace("+00:00", "Z" if text.endswith("Z") else "+00:00")
    for key in ("hours_after_sunrise", "hours_after_sunset"):
        if moved.get(key) is not None:
            moved[key] = round(moved[key] + seconds / 3600, 2)
    return moved


def by_recording(detections: Iterable[Detection]) -> Iterator[tuple[str, list[Detection]]]:
    """Detections in groups of neighbours that are of one recording."""
    group: list[Detection] = []
    for one in detections:
        if group and one.audio_path != group[0].audio_path:
            yield group[0].audio_path, group
            group = []
        group.append(one)
    if group:
        yield group[0].audio_path, group


# The recordings that a table names, on this machine: tables come from elsewhere, with their paths.
# A recording is found by its name, whatever folder it was in; where several have that name, by as
# many folders above it as tell them apart.

logger = logging.getLogger(__name__)
_NAMED = 3


def recordings_of(
    found: Iterable[Detection], table: Path, audio_paths: Sequence[str | Path] = ()
) -> Iterator[Detection]:
    """The detections of a table with the paths that their recordings have here.

    audio_paths: files and folders, of which nothing else is taken; without any, recordings are
        where the table says, or beside it

    Detections whose recording is not found are left out, and a warning in the log counts and names
    these. Raises UsageError for a name that several recordings have, and where none is found.
    """
    places = _Places(table, audio_paths)
    for one in found:
        path = places.find(one.audio_path)
        if path is not None:
            yield replace(one, audio_path=str(path))
    places.tell()


class _Places:
    """Where the recordings of a table are; each name is looked for once."""

    def __init__(self, table: Path, audio_paths: Sequence[str | Path]) -> None:
        self._table = table
        self._folders = [Path(path) for path in audio_paths]
        self._known: dict[str, Path | None] = {}
        self._missing: Counter[str] = Counter()
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in find_recordings(self._folders) if self._folders else ():
            self._by_name[_folded(path.name)].append(path)
            self._by_stem[_folded(path.stem)].append(path)

    def find(self, name: str) -> Path | None:
        """The recording; None where it is not there, which is counted. Raises UsageError."""
        if name not in self._known:
            self._known[name] = self._below(name) if self._folders else self._beside(name)
        if self._known[name] is None:
            self._missing[name] += 1
        return self._known[name]

    def _beside(self, name: str) -> Path | None:
        """Where the table says, below its folder, or there with another suffix."""
        folder = self._table.parent
        if os.path.isfile(folder / name):
            return folder / name
        parts = _parts(name)
        if not parts:
            return None
        alike = recordings_named_like(Path(f"{parts[-1]}."), folder)
        return recording_below(folder, name) or self._one_of(alike, name)

    def _below(self, name: str) -> Path | None:
        """Below the folders that were named, and nowhere else."""
        parts = _parts(name)
        if not parts:
            return None
        last = _folded(parts[-1])
        stem = last.rpartition(".")[0] or last
        found = self._by_name.get(last) or self._by_stem.get(last) or self._by_stem.get(stem, [])
        return self._one_of(found or self._called_like(last), name)

    def _called_like(self, name: str) -> list[Path]:
        """Recordings whose name another one goes on from, as `a.Table.1` does from `a.wav`."""
        while "." in name:
            name = name.rpartition(".")[0]
            if name in self._by_stem:
                return self._by_stem[name]
        return []

    def _one_of(self, found: Sequence[Path], name: str) -> Path | None:
        """That with most folders as the table has them. Raises UsageError where several have."""
        wanted = [_folded(part) for part in reversed(_parts(name))]
        shared = [_shared(wanted, path) for path in found]
        best = [path for path, count in zip(found, shared, strict=True) if count == max(shared)]
        if len(best) > 1:
            shown = ", ".join(printable(path) for path in best[:_NAMED])
            raise UsageError(
                f"{self._table}: {printable(name)} may be each of {len(best)} recordings "
                f"({shown}): give --audio-path the folder of the recorder that the table is about"
            )
        return best[0] if best else None

    def tell(self) -> None:
        """Say what is missing. Raises UsageError where all of it is."""
        if not self._missing:
            return
        where = (
            ", ".join(map(printable, self._folders)) or f"{self._table.parent} and where it says"
        )
        names = [printable(name) for name in self._missing]
        shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        if all(path is None for path in self._known.values()):
            raise UsageError(
                f"{self._table}: none of the recordings that it names ({shown}) is there, looked "
                f"for in {where}: --audio-path says where they are"
            )
        logger.warning(
            "%s: recordings that it names and that are not there: %d (%s), looked for in %s; "
            "their rows are left out: %d",
            *(self._table, len(names), shown, where, self._missing.total()),
        )


def _shared(wanted: Sequence[str], path: Path) -> int:
    """How many folders above it a path has in common with the parts that are wanted."""
    have = [_folded(part) for part in reversed(path.absolute().parts)]
    pairs = zip(wanted[1:], have[1:], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _parts(name: str) -> list[str]:
    """The parts of a path of any system, without its root."""
    return [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()

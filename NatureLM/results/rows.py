"""What a result file says: its rows, and beside it the settings that they were made with.

A row is a JSON object on a line: a `WindowRow` is one answer, a `SurveyRow` all answers about a
window, an `ErrorRow` a recording that could not be read; the fields are the keys. Readers ignore
keys that they do not know, and spaces at the end of a line. A key that changes its meaning or goes
away raises `SCHEMA_VERSION`; a key that is added does not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from NatureLM.errors import UsageError
from NatureLM.util import atomic_write, digest, parse_json, shown


class OutputError(UsageError):
    """A result file cannot be written, read or resumed; the message says why."""


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `target` when the block ends well.

    Folders are made. Raises OutputError for what the system says against it.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as unfinished:
            yield unfinished
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror}") from None


SCHEMA_VERSION = 1

WindowKey: TypeAlias = tuple[str, int, str]
"""What a row answers: key of the recording, start of the window in microseconds, query."""


class StoredRow:
    """A row of any store: `run` is the fingerprint of the settings that it was made with."""

    run: str


@dataclass(frozen=True, kw_only=True)
class RecordingRow(StoredRow):
    """What each row about a recording says besides; `to_line` puts it behind what was said.

    model: name, id or folder
    run: the same in all rows of a file
    audio_bytes, audio_modified, audio_digest: the recording when it was read
    audio_folder: where `audio_path` counts from, if not from the folder of the settings
    """

    model: str
    run: str
    audio_bytes: int | None = None
    audio_modified: str | None = None
    schema_version: int = SCHEMA_VERSION
    audio_digest: str | None = None
    audio_folder: str | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer to one query about one window; the fields are those of a row.

    audio_path: the recording, as it was named
    start, end: seconds in the recording; a short last window has its true end
    merging_alpha: share of the adapter: 0 is the base language model, 1 the adapted one
    confidence: probability that the answer is right, 0 to 1; None where it is not known
    alternatives: other labels with their probabilities, best first
    note: "silent", "constant" or "cancelled" for a window without sound; it has no answer unless
        one was asked for all the same
    claim: what a table of another program says about this stretch, which was asked about: its
        `label`, `confidence` and names, and whether the answer `agrees` (None: cannot be told)
    """

    audio_path: str
    start: float
    end: float
    query: str
    text: str
    merging_alpha: float
    confidence: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    note: str = ""
    claim: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def claimed(self) -> str:
        """The label that the window was asked about, "" for none."""
        return str((self.claim or {}).get("label", ""))

    @property
    def shown(self) -> str:
        """The answer, or why there is none."""
        return f"{self.note}, not asked" if self.note and not self.text else self.text


@dataclass(frozen=True, kw_only=True)
class WindowRow(RecordingRow, Prediction):
    """A prediction as it stands in a file.

    context: when and where the window was recorded, as far as that is known (`field.deployments`)
    windows, mean_confidence: of an event, which joins neighbouring windows; its `confidence` is the
        highest of theirs
    """

    context: Mapping[str, Any] | None = None
    windows: int | None = None
    mean_confidence: float | None = None

    @classmethod
    def of(cls, answer: Prediction, **more: Any) -> WindowRow:
        """The row of an answer, with numbers as files have them; `more` are fields of the row."""
        values = {
            **{one.name: getattr(answer, one.name) for one in fields(Prediction)},
            "start": round(answer.start, 6),
            "end": round(answer.end, 6),
            "confidence": None if answer.confidence is None else round(answer.confidence, 6),
            "alternatives": tuple((name, round(share, 6)) for name, share in answer.alternatives),
        }
        return cls(**values, **more)


@dataclass(frozen=True, kw_only=True)
class SurveyRow(RecordingRow):
    """All that was answered about a window, by the columns of a questionnaire.

    answers: values by column; None where nothing fits, or what was said could not be parsed. A
        column that was not asked is not there
    confidences: of columns that are scored
    said: answers that could not be parsed, as they were said
    others: the next likely labels with their probabilities, best first, of columns that are scored
    The other fields are those of a `WindowRow`.
    """

    audio_path: str
    start: float
    end: float
    answers: Mapping[str, Any]
    merging_alpha: float
    confidences: Mapping[str, Any] | None = None
    said: Mapping[str, Any] | None = None
    others: Mapping[str, Any] | None = None
    note: str = ""
    context: Mapping[str, Any] | None = None
    claim: Mapping[str, Any] | None = None

    query: ClassVar[str] = ""
    confidence: ClassVar[float | None] = None
    alternatives: ClassVar[tuple[tuple[str, float], ...]] = ()

    @property
    def claimed(self) -> str:
        """The label that the window was asked about, "" for none."""
        return str((self.claim or {}).get("label", ""))

    @property
    def text(self) -> str:
        """All answers in one line: `bird: yes; species: Barn Owl`."""
        return "; ".join(f"{name}: {value_text(one)}" for name, one in self.answers.items())

    @property
    def shown(self) -> str:
        """The answers, or why there are none."""
        return f"{self.note}, not asked" if self.note and not self.answers else self.text


def value_text(value: Any) -> str:
    """The value of a column as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


_OPTIONAL = (
    *("confidence", "alternatives", "note", "audio_digest", "audio_folder"),
    *("context", "claim", "windows", "mean_confidence", "confidences", "said", "others"),
)
"""Keys that rows of version 1 need not have: older ones lack them, and so do those without any."""
_OF_RECORDING = tuple(one.name for one in fields(RecordingRow) if one.name not in _OPTIONAL)


@dataclass(frozen=True)
class ErrorRow(RecordingRow):
    """A recording, or the rest of it, that could not be read.

    error: the message
    """

    audio_path: str
    error: str
    error_type: str
    merging_alpha: float


Row: TypeAlias = WindowRow | SurveyRow | ErrorRow


def to_line(row: Row) -> bytes:
    """The row as one line of UTF-8 JSON, line feed included."""
    values = asdict(row)
    for key in (*_OF_RECORDING, *_OPTIONAL):  # they stand at the end
        value = values.pop(key, None)
        if key not in _OPTIONAL or value not in (None, (), "", {}):
            values[key] = value
    return json_line(values)


def json_line(values: dict[str, Any]) -> bytes:
    """An object as one line of UTF-8 JSON, line feed included."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    # Some readers take these for the end of a line.
    for mark in "\x85\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is no UTF-8
        return json.dumps(values, allow_nan=False).encode() + b"\n"


def read_lines(path: str | Path) -> Iterator[bytes]:
    """The whole lines of a file; a last one that was cut off by a loss of power is left out."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a result file, in the order in which they were written.

    A torn last line is left out. Raises OutputError with file and line for a line that is no row.
    """
    for number, line in enumerate(read_lines(path), start=1):
        yield from_line(line, str(path), number)


def from_line(line: bytes, name: str, number: int) -> Row:
    """The row of line `number` of file `name`.

    Raises OutputError where the line is no row of this schema version.
    """
    place = f"{name}, line {number}"
    try:
        data = parse_json(line)
    except ValueError:
        raise OutputError(f"{place}: this is not JSON") from None
    if not isinstance(data, dict) or "audio_path" not in data or "schema_version" not in data:
        raise OutputError(f"{place}: this is no row of `naturelm infer`")
    version = data["schema_version"]
    if version != SCHEMA_VERSION:
        raise OutputError(
            f"{place}: rows of schema version {shown(version)} cannot be read here, "
            f"only those of version {SCHEMA_VERSION}"
        )
    data = {**_ABSENT, **data}
    if "error" in data:
        return ErrorRow(**_checked(ErrorRow, data, place))
    if "answers" in data:
        return SurveyRow(**_checked(SurveyRow, data, place))
    values = _checked(WindowRow, data, place)
    values["alternatives"] = _pairs(values["alternatives"], place)
    return WindowRow(**values)


_ABSENT: dict[str, Any] = {**dict.fromkeys(_OPTIONAL), "alternatives": [], "note": ""}


_TYPES: dict[Any, tuple[type, ...]] = {
    "str": (str,),
    "float": (float, int),
    "int": (int,),
    "int | None": (int, type(None)),
    "float | None": (float, int, type(None)),
    "tuple[tuple[str, float], ...]": (list,),
    "str | None": (str, type(None)),
    "Mapping[str, Any]": (dict,),
    "Mapping[str, Any] | None": (dict, type(None)),
}


_FIELDS: dict[str, dict[str, Any]] = {
    kind.__name__: {one.name: one.type for one in fields(kind)}
    for kind in (WindowRow, SurveyRow, ErrorRow)
}


def _checked(kind: type[Row], data: dict[str, Any], place: str) -> dict[str, Any]:
    """The values of the fields of a kind of row; raises OutputError for one that does not fit."""
    types = _FIELDS[kind.__name__]
    missing = [key for key in types if key not in data]
    if missing:
        raise OutputError(f"{place}: the row lacks {', '.join(missing)}")
    values = {key: data[key] for key in types}
    for key, value in values.items():
        if not isinstance(value, _TYPES[types[key]]) or isinstance(value, bool):
            raise OutputError(f"{place}: {key} is {shown(value)}, and it must be {types[key]}")
    return values


def _pairs(value: list[Any], place: str) -> tuple[tuple[str, float], ...]:
    for pair in value:
        is_pair = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        if not (is_pair and isinstance(pair[1], (int, float)) and not isinstance(pair[1], bool)):
            raise OutputError(
                f"{place}: alternatives has {shown(pair)}, and it must be a label and its "
                "probability"
            )
    return tuple((label, probability) for label, probability in value)


@dataclass(frozen=True)
class RunSettings:
    """Everything that changes answers, as plain JSON values: model, weights, windows, queries, ...

    What does not change them stays out: batch size, device, format, which recordings are asked.

    asked: what a run asks for; it is stored with the settings and is none of them, because a run
        that asks for more may be resumed
    folder: where relative paths of the rows count from; None where they are none, or not known
    revisions: commits of what the model came from, as far as that was the Hub
    """

    values: Mapping[str, Any]
    asked: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    revisions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # What is compared later went through JSON: tuples are lists, keys are strings.
        for name in ("values", "asked"):
            object.__setattr__(self, name, json.loads(_canonical(getattr(self, name))))

    @property
    def run(self) -> str:
        """Fingerprint: the same for equal settings, on every machine and day."""
        return digest(_canonical(self.values), size=8).hex()


def _canonical(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, allow_nan=False)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs, one line for each value; keys that `now` does not have are not compared."""
    lines: list[str] = []
    for key, value in now.items():
        name = f"{prefix}{key}"
        if key not in before:
            lines.append(f"{name}: not set there, {_show(value)} now")
        elif isinstance(value, dict) and isinstance(before[key], dict):
            lines += differences(before[key], value, f"{name}.")
        elif before[key] != value:
            lines.append(f"{name}: {_show(before[key])} there, {_show(value)} now")
    return lines


def other_revisions(before: RunSettings | None, now: RunSettings | None) -> list[str]:
    """Commits of a model that both know and that differ, one line each.

    Weights that are the same may stand beside another tokenizer.
    """
    then: Mapping[str, str] = {} if before is None else before.revisions
    known: Mapping[str, str] = {} if now is None else now.revisions
    return differences(then, {key: one for key, one in known.items() if key in then})


def left_out(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What was set before and is not set any more, one line for each value."""
    return [
        f"{key}: {_show(value)} there, not set now"
        for key, value in before.items()
        if key not in now
    ]


def bullets(lines: Sequence[str]) -> str:
    """Lines of a message, indented; of more than ten the first ten, and how many more."""
    more = [f"and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n".join(f"  - {line}" for line in [*lines[:10], *more])


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."


def record_path(output: Path) -> Path:
    """The file beside a result file that holds the settings it was made with."""
    return output.with_name(output.name + ".run.json")


def write_record(output: Path, settings: RunSettings) -> None:
    """Write the settings beside the result file, whole or not at all."""
    record = {"schema_version": 1, "run": settings.run, "settings": settings.values}
    if settings.asked:
        record["asked"] = settings.asked
    if settings.revisions:
        record["revisions"] = dict(settings.revisions)
    if settings.folder is not None:
        record["folder"] = settings.folder
    text = json.dumps(record, indent=2, ensure_ascii=False)
    with whole_file(record_path(output)) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_record(output: Path) -> RunSettings | None:
    """The settings beside the result file; None where they are lost or damaged."""
    try:
        data = json.loads(record_path(output).read_text(encoding="utf-8"))
        more = {key: data[key] for key in ("asked", "folder", "revisions") if key in data}
        settings = RunSettings(data["settings"], **more)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return settings if settings.run == data.get("run") else None

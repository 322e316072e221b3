"""Tables of other programs, written and read, and here their names.

The module of a format has `write(answers, target)`, which writes the table whole or not at all and
returns the number of its lines, and `read(path)`, which gives its detections. It may have
`write_beside(answers, target)`, which writes what the table needs besides and returns sentences
about it. In a module of several formats the name of each follows: `write_birdnet`. Modules are
imported when they are used, so that a help that names formats is quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.errors import UsageError
from NatureLM.util import did_you_mean, is_special

if TYPE_CHECKING:  # the names of formats stand in helps, which import nothing heavy
    from NatureLM.results.detections import Detection, HeardRecording, ResultFile


@dataclass(frozen=True)
class TableFormat:
    """A format of tables.

    module: in this package
    suffix: that a table's name gets
    encoding: of the text; "" for files of bytes
    unit: what a line of it is called
    about: what it is for, in a few words
    known_by: columns of the header that tell it from the others; of several sets one is enough
    holds: "rows": all answers and errors; "windows": windows with and without detections;
        "detections": these alone
    is_one: it speaks of all recordings together: there is none of a single recording
    is_each: it names no recording: there is a file for each
    """

    name: str
    module: str
    suffix: str
    encoding: str
    unit: str
    about: str
    known_by: tuple[tuple[str, ...], ...] = ()
    holds: str = "detections"
    is_one: bool = False
    is_each: bool = False


@dataclass
class Written:
    """What was written.

    path: the table, or the folder of tables
    files, lines: how many
    left_out: answers that are no detections and therefore not in it, by reason
    unread: recordings that could not be read and therefore are not in it
    says: sentences about what lies beside it
    """

    format: TableFormat
    path: Path
    files: int = 0
    lines: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    unread: int = 0
    says: list[str] = field(default_factory=list)


FORMATS = {
    one.name: one
    for one in (
        TableFormat(
            *("csv", "wide", ".csv", "utf-8-sig", "rows", "spreadsheets"),
            known_by=(("recording", "start", "end", "merging_alpha"),),
            holds="rows",
        ),
        TableFormat("jsonl", "wide", ".jsonl", "utf-8", "rows", "programs", holds="rows"),
        TableFormat(
            *("parquet", "wide", ".parquet", "", "rows", "pandas, R, DuckDB"), holds="rows"
        ),
        TableFormat(
            *("raven", "raven", ".selections.txt", "utf-8", "selections", "Raven"),
            known_by=(("Selection", "Begin Time (s)"), ("Selection", "File Offset (s)")),
        ),
        TableFormat("audacity", "annotated", ".txt", "utf-8", "labels", "Audacity", is_each=True),
        TableFormat(
            *("kaleidoscope", "annotated", ".id.csv", "utf-8", "detections", "Kaleidoscope Pro"),
            known_by=(("IN FILE", "OFFSET"),),
        ),
        TableFormat(
            *("birdnet", "annotated", ".BirdNET.csv", "utf-8", "detections"),
            "programs for BirdNET",
            known_by=(
                *(("Start (s)", "End (s)", "Common name"), ("Start (s)", "End (s)", "Confidence")),
                ("filepath", "start", "end", "common_name"),
            ),
        ),
        TableFormat(
            *("ecosounds", "annotated", ".ecosounds.csv", "utf-8", "annotations"),
            "Ecosounds and A2O (Acoustic Workbench)",
            known_by=(("start_offset_seconds", "end_offset_seconds"),),
        ),
        TableFormat(
            *("crowsetta", "annotated", ".crowsetta.csv", "utf-8", "annotations"),
            "crowsetta (generic-seq)",
            known_by=(("label", "onset_s", "offset_s", "notated_path"),),
        ),
        TableFormat(
            *("opensoundscape", "annotated", ".opensoundscape.csv", "utf-8", "windows"),
            "OpenSoundscape",
            known_by=(("file", "start_time", "end_time"),),
            holds="windows",
        ),
        TableFormat(
            *("camtrap-dp", "camtrap", ".camtrap-dp", "", "observations", "GBIF, camtrapdp"),
            is_one=True,
        ),
    )
}
"""By name, in the order in which they are offered."""


def function_of(name: str, does: str) -> Any:
    """`write`, `write_beside` (None where there is none) or `read` of a format.

    Raises UsageError for a format that is not there.
    """
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise UsageError(f"{name!r} is no format{hint}; there are {', '.join(FORMATS)}")
    module = import_module(f"{__name__}.{FORMATS[name].module}")
    return getattr(module, does, None) or getattr(module, f"{does}_{name}", None)


def is_folder(name: str, target: Path) -> bool:
    """Whether what a format writes is a folder: a package that is no .zip."""
    return FORMATS[name].is_one and target.suffix.lower() != ".zip"


def write(name: str, answers: ResultFile, target: Path, per_recording: bool = False) -> Written:
    """Write the answers in a format: into the file `target`, or, a file a recording, below it.

    Raises OutputError, and UsageError for what the format cannot say.
    """
    write_one, beside = function_of(name, "write"), function_of(name, "write_beside")
    kind = FORMATS[name]
    written = Written(kind, target)
    if kind.holds != "rows":
        written.unread = answers.failed
        if answers.names_nothing:
            written.says.append(f"No answer is a detection: {answers.names_nothing}")
    if kind.is_each and len(answers.recordings) > 1 and not (per_recording or is_special(target)):
        per_recording = True
        target = written.path = target.with_name(f"{target.name.removesuffix(kind.suffix)}-{name}")
        written.says.append(f"A table for {kind.about} names no recording: there is one for each")
    if not per_recording:
        written.lines, written.files = write_one(answers, target), 1
        written.left_out = answers.left_out if kind.holds == "detections" else Counter()
        if beside is not None and not is_special(target):
            written.says += beside(answers, target)
        return written
    if kind.is_one:
        raise UsageError(f"--per-recording: {name} tells of all recordings together")
    names = file_names(answers.recordings, kind.suffix)
    for recording, place in zip(answers.recordings, names, strict=True):
        part = answers.of(recording)
        written.lines += write_one(part, target / place)
        written.files += 1
        written.left_out += part.left_out if kind.holds == "detections" else Counter()
    return written


def file_names(recordings: Sequence[HeardRecording], suffix: str) -> list[Path]:
    """The table of each recording, below one folder, as the recordings lie below theirs.

    It is called by the recording without its suffix; where two would be called the same, by the
    whole name.
    """
    from NatureLM.results.tables import below_shared

    places = below_shared(one.path for one in recordings)
    often = Counter(str(one.with_suffix("")).casefold() for one in places)
    return [
        one.with_name(
            (one.stem if often[str(one.with_suffix("")).casefold()] == 1 else one.name) + suffix
        )
        for one in places
    ]


def read(path: Path, name: str | None = None) -> Iterator[Detection]:
    """The detections of a table; which format it has is seen by its header unless it is named.

    Raises DataError, also while they are read, and UsageError.
    """
    return iter(function_of(name or recognised(path), "read")(path))


def recognised(path: Path) -> str:
    """The format of a table. Raises DataError where it is none of those that are known."""
    from NatureLM.data.annotations import is_label_track
    from NatureLM.data.table import DataError, csv_rows, decoded, delimiter_of, read_bytes

    if path.is_dir() or path.suffix.lower() == ".zip":
        return _known("camtrap-dp", path, [])
    data = read_bytes(path)
    if data.startswith(b"PAR1"):
        return "parquet"
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "jsonl"
    text = decoded(data, path)[0]
    if not text.strip():
        raise DataError(f"{path}: is empty, so there is no detection in it")
    if is_label_track(text):
        return _known("audacity", path, [])
    header, _ = csv_rows(text, path, delimiter_of(text))
    fitting = [
        (len(columns), name)
        for name, kind in FORMATS.items()
        for columns in kind.known_by
        if {*columns} <= {*header}
    ]
    return _known(max(fitting)[1] if fitting else "", path, header)


def _known(name: str, path: Path, header: Sequence[str]) -> str:
    from NatureLM.data.table import DataError

    if name in FORMATS:
        return name
    shown = ", ".join(map(repr, header[:8])) + (", …" if len(header) > 8 else "")
    has = f"; its columns are {shown}" if header else ""
    raise DataError(f"{path}: is no table of {', '.join(FORMATS)}{has}")

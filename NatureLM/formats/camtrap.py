"""Camtrap DP for sound: three tables and `datapackage.json`, in a folder or a .zip.

`camtrap_dp.json` holds the fields of the tables, after Camtrap DP 1.0.2 with the terms that it is
to get for sound: devices in place of cameras, frequencies, and observations of an interval of a
recording. They stand in the package, too, so that it is read without the network.

Times have whole seconds there: the start is rounded down and the end up; `observationTags` has the
exact seconds in the recording, with the label where that is no scientific name. A recording in
which nothing was found has one observation of type `blank`.
"""

from __future__ import annotations

import json
import lzma
import math
import mimetypes
import os
import re
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import NatureLM
from NatureLM.data.table import DataError, read_table
from NatureLM.errors import UsageError
from NatureLM.progress import printable
from NatureLM.results.detections import Detection, HeardRecording, ResultFile
from NatureLM.results.rows import whole_file
from NatureLM.results.tables import (
    below_shared,
    number,
    one_line,
    recording_of,
    with_formula,
    without_formula,
    write_rows,
)
from NatureLM.util import digest, shown, write_json

TABLES = ("deployments", "media", "observations")
PROFILE = "tabular-data-package"
YOURS = (
    "{}: contributors, project and licenses of datapackage.json are yours to fill in before it is "
    "published"
)
LEFT_OUT = "Recordings without a known time and place are not in a Camtrap DP: {}"

_LEAST_UNPACKED, _MOST_TIMES = 16 << 20, 100  # bytes; times those of the .zip. Tables have 5 to 30
_NO_ZIP = (
    *(OSError, EOFError, ValueError, RuntimeError),  # of a password or a method that is not known
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
_COUNT = re.compile(r"\d{1,9}", re.ASCII)
_SUFFIXES = {
    **dict.fromkeys((".wav", ".wave"), "audio/wav"),
    **{".flac": "audio/flac", ".m4a": "audio/mp4", ".ogg": "audio/ogg", ".opus": "audio/ogg"},
}


@dataclass(frozen=True)
class Media:
    """A recording of a deployment.

    path: below the folder that all recordings share, with slashes
    begin: when it began, with its zone
    """

    id: str
    deployment: str
    path: str
    begin: datetime
    recording: HeardRecording


@cache
def schemas() -> Mapping[str, Mapping[str, Any]]:
    """The fields of each table: Table Schema, as it stands in the package."""
    content = Path(__file__).with_name("camtrap_dp.json").read_text(encoding="utf-8")
    found: Mapping[str, Mapping[str, Any]] = json.loads(content)
    return found


def columns_of(table: str) -> tuple[str, ...]:
    """The header of a table."""
    return tuple(one["name"] for one in schemas()[table]["fields"])


def write(answers: ResultFile, target: Path) -> int:
    """A package; the number of its observations.

    Recordings without a time with its zone, or without a place, are left out. Raises OutputError,
    and UsageError where all are.
    """
    media = _media(answers)
    deployments = _deployments(media)
    media = [replace(one, deployment=deployments[_place(one)]["deploymentID"]) for one in media]
    names: dict[str, str] = {}
    with _folder_for(target) as folder:
        _write(folder, "deployments", deployments.values())
        _write(folder, "media", map(_media_row, media))
        count = _write(folder, "observations", _observations(answers, media, names))
        package = _package(answers, list(deployments.values()), media, names)
        write_json(folder / "datapackage.json", package)
    return count


def write_beside(answers: ResultFile, target: Path) -> list[str]:
    """Which recordings are not in it, and what is left to do before it is published."""
    lacking = _lacking(answers)
    says = [LEFT_OUT.format(_told(answers, lacking))] if lacking else []
    return [*says, YOURS.format(target)]


@contextmanager
def _folder_for(target: Path) -> Iterator[Path]:
    """The folder to write into: `target`, or one that becomes the zip file `target`."""
    if target.suffix.lower() != ".zip":
        yield target
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)
        with (
            whole_file(target) as unfinished,
            zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as file,
        ):
            for name in sorted(os.listdir(made)):
                file.write(Path(made, name), name)


def _write(folder: Path, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
    header = columns_of(table)
    cells = ([_cell(row.get(name)) for name in header] for row in rows)
    return write_rows(folder / f"{table}.csv", header, cells)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return number(value) if isinstance(value, float) else without_formula(str(value))


# Recordings and where they were made


def _lacking(answers: ResultFile) -> list[tuple[HeardRecording, str]]:
    """Recordings with answers that have no time or no place, each with what it lacks."""
    return [
        (one, why) for one in answers.recordings if one.is_heard and (why := _lacks(one.context))
    ]


def _told(answers: ResultFile, lacking: Sequence[tuple[HeardRecording, str]]) -> str:
    """How many recordings lack time or place, of how many, and the first of them."""
    heard = sum(one.is_heard for one in answers.recordings)
    first, why = lacking[0]
    return (
        f"{len(lacking)} of {heard} lack them, such as {printable(first.name)}, which has no {why}"
    )


def _media(answers: ResultFile) -> list[Media]:
    """The recordings with answers, time and place. Raises UsageError where none has both."""
    lacking = _lacking(answers)
    without = {one.path for one, _ in lacking}
    heard = [one for one in answers.recordings if one.is_heard and one.path not in without]
    if lacking and not heard:
        raise UsageError(
            f"{answers.path}: Camtrap DP needs the time and place of recordings, and "
            f"{_told(answers, lacking)}; "
            "ask with --deployments TABLE, which gives sites, coordinates and zones"
        )
    named = [one.as_posix() for one in below_shared(one.path for one in heard)]
    return [
        Media(digest([name], size=8).hex(), "", _shared(name), _begin(one.context), one)
        for one, name in zip(heard, named, strict=True)
    ]


def _lacks(context: Mapping[str, Any]) -> str:
    """What a context lacks for a deployment; nothing where it has all."""
    if not context.get("utc_time"):
        return "clock time with a zone"
    return "latitude and longitude" if None in _position(context) else ""


def _position(context: Mapping[str, Any]) -> tuple[float | None, float | None]:
    return context.get("latitude"), context.get("longitude")


def _begin(context: Mapping[str, Any]) -> datetime:
    """When a recording began, by the clock of its place where that is known, else in UTC."""
    moment = datetime.fromisoformat(str(context["utc_time"]).replace("Z", "+00:00"))
    local = context.get("local_time")
    zone = datetime.fromisoformat(str(local)).tzinfo if local else None
    return moment.astimezone(zone or timezone.utc)


def _shared(name: str) -> str:
    """A path as the standard has it: no dot or tilde at its begin, no two dots in it."""
    name = name.replace("..", "%2E%2E")
    return f"%{ord(name[0]):X}{name[1:]}" if name[0] in "./~" else name


def _place(media: Media) -> tuple[Any, ...]:
    context = media.recording.context
    return (context.get("site") or "", *_position(context), context.get("recorder") or "")


def _deployments(media: Sequence[Media]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of deployments, by `_place`: a recorder at a place, from its first recording to the
    end of its last."""
    groups: dict[tuple[Any, ...], list[Media]] = {}
    for one in media:
        groups.setdefault(_place(one), []).append(one)
    often = Counter(site for site, *_ in groups)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    taken: set[str] = set()
    for place, some in sorted(groups.items(), key=lambda item: str(item[0])):
        site, latitude, longitude, recorder = place
        name = one_line(str(site)) or f"{latitude:g},{longitude:g}"
        if often[site] > 1 and recorder:
            name = f"{name}_{one_line(str(recorder))}"
        free, count = name, 1
        while free in taken:
            count += 1
            free = f"{name}_{count}"
        taken.add(free)
        found[place] = {
            "deploymentID": free,
            "locationID": site,
            "locationName": site,
            "latitude": float(latitude),
            "longitude": float(longitude),
            "deploymentStart": _down(min(one.begin for one in some)),
            "deploymentEnd": _up(max(_after(one.begin, one.recording.seconds) for one in some)),
            "deviceID": recorder,
            "habitat": str(some[0].recording.context.get("habitat") or ""),
            "deploymentComments": "From the first recording to the end of the last.",
        }
    return found


def _media_row(one: Media) -> dict[str, Any]:
    recording = one.recording
    is_there = not recording.error  # otherwise rate and channels are not those of the file
    return {
        "mediaID": one.id,
        "deploymentID": one.deployment,
        "timestamp": _down(one.begin),
        "duration": float(recording.seconds),
        "filePath": one.path,
        "filePublic": False,
        "fileName": Path(recording.path).name,
        "fileMediatype": _mediatype(recording.path),
        "samplingFrequency": round(recording.sample_rate) if is_there else None,
        "channels": recording.channels if is_there else None,
    }


def _mediatype(path: str) -> str:
    suffix = Path(path).suffix.lower()
    known = _SUFFIXES.get(suffix) or mimetypes.types_map.get(suffix, "")
    is_media = known.startswith(("audio/", "video/"))
    return known if is_media else f"audio/{suffix[1:] or 'basic'}"


# Observations


def _observations(
    answers: ResultFile, media: Sequence[Media], names: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """What was heard, recording by recording; fills `names`: common ones by scientific name."""
    answers.left_out.clear()
    for one in media:
        part, count = answers.of(one.recording), 0
        for count, found in enumerate(part, start=1):
            if found.scientific_name:
                names.setdefault(found.scientific_name, found.common_name)
            yield _observation(one, found, f"{one.id}-{count}", answers.model)
        if not count:
            yield {
                **_about(one, 0.0, one.recording.seconds, answers.model),
                "observationID": f"{one.id}-0",
                "observationLevel": "media",
                "observationType": "blank",
            }
        answers.left_out.update(part.left_out)


def _about(media: Media, start: float, end: float, model: str) -> dict[str, Any]:
    return {
        "deploymentID": media.deployment,
        "mediaID": media.id,
        "eventStart": _down(_after(media.begin, start)),
        "eventEnd": _up(_after(media.begin, end)),
        "classificationMethod": "machine",
        "classifiedBy": one_line(f"{model} (NatureLM {NatureLM.__version__})"),
    }


def _observation(media: Media, found: Detection, name: str, model: str) -> dict[str, Any]:
    tags = {"mediaStart": number(found.start), "mediaEnd": number(found.end)}
    if found.label != found.scientific_name:
        tags["label"] = found.label
    if found.question:
        tags["question"] = found.question
    if found.windows is not None:
        tags["windows"] = str(found.windows)
    return {
        **_about(media, found.start, found.end, model),
        "observationID": name,
        "observationLevel": "interval",
        "observationType": "animal" if found.scientific_name else "unclassified",
        "scientificName": found.scientific_name,
        "frequencyLow": found.low_hz,
        "frequencyHigh": found.high_hz,
        "classificationProbability": found.confidence,
        "observationTags": " | ".join(
            f"{key}:{one_line(value).replace('|', '/')}" for key, value in tags.items()
        ),
    }


def _after(begin: datetime, seconds: float) -> datetime:
    return begin + timedelta(microseconds=round(seconds * 1e6))


def _down(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


def _up(moment: datetime) -> datetime:
    return moment if not moment.microsecond else _down(moment) + timedelta(seconds=1)


# The package


def _package(
    answers: ResultFile,
    deployments: Sequence[Mapping[str, Any]],
    media: Sequence[Media],
    names: Mapping[str, str],
) -> dict[str, Any]:
    """What `datapackage.json` says."""
    stem = "".join(c if c.isalnum() and c.isascii() else "-" for c in answers.path.stem.lower())
    ends = ("deploymentStart", "deploymentEnd")
    days = [one[name].date().isoformat() for one in deployments for name in ends]
    contexts = [one.recording.context for one in media]
    return {
        "resources": [_resource(table) for table in TABLES],
        "profile": PROFILE,
        "name": stem,
        "created": _cell(_down(datetime.now(timezone.utc))),
        "contributors": [{"title": "unknown", "role": "contributor"}],
        "sources": [{"title": "NatureLM", "version": NatureLM.__version__}],
        "project": {
            "title": answers.path.stem,
            "samplingDesign": "opportunistic",
            "captureMethod": ["timeLapse"],
            "individualAnimals": False,
            "observationLevel": ["interval", "media"],
        },
        "spatial": {
            "type": "MultiPoint",
            "coordinates": sorted({(one["longitude"], one["latitude"]) for one in contexts}),
        },
        "temporal": {"start": min(days, default=""), "end": max(days, default="")},
        "taxonomic": [
            {
                "scientificName": name,
                **({"vernacularNames": {"eng": common}} if common not in ("", name) else {}),
            }
            for name, common in sorted(names.items())
        ],
    }


def _resource(table: str) -> dict[str, Any]:
    return {
        "name": table,
        "path": f"{table}.csv",
        "profile": "tabular-data-resource",
        "format": "csv",
        "mediatype": "text/csv",
        "encoding": "utf-8",
        "schema": schemas()[table],
    }


# Reading


def read(path: Path) -> Iterator[Detection]:
    """What was observed in media, of a folder or .zip. Raises DataError.

    Observations without media, blank ones and those without a name are left out.
    """
    if path.is_dir():
        yield from _read(path, path)
        return
    with tempfile.TemporaryDirectory() as made:
        _unpack(path, Path(made))
        try:
            yield from _read(Path(made), path)
        except DataError as error:  # which names the table where it was unpacked
            raise DataError(str(error).replace(made, str(path))) from None


def _unpack(path: Path, folder: Path) -> None:
    """Write the tables that are read. Raises DataError for what is no .zip, or swells too much."""
    try:
        left = _LEAST_UNPACKED + _MOST_TIMES * path.stat().st_size
        with zipfile.ZipFile(path) as file:
            inside = {Path(name).name: name for name in file.namelist()}
            for name in (f"{table}.csv" for table in TABLES[1:]):
                if name not in inside:
                    raise DataError(f"{path}: has no {name}, so it is no Camtrap DP")
                with file.open(inside[name]) as packed, (folder / name).open("wb") as table:
                    while block := packed.read(1 << 20):
                        left -= len(block)
                        if left < 0:
                            raise DataError(
                                f"{path}: {name} has more than {_MOST_TIMES} times the bytes of "
                                "the .zip, as no table has; unpack it, and name the folder"
                            )
                        table.write(block)
    except _NO_ZIP as error:
        raise DataError(f"{path}: cannot be read as a .zip ({one_line(str(error))})") from None


def _read(folder: Path, path: Path) -> Iterator[Detection]:
    """The tables of `folder`; relative paths of media count from `path` or the folder it is in."""
    base = path if path.is_dir() else path.parent
    media = {row["mediaID"]: (where, row) for where, row in _rows(folder, "media")}
    for where, row in _rows(folder, "observations"):
        if not row["mediaID"] or row["observationType"] == "blank":
            continue
        if row["mediaID"] not in media:
            raise DataError(f"{where}: no media have the mediaID {shown(row['mediaID'])}")
        place, one = media[row["mediaID"]]
        tags = _tags(row.get("observationTags", ""))
        label = tags.get("label") or row["scientificName"]
        if row["observationType"] in ("human", "vehicle"):
            label = label or row["observationType"]
        if not label:
            continue
        start, end = _stretch(row, where, one, place, tags)
        name = one["filePath"]
        latin = {"scientific_name": row["scientificName"]} if row["scientificName"] else {}
        yield Detection.named(
            label,
            audio_path=recording_of(base / "x", unquote(name) if "%2E" in name else name),
            start=start,
            end=end,
            confidence=_number(row, "classificationProbability", where),
            question=tags.get("question", ""),
            low_hz=_number(row, "frequencyLow", where),
            high_hz=_number(row, "frequencyHigh", where),
            note=row.get("observationComments", ""),
            windows=int(tags["windows"]) if _COUNT.fullmatch(tags.get("windows", "")) else None,
            context={
                "site": row["deploymentID"],
                "local_time": row["eventStart"],
                "utc_time": _cell(_moment(row, "eventStart", where).astimezone(timezone.utc)),
            },
            **latin,
        )


def _rows(folder: Path, table: str) -> Iterator[tuple[str, dict[str, str]]]:
    path = folder / f"{table}.csv"
    for line, row in read_table(path).rows:
        missing = [name for name in _NEEDED[table] if name not in row]
        if missing:
            raise DataError(f"{path}: has no column {', '.join(missing)}")
        yield f"{path}, line {line}", {name: with_formula(cell) for name, cell in row.items()}


_NEEDED = {
    "media": ("mediaID", "timestamp", "filePath"),
    "observations": (
        *("deploymentID", "mediaID", "eventStart", "eventEnd"),
        *("observationType", "scientificName"),
    ),
}


def _tags(text: str) -> dict[str, str]:
    found = (tag.strip().partition(":") for tag in text.split("|"))
    return {key: value for key, _, value in found if value}


def _stretch(
    row: Mapping[str, str],
    where: str,
    media: Mapping[str, str],
    place: str,
    tags: Mapping[str, str],
) -> tuple[float, float]:
    """Seconds in the recording: by its tags, else by the clock."""
    if "mediaStart" in tags and "mediaEnd" in tags:
        with suppress(ValueError):
            start, end = float(tags["mediaStart"]), float(tags["mediaEnd"])
            if 0 <= start <= end < math.inf:
                return start, end
    begin = _moment(media, "timestamp", place)
    start, end = (
        (_moment(row, name, where) - begin).total_seconds() for name in ("eventStart", "eventEnd")
    )
    if start < 0 or end < start:
        raise DataError(f"{where}: the event is not within its media, which began at {begin}")
    return start, end


def _moment(row: Mapping[str, str], name: str, where: str) -> datetime:
    text = row[name]
    with suppress(ValueError, OverflowError):
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
        if found.tzinfo is not None:
            found.astimezone(timezone.utc)  # which the first and last days of all do not have
            return found
    raise DataError(f"{where}: {name} is {shown(text)}: a time with its zone is needed")


def _number(row: Mapping[str, str], name: str, where: str) -> float | None:
    text = row.get(name, "")
    with suppress(ValueError):
        value = float(text or "0")
        if math.isfinite(value):
            return value if text else None
    raise DataError(f"{where}: {name} is {shown(text)}: a number is needed")

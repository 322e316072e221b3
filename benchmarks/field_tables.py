"""Whether each exported table tells the times of a made season rightly; see `field_checks`.

Each check reads a table by its own header, finds the detections in it, which must be those of the
answers, and compares the times that the format has besides.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from field_archive import Truth
from field_checks import (
    Findings,
    Season,
    Stretch,
    check_context,
    check_stretches,
    moment,
    rows,
    shown,
    week,
)

LONGEST_CLIP = 60.0  # seconds of events, of which longer ones are cut


@dataclass(frozen=True)
class Expected:
    """What a table is compared with.

    answers: the file that it was made of
    heard: the detections in it
    spans: all its rows, as recording, start and end
    """

    season: Season
    answers: Path
    heard: Counter[Stretch]
    spans: Counter[tuple[str, float, float]]


def parts(path: Path, suffix: str, *, per_recording: bool) -> list[Path]:
    """The table, or those of a folder with a table for each recording."""
    return sorted(path.rglob(f"*{suffix}")) if per_recording else [path]


def table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a text table, by its header."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
        return list(csv.DictReader(file, delimiter=delimiter, quoting=quoting))


def _stretch(truth: Truth, start: Any, end: Any, label: str) -> Stretch:
    return truth.path, round(float(start), 3), round(float(end), 3), label


def _rows(
    paths: Sequence[Path], read: Callable[[Path], Iterable[Mapping[str, Any]]]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of tables, each with what it is called in findings."""
    for path in paths:
        for number, row in enumerate(read(path), start=1):
            yield f"{path.name}, row {number}", row


# Tables of all rows


def check_wide(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """CSV and Parquet: a line for each row, with its place and times as columns."""
    there: Counter[tuple[str, float, float]] = Counter()
    for what, row in _rows(paths, _wide_rows):
        truth = expected.season.of(row["recording"])
        if row.get("error"):
            found.same(f"{what}: {truth.path} is broken", bool(truth.broken), True)
            continue
        start, end = float(row["start"]), float(row["end"])
        there[truth.path, round(start, 3), round(end, 3)] += 1
        check_context(found, what, row, truth, start)
    found.same(f"{paths[0]}: rows that are missing", dict(expected.spans - there), {})
    found.same(f"{paths[0]}: rows too many", dict(there - expected.spans), {})


def _wide_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".csv":
        yield from table(path)
        return
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def check_jsonl(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """JSON lines: the answers as they are."""
    there: Counter[tuple[str, float, float]] = Counter()
    for what, row in _rows(paths, rows):
        if "error" in row:
            continue
        truth = expected.season.of(row["audio_path"])
        there[truth.path, round(row["start"], 3), round(row["end"], 3)] += 1
        check_context(found, what, row.get("context") or {}, truth, row["start"])
    found.same(f"{paths[0]}: rows", there == expected.spans, True)


# Tables of detections


def check_raven(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """Both ways to open it: by `Begin Path` and `File Offset (s)`, and as one sound by its list."""
    there = []
    for path in paths:
        begins = _begins(found, path, expected)
        for number, row in enumerate(table(path, "\t"), start=1):
            what = f"{path.name}, selection {number}"
            found.same(f"{what}: Selection", row["Selection"], str(number))
            truth = expected.season.of(row["Begin Path"])
            found.same(f"{what}: Begin File", row["Begin File"], Path(truth.path).name)
            offset, begin, end = (
                float(row[name]) for name in ("File Offset (s)", "Begin Time (s)", "End Time (s)")
            )
            found.near(f"{what}: Begin Time", begin, begins.get(truth.path, 0.0) + offset, 0.002)
            label = row.get("Common Name") or row.get("Scientific Name") or row["Annotation"]
            there.append(_stretch(truth, offset, offset + end - begin, label))
    check_stretches(found, paths[0].name, there, expected.heard)


def _begins(found: Findings, path: Path, expected: Expected) -> dict[str, float]:
    """Where each recording of the list beside a table begins, by the lengths of the files."""
    listed = path.with_name(path.name.removesuffix(".selections.txt") + ".files.txt")
    if not listed.is_file():
        return {}
    order = [expected.season.of(line) for line in listed.read_text("utf-8").splitlines()]
    good = [one.path for one in expected.season.good]
    found.same(listed.name, [one.path for one in order if not one.broken], good)
    begins = accumulate((_length(expected.season, one) for one in order), initial=0.0)
    return dict(zip((one.path for one in order), begins, strict=False))


def _length(season: Season, truth: Truth) -> float:
    """Seconds of a recording, of one that is cut off as its header says."""
    if truth.broken:
        return truth.seconds
    info = soundfile.info(season.full(truth))
    return float(info.frames / info.samplerate)


def check_birdnet(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """Its week is that of the local date; times are seconds of `File`."""
    there = []
    for what, row in _rows(paths, table):
        truth = expected.season.of(row["File"])
        start = float(row["Start (s)"])
        true = moment(truth, start)
        if row.get("week"):
            found.near(f"{what}: week", row["week"], week(true.local.date()))
        site = expected.season.site(truth)
        if row.get("lat"):
            found.near(f"{what}: lat", row["lat"], site.latitude)
            found.near(f"{what}: lon", row["lon"], site.longitude)
        there.append(_stretch(truth, start, row["End (s)"], row["Common name"]))
    check_stretches(found, paths[0].name, there, expected.heard)


def check_kaleidoscope(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """DATE, TIME and HOUR are local times of detections, those with -12 twelve hours earlier."""
    there = []
    for what, row in _rows(paths, table):
        truth = expected.season.of(str(Path(row["INDIR"], row["FOLDER"], row["IN FILE"])))
        start = float(row["OFFSET"])
        local = moment(truth, start).local.replace(tzinfo=None)
        for suffix, time in (("", local), ("-12", local - timedelta(hours=12))):
            if row.get(f"DATE{suffix}") is None:
                continue
            found.same(f"{what}: DATE{suffix}", row[f"DATE{suffix}"], f"{time:%Y-%m-%d}")
            found.same(f"{what}: TIME{suffix}", row[f"TIME{suffix}"], f"{time:%H:%M:%S}")
            found.near(f"{what}: HOUR{suffix}", row[f"HOUR{suffix}"], time.hour)
        label = row.get("AUTO ID*") or row.get("TOP1MATCH") or ""
        there.append(_stretch(truth, start, start + float(row["DURATION"]), label))
    check_stretches(found, paths[0].name, there, expected.heard)


def check_crowsetta(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """Onsets and offsets are seconds of `notated_path`."""
    there = [
        _stretch(
            expected.season.of(row["notated_path"]), row["onset_s"], row["offset_s"], row["label"]
        )
        for _, row in _rows(paths, table)
    ]
    check_stretches(found, paths[0].name, there, expected.heard)


def check_opensoundscape(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """A line for each window that was heard."""
    there = Counter(
        _stretch(expected.season.of(row["file"]), row["start_time"], row["end_time"], "")[:3]
        for _, row in _rows(paths, table)
    )
    found.times += 2 * expected.spans.total()
    # Windows with two answers have one line.
    found.same(f"{paths[0].name}: windows", set(there), set(expected.spans))


def check_ecosounds(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """Offsets are seconds of a recording, which is known by the name of its file alone."""
    there = [
        (
            row["filename"],
            round(float(row["start_offset_seconds"]), 3),
            round(float(row["end_offset_seconds"]), 3),
            row["Common name"] or row["Scientific name"],
        )
        for _, row in _rows(paths, table)
    ]
    named: Counter[Stretch] = Counter()
    for (path, *stretch), number in expected.heard.items():
        named[(Path(path).name, *stretch)] += number
    check_stretches(found, paths[0].name, there, named)


def check_audacity(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """A label track a recording, which is called like it and lies as it does."""
    known = {name: one for one in expected.season.truths.values() for name in _called(one)}
    there = []
    for path in paths:
        truth = known["/".join(path.parts[-3:]).removesuffix(".txt")]
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("\\"):
                start, end, label = line.split("\t")
                there.append(_stretch(truth, start, end, label))
    check_stretches(found, paths[0].name, there, expected.heard)


def _called(truth: Truth) -> tuple[str, str]:
    return truth.path, str(Path(truth.path).with_suffix(""))


def check_camtrap(found: Findings, paths: Sequence[Path], expected: Expected) -> None:
    """Moments with a zone, of whole seconds: begins are rounded down and ends up."""
    (path,) = paths
    media = {row["mediaID"]: row for row in table(path / "media.csv")}
    deployments = {row["deploymentID"]: row for row in table(path / "deployments.csv")}
    truths = {}
    for name, row in media.items():
        truth = truths[name] = expected.season.ending(row["filePath"])
        what = f"media.csv, {truth.path}"
        found.same(f"{what}: timestamp", _utc(row["timestamp"]), moment(truth, 0.0).utc)
        found.near(f"{what}: duration", row["duration"], truth.seconds, 0.001)
        place = deployments[row["deploymentID"]]
        found.same(f"{what}: site", place["locationName"], truth.site)
        inside = _utc(place["deploymentStart"]) <= _utc(row["timestamp"])
        found.same(f"{what}: within its deployment", inside, True)
    there = []
    for number, row in enumerate(table(path / "observations.csv"), start=1):
        if row["observationType"] == "blank":
            continue
        truth = truths[row["mediaID"]]
        tags = dict(re.findall(r"(\w+):([^|]*?)(?: \||$)", row["observationTags"]))
        label = tags.get("label") or row["scientificName"]
        start, end = float(tags["mediaStart"]), float(tags["mediaEnd"])
        there.append(_stretch(truth, start, end, label))
        begins, ends = moment(truth, start).utc, moment(truth, end).utc
        what = f"observations.csv, row {number}"
        found.same(f"{what}: eventStart", _utc(row["eventStart"]), begins.replace(microsecond=0))
        up = timedelta(seconds=1 if ends.microsecond else 0)
        found.same(f"{what}: eventEnd", _utc(row["eventEnd"]), ends.replace(microsecond=0) + up)
    known = Counter(
        {key: count for key, count in expected.heard.items() if expected.season.has_utc(key[0])}
    )
    check_stretches(found, path.name, there, known)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(timezone.utc)


CHECKS: dict[str, Callable[[Findings, Sequence[Path], Expected], None]] = {
    "csv": check_wide,
    "parquet": check_wide,
    "jsonl": check_jsonl,
    "raven": check_raven,
    "audacity": check_audacity,
    "birdnet": check_birdnet,
    "kaleidoscope": check_kaleidoscope,
    "crowsetta": check_crowsetta,
    "opensoundscape": check_opensoundscape,
    "ecosounds": check_ecosounds,
    "camtrap-dp": check_camtrap,
}


def check_report(found: Findings, folder: Path, expected: Expected) -> None:
    """What a report counts by day and hour, and when it says that recordings began."""
    heard: Counter[tuple[str, str, str]] = Counter()
    named: Counter[tuple[str, str, str, str]] = Counter()
    for row in rows(expected.answers):
        if "error" in row or row.get("note"):
            continue
        truth = expected.season.of(row["audio_path"])
        local = moment(truth, row["start"]).local
        hour = truth.site, f"{local:%Y-%m-%d}", str(local.hour)
        heard[hour] += 1
        label = row["answers"].get("species")
        if label not in (None, "None"):
            named[(label, *hour)] += 1
    effort = table(folder / "effort.csv")
    there = {(row["site"], row["day"], row["hour"]): int(row["windows heard"]) for row in effort}
    found.same("effort.csv", there, dict(heard))
    found.times += len(there)
    hours = [row for row in table(folder / "by-hour-and-day.csv") if int(row["windows"])]
    drawn = {row["name"] for row in hours}
    there_named = {
        (row["name"], row["site"], row["day"], row["hour"]): int(row["windows"]) for row in hours
    }
    true = {key: number for key, number in named.items() if key[0] in drawn}
    found.same("by-hour-and-day.csv", there_named, true)
    found.times += len(true)
    for row in table(folder / "recordings.csv"):
        truth = expected.season.of(row["recording"])
        if not truth.broken:
            local = moment(truth, 0.0).local.replace(tzinfo=None)
            found.same(f"recordings.csv, {truth.path}: began", row["began"], shown(local))
            found.near(f"recordings.csv, {truth.path}: seconds", row["seconds"], truth.seconds)


def check_clips(found: Findings, folder: Path, season: Season) -> None:
    """The index of a folder of clips: its times, and whether clips sound as their recordings."""
    for row in table(folder / "segments.csv"):
        truth = season.of(row["recording"])
        what, start = f"segments.csv, {row['clip']}", float(row["start"])
        found.same(f"{what}: site", row["site"], truth.site)
        found.same(f"{what}: local_time", row["local_time"], shown(moment(truth, start).local))
        begin, end = float(row["clip_start"]), float(row["clip_end"])
        is_cut = float(row["end"]) - start > LONGEST_CLIP
        is_around = begin <= start and (float(row["end"]) <= end or is_cut)
        is_around &= end <= truth.seconds + 0.001
        found.same(f"{what}: is around its event", is_around, True)
        samples, rate = soundfile.read(folder / row["clip"], dtype="int16")
        found.near(f"{what}: its length", len(samples) / rate, end - begin, 0.002)
        there = None
        if not truth.broken:
            there = _sound(season.full(truth), begin, len(samples), rate)
        if there is not None:
            most = int(np.abs(there.astype(int) - samples).max(initial=0))
            found.near(f"{what}: its samples", most, 0, 2)


def _sound(path: str, start: float, length: int, rate: int) -> Any:
    """The samples of a recording from a time on; None where the clip has another rate."""
    with soundfile.SoundFile(path) as file:
        first = round(start * file.samplerate)
        if file.frames > 600 * file.samplerate:
            file.seek(first)
        else:  # of MP3 no place is found exactly
            file.read(first, dtype="int16")
        samples = file.read(length, dtype="int16")
        return samples if file.samplerate == rate and len(samples) == length else None

"""Label tracks of Audacity: start, end and text, a line each, of the one recording that is open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from NatureLM.data.annotations import is_label_track, label_rows, named_like
from NatureLM.data.table import DataError, decoded, read_bytes
from NatureLM.errors import UsageError
from NatureLM.formats.annotated import positive, share_of
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.tables import both_names, one_line, write_table


def write(answers: ResultFile, target: Path) -> int:
    """A label for each detection of one recording, by start; how many. Raises OutputError.

    Frequencies stand on a line of their own below a label, as Audacity has them. Raises UsageError
    for several recordings.
    """
    recordings = answers.recordings
    if len(recordings) > 1:
        raise UsageError(
            f"{target}: labels of Audacity name no recording, and there are {len(recordings)}: "
            "write a file for each with --per-recording"
        )
    return write_table(target, "utf-8", lambda file: _write_labels(answers, file))


def _write_labels(answers: ResultFile, file: TextIO) -> int:
    count = 0
    for count, one in enumerate(sorted(answers, key=lambda one: one.start), start=1):  # noqa: B007
        file.write(f"{one.start:.6f}\t{one.end:.6f}\t{one_line(one.label)}\n")
        if one.low_hz is not None or one.high_hz is not None:
            low, high = (-1.0 if hz is None else hz for hz in (one.low_hz, one.high_hz))
            file.write(f"\\\t{low:.6f}\t{high:.6f}\n")
    return count


def read(path: Path) -> Iterator[Detection]:
    """The labels, those that mark a point among them. Raises DataError.

    Their recording is the one beside the file that is called like it, or has its name at least.
    """
    text, _ = decoded(read_bytes(path), path)
    if text.strip() and not is_label_track(text):
        raise DataError(f"{path}, line 1: is no label of Audacity: start, end and text, with tabs")
    beside = named_like(path, path.parent)
    recording = path.stem if beside is None else str(path.parent / beside)
    for number, row in label_rows(text, path, recording):
        where = f"{path}, line {number}"
        start, end = (positive(row[key], decimal_comma=True) for key in ("start", "end"))
        if start is None or end is None or end < start:
            raise DataError(
                f"{where}: a label from {row['start']} to {row['end']}; times are seconds of 0 or "
                "more, the end not before the start"
            )
        common, latin = both_names(row["label"]) if row["label"] else ("", "")
        yield Detection(
            audio_path=recording,
            start=start,
            end=end,
            label=row["label"],
            confidence=share_of(row.get("confidence", ""), decimal_comma=True),
            common_name=common,
            scientific_name=row.get("scientific_name", latin),
            low_hz=positive(row.get("low_freq", ""), decimal_comma=True),
            high_hz=positive(row.get("high_freq", ""), decimal_comma=True),
        )

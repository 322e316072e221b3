"""Rows and result files for tests of what reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from NatureLM.results.detections import ResultFile
from NatureLM.results.rows import (
    ErrorRow,
    Row,
    RunSettings,
    SurveyRow,
    WindowRow,
    to_line,
    write_record,
)


def window(path: str = "a.wav", start: float = 0.0, end: float = 10.0, **changes: Any) -> WindowRow:
    """An answer to a query."""
    values = {"query": "What?", "text": "Wolf", "merging_alpha": 0.4, "model": "m", "run": "r"}
    return WindowRow(audio_path=path, start=start, end=end, **{**values, **changes})


def survey(start: float, answers: dict[str, Any], **changes: Any) -> SurveyRow:
    """Answers to a questionnaire about 5 s of `/card/a.wav`."""
    values: dict[str, Any] = {"audio_path": "/card/a.wav", "model": "m", "run": "r"}
    values |= {"start": start, "end": start + 5, "answers": answers, "merging_alpha": 0.4}
    return SurveyRow(**{**values, **changes})


def error(path: str, text: str = "the file is empty") -> ErrorRow:
    """A recording that could not be read."""
    return ErrorRow(path, text, "EmptyAudio", 0.4, model="m", run="r")


def result_file(
    folder: Path,
    *rows: Row,
    settings: dict[str, Any] | None = None,
    asked: dict[str, Any] | None = None,
) -> ResultFile:
    """A result file of the rows, with its settings, and what was asked for, beside it."""
    path = folder / "answers.jsonl"
    path.write_bytes(b"".join(map(to_line, rows)))
    write_record(path, RunSettings(settings or {}, asked or {}, folder=str(folder)))
    return ResultFile(path)

"""Answers about recordings, with places and times, as infer, survey and events write them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from result_files import result_file

from NatureLM.results.rows import ErrorRow, Row, SurveyRow, WindowRow

QUESTION = "What is heard?"
SUNSET = 21.0  # hours of the day, at all sites
SECONDS = 20  # of a recording
RUN: dict[str, Any] = {"merging_alpha": 0.9, "model": "naturelm-tiny", "run": "r"}


def sound(
    folder: Path, rate: int = 16_000, hertz: float = 2000.0, seconds: float = SECONDS
) -> Path:
    """A recording with a call in the middle."""
    path = folder / f"sound-{rate}.wav"
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * hertz * time) * (abs(time - seconds / 2) < seconds / 20)
    soundfile.write(path, wave + 0.001 * np.sin(time * 9), rate)
    return path


def recording(folder: Path, name: str, source: Path | None = None) -> str:
    """A recording of that name, which is a link to one sound, so that many cost nothing."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if source is not None and not path.exists():
        os.link(source, path)
    return str(path)


def moment(site: str, began: datetime | None, seconds: float = 0) -> dict[str, Any]:
    """The context of a moment, so many seconds after a recording began."""
    if began is None:
        return {"site": site} if site else {}
    time = began + timedelta(seconds=seconds)
    hours = (time.hour + time.minute / 60 + time.second / 3600 - SUNSET + 12) % 24 - 12
    said: dict[str, Any] = {"local_time": time.isoformat(), "utc_time": f"{time.isoformat()}Z"}
    said["hours_after_sunset"] = round(hours, 2)
    return {"site": site, **said} if site else said


def window(
    path: str, start: float, text: str, context: Mapping[str, Any], **more: Any
) -> WindowRow:
    """An answer about ten seconds."""
    known: dict[str, Any] = {"query": QUESTION, "context": context or None, **RUN, **more}
    return WindowRow(audio_path=path, start=start, end=start + 10.0, text=text, **known)


def survey(path: str, start: float, answers: Mapping[str, Any], **more: Any) -> SurveyRow:
    """All answers about ten seconds."""
    return SurveyRow(
        audio_path=path, start=start, end=start + 10.0, answers=answers, **{**RUN, **more}
    )


def error(path: str, message: str = "the file is empty") -> ErrorRow:
    """A recording that could not be read."""
    return ErrorRow(path, f"{path}: {message}", "UnreadableAudio", **RUN)


def write(folder: Path, rows: Iterable[Row], *, asked: Any = None, **settings: Any) -> Path:
    """A file of answers with its settings."""
    known = {"window_length_seconds": 10.0, "weights": "0123456789abcdef" * 2, **settings}
    return result_file(folder, *rows, settings=known, asked=asked).path


def month(
    folder: Path, source: Path | None, days: int = 8, name: str = "Tawny Owl", sites: int = 2
) -> list[Row]:
    """Every night at 21, 23 and 1 h a recording of two windows at each site.

    The owl calls at 23 h, at the first site in both windows and at the others in the second one;
    on every fourth day nothing is recorded at the last site. A nightjar calls once.
    """
    rows: list[Row] = []
    places = ["Pond", "Ridge", "Quarry"][:sites]
    for day in range(days):
        for site in places:
            if day % 4 == 3 and site == places[-1] and sites > 1:
                continue
            for hour in (21, 23, 25):
                began = datetime(2024, 5, 1) + timedelta(days=day, hours=hour)
                path = recording(folder, f"{site}/{began:%Y%m%d_%H%M%S}.wav", source)
                for start in (0.0, 10.0):
                    calls = hour == 23 and (site == places[0] or start > 0)
                    text = name if calls else "None"
                    sure = round(0.5 + 0.05 * day, 2) if calls else None
                    if (day, site, hour, start) == (2, places[0], 21, 0.0):
                        text, sure = "European Nightjar", 0.4
                    context = moment(site, began, start)
                    rows.append(window(path, start, text, context, confidence=sure))
    return rows

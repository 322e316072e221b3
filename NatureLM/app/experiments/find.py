"""The runs and scored folders below a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from NatureLM.app.jobs.library import JOBS_FOLDER

SCORES_FILE = "metrics.json"
_DEEPEST = 4
_MOST = 500
_SAME_AGAIN = "reference_layout"
"""Copies of a run's answers in another layout."""


@dataclass(frozen=True)
class Found:
    """A folder to open.

    name: its path below the folder that was searched
    kind: `run`: answers to score; `scored`: what `beans score` wrote
    files: of answers, or of scores
    """

    name: str
    kind: Literal["run", "scored"]
    files: tuple[Path, ...]

    @property
    def identity(self) -> tuple[tuple[str, int, int], ...]:
        """Changes when a file does."""
        found = []
        for path in self.files:
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
        return tuple(found)


def find_experiments(folder: Path) -> list[Found]:
    """Runs and scored folders, by name; the jobs of the app are not among them."""
    if not folder.is_dir():
        return []
    found = []
    for place in _folders(folder, _DEEPEST):
        name = str(place.relative_to(folder))
        if (place / SCORES_FILE).is_file():
            found.append(Found(name, "scored", (place / SCORES_FILE,)))
            continue
        answers = tuple(path for path in sorted(place.glob("*.jsonl")) if _holds_answers(path))
        if answers:
            found.append(Found(name, "run", answers))
        if len(found) >= _MOST:
            break
    return found


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """The folder and those below it, in order; links lead nowhere."""
    yield folder
    if not depth:
        return
    try:
        children = sorted(
            (one for one in os.scandir(folder) if one.is_dir(follow_symlinks=False)),
            key=lambda one: one.name,
        )
    except OSError:
        return
    for child in children:
        if not child.name.startswith(".") and child.name not in (JOBS_FOLDER, _SAME_AGAIN):
            yield from _folders(Path(child.path), depth - 1)


def _holds_answers(path: Path) -> bool:
    """Whether the first row is an answer that can be scored."""
    if path.is_symlink():
        return False
    try:
        with open(path, "rb") as file:
            row = json.loads(file.readline(1 << 20))
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and {"prediction", "label", "id"} <= row.keys()

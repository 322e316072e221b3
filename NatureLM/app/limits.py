"""What the app accepts, and the sentences that say so.

Files that visitors give: checked, and kept under names that the app chooses.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from NatureLM.errors import NatureLMError
from NatureLM.util import format_bytes


class LimitError(NatureLMError):
    """Something is larger, longer or more than the app takes; the message says the limit."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one app. Seconds are of sound, bytes of files."""

    upload_bytes: int = 4 * 10**9
    """A recording, whichever tab it is dropped into."""
    ask_seconds: float = 300.0
    """A clip that is asked about directly; longer ones belong into Long recording."""
    clips: int = 10
    """Clips in one prompt."""
    question_characters: int = 2000
    """A question with all that is in it."""
    list_bytes: int = 10**6
    """A file with a list of species."""
    labels: int = 1000
    """Names in a list of species."""
    long_seconds: float = 24 * 3600.0
    """A recording in Long recording."""
    folder_files: int = 2000
    """Recordings in one job."""
    waiting_jobs: int = 8
    """Jobs that wait for the one that runs."""
    waiting_questions: int = 32
    """Questions that wait for an answer, of all visitors."""
    answers_at_once: int = 4
    """Questions that are worked on at the same time."""


def say_seconds(seconds: float) -> str:
    """A duration in words: `2 h 5 min`, `3 min 20 s`, `6.4 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"


_LONGEST_NAME = 120
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")


def shown_name(path: str | Path) -> str:
    """The name of a file as people know it: no folders, nothing unprintable, not too long."""
    name = re.split(r"[/\\]", str(path))[-1]
    name = "".join(c if c.isprintable() else "_" for c in name).strip() or "recording"
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 12]}…{name[-11:]}"
    return name


def take(upload: str | Path, folder: Path, limits: Limits) -> Path:
    """Keep an uploaded file in a folder under an unguessable name; the path there.

    The visitor's name of it gives no more than a plain suffix. Raises LimitError for a file that
    is too large.
    """
    source = Path(upload)
    size = source.stat().st_size
    if size > limits.upload_bytes:
        raise LimitError(
            f"{shown_name(source)} has {format_bytes(size)}, and a file may have "
            f"{format_bytes(limits.upload_bytes)} at most."
        )
    suffix = source.suffix if _SUFFIX.fullmatch(source.suffix) else ""
    kept = folder / f"{secrets.token_urlsafe(12)}{suffix.lower()}"
    folder.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, kept)
    return kept


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where that cannot be. Raises OSError."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def address(path: Path) -> str:
    """Where the browser finds a file, relative to the page."""
    from urllib.parse import quote

    return f"gradio_api/file={quote(str(path))}"

"""What the app accepts, and the sentences that say so."""

from __future__ import annotations

from dataclasses import dataclass

from NatureLM.errors import NatureLMError

__all__ = ["LimitError", "Limits", "say_seconds"]


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

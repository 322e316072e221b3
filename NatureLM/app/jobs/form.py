"""What a visitor fills in for a job, checked: a sentence for what cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from NatureLM.app.jobs.errors import JobError
from NatureLM.app.jobs.record import JobSettings
from NatureLM.app.limits import Limits
from NatureLM.infer import Choosing

DEFAULT_QUESTION = "What is the common name for the focal species in the audio?"
MOST_QUESTIONS = 10
_LONGEST_WINDOW = 10.0
_SHORTEST_WINDOW = 0.1
_SHORTEST_HOP = 0.1
_MOST_EXPANSION = 100.0
_MOST_CHANNELS = 1024


def make_settings(
    questions: str,
    alpha: Any,
    window: Any = 10.0,
    hop: Any = 10.0,
    channel: str = "mean",
    expansion: Any = 1.0,
    labels: Sequence[str] = (),
    sure: Any = 0.0,
    *,
    limits: Limits,
    longest_window: float = _LONGEST_WINDOW,
) -> JobSettings:
    """The settings of a job from the fields of its form.

    questions: one on each line
    labels: names that answers are chosen from; none for free answers
    sure: confidence below which an answer from `labels` is `None`
    longest_window: seconds that the model hears at once

    Raises JobError that names the field and what is allowed.
    """
    return JobSettings(
        queries=_questions(questions, limits),
        merging_alpha=_number("α", alpha, -10.0, 10.0),
        window_length_seconds=_number(
            "The length of a window", window, _SHORTEST_WINDOW, longest_window
        ),
        hop_length_seconds=_number("The step from window to window", hop, _SHORTEST_HOP, 3600.0),
        channel=_channel(channel),
        time_expansion=_number("The slowing down", expansion, 0.01, _MOST_EXPANSION),
        choosing=_choosing(labels, sure),
    )


def _questions(text: str, limits: Limits) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(line.strip() for line in (text or "").splitlines() if line.strip()))
    if not found:
        raise JobError(f"There is no question yet, such as: {DEFAULT_QUESTION}")
    if len(found) > MOST_QUESTIONS:
        raise JobError(f"{len(found)} questions are more than the {MOST_QUESTIONS} of one job.")
    longest = max(map(len, found))
    if longest > limits.question_characters:
        raise JobError(
            f"A question has {longest:,} characters, and {limits.question_characters:,} are the "
            "most that are taken."
        )
    return found


def _choosing(labels: Sequence[str], sure: Any) -> Choosing:
    if not labels:
        return Choosing()
    least = _number("The least confidence", sure, 0.0, 1.0)
    return Choosing("score", tuple(labels), min_confidence=least)


def _number(name: str, value: Any, least: float, most: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most:
        shown = "not filled in" if value in (None, "") else f"{value}"
        raise JobError(f"{name} is {shown}, and it must be a number from {least:g} to {most:g}.")
    return number


def _channel(value: str) -> str | int:
    if value == "mean":
        return value
    if str(value).isdecimal() and 1 <= int(value) <= _MOST_CHANNELS:
        return int(value)
    raise JobError(f"The channel is {value!r}, and it must be mean or a number from 1.")

"""What the timeline of a recording shows, as plain data for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from NatureLM.app.jobs.record import JobRecording
from NatureLM.app.jobs.view import JobView
from NatureLM.outputs import WindowRow

Colouring: TypeAlias = Literal["answer", "confidence"]

NAMED = 6
"""Answers that have a colour of their own: more could not be told apart."""
_OTHER = "other answers"
_STEPS = 5
_LONGEST = 300


def timeline(
    view: JobView, recording: JobRecording, query: str, colouring: Colouring = "answer"
) -> dict[str, Any]:
    """The windows of a recording that have an answer to one question, with their colours.

    `windows` are start and end (seconds of the recording), answer, confidence (0 to 1, or None) and
    place in `legend`; what has no answer yet is not among them.
    """
    rows = view.answers_of(recording, query)
    by_answer = colouring == "answer" or all(row.confidence is None for row in rows)
    legend, places = _by_answer(rows) if by_answer else _by_confidence(rows)
    return {
        "job": view.job.id,
        "recording": recording.file,
        "name": recording.name,
        "seconds": recording.seconds or 0.0,
        "legend": legend,
        "windows": [
            {
                "start": row.start,
                "end": row.end,
                "text": row.text[:_LONGEST],
                "confidence": row.confidence,
                "colour": place,
            }
            for row, place in zip(rows, places, strict=True)
        ],
    }


def _by_answer(rows: Sequence[WindowRow]) -> tuple[list[dict[str, Any]], list[int]]:
    counts = Counter(row.text for row in rows)
    # By number, then by name: the same answers have the same colours whenever one looks.
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    named = ordered[:NAMED]
    legend = [
        {"label": text[:_LONGEST] or "(nothing)", "style": f"series-{n}", "count": counts[text]}
        for n, text in enumerate(named)
    ]
    if len(ordered) > NAMED:
        rest = sum(counts[text] for text in ordered[NAMED:])
        legend.append({"label": _OTHER, "style": "other", "count": rest})
    places = {text: n for n, text in enumerate(named)}
    return legend, [places.get(row.text, NAMED) for row in rows]


def _by_confidence(rows: Sequence[WindowRow]) -> tuple[list[dict[str, Any]], list[int]]:
    steps = [_step(row.confidence) for row in rows]
    counts = Counter(steps)
    legend = [
        {
            "label": f"{100 * n // _STEPS} to {100 * (n + 1) // _STEPS} %",
            "style": f"step-{n}",
            "count": counts[n],
        }
        for n in range(_STEPS)
    ]
    if counts[_STEPS]:
        legend.append({"label": "not known", "style": "other", "count": counts[_STEPS]})
    return legend, steps


def _step(confidence: float | None) -> int:
    return _STEPS if confidence is None else max(0, min(_STEPS - 1, int(confidence * _STEPS)))

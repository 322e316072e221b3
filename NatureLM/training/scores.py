"""Scores of evaluations during training: metrics of the project's own, as names and numbers.

A score with an interval has two more entries, `<name>_low` and `<name>_high`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from NatureLM.metrics import accuracy, clustered_interval, macro_accuracy

LOW, HIGH = "_low", "_high"
_RESAMPLES = 500  # half a second for a thousand answers


class Answered(NamedTuple):
    """An answer that was generated: to which row, right or not, what was asked for, its cluster."""

    id: str
    correct: bool
    label: str
    cluster: str


def answer_scores(answered: Sequence[Answered]) -> dict[str, float]:
    """Accuracy and macro accuracy (over the true answers) with 95 % intervals over clusters.

    Clips of one recording (`group`) succeed or fail together, so clusters are resampled. Empty
    where nothing was answered.
    """
    if not answered:
        return {}
    rows = sorted(answered)  # so that processes and batches do not matter
    correct = np.array([row.correct for row in rows], dtype=np.float64)
    labels = np.array([row.label for row in rows])
    clusters = [row.cluster for row in rows]
    statistics = {
        "accuracy": lambda weights: accuracy(correct, weights),
        "macro_accuracy": lambda weights: macro_accuracy(correct, labels, weights),  # type: ignore[arg-type]
    }
    scores: dict[str, float] = {}
    for name, statistic in statistics.items():
        found = clustered_interval(statistic, clusters, repeats=_RESAMPLES)
        scores |= {name: found.value, name + LOW: found.low, name + HIGH: found.high}
    return scores


def lines(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """(name in words, value in words with its interval) of every score."""
    for name, value in scores.items():
        if name.endswith((LOW, HIGH)):
            continue
        text = f"{value:.4f}"
        if name + LOW in scores:
            text += f" [{scores[name + LOW]:.3f}, {scores[name + HIGH]:.3f}]"
        yield name.replace("_", " "), text


def shown(scores: Mapping[str, float]) -> str:
    """All scores in one line."""
    return ", ".join(f"{name} {text}" for name, text in lines(scores))

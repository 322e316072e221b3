"""What scoring gives: the samples of a group once their answers are read, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from NatureLM.beans.components import Task
from NatureLM.beans.scoring.answers import Key
from NatureLM.metrics.confusion import ClassCounts

METRICS = ("accuracy", "precision", "recall", "f1", "top1", "map", "cider", "spice")
"""All metrics of a record, in order; those that a task does not have are null."""

Floats: TypeAlias = npt.NDArray[np.float64]
Codes: TypeAlias = npt.NDArray[np.int32]
Interval: TypeAlias = tuple[float, float]
Values: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class ClassRow:
    """One label of a group: how often it is true, was answered, and was answered rightly."""

    label: str
    support: int
    predicted: int
    correct: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ConfusionRow:
    """How often something was answered where `label` is true."""

    label: str
    predicted: str
    count: int


class Samples(Protocol):
    """The samples of one group after a protocol has read their answers; one class for each task."""

    @property
    def predicted(self) -> list[str]:
        """What each answer was taken for, (samples,)."""

    @property
    def correct(self) -> Floats:
        """1 where the answer is right, else 0; for captions their score. (samples,)"""

    def metrics(self) -> Values:
        """The metrics of the task."""

    def resampled(self, clusters: Codes, resamples: int, seed: int) -> dict[str, Floats]:
        """The metrics of each bootstrap resample, (resamples,) each."""

    def baselines(self, seed: int) -> dict[str, Values]:
        """The metrics of answers without listening: "majority" and "random"."""

    def class_rows(self) -> list[ClassRow]:
        """A row for each label that is true or was answered somewhere."""

    def confusion_rows(self) -> list[ConfusionRow]:
        """The cells of the confusion matrix that are not empty."""


@dataclass(frozen=True)
class GroupScore:
    """The scores of one group under one protocol.

    ids, labels, answers: of the samples, in the order of their ids
    metrics, intervals, baselines: by the names of METRICS; only those that the task has
    clusters, cluster_by: how many clusters the intervals rest on, and the column that made them
    cluster_codes: number of each sample's cluster from 0, (samples,)
    candidates: the labels that answers are compared with
    prompt: what the first sample was asked, where the rows tell
    """

    key: Key
    task: Task
    protocol: str
    ids: list[str]
    labels: list[str]
    answers: list[str]
    samples: Samples
    metrics: Values
    intervals: dict[str, Interval | None]
    baselines: dict[str, Values]
    clusters: int
    cluster_by: str
    cluster_codes: Codes
    candidates: tuple[str, ...]
    prompt: str | None


def class_rows(counts: ClassCounts, labels: Sequence[str]) -> list[ClassRow]:
    """Rows from the counts of each label, (labels,)."""
    columns = (counts.precision, counts.recall, counts.f1)
    return [
        ClassRow(
            label,
            int(counts.true[code]),
            int(counts.predicted[code]),
            int(counts.hits[code]),
            *(float(column[code]) for column in columns),
        )
        for code, label in enumerate(labels)
        if counts.true[code] or counts.predicted[code]
    ]

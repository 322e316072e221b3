"""`score`: files of answers to metrics, intervals and baselines of each group, under protocols."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from NatureLM.data.components import METRICS, Task
from NatureLM.evaluation.answers import (
    Answers,
    Group,
    Key,
    ReadOptions,
    find_files,
    load_answers,
    split_labels,
)
from NatureLM.evaluation.bootstrap import BootstrapOptions, Estimate, Floats, percentile_interval
from NatureLM.evaluation.captions import find_spice
from NatureLM.evaluation.names import InvalidRow, OnError, Problem, rename
from NatureLM.evaluation.protocols import NO_LABEL, Codes, Matcher, Protocol
from NatureLM.evaluation.tasks import Captions, LabelSets, Samples, SingleLabels, Values

Interval: TypeAlias = tuple[float, float]
Spice: TypeAlias = Callable[[Sequence[str], Sequence[str]], Floats]
"""Captions and references to the SPICE of each caption."""

CIDER_OF_THE_BENCHMARK = 10.0
"""The benchmark divides CIDEr by this."""


@dataclass(frozen=True)
class GroupScore:
    """The scores of one group under one protocol.

    ids, labels, answers: of the samples, in the order of their ids
    metrics, intervals, baselines: by the names of METRICS; only those that the task has
    clusters, cluster_by: how many clusters the intervals rest on, and the column that made them
    cluster_codes: number of each sample's cluster from 0, (samples,)
    candidates: the labels that answers are compared with
    prompt: of the first sample, where the rows tell
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

    def estimate(self, metric: str) -> Estimate | None:
        """A metric with its interval; None where the group does not have it, or it is NaN."""
        value = self.metrics.get(metric, math.nan)
        if math.isnan(value):
            return None
        return Estimate(value, *(self.intervals.get(metric) or ()))


@dataclass(frozen=True)
class Scores:
    """All groups under all protocols, and what could not be scored.

    answers: how many were scored under each protocol
    remarks: what should be known besides
    """

    by: tuple[str, ...]
    groups: list[GroupScore]
    problems: list[Problem]
    answers: int
    remarks: list[str] = field(default_factory=list)

    def problem_kinds(self) -> dict[str, int]:
        """How many problems there are of each kind, by name."""
        return dict(sorted(Counter(problem.kind for problem in self.problems).items()))

    def records(self) -> list[dict[str, Any]]:
        """The records of `metrics.json`."""
        errors = Counter(problem.group for problem in self.problems)
        return [self._record(group, errors[group.key]) for group in self.groups]

    def _record(self, group: GroupScore, errors: int) -> dict[str, Any]:
        record: dict[str, Any] = {
            **key_columns(self.by, group.key),
            "protocol": group.protocol,
            "task": group.task,
            "n": len(group.ids),
            **{name: group.metrics.get(name) for name in METRICS},
        }
        if "cider" in group.metrics:
            record["cider_benchmark"] = group.metrics["cider"] / CIDER_OF_THE_BENCHMARK
        return record | {
            "intervals": {name: one and list(one) for name, one in group.intervals.items()},
            "clusters": group.clusters,
            "cluster_by": group.cluster_by,
            "baselines": group.baselines,
            "errors": len(self.problems),
            "errors_in_group": errors,
        }


def key_columns(by: Sequence[str], key: Key) -> dict[str, Any]:
    """The first columns of a group's record."""
    values = dict(zip(by, key[1:], strict=True))
    return {
        "dataset": key[0],
        "query": values.pop("query", None),
        "lora_scale": values.pop("lora_scale", None),
        **values,
    }


def score(
    paths: Sequence[str | Path],
    protocols: Sequence[Protocol],
    *,
    options: ReadOptions = ReadOptions(),  # noqa: B008 (frozen)
    bootstrap: BootstrapOptions = BootstrapOptions(),  # noqa: B008 (frozen)
    on_error: OnError = "fail",
) -> Scores:
    """Score the answers of all files, group by group.

    Raises NatureLMError at the first line that cannot be scored, unless `on_error` is "skip", and
    UsageError where nothing can be.
    """
    problems: list[Problem] | None = [] if on_error == "skip" else None
    return score_answers(load_answers(find_files(paths), options, problems), protocols, bootstrap)


def score_answers(
    answers: Answers,
    protocols: Sequence[Protocol],
    bootstrap: BootstrapOptions = BootstrapOptions(),  # noqa: B008 (frozen)
) -> Scores:
    """The same for answers that have been read."""
    remarks = []
    spice = None
    if any(group.task == "captioning" for group in answers.groups):
        found = find_spice()
        if isinstance(found, str):
            remarks.append(found)
        else:
            spice = found
    evaluator = Evaluator(answers, bootstrap, spice)
    groups = [
        evaluator.score(group, protocol) for group in answers.groups for protocol in protocols
    ]
    if evaluator.nameless:
        names = ", ".join(sorted(evaluator.nameless))
        remarks.append(
            f"Labels without a scientific name are left out where it is asked for: {names}"
        )
    return Scores(answers.by, groups, answers.problems, len(answers), remarks)


class Evaluator:
    """Scores groups of answers; a distinct answer is matched once for all groups of a kind.

    Answers are compared with the labels of the options, else with those that occur in the group.

    nameless: labels of the options that were left out because they have no scientific name
    """

    def __init__(
        self, answers: Answers, bootstrap: BootstrapOptions, spice: Spice | None = None
    ) -> None:
        self._answers = answers
        self._bootstrap = bootstrap
        self._spice = spice
        self.nameless: set[str] = set()
        self._matchers: dict[tuple[str, str, tuple[str, ...]], Matcher] = {}

    def score(self, group: Group, protocol: Protocol) -> GroupScore:
        """The scores of one group, with intervals and baselines."""
        samples = self.samples(group, protocol)
        clusters = cluster_codes(group.clusters)
        resampled = self.resampled(samples, clusters)
        return GroupScore(
            key=group.key,
            task=group.task,
            protocol=protocol.name,
            ids=group.ids,
            labels=self._answers.labels_of(group),
            answers=self._answers.answers_of(group),
            samples=samples,
            metrics=samples.metrics(),
            intervals={name: percentile_interval(one) for name, one in resampled.items()},
            baselines=samples.baselines(self._bootstrap.seed),
            clusters=int(clusters.max()) + 1,
            cluster_by=group.cluster_by,
            cluster_codes=clusters,
            candidates=() if group.task == "captioning" else self._candidates(group),
            prompt=group.prompt,
        )

    def resampled(self, samples: Samples, clusters: Codes) -> dict[str, Floats]:
        """The metrics of each resample, (resamples,) each."""
        return samples.resampled(clusters, self._bootstrap.resamples, self._bootstrap.seed)

    def samples(self, group: Group, protocol: Protocol) -> Samples:
        """The group's samples, their answers read as the protocol says."""
        dataset = str(group.key[0])
        labels, texts = self._answers.labels_of(group), self._answers.answers_of(group)
        if group.task == "captioning":
            captions = [protocol.read(text, dataset) for text in texts]
            return Captions(captions, labels, self._spice and self._spice(captions, labels))
        matcher = self._matcher(group, protocol)
        place = {label: code for code, label in enumerate(matcher.labels)}
        if group.task == "detection":
            true = [
                tuple(sorted({place[part] for part in split_labels(one)} - {place[NO_LABEL]}))
                for one in labels
            ]
            return LabelSets(true, matcher.sets(texts), matcher.labels)
        codes = np.array([place[label] for label in labels], dtype=np.int32)
        return SingleLabels(codes, matcher.codes(texts), matcher.labels, protocol.unmatched)

    def _matcher(self, group: Group, protocol: Protocol) -> Matcher:
        dataset = str(group.key[0])
        labels = self._candidates(group)
        key = (protocol.name, dataset, labels)
        if key not in self._matchers:
            is_detection = group.task == "detection"
            self._matchers[key] = Matcher(protocol, dataset, labels, is_detection=is_detection)
        return self._matchers[key]

    def _candidates(self, group: Group) -> tuple[str, ...]:
        if self._answers.options.labels is not None:
            labels = self._renamed(self._answers.options.labels, group)
        elif group.task == "detection":
            every = self._answers.labels_of(group)
            labels = {part for label in every for part in split_labels(label)}
        else:
            labels = set(self._answers.labels_of(group))
        if group.task == "detection":
            labels.add(NO_LABEL)
        return tuple(sorted(labels))

    def _renamed(self, labels: Sequence[str], group: Group) -> set[str]:
        """The labels under the group's names; those that have none cannot be answered."""
        found = set()
        for label in labels:
            try:
                found.add(rename(label, group.names, self._answers.options.scientific))
            except InvalidRow:
                self.nameless.add(label)
        return found


def cluster_codes(clusters: Sequence[str | None]) -> Codes:
    """Numbers of the clusters from 0 in sorted order; without clusters each sample is its own."""
    if None in clusters:
        return np.arange(len(clusters), dtype=np.int32)
    place = {name: code for code, name in enumerate(sorted(set(map(str, clusters))))}
    return np.array([place[str(name)] for name in clusters], dtype=np.int32)

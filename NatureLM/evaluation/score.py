"""Scores of groups of answers under protocols.

`score`: files of answers to records of metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from NatureLM.evaluation.answers import Answers, Group, ReadOptions, find_files, parts, read_answers
from NatureLM.evaluation.bootstrap import RESAMPLES, percentile_interval
from NatureLM.evaluation.captions import find_spice
from NatureLM.evaluation.names import InvalidRow, OnError, Problems, renamed
from NatureLM.evaluation.protocols import NO_LABEL, Protocol
from NatureLM.evaluation.tasks import (
    METRICS,
    Captions,
    Codes,
    Floats,
    GroupScore,
    LabelSets,
    Matcher,
    Samples,
    SingleLabels,
)

Spice = Callable[[Sequence[str], Sequence[str]], Floats]
"""Captions and references to the SPICE of each caption."""


@dataclass(frozen=True)
class BootstrapOptions:
    """What is computed beside the metrics: resamples and seed of the bootstrap, SPICE or not."""

    resamples: int = RESAMPLES
    seed: int = 0
    spice: Spice | None = None


DEFAULT = BootstrapOptions()


class Evaluator:
    """Scores groups of answers; a distinct answer is matched once for all groups of a kind.

    Answers are compared with the labels of `reading`, else with those that occur in the group.

    nameless: labels of `reading` that were left out because they have no scientific name
    """

    def __init__(
        self, answers: Answers, reading: ReadOptions, evaluation: BootstrapOptions = DEFAULT
    ) -> None:
        self._answers = answers
        self._reading = reading
        self._evaluation = evaluation
        self.nameless: set[str] = set()
        self._matchers: dict[tuple[str, str, tuple[str, ...]], Matcher] = {}

    def score(self, group: Group, protocol: Protocol) -> GroupScore:
        """The scores of one group, with intervals and baselines."""
        evaluation = self._evaluation
        samples = self.samples(group, protocol)
        clusters = cluster_codes(group.clusters)
        resampled = samples.resampled(clusters, evaluation.resamples, evaluation.seed)
        return GroupScore(
            key=group.key,
            task=group.task,
            protocol=protocol.name,
            ids=group.ids,
            labels=self.labels(group),
            answers=self.texts(group),
            samples=samples,
            metrics=samples.metrics(),
            intervals={name: percentile_interval(one) for name, one in resampled.items()},
            baselines=samples.baselines(evaluation.seed),
            clusters=int(clusters.max()) + 1,
            cluster_by=group.cluster_by,
            cluster_codes=clusters,
            candidates=() if group.task == "captioning" else self._candidates(group),
            prompt=group.prompt,
        )

    def samples(self, group: Group, protocol: Protocol) -> Samples:
        """The group's samples, their answers read as the protocol says."""
        dataset, labels, texts = str(group.key[0]), self.labels(group), self.texts(group)
        if group.task == "captioning":
            captions = [protocol.read(text, dataset) for text in texts]
            spice = self._evaluation.spice
            return Captions(captions, labels, spice and spice(captions, labels))
        matcher = self._matcher(group, protocol)
        place = {label: code for code, label in enumerate(matcher.labels)}
        if group.task == "detection":
            true = [
                tuple(sorted({place[p] for p in parts(one)} - {place[NO_LABEL]})) for one in labels
            ]
            return LabelSets(true, matcher.sets(texts), matcher.labels)
        codes = np.array([place[label] for label in labels], dtype=np.int32)
        return SingleLabels(codes, matcher.codes(texts), matcher.labels, protocol.unmatched)

    def labels(self, group: Group) -> list[str]:
        """The label of each sample."""
        return [self._answers.labels[code] for code in group.labels]

    def texts(self, group: Group) -> list[str]:
        """The answer to each sample."""
        return [self._answers.texts[code] for code in group.answers]

    def _matcher(self, group: Group, protocol: Protocol) -> Matcher:
        dataset = str(group.key[0])
        labels = self._candidates(group)
        key = (protocol.name, dataset, labels)
        if key not in self._matchers:
            is_detection = group.task == "detection"
            self._matchers[key] = Matcher(protocol, dataset, labels, is_detection=is_detection)
        return self._matchers[key]

    def _candidates(self, group: Group) -> tuple[str, ...]:
        if self._reading.labels is not None:
            labels = self._renamed(self._reading.labels, group)
        elif group.task == "detection":
            labels = {part for label in self.labels(group) for part in parts(label)}
        else:
            labels = set(self.labels(group))
        if group.task == "detection":
            labels.add(NO_LABEL)
        return tuple(sorted(labels))

    def _renamed(self, labels: Sequence[str], group: Group) -> set[str]:
        """The labels under the group's names; those that have none cannot be answered."""
        found = set()
        for label in labels:
            try:
                found.add(renamed(label, group.names, self._reading.scientific))
            except InvalidRow:
                self.nameless.add(label)
        return found


def cluster_codes(clusters: Sequence[str | None]) -> Codes:
    """Numbers of the clusters from 0 in sorted order; without clusters each sample is its own."""
    if None in clusters:
        return np.arange(len(clusters), dtype=np.int32)
    place = {name: code for code, name in enumerate(sorted(set(map(str, clusters))))}
    return np.array([place[str(name)] for name in clusters], dtype=np.int32)


CIDER_OF_THE_BENCHMARK = 10.0
"""The benchmark divides CIDEr by this."""


@dataclass(frozen=True)
class Scores:
    """All groups under all protocols, and what could not be scored."""

    by: tuple[str, ...]
    groups: list[GroupScore]
    problems: Problems
    answers: int
    remarks: list[str] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        """The records of `metrics.json`."""
        errors = Counter(problem.group for problem in self.problems.found)
        return [self._record(group, errors[group.key]) for group in self.groups]

    def _record(self, group: GroupScore, errors: int) -> dict[str, Any]:
        key = dict(zip(self.by, group.key[1:], strict=True))
        record: dict[str, Any] = {
            "dataset": group.key[0],
            "query": key.pop("query", None),
            "lora_scale": key.pop("lora_scale", None),
            **key,
            "protocol": group.protocol,
            "task": group.task,
            "n": len(group.ids),
            **{name: group.metrics.get(name) for name in METRICS},
        }
        if "cider" in group.metrics:
            record["cider_benchmark"] = group.metrics["cider"] / CIDER_OF_THE_BENCHMARK
        return record | {
            "intervals": {
                name: interval and list(interval) for name, interval in group.intervals.items()
            },
            "clusters": group.clusters,
            "cluster_by": group.cluster_by,
            "baselines": group.baselines,
            "errors": len(self.problems),
            "errors_in_group": errors,
        }


def score(
    paths: Sequence[str | Path],
    protocols: Sequence[Protocol],
    *,
    reading: ReadOptions = ReadOptions(),  # noqa: B008 (frozen)
    evaluation: BootstrapOptions = DEFAULT,
    on_error: OnError = "fail",
) -> Scores:
    """Score the answers of all files, group by group.

    Raises ScoringError at the first line that cannot be scored, unless `on_error` is "skip", and
    UsageError where nothing can be.
    """
    problems = Problems(on_error)
    answers = read_answers(find_files(paths), reading, problems)
    return score_answers(answers, protocols, problems, reading=reading, evaluation=evaluation)


def score_answers(
    answers: Answers,
    protocols: Sequence[Protocol],
    problems: Problems,
    *,
    reading: ReadOptions = ReadOptions(),  # noqa: B008 (frozen)
    evaluation: BootstrapOptions = DEFAULT,
) -> Scores:
    """The same for answers that have been read; `reading` says how, `problems` what was wrong."""
    remarks = []
    if evaluation.spice is None and any(group.task == "captioning" for group in answers.groups):
        spice = find_spice()
        if isinstance(spice, str):
            remarks.append(spice)
        else:
            evaluation = replace(evaluation, spice=spice)
    evaluator = Evaluator(answers, reading, evaluation)
    groups = [
        evaluator.score(group, protocol) for group in answers.groups for protocol in protocols
    ]
    if evaluator.nameless:
        names = ", ".join(sorted(evaluator.nameless))
        remarks.append(
            f"Labels without a scientific name are left out where it is asked for: {names}"
        )
    return Scores(answers.by, groups, problems, len(answers), remarks)

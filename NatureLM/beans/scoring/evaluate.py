"""Scores of groups of answers under protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from NatureLM.beans.scoring.answers import Answers, Group, Reading, parts
from NatureLM.beans.scoring.captioning import Captions
from NatureLM.beans.scoring.classification import SingleLabels
from NatureLM.beans.scoring.detection import LabelSets
from NatureLM.beans.scoring.matching import Matcher
from NatureLM.beans.scoring.names import renamed
from NatureLM.beans.scoring.problems import Unusable
from NatureLM.beans.scoring.protocols import NO_LABEL, Protocol
from NatureLM.beans.scoring.results import Codes, Floats, GroupScore, Samples
from NatureLM.metrics.resampling import RESAMPLES, percentile_interval

Spice = Callable[[Sequence[str], Sequence[str]], Floats]
"""Captions and references to the SPICE of each caption."""


@dataclass(frozen=True)
class Evaluation:
    """What is computed beside the metrics: resamples and seed of the bootstrap, SPICE or not."""

    resamples: int = RESAMPLES
    seed: int = 0
    spice: Spice | None = None


DEFAULT = Evaluation()


class Evaluator:
    """Scores groups of answers; a distinct answer is matched once for all groups of a kind.

    Answers are compared with the labels of `reading`, else with those that occur in the group.

    nameless: labels of `reading` that were left out because they have no scientific name
    """

    def __init__(
        self, answers: Answers, reading: Reading, evaluation: Evaluation = DEFAULT
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
            except Unusable:
                self.nameless.add(label)
        return found


def cluster_codes(clusters: Sequence[str | None]) -> Codes:
    """Numbers of the clusters from 0 in sorted order; without clusters each sample is its own."""
    if None in clusters:
        return np.arange(len(clusters), dtype=np.int32)
    place = {name: code for code, name in enumerate(sorted(set(map(str, clusters))))}
    return np.array([place[str(name)] for name in clusters], dtype=np.int32)

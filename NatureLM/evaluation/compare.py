"""Paired comparison of two sets of answers to the same samples."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import Answers, Group, Key, ReadOptions, find_files, read_answers
from NatureLM.evaluation.bootstrap import percentile_interval
from NatureLM.evaluation.names import OnError, Problems, ScoringError
from NatureLM.evaluation.protocols import Protocol
from NatureLM.evaluation.score import DEFAULT, BootstrapOptions, Evaluator, cluster_codes
from NatureLM.evaluation.tasks import Floats, Interval

_PLACES = 12


@dataclass(frozen=True)
class Side:
    """One of the two: its files, and the rows of them that are meant."""

    paths: tuple[str | Path, ...]
    where: Mapping[str, str]

    def __str__(self) -> str:
        rows = "".join(f" {name}={value}" for name, value in self.where.items())
        return ", ".join(map(str, self.paths)) + rows


@dataclass(frozen=True)
class Difference:
    """A metric of both sides and how much better B is.

    interval: 95 % percentile interval of b - a over paired resamples
    p: two-sided: how often resamples find the difference reversed or gone, doubled
    """

    a: float
    b: float
    difference: float
    interval: Interval | None
    p: float


@dataclass(frozen=True)
class Comparison:
    """A group of samples that both sides answered.

    differ: share of samples whose answers are taken for different things
    only_a_right, only_b_right: share of samples that one side alone has right; null for captions
    only_in_a, only_in_b: samples of the group that the other side has not answered; left out
    """

    key: Key
    protocol: str
    n: int
    only_in_a: int
    only_in_b: int
    differ: float
    only_a_right: float | None
    only_b_right: float | None
    metrics: dict[str, Difference]
    clusters: int
    cluster_by: str


@dataclass(frozen=True)
class Comparisons:
    """All groups that both sides have, and what could not be compared."""

    by: tuple[str, ...]
    groups: list[Comparison]
    unpaired: list[Key]
    errors: int

    def records(self) -> list[dict[str, Any]]:
        """The records of `compare.json`."""
        return [self._record(group) for group in self.groups]

    def _record(self, group: Comparison) -> dict[str, Any]:
        key = dict(zip(self.by, group.key[1:], strict=True))
        record = {**vars(group), "metrics": {k: vars(v) for k, v in group.metrics.items()}}
        del record["key"]
        return {
            "dataset": group.key[0],
            "query": key.pop("query", None),
            "lora_scale": key.pop("lora_scale", None),
            **key,
            **record,
            "errors": self.errors,
        }


def compare(
    a: Side,
    b: Side,
    protocol: Protocol,
    *,
    reading: ReadOptions = ReadOptions(),  # noqa: B008 (frozen)
    evaluation: BootstrapOptions = DEFAULT,
    on_error: OnError = "fail",
) -> Comparisons:
    """Compare the answers of two sides, sample by sample.

    Raises UsageError where no group has samples in common, and ScoringError where the sides do not
    agree about what is true.
    """
    problems = Problems(on_error)
    apart = frozenset({**a.where, **b.where})
    by = None if reading.by is None else tuple(name for name in reading.by if name not in apart)
    answers_a = _read(a, replace(reading, by=by, apart=apart), problems)
    answers_b = _read(b, replace(reading, by=answers_a.by), problems)
    groups_a = {group.key: group for group in answers_a.groups}
    groups_b = {group.key: group for group in answers_b.groups}
    evaluators = (
        Evaluator(answers_a, reading, evaluation),
        Evaluator(answers_b, reading, evaluation),
    )
    found = []
    for key, group in groups_a.items():
        pair = _paired(group, groups_b[key]) if key in groups_b else None
        if pair is not None:
            left_out = len(group) - len(pair[0]), len(groups_b[key]) - len(pair[1])
            found.append(_compared(pair, left_out, evaluators, protocol, evaluation))
    if not found:
        raise UsageError(f"nothing to compare: {a} and {b} have no group with a sample in common")
    compared = {one.key for one in found}
    unpaired = [key for key in {**groups_a, **groups_b} if key not in compared]
    return Comparisons(answers_a.by, found, unpaired, len(problems))


def _read(side: Side, reading: ReadOptions, problems: Problems) -> Answers:
    return read_answers(find_files(side.paths), replace(reading, where=side.where), problems)


def _paired(a: Group, b: Group) -> tuple[Group, Group] | None:
    """The samples that both have, in the same order and with the same clusters."""
    common = set(a.ids) & set(b.ids)
    if not common:
        return None
    pair = _only(a, common), _only(b, common)
    if pair[0].cluster_by != pair[1].cluster_by:
        pair[1].clusters = pair[0].clusters
    return pair


def _only(group: Group, ids: set[str]) -> Group:
    kept = [place for place, identity in enumerate(group.ids) if identity in ids]
    return replace(
        group,
        ids=[group.ids[i] for i in kept],
        answers=array("i", (group.answers[i] for i in kept)),
        labels=array("i", (group.labels[i] for i in kept)),
        clusters=[group.clusters[i] for i in kept],
    )


def _compared(
    pair: tuple[Group, Group],
    left_out: tuple[int, int],
    evaluators: tuple[Evaluator, Evaluator],
    protocol: Protocol,
    evaluation: BootstrapOptions,
) -> Comparison:
    a, b = pair
    truths = evaluators[0].labels(a), evaluators[1].labels(b)
    for identity, label, other in zip(a.ids, *truths, strict=True):
        if label != other:
            raise ScoringError(f"the sample {identity!r} is {label!r} in A and {other!r} in B")
    samples = evaluators[0].samples(a, protocol), evaluators[1].samples(b, protocol)
    clusters = cluster_codes(a.clusters)
    values = [one.metrics() for one in samples]
    drawn = [one.resampled(clusters, evaluation.resamples, evaluation.seed) for one in samples]
    right = samples[0].correct, samples[1].correct
    is_text = a.task == "captioning"
    return Comparison(
        key=a.key,
        protocol=protocol.name,
        n=len(a),
        only_in_a=left_out[0],
        only_in_b=left_out[1],
        differ=_share(
            x != y for x, y in zip(samples[0].predicted, samples[1].predicted, strict=True)
        ),
        only_a_right=None if is_text else float((right[0] > right[1]).mean()),
        only_b_right=None if is_text else float((right[1] > right[0]).mean()),
        metrics={
            name: _difference(values[0][name], values[1][name], drawn[1][name] - drawn[0][name])
            for name in values[0]
        },
        clusters=int(clusters.max()) + 1,
        cluster_by=a.cluster_by,
    )


def _difference(a: float, b: float, drawn: Floats) -> Difference:
    # Sums in another order differ in their last bits; that is no difference.
    drawn = np.round(drawn[~np.isnan(drawn)], _PLACES)
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (1 + float(tail)) / (1 + len(drawn)))
    return Difference(a, b, b - a, percentile_interval(drawn), p)


def _share(flags: Any) -> float:
    return float(np.mean(list(flags)))

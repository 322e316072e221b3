"""Paired comparison of two sets of answers to the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.answers import Answers, Group, Key, ReadOptions, find_files, load_answers
from NatureLM.evaluation.bootstrap import BootstrapOptions, Floats, percentile_interval
from NatureLM.evaluation.names import OnError, Problem
from NatureLM.evaluation.protocols import Protocol
from NatureLM.evaluation.score import Evaluator, Interval, cluster_codes, key_columns

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
class GroupComparison:
    """A group of samples that both sides answered.

    differ: share of samples whose answers are taken for different things
    only_a_right, only_b_right: share of samples that one side alone has right; None for captions
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
class Comparison:
    """All groups that both sides have, and what could not be compared."""

    by: tuple[str, ...]
    groups: list[GroupComparison]
    unpaired: list[Key]
    errors: int

    def records(self) -> list[dict[str, Any]]:
        """The records of `compare.json`."""
        return [self._record(group) for group in self.groups]

    def _record(self, group: GroupComparison) -> dict[str, Any]:
        record = {**vars(group), "metrics": {k: vars(v) for k, v in group.metrics.items()}}
        del record["key"]
        return {**key_columns(self.by, group.key), **record, "errors": self.errors}


def compare(
    a: Side,
    b: Side,
    protocol: Protocol,
    *,
    options: ReadOptions = ReadOptions(),  # noqa: B008 (frozen)
    bootstrap: BootstrapOptions = BootstrapOptions(),  # noqa: B008 (frozen)
    on_error: OnError = "fail",
) -> Comparison:
    """Compare the answers of two sides, sample by sample.

    Raises UsageError where no group has samples in common, and NatureLMError where the sides do not
    agree about what is true.
    """
    problems: list[Problem] | None = [] if on_error == "skip" else None
    apart = frozenset({**a.where, **b.where})
    by = None if options.by is None else tuple(name for name in options.by if name not in apart)
    answers_a = _load(a, replace(options, by=by, apart=apart), problems)
    answers_b = _load(b, replace(options, by=answers_a.by), problems)
    groups_a = {group.key: group for group in answers_a.groups}
    groups_b = {group.key: group for group in answers_b.groups}
    pairing = _Pairing(answers_a, answers_b, protocol, bootstrap)
    compared = {
        key: pairing.compare(group, groups_b[key])
        for key, group in groups_a.items()
        if key in groups_b and not set(group.ids).isdisjoint(groups_b[key].ids)
    }
    if not compared:
        raise UsageError(f"nothing to compare: {a} and {b} have no group with a sample in common")
    unpaired = [key for key in {**groups_a, **groups_b} if key not in compared]
    return Comparison(answers_a.by, list(compared.values()), unpaired, len(problems or ()))


def _load(side: Side, options: ReadOptions, problems: list[Problem] | None) -> Answers:
    return load_answers(find_files(side.paths), replace(options, where=side.where), problems)


class _Pairing:
    """Compares groups of two sides under a protocol."""

    def __init__(
        self, a: Answers, b: Answers, protocol: Protocol, bootstrap: BootstrapOptions
    ) -> None:
        self._answers = a, b
        self._evaluators = Evaluator(a, bootstrap), Evaluator(b, bootstrap)
        self._protocol = protocol

    def compare(self, whole_a: Group, whole_b: Group) -> GroupComparison:
        """Compare the samples that both groups have, in the same order and with A's clusters."""
        a, b = _common(whole_a, whole_b), _common(whole_b, whole_a)
        self._check_labels(a, b)
        clusters = cluster_codes(a.clusters)
        one, other = (
            evaluator.samples(group, self._protocol)
            for evaluator, group in zip(self._evaluators, (a, b), strict=True)
        )
        drawn_a, drawn_b = (
            evaluator.resampled(samples, clusters)
            for evaluator, samples in zip(self._evaluators, (one, other), strict=True)
        )
        metrics_a, metrics_b = one.metrics(), other.metrics()
        is_text = a.task == "captioning"
        return GroupComparison(
            key=a.key,
            protocol=self._protocol.name,
            n=len(a),
            only_in_a=len(whole_a) - len(a),
            only_in_b=len(whole_b) - len(b),
            differ=_share_unequal(one.predicted, other.predicted),
            only_a_right=None if is_text else float((one.correct > other.correct).mean()),
            only_b_right=None if is_text else float((other.correct > one.correct).mean()),
            metrics={
                name: _difference(metrics_a[name], metrics_b[name], drawn_b[name] - drawn_a[name])
                for name in metrics_a
            },
            clusters=int(clusters.max()) + 1,
            cluster_by=a.cluster_by,
        )

    def _check_labels(self, a: Group, b: Group) -> None:
        labels = (
            answers.labels_of(one) for answers, one in zip(self._answers, (a, b), strict=True)
        )
        for identity, label, other in zip(a.ids, *labels, strict=True):
            if label != other:
                raise NatureLMError(f"the sample {identity!r} is {label!r} in A and {other!r} in B")


def _common(group: Group, other: Group) -> Group:
    """The rows of a group whose samples another group has."""
    ids = set(other.ids)
    return group.take(place for place, identity in enumerate(group.ids) if identity in ids)


def _difference(a: float, b: float, drawn: Floats) -> Difference:
    # Sums in another order differ in their last bits; that is no difference.
    drawn = np.round(drawn[~np.isnan(drawn)], _PLACES)
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (1 + float(tail)) / (1 + len(drawn)))
    return Difference(a, b, b - a, percentile_interval(drawn), p)


def _share_unequal(a: Sequence[str], b: Sequence[str]) -> float:
    return float(np.mean([x != y for x, y in zip(a, b, strict=True)]))

"""Files of answers to metrics, intervals and baselines of each group, under protocols.

`compare` pairs two sets of answers to the same samples.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from NatureLM.data.components import METRICS
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.answers import (
    METRICS_SUFFIX,
    Answers,
    Group,
    Key,
    NothingToScoreError,
    OnError,
    Problem,
    ReadOptions,
    find_files,
    load_answers,
    rename,
    split_labels,
)
from NatureLM.evaluation.metrics import (
    BootstrapOptions,
    Estimate,
    Floats,
    Spice,
    find_spice,
    percentile_interval,
)
from NatureLM.evaluation.protocols import (
    NO_LABEL,
    Captions,
    ClassRow,
    Codes,
    ConfusionRow,
    LabelSets,
    Matcher,
    Protocol,
    Samples,
    SingleLabels,
    Values,
    protocol,
)
from NatureLM.results.tables import write_csv
from NatureLM.util import library, without_nan, write_data, write_json, write_text

logger = logging.getLogger(__name__)
Interval: TypeAlias = tuple[float, float]

BENCHMARK = "beans-zero"
CIDER_OF_THE_BENCHMARK = 10.0
"""The benchmark divides CIDEr by this."""

_PLACES = 12


@dataclass(frozen=True, kw_only=True)
class GroupScore(Group):
    """A group with its scores under one protocol.

    metrics, intervals, baselines: by the names of METRICS; only those that the task has
    clusters: how many the intervals rest on; cluster_codes: of each sample from 0, (samples,)
    candidates: the labels that answers are compared with
    """

    protocol: str
    samples: Samples
    metrics: Values
    intervals: dict[str, Interval | None]
    baselines: dict[str, Values]
    clusters: int
    cluster_codes: Codes
    candidates: tuple[str, ...]

    def estimate(self, metric: str) -> Estimate | None:
        """A metric with its interval; None where the group does not have it, or it is NaN."""
        value = self.metrics.get(metric, math.nan)
        return None if math.isnan(value) else Estimate(value, *(self.intervals.get(metric) or ()))


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
            **_key_columns(self.by, group.key),
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


def _key_columns(by: Sequence[str], key: Key) -> dict[str, Any]:
    """The first columns of a group's record."""
    values = dict(zip(by, key[1:], strict=True))
    return {"dataset": key[0], "query": None, "lora_scale": None, **values}


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
    has_captions = any(group.task == "captioning" for group in answers.groups)
    spice = find_spice() if has_captions else None
    remarks = [spice] if isinstance(spice, str) else []
    evaluator = Evaluator(answers.options, bootstrap, spice if isinstance(spice, Spice) else None)
    groups = [evaluator.score(group, one) for group in answers.groups for one in protocols]
    if evaluator.nameless:
        names = ", ".join(sorted(evaluator.nameless))
        remarks.append(
            f"Labels without a scientific name are left out where it is asked for: {names}"
        )
    total = sum(len(group.ids) for group in answers.groups)
    return Scores(answers.by, groups, answers.problems, total, remarks)


def score_file(
    answers: Path,
    bootstrap: BootstrapOptions = BootstrapOptions(),  # noqa: B008 (frozen)
) -> tuple[Scores, Path]:
    """Score a file of answers under the benchmark's protocol, and write a line for each data set.

    `x.jsonl` gets `x_metrics.jsonl`. Rows without an answer, and those of data sets without a task,
    are counted and left out. Raises NothingToScoreError, and takes away the metrics of an earlier
    run, where no row can be scored.
    """
    path = answers.with_name(answers.stem + METRICS_SUFFIX)
    problems: list[Problem] = []
    try:
        found = load_answers([answers], ReadOptions(), problems)
    except NothingToScoreError as error:
        path.unlink(missing_ok=True)
        why = f" (the first: {problems[0].message})" if problems else ""
        raise NothingToScoreError(f"No metrics: {error}{why}") from None
    scores = score_answers(found, [protocol(BENCHMARK)], bootstrap)
    lines = [
        json.dumps(without_nan(record), ensure_ascii=False, allow_nan=False) + "\n"
        for record in scores.records()
    ]
    return scores, write_text(path, "".join(lines))


def write_scores(scores: Scores, folder: str | Path, settings: Mapping[str, Any]) -> list[Path]:
    """Write everything into the folder, over what an earlier scoring left; returns the files.

    metrics.json: the records. per_class and confusion: tables. errors.csv: lines left out.
    scoring.json: `settings`, kinds of errors and remarks.
    """
    folder = Path(folder)
    written = [write_json(folder / "metrics.json", scores.records())]
    classes = [(g, row) for g in scores.groups for row in g.samples.class_rows()]
    cells = [(g, row) for g in scores.groups for row in g.samples.confusion_rows()]
    for name, kind, rows in (("per_class", ClassRow, classes), ("confusion", ConfusionRow, cells)):
        columns = ["dataset", *scores.by, "protocol", *(field.name for field in fields(kind))]
        values = [(*group.key, group.protocol, *vars(row).values()) for group, row in rows]
        written += _write_table(folder / name, columns, values)
    errors = [(one.path, one.line, one.kind, one.message) for one in scores.problems]
    written.append(write_csv(folder / "errors.csv", ("file", "line", "kind", "message"), errors))
    about = {**settings, "errors": scores.problem_kinds(), "remarks": scores.remarks}
    return [*written, write_json(folder / "scoring.json", about)]


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Path]:
    """`path`.csv, and `path`.parquet where pyarrow is installed."""
    written = [write_csv(path.with_name(path.name + ".csv"), columns, rows)]
    if find_spec("pyarrow") is None:
        return written
    try:
        parquet, arrow = library("pyarrow.parquet", ""), library("pyarrow", "")
    except UsageError as error:
        logger.warning("there are no tables as Parquet: %s", error)
        return written
    values = {name: _of_one_type([row[i] for row in rows]) for i, name in enumerate(columns)}
    stream = io.BytesIO()
    parquet.write_table(arrow.table(values), stream)
    return [*written, write_data(path.with_name(path.name + ".parquet"), stream.getvalue())]


def _of_one_type(values: list[Any]) -> list[Any]:
    """Columns of a Parquet file have one type: numbers stay numbers, mixed ones become strings."""
    types = {type(value) for value in values if value is not None}
    if types == {int, float}:
        return [None if value is None else float(value) for value in values]
    if types and types <= {int, bool, float}:
        return values
    texts = [None if value is None else str(value) for value in values]
    return [text and text.encode("utf-8", "backslashreplace").decode() for text in texts]


class Evaluator:
    """Scores groups of answers; a distinct answer is matched once for all groups of a kind.

    Answers are compared with the labels of the options, else with those that occur in the group.

    nameless: labels of the options that were left out because they have no scientific name
    """

    def __init__(
        self, options: ReadOptions, bootstrap: BootstrapOptions, spice: Spice | None = None
    ) -> None:
        self._options = options
        self._bootstrap = bootstrap
        self._spice = spice
        self.nameless: set[str] = set()
        self._matchers: dict[tuple[str, str, tuple[str, ...]], Matcher] = {}

    def score(self, group: Group, protocol: Protocol) -> GroupScore:
        """The scores of one group, with intervals and baselines."""
        samples = self.samples(group, protocol)
        codes = cluster_codes(group)
        resampled = samples.resampled(codes, self._bootstrap)
        return GroupScore(
            **vars(group),
            protocol=protocol.name,
            samples=samples,
            metrics=samples.metrics(),
            intervals={name: percentile_interval(one) for name, one in resampled.items()},
            baselines=samples.baselines(self._bootstrap.seed),
            clusters=int(codes.max()) + 1,
            cluster_codes=codes,
            candidates=() if group.task == "captioning" else self._candidates(group),
        )

    def samples(self, group: Group, protocol: Protocol) -> Samples:
        """The group's samples, their answers read as the protocol says."""
        labels = group.labels
        if group.task == "captioning":
            captions = [protocol.read(text, group.dataset) for text in group.answers]
            spice = None if self._spice is None else self._spice(captions, labels)
            return Captions(captions, labels, spice)
        is_detection = group.task == "detection"
        key = (protocol.name, group.dataset, self._candidates(group))
        if key not in self._matchers:
            self._matchers[key] = Matcher(protocol, *key[1:], is_detection=is_detection)
        matcher = self._matchers[key]
        place = matcher.place
        if is_detection:
            true = [
                tuple(sorted({place[part] for part in split_labels(one)} - {place[NO_LABEL]}))
                for one in labels
            ]
            return LabelSets(true, matcher.sets(group.answers), matcher.labels)
        codes = np.array([place[label] for label in labels], dtype=np.int32)
        taken = matcher.codes(group.answers)
        return SingleLabels(codes, taken, matcher.labels, protocol.unmatched)

    def compare(self, whole_a: Group, whole_b: Group, protocol: Protocol) -> GroupComparison:
        """Compare the samples that both groups have, in the same order and with A's clusters.

        Raises NatureLMError where the sides do not agree about what is true.
        """
        a, b = _common(whole_a, whole_b), _common(whole_b, whole_a)
        for identity, label, other in zip(a.ids, a.labels, b.labels, strict=True):
            if label != other:
                raise NatureLMError(f"the sample {identity!r} is {label!r} in A and {other!r} in B")
        codes = cluster_codes(a)
        ours, theirs = self.samples(a, protocol), self.samples(b, protocol)
        drawn = ours.resampled(codes, self._bootstrap), theirs.resampled(codes, self._bootstrap)
        metrics = ours.metrics(), theirs.metrics()
        taken = zip(ours.predicted, theirs.predicted, strict=True)
        is_text = a.task == "captioning"
        return GroupComparison(
            key=a.key,
            protocol=protocol.name,
            n=len(a.ids),
            only_in_a=len(whole_a.ids) - len(a.ids),
            only_in_b=len(whole_b.ids) - len(b.ids),
            differ=float(np.mean([x != y for x, y in taken])),
            only_a_right=None if is_text else float((ours.correct > theirs.correct).mean()),
            only_b_right=None if is_text else float((theirs.correct > ours.correct).mean()),
            metrics={
                name: _difference(value, metrics[1][name], drawn[1][name] - drawn[0][name])
                for name, value in metrics[0].items()
            },
            clusters=int(codes.max()) + 1,
            cluster_by=a.cluster_by,
        )

    def _candidates(self, group: Group) -> tuple[str, ...]:
        given, scientific = self._options.labels, self._options.scientific
        if given is not None:
            named = [one for one in given if group.names == "common" or one in scientific]
            self.nameless |= {*given} - {*named}
            labels = {rename(one, group.names, scientific) for one in named}
        elif group.task == "detection":
            labels = {part for label in group.labels for part in split_labels(label)}
        else:
            labels = set(group.labels)
        if group.task == "detection":
            labels.add(NO_LABEL)
        return tuple(sorted(labels))


def cluster_codes(group: Group) -> Codes:
    """Numbers of the clusters from 0 in sorted order; without clusters each sample is its own."""
    if None in group.families:
        return np.arange(len(group.ids), dtype=np.int32)
    names = list(map(str, group.families))
    place = {name: code for code, name in enumerate(sorted(set(names)))}
    return np.array([place[name] for name in names], dtype=np.int32)


@dataclass(frozen=True)
class Side:
    """One of two that are compared: its files, and the rows of them that are meant."""

    paths: tuple[str | Path, ...]
    where: Mapping[str, str]

    def __str__(self) -> str:
        rows = "".join(f" {name}={value}" for name, value in self.where.items())
        return ", ".join(map(str, self.paths)) + rows

    def load(self, options: ReadOptions, problems: list[Problem] | None) -> Answers:
        """Its answers, under options for both sides."""
        return load_answers(find_files(self.paths), replace(options, where=self.where), problems)


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
        records = []
        for group in self.groups:
            changes = {name: vars(one) for name, one in group.metrics.items()}
            record = {**_key_columns(self.by, group.key), **vars(group), "metrics": changes}
            del record["key"]
            records.append({**record, "errors": self.errors})
        return records


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
    answers_a = a.load(replace(options, by=by, apart=apart), problems)
    answers_b = b.load(replace(options, by=answers_a.by), problems)
    groups_a = {group.key: group for group in answers_a.groups}
    groups_b = {group.key: group for group in answers_b.groups}
    evaluator = Evaluator(options, bootstrap)
    compared = {
        key: evaluator.compare(group, groups_b[key], protocol)
        for key, group in groups_a.items()
        if key in groups_b and not set(group.ids).isdisjoint(groups_b[key].ids)
    }
    if not compared:
        raise UsageError(f"nothing to compare: {a} and {b} have no group with a sample in common")
    unpaired = [key for key in {**groups_a, **groups_b} if key not in compared]
    return Comparison(answers_a.by, list(compared.values()), unpaired, len(problems or ()))


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

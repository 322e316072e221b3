"""What scoring gives: the samples of a group once their answers are read, and their scores.

From the text of an answer to the label it stands for.

Tasks with one label for each sample.

Tasks with a set of labels for each sample.

Tasks with a free text for each sample.
"""

from __future__ import annotations

import os
import typing
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from NatureLM.data.components import Task
from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import Key
from NatureLM.evaluation.bootstrap import cell_counts, resampled_mean
from NatureLM.evaluation.captions import cider
from NatureLM.evaluation.metrics import (
    ClassCounts,
    class_counts,
    macro_scores,
    set_counts,
    weighted_scores,
)
from NatureLM.evaluation.protocols import DETECTION_LIMIT, NO_LABEL, Protocol

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


class Samples(typing.Protocol):
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


UNMATCHED = -1
_BLOCK = 4_000_000  # distances held at a time: 16 MB


class Matcher:
    """Finds the labels of answers to one data set; every distinct text is compared once.

    labels: distinct, in sorted order; a label's code is its place among them
    """

    def __init__(
        self, protocol: Protocol, dataset: str, labels: Sequence[str], *, is_detection: bool = False
    ) -> None:
        self.labels = tuple(labels)
        self._protocol = protocol
        self._dataset = dataset
        self._limit = DETECTION_LIMIT if is_detection else protocol.limit
        self._code = {label: code for code, label in enumerate(self.labels)}
        self._folded: dict[str, int] = {}
        for code, label in enumerate(self.labels):
            self._folded.setdefault(label.strip().casefold(), code)
        self._in_lower_case = [label.casefold() for label in self.labels]
        self._known: dict[str, int] = {}
        self._unmatched = self._code.get(protocol.unmatched, UNMATCHED)

    def codes(self, answers: Sequence[str]) -> Codes:
        """The label of each answer, UNMATCHED where there is none, (answers,)."""
        texts = [self._protocol.read(answer, self._dataset) for answer in answers]
        self._learn(texts)
        return np.fromiter((self._known[text] for text in texts), np.int32, len(texts))

    def sets(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        """The labels that each answer of a detection task names, sorted, without "None".

        Parts of an answer are set off by commas; "mention" looks for labels anywhere.
        """
        texts = [self._protocol.read(answer, self._dataset) for answer in answers]
        if self._protocol.match == "mention":
            named = [self._mentioned(text) for text in texts]
        else:
            parts = [[part.strip() for part in text.split(",") if part.strip()] for text in texts]
            self._learn([part for one in parts for part in one])
            named = [[self._known[part] for part in one] for one in parts]
        nothing = {UNMATCHED, self._code.get(NO_LABEL, UNMATCHED)}
        return [tuple(sorted(set(one) - nothing)) for one in named]

    def _learn(self, texts: Sequence[str]) -> None:
        new = list(dict.fromkeys(text for text in texts if text not in self._known))
        if self._protocol.match == "nearest":
            found = nearest(new, self.labels, self._limit)
        elif self._protocol.match == "mention":
            found = np.array([self._only_mentioned(text) for text in new], dtype=np.int32)
        else:
            found = np.array([self._equal(text) for text in new], dtype=np.int32)
        found[found == UNMATCHED] = self._unmatched
        self._known.update(zip(new, found.tolist(), strict=True))

    def _mentioned(self, text: str) -> list[int]:
        folded = text.casefold()
        return [code for code, label in enumerate(self._in_lower_case) if label in folded]

    def _only_mentioned(self, text: str) -> int:
        named = self._mentioned(text)
        return named[0] if len(named) == 1 else UNMATCHED

    def _equal(self, text: str) -> int:
        text = text.strip()
        return self._code.get(text, self._folded.get(text.casefold(), UNMATCHED))


def nearest(texts: Sequence[str], labels: Sequence[str], limit: int | None = None) -> Codes:
    """The label of the smallest Levenshtein distance, the first in order among equals, (texts,).

    UNMATCHED where the distance is above `limit`.
    """
    codes = np.full(len(texts), UNMATCHED, dtype=np.int32)
    step = max(1, _BLOCK // max(1, len(labels)))
    for start in range(0, len(texts) if len(labels) else 0, step):
        found = _distances_between(labels, texts[start : start + step], limit)
        best = found.argmin(axis=0).astype(np.int32)
        if limit is not None:
            best[found.min(axis=0) > limit] = UNMATCHED
        codes[start : start + step] = best
    return codes


def _distances_between(labels: Sequence[str], texts: Sequence[str], limit: int | None) -> Codes:
    """Distances, (labels, texts); those above the limit are some number above it."""
    try:
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cdist
    except ImportError:
        message = "scoring needs rapidfuzz: pip install 'naturelm-audio[beans]'"
        raise UsageError(message) from None
    # The short side first is four times faster, but with a limit the other way round is.
    sides = (labels, texts) if limit is None else (texts, labels)
    found: Codes = cdist(
        *sides,
        scorer=Levenshtein.distance,
        dtype=np.int32,
        score_cutoff=limit,
        workers=_workers(),
    )
    return found if limit is None else found.T


def _workers() -> int:
    """Threads for distances: all cores that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


RANDOM_DRAWS = 100


class SingleLabels:
    """Samples as cells of (true label, predicted label).

    true, predicted: places of labels among `labels`; a negative prediction is none of them
    unmatched: what such a prediction is called
    """

    def __init__(
        self, true: Codes, predicted: Codes, labels: Sequence[str], unmatched: str
    ) -> None:
        self._labels = labels
        self._unmatched = unmatched
        pairs = true.astype(np.int64) * (len(labels) + 1) + (predicted + 1)
        found, self._cell = np.unique(pairs, return_inverse=True)
        self._true = found // (len(labels) + 1)
        self._predicted = found % (len(labels) + 1) - 1
        self._counts = np.bincount(self._cell, minlength=len(found))

    @property
    def predicted(self) -> list[str]:
        """The label that each answer was taken for, (samples,)."""
        names = [self._name(code) for code in self._predicted.tolist()]
        return [names[cell] for cell in self._cell.tolist()]

    @property
    def correct(self) -> Floats:
        """1 where it is the true label, else 0, (samples,)."""
        right: Floats = (self._true == self._predicted).astype(np.float64)
        return right[self._cell]

    def metrics(self) -> Values:
        """accuracy, weighted precision, recall and f1, and top1."""
        return _floats(_scores(self._per_class(self._counts)))

    def resampled(self, clusters: Codes, resamples: int, seed: int) -> dict[str, Floats]:
        """The metrics of each resample, (resamples,) each."""
        blocks = [
            _scores(self._per_class(counts))
            for counts in cell_counts(self._cell, clusters, resamples=resamples, seed=seed)
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def baselines(self, seed: int) -> dict[str, Values]:
        """majority: always the most frequent label, the first in order among equals.

        random: any label, all with the same chance; the mean of many seeded draws.
        """
        support = self._per_class(self._counts).true
        most = np.zeros_like(support)
        most[support.argmax()] = support.sum()
        always = ClassCounts(support, most, np.where(most > 0, support, 0.0))
        counts = tuple(sorted(support.astype(int).tolist()))
        return {"majority": _floats(_scores(always)), "random": dict(_random_labels(counts, seed))}

    def class_rows(self) -> list[ClassRow]:
        """A row for each label that is true or was answered somewhere."""
        return class_rows(self._per_class(self._counts), self._labels)

    def confusion_rows(self) -> list[ConfusionRow]:
        """The cells that are not empty, by true and predicted label."""
        rows = zip(
            self._true.tolist(), self._predicted.tolist(), self._counts.tolist(), strict=True
        )
        return [ConfusionRow(self._labels[true], self._name(code), n) for true, code, n in rows]

    def _per_class(self, counts: npt.NDArray[np.integer]) -> ClassCounts:
        return class_counts(counts, self._true, self._predicted, len(self._labels))

    def _name(self, code: int) -> str:
        return self._labels[code] if code >= 0 else self._unmatched


@lru_cache(maxsize=64)
def _random_labels(counts: tuple[int, ...], seed: int) -> Values:
    """The scores depend on how often each label is true and on nothing else."""
    rng = np.random.default_rng(seed)
    labels = len(counts)
    chances = np.full(labels, 1 / labels)
    predicted, hits = np.empty((2, labels, RANDOM_DRAWS))
    for draw in range(RANDOM_DRAWS):
        answered = rng.multinomial(counts, chances)  # (true label, answered label)
        predicted[:, draw], hits[:, draw] = answered.sum(axis=0), answered.diagonal()
    true = np.broadcast_to(np.array(counts, dtype=np.float64)[:, None], hits.shape)
    scores = _scores(ClassCounts(true, predicted, hits))
    return _floats({name: values.mean() for name, values in scores.items()})


def _scores(counts: ClassCounts) -> dict[str, Floats]:
    scores = weighted_scores(counts)
    return scores | {"top1": scores["accuracy"]}


def _floats(scores: dict[str, Floats]) -> Values:
    return {name: float(value) for name, value in scores.items()}


LabelSet: TypeAlias = tuple[int, ...]
"""Places of labels, sorted; empty where nothing is heard."""


class LabelSets:
    """Samples as cells of (true set, predicted set); the sets hold places among `labels`."""

    def __init__(
        self, true: Sequence[LabelSet], predicted: Sequence[LabelSet], labels: Sequence[str]
    ) -> None:
        self._labels = labels
        self._all_true = tuple(true)
        pairs = list(zip(true, predicted, strict=True))
        self._cells = sorted(set(pairs))
        place = {pair: cell for cell, pair in enumerate(self._cells)}
        self._cell = np.array([place[pair] for pair in pairs], dtype=np.int64)
        self._counts = np.bincount(self._cell, minlength=len(self._cells))
        self._true = _members([pair[0] for pair in self._cells], len(labels))
        self._predicted = _members([pair[1] for pair in self._cells], len(labels))
        self._exact = np.array([a == b for a, b in self._cells], dtype=np.float64)

    @property
    def predicted(self) -> list[str]:
        """The labels that each answer was taken for, joined by commas, (samples,)."""
        names = [self._name(pair[1]) for pair in self._cells]
        return [names[cell] for cell in self._cell.tolist()]

    @property
    def correct(self) -> Floats:
        """1 where the two sets are the same, else 0, (samples,)."""
        return self._exact[self._cell]

    def metrics(self) -> Values:
        """accuracy (the sets are the same), and precision, recall, f1 and map of the labels."""
        return {name: float(value) for name, value in self._scores(self._counts).items()}

    def resampled(self, clusters: Codes, resamples: int, seed: int) -> dict[str, Floats]:
        """The metrics of each resample, (resamples,) each."""
        blocks = [
            self._scores(counts)
            for counts in cell_counts(self._cell, clusters, resamples=resamples, seed=seed)
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def baselines(self, seed: int) -> dict[str, Values]:
        """majority: always the most frequent set that is not empty, the first among equals.

        random: the true sets, dealt out among the samples; the mean of many seeded draws.
        """
        named = Counter(one for one in self._all_true if one)
        most = max(sorted(named), key=named.__getitem__) if named else ()
        always = LabelSets(self._all_true, [most] * len(self._all_true), self._labels)
        random = _random_sets(self._all_true, len(self._labels), seed)
        return {"majority": always.metrics(), "random": dict(random)}

    def class_rows(self) -> list[ClassRow]:
        """A row for each label that is true or was answered somewhere."""
        return class_rows(set_counts(self._counts, self._true, self._predicted), self._labels)

    def confusion_rows(self) -> list[ConfusionRow]:
        """The pairs of sets that occur."""
        pairs = zip(self._cells, self._counts.tolist(), strict=True)
        return [ConfusionRow(self._name(a), self._name(b), n) for (a, b), n in pairs]

    def _scores(self, counts: npt.NDArray[np.integer]) -> dict[str, Floats]:
        samples = counts.sum(axis=0).astype(np.float64)
        macro = macro_scores(set_counts(counts, self._true, self._predicted), samples)
        return {"accuracy": np.asarray(self._exact @ counts / samples)} | macro

    def _name(self, one: LabelSet) -> str:
        return ", ".join(self._labels[code] for code in one) or NO_LABEL


@lru_cache(maxsize=64)
def _random_sets(true: tuple[LabelSet, ...], labels: int, seed: int) -> Values:
    rng = np.random.default_rng(seed)
    members = _members(true, labels)
    totals = members.sum(axis=0).astype(np.float64)
    drawn = []
    for _ in range(RANDOM_DRAWS):
        dealt = members[rng.permutation(len(members))]
        hits = (members & dealt).sum(axis=0).astype(np.float64)
        macro = macro_scores(ClassCounts(totals, totals, hits), np.asarray(float(len(members))))
        drawn.append({"accuracy": (members == dealt).all(axis=1).mean()} | macro)
    return {name: float(np.mean([one[name] for one in drawn])) for name in drawn[0]}


def _members(sets: Sequence[LabelSet], labels: int) -> npt.NDArray[np.bool_]:
    members = np.zeros((len(sets), labels), dtype=np.bool_)
    for row, one in enumerate(sets):
        members[row, list(one)] = True
    return members


CAPTION_DRAWS = 3


class Captions:
    """Captions beside their references.

    spice: the SPICE of each caption, where it was asked for
    """

    def __init__(
        self, captions: Sequence[str], references: Sequence[str], spice: Floats | None = None
    ) -> None:
        self.predicted = list(captions)
        self._references = tuple(references)
        self.correct: Floats = cider(captions, references)
        self._scores = {"cider": self.correct} | ({} if spice is None else {"spice": spice})

    def metrics(self) -> Values:
        """cider from 0 to 10, and spice where it is there."""
        return {name: float(scores.mean()) for name, scores in self._scores.items()}

    def resampled(self, clusters: Codes, resamples: int, seed: int) -> dict[str, Floats]:
        """The metrics of each resample, (resamples,) each; how rare words are stays the same."""
        return {
            name: resampled_mean(one, clusters, resamples=resamples, seed=seed)
            for name, one in self._scores.items()
        }

    def baselines(self, seed: int) -> dict[str, Values]:
        """majority: always the most frequent reference, the first in order among equals.

        random: the references, dealt out among the samples; the mean of a few seeded draws.
        """
        return {name: {"cider": value} for name, value in _ciders(self._references, seed).items()}

    def class_rows(self) -> list[ClassRow]:
        """Captions have no labels."""
        return []

    def confusion_rows(self) -> list[ConfusionRow]:
        """Captions have no labels."""
        return []


@lru_cache(maxsize=16)
def _ciders(references: tuple[str, ...], seed: int) -> Values:
    counts = Counter(references)
    most = max(sorted(counts), key=counts.__getitem__)
    rng = np.random.default_rng(seed)
    dealt = [
        cider([references[i] for i in rng.permutation(len(references))], references).mean()
        for _ in range(CAPTION_DRAWS)
    ]
    return {
        "majority": float(cider([most] * len(references), references).mean()),
        "random": float(np.mean(dealt)),
    }

"""What each task measures of the samples of a group: one label each, sets of labels, captions.

The table of tasks and metrics is in `data/components.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from NatureLM.evaluation.bootstrap import BootstrapOptions, Floats, cell_counts, resampled_mean
from NatureLM.evaluation.metrics import (
    ClassCounts,
    Counts,
    cider,
    class_counts,
    macro_scores,
    set_counts,
    weighted_scores,
)
from NatureLM.evaluation.protocols import NO_LABEL, Codes

RANDOM_DRAWS = 100
CAPTION_DRAWS = 3

Values: TypeAlias = dict[str, float]
LabelSet: TypeAlias = tuple[int, ...]
"""Places of labels, sorted; empty where nothing is heard."""

Item = TypeVar("Item", str, LabelSet)


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


class Samples(ABC):
    """The samples of one group after a protocol has read their answers.

    predicted: what each answer was taken for, (samples,)
    correct: 1 where the answer is right, else 0; for captions their CIDEr, (samples,)
    """

    predicted: list[str]
    correct: Floats

    @abstractmethod
    def metrics(self) -> Values:
        """The metrics of the task."""

    @abstractmethod
    def resampled(self, clusters: Codes, bootstrap: BootstrapOptions) -> dict[str, Floats]:
        """The metrics of each resample, (resamples,) each; clusters: of each sample, (samples,)."""

    @abstractmethod
    def baselines(self, seed: int) -> dict[str, Values]:
        """The metrics of answers without listening.

        majority: always the most frequent label (set that is not empty, reference), the first in
            order among equals
        random: any label, all with the same chance; of sets and references the true ones, dealt out
            among the samples; the mean of seeded draws
        """

    def class_rows(self) -> list[ClassRow]:
        """A row for each label that is true or was answered somewhere."""
        return []

    def confusion_rows(self) -> list[ConfusionRow]:
        """The cells of the confusion matrix that are not empty."""
        return []


class _Cells(Samples):
    """Samples with the same truth and the same answer, counted together in cells.

    labels: distinct, in sorted order
    cell: number of each sample's cell, (samples,)
    names: what is true and what was answered in each cell; is_right: whether that is the same
    """

    def __init__(
        self,
        labels: Sequence[str],
        cell: npt.NDArray[np.int64],
        names: Sequence[tuple[str, str]],
        is_right: npt.NDArray[np.bool_],
    ) -> None:
        self._labels = labels
        self._cell = cell
        self._names = names
        self._right: Floats = is_right.astype(np.float64)
        self._counts = np.bincount(cell, minlength=len(names))
        self.predicted = [names[code][1] for code in cell.tolist()]
        self.correct = self._right[cell]

    def metrics(self) -> Values:
        return _floats(self._scores(self._counts))

    def resampled(self, clusters: Codes, bootstrap: BootstrapOptions) -> dict[str, Floats]:
        blocks = list(map(self._scores, cell_counts(self._cell, clusters, bootstrap)))
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def class_rows(self) -> list[ClassRow]:
        counts = self._per_class(self._counts)
        whole = [one.astype(int).tolist() for one in (counts.true, counts.predicted, counts.hits)]
        shares = [one.tolist() for one in (counts.precision, counts.recall, counts.f1)]
        rows = map(ClassRow, self._labels, *whole, *shares)
        return [row for row in rows if row.support or row.predicted]

    def confusion_rows(self) -> list[ConfusionRow]:
        pairs = zip(self._names, self._counts.tolist(), strict=True)
        return [ConfusionRow(*names, count) for names, count in pairs]

    @abstractmethod
    def _per_class(self, counts: Counts) -> ClassCounts:
        """Counts of each label, (labels, ...), of counts of each cell, (cells, ...)."""

    @abstractmethod
    def _scores(self, counts: Counts) -> dict[str, Floats]:
        """The metrics, (...) each, of counts of each cell, (cells, ...)."""


class SingleLabels(_Cells):
    """Samples with one label each: accuracy, weighted precision, recall and f1, and top1.

    true, predicted: places of labels among `labels`; a negative prediction is none of them
    unmatched: what such a prediction is called
    """

    def __init__(
        self, true: Codes, predicted: Codes, labels: Sequence[str], unmatched: str
    ) -> None:
        pairs = true.astype(np.int64) * (len(labels) + 1) + (predicted + 1)
        found, cell = np.unique(pairs, return_inverse=True)
        self._true = found // (len(labels) + 1)
        self._predicted = found % (len(labels) + 1) - 1
        words = np.array([*labels, unmatched], dtype=object)  # which -1 is the place of
        names = list(zip(words[self._true], words[self._predicted], strict=True))
        super().__init__(labels, cell, names, self._true == self._predicted)

    def baselines(self, seed: int) -> dict[str, Values]:
        support = self._per_class(self._counts).true
        most = np.zeros_like(support)
        most[support.argmax()] = support.sum()
        always = ClassCounts(support, most, np.where(most > 0, support, 0.0))
        random = _random_labels(tuple(sorted(support.astype(int).tolist())), seed)
        return {"majority": _floats(weighted_scores(always)), "random": dict(random)}

    def _per_class(self, counts: Counts) -> ClassCounts:
        return class_counts(counts, self._true, self._predicted, len(self._labels))

    def _scores(self, counts: Counts) -> dict[str, Floats]:
        return weighted_scores(self._per_class(counts))


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
    scores = weighted_scores(ClassCounts(true, predicted, hits))
    return _floats({name: values.mean() for name, values in scores.items()})


class LabelSets(_Cells):
    """Samples with a set of labels each, as places among `labels`.

    accuracy: the sets are the same; precision, recall, f1 and map: means over the labels that occur
    """

    def __init__(
        self, true: Sequence[LabelSet], predicted: Sequence[LabelSet], labels: Sequence[str]
    ) -> None:
        self._all_true = tuple(true)
        pairs = list(zip(true, predicted, strict=True))
        cells = sorted(set(pairs))
        place = {pair: cell for cell, pair in enumerate(cells)}
        self._true = _members([true for true, _ in cells], len(labels))
        self._predicted = _members([predicted for _, predicted in cells], len(labels))
        words = [
            ", ".join(labels[code] for code in one) or NO_LABEL for pair in cells for one in pair
        ]
        super().__init__(
            labels,
            np.array([place[pair] for pair in pairs], dtype=np.int64),
            list(zip(words[::2], words[1::2], strict=True)),
            np.array([true == predicted for true, predicted in cells], dtype=np.bool_),
        )

    def baselines(self, seed: int) -> dict[str, Values]:
        true = self._all_true
        most = _most_frequent(one for one in true if one) or ()
        always = LabelSets(true, [most] * len(true), self._labels).metrics()
        return {"majority": always, "random": dict(_random_sets(true, len(self._labels), seed))}

    def _per_class(self, counts: Counts) -> ClassCounts:
        return set_counts(counts, self._true, self._predicted)

    def _scores(self, counts: Counts) -> dict[str, Floats]:
        samples = counts.sum(axis=0).astype(np.float64)
        accuracy = np.asarray(self._right @ counts / samples)
        return {"accuracy": accuracy} | macro_scores(self._per_class(counts), samples)


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
    """Whether each set holds each label, (sets, labels)."""
    members = np.zeros((len(sets), labels), dtype=np.bool_)
    for row, one in enumerate(sets):
        members[row, list(one)] = True
    return members


class Captions(Samples):
    """Captions beside their references: cider from 0 to 10, and spice where it is given.

    spice: the SPICE of each caption, (captions,)
    """

    def __init__(
        self, captions: Sequence[str], references: Sequence[str], spice: Floats | None = None
    ) -> None:
        self._references = tuple(references)
        self.predicted = list(captions)
        self.correct = cider(captions, references)
        self._scores = {"cider": self.correct} | ({} if spice is None else {"spice": spice})

    def metrics(self) -> Values:
        return {name: float(scores.mean()) for name, scores in self._scores.items()}

    def resampled(self, clusters: Codes, bootstrap: BootstrapOptions) -> dict[str, Floats]:
        # How rare words are stays the same.
        return {k: resampled_mean(one, clusters, bootstrap) for k, one in self._scores.items()}

    def baselines(self, seed: int) -> dict[str, Values]:
        return {name: {"cider": value} for name, value in _ciders(self._references, seed).items()}


@lru_cache(maxsize=16)
def _ciders(references: tuple[str, ...], seed: int) -> Values:
    most = _most_frequent(references) or ""
    rng = np.random.default_rng(seed)
    dealt = [
        cider([references[i] for i in rng.permutation(len(references))], references).mean()
        for _ in range(CAPTION_DRAWS)
    ]
    return {
        "majority": float(cider([most] * len(references), references).mean()),
        "random": float(np.mean(dealt)),
    }


def _most_frequent(items: Iterable[Item]) -> Item | None:
    """The most frequent one, the first in order among equals; None of nothing."""
    counts = Counter(items)
    return max(sorted(counts), key=counts.__getitem__) if counts else None


def _floats(scores: dict[str, Floats]) -> Values:
    return {name: float(value) for name, value in scores.items()}

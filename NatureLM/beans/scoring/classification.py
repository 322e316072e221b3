"""Tasks with one label for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from NatureLM.beans.scoring.results import ClassRow, Codes, ConfusionRow, Floats, Values, class_rows
from NatureLM.metrics.confusion import ClassCounts, class_counts, weighted_scores
from NatureLM.metrics.resampling import cell_counts

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
        return {"majority": _floats(_scores(always)), "random": dict(_random(counts, seed))}

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
def _random(counts: tuple[int, ...], seed: int) -> Values:
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

"""Tasks with a set of labels for each sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from NatureLM.beans.scoring.protocols import NO_LABEL
from NatureLM.beans.scoring.results import ClassRow, Codes, ConfusionRow, Floats, Values, class_rows
from NatureLM.metrics.confusion import ClassCounts
from NatureLM.metrics.multilabel import macro_scores, set_counts
from NatureLM.metrics.resampling import cell_counts

LabelSet: TypeAlias = tuple[int, ...]
"""Places of labels, sorted; empty where nothing is heard."""

RANDOM_DRAWS = 100


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
        random = _random(self._all_true, len(self._labels), seed)
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
def _random(true: tuple[LabelSet, ...], labels: int, seed: int) -> Values:
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

"""Tasks with a free text for each sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from NatureLM.beans.scoring.results import ClassRow, Codes, ConfusionRow, Floats, Values
from NatureLM.metrics.cider import cider
from NatureLM.metrics.resampling import resampled_mean

RANDOM_DRAWS = 3


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
        for _ in range(RANDOM_DRAWS)
    ]
    return {
        "majority": float(cider([most] * len(references), references).mean()),
        "random": float(np.mean(dealt)),
    }

"""Metrics as arithmetic: accuracies, scores of classes and of sets, reliability, captions; and the
cluster bootstrap, which gives them intervals.

Clips of one recording (a "family") succeed or fail together, so whole clusters are drawn with
replacement, not clips. Samples that look the same to a metric (same truth, same answer) fall into
one cell, so a resample is a column of counts and a metric of all resamples is a little array
arithmetic. Source: Field and Welsh, "Bootstrapping clustered data" (2007), percentile intervals.

Weights say how often each sample counts, so that a bootstrap can resample them; None counts each
once. Scores of classes come from counts of (true, predicted) cells, with resamples behind. Sources
are named where the metrics are.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from NatureLM.errors import NatureLMError

Floats: TypeAlias = npt.NDArray[np.float64]
Counts: TypeAlias = npt.NDArray[Any]
Grams: TypeAlias = Counter[tuple[str, ...]]
Codes: TypeAlias = npt.NDArray[np.integer]
Flags: TypeAlias = Sequence[bool] | npt.NDArray[np.bool_] | Floats

LEVEL = 0.95
BINS = 10
CIDER_WORDS = 4
CIDER_SIGMA = 6.0
CIDER_SCALE = 10.0
SPICE_JAR = "NATURELM_SPICE_JAR"
_BLOCK = 4_000_000  # numbers held at a time


@dataclass(frozen=True)
class BootstrapOptions:
    """How intervals are made. The seed is also that of answers at random."""

    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A value, its interval (NaN without one), and what it rests on (samples in clusters)."""

    value: float
    low: float = math.nan
    high: float = math.nan
    samples: int = 0
    clusters: int = 0

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


def multiplicities(clusters: int, options: BootstrapOptions) -> Iterator[npt.NDArray[np.int32]]:
    """How often each cluster is drawn, block by block: (clusters, some resamples).

    The draws depend on the number of clusters and the seed only, so two sets of answers to the same
    samples meet the same resamples.
    """
    if clusters * options.resamples <= _BLOCK:
        yield _kept(clusters, options)
    else:
        yield from _drawn(clusters, options)


@lru_cache(maxsize=1)
def _kept(clusters: int, options: BootstrapOptions) -> npt.NDArray[np.int32]:
    drawn = np.ascontiguousarray(np.concatenate(list(_drawn(clusters, options)), axis=1))
    drawn.setflags(write=False)
    return drawn


def _drawn(clusters: int, options: BootstrapOptions) -> Iterator[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(options.seed)
    step = max(1, _BLOCK // 4 // clusters)
    for start in range(0, options.resamples, step):
        rows = min(step, options.resamples - start)
        drawn = rng.integers(0, clusters, (rows, clusters))
        drawn *= rows
        drawn += np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * clusters)
        yield counts.reshape(clusters, rows).astype(np.int32)


def cell_counts(
    cells: Codes, clusters: Codes, options: BootstrapOptions
) -> Iterator[npt.NDArray[np.int32]]:
    """How many samples of each resample fall into each cell: blocks (cells, some resamples).

    cells, clusters: numbers from 0 of each sample's cell and cluster, none left out, (samples,)
    """
    n_clusters = int(clusters.max()) + 1
    pairs, repeated = np.unique(cells.astype(np.int64) * n_clusters + clusters, return_counts=True)
    starts = np.unique(pairs // n_clusters, return_index=True)[1]
    members = pairs % n_clusters
    step = max(1, _BLOCK // len(pairs))
    for drawn in multiplicities(n_clusters, options):
        for start in range(0, drawn.shape[1], step):
            weights = drawn[members, start : start + step]
            if repeated.max() > 1:
                weights = weights * repeated[:, None].astype(np.int32)
            yield np.add.reduceat(weights, starts, axis=0)


def resampled_mean(values: Floats, clusters: Codes, options: BootstrapOptions) -> Floats:
    """The mean of each resample, (resamples,); values, clusters: of each sample, (samples,)."""
    sizes = np.bincount(clusters).astype(np.float64)
    sums = np.bincount(clusters, values)
    blocks = [(sums @ drawn) / (sizes @ drawn) for drawn in multiplicities(len(sizes), options)]
    return np.concatenate(blocks)


def percentile_interval(values: Floats) -> tuple[float, float] | None:
    """The middle 95 % of resampled values; NaN are left out, None if nothing is left."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def clustered_interval(
    statistic: Callable[[Floats], float],
    clusters: Sequence[Hashable],
    *,
    repeats: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Percentile interval of any statistic; for one that is not a sum over cells.

    statistic: takes weights (how often each sample counts, (samples,)) and gives the value;
        resamples for which it gives NaN are left out
    clusters: the cluster of each sample
    repeats: number of resamples
    """
    if not clusters:
        raise ValueError("an interval needs at least one sample")
    codes: dict[Hashable, int] = {}
    index = np.array([codes.setdefault(cluster, len(codes)) for cluster in clusters])
    values = [
        statistic(weights[index])
        for drawn in multiplicities(len(codes), BootstrapOptions(repeats, seed))
        for weights in drawn.T.astype(np.float64)
    ]
    low, high = percentile_interval(np.array(values)) or (math.nan, math.nan)
    value = float(statistic(np.ones(len(clusters))))
    return Estimate(value, low, high, len(clusters), len(codes))


# Metrics


def accuracy(correct: Flags, weights: Floats | None = None) -> float:
    """Share of samples answered correctly, weighted; NaN if nothing counts."""
    hits = np.asarray(correct, dtype=np.float64)
    counts = _weights(len(hits), weights)
    total = counts.sum()
    return float(hits @ counts / total) if total > 0 else float("nan")


def macro_accuracy(correct: Flags, labels: Sequence[str], weights: Floats | None = None) -> float:
    """Mean over the true labels of the accuracy within each, over labels that count.

    With the labels "Yes" and "No" this is the balanced accuracy.
    """
    hits = np.asarray(correct, dtype=np.float64)
    if len(hits) != len(labels):
        raise ValueError(f"{len(hits)} results were given with {len(labels)} labels")
    counts = _weights(len(hits), weights)
    _, index = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    totals = np.bincount(index, weights=counts)
    right = np.bincount(index, weights=counts * hits)
    seen = totals > 0
    return float(np.mean(right[seen] / totals[seen])) if seen.any() else float("nan")


@dataclass(frozen=True)
class ClassCounts:
    """For each label: how often it is true, was predicted, and was predicted where true.

    Each (labels, ...); the axes behind are resamples.
    """

    true: Floats
    predicted: Floats
    hits: Floats

    @property
    def precision(self) -> Floats:
        """Share of a label's predictions that are right, (labels, ...); 0 without predictions."""
        return share(self.hits, self.predicted)

    @property
    def recall(self) -> Floats:
        """Share of a label's samples that are found, (labels, ...); 0 without samples."""
        return share(self.hits, self.true)

    @property
    def f1(self) -> Floats:
        """Harmonic mean of precision and recall, (labels, ...); 0 where both are."""
        return share(2 * self.hits, self.true + self.predicted)


def class_counts(counts: Counts, true: Codes, predicted: Codes, labels: int) -> ClassCounts:
    """Counts for each label from counts for each cell.

    counts: (cells, ...); true, predicted: labels of the cells, (cells,); a negative `predicted` is
    an answer that is no label
    """
    return ClassCounts(
        _sum_by(counts, true, labels),
        _sum_by(counts, predicted, labels),
        _sum_by(counts, np.where(true == predicted, true, -1), labels),
    )


def weighted_scores(per_class: ClassCounts) -> dict[str, Floats]:
    """accuracy, precision, recall, f1 and top1, each (...); NaN where no sample counts.

    As scikit-learn's weighted averages with zero_division=0: each label's value, 0 where it is not
    defined, weighted by how often the label is true.
    """
    total = per_class.true.sum(axis=0)
    with np.errstate(invalid="ignore"):
        weights = per_class.true / total
        accuracy = per_class.hits.sum(axis=0) / total
    return {
        "accuracy": accuracy,
        "precision": (weights * per_class.precision).sum(axis=0),
        "recall": (weights * per_class.recall).sum(axis=0),
        "f1": (weights * per_class.f1).sum(axis=0),
        "top1": accuracy,
    }


def share(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def _sum_by(counts: Floats, codes: Codes, size: int) -> Floats:
    """Sums over the cells of each code, (size, ...); negative codes are left out."""
    order = np.argsort(codes, kind="stable")
    order = order[codes[order] >= 0]
    sums = np.zeros((size, *counts.shape[1:]))
    if len(order):
        present, starts = np.unique(codes[order], return_index=True)
        sums[present] = np.add.reduceat(counts[order], starts, axis=0)
    return sums


def set_counts(
    counts: npt.NDArray[Any], true: npt.NDArray[np.bool_], predicted: npt.NDArray[np.bool_]
) -> ClassCounts:
    """Counts for each label from counts for each cell of a true and a predicted set.

    counts: (cells, ...); true, predicted: whether the sets of a cell hold a label, (cells, labels)
    """
    counts = np.asarray(counts, dtype=np.float64)
    return ClassCounts(
        true.T.astype(np.float64) @ counts,
        predicted.T.astype(np.float64) @ counts,
        (true & predicted).T.astype(np.float64) @ counts,
    )


def macro_scores(per_class: ClassCounts, samples: Floats) -> dict[str, Floats]:
    """precision, recall, f1 and map over labels that are true somewhere, each (...).

    samples: how many there are, (...). NaN where no label is true anywhere.
    """
    return {
        "precision": _mean(per_class, per_class.precision),
        "recall": _mean(per_class, per_class.recall),
        "f1": _mean(per_class, per_class.f1),
        "map": _mean(per_class, average_precision(per_class, samples)),
    }


def average_precision(per_class: ClassCounts, samples: Floats) -> Floats:
    """Area under the steps of precision over recall for each label, (labels, ...).

    Answers hold a label or not, so there are two thresholds: what was named, and everything. All
    samples that tie are added at once, which makes the value independent of their order.
    """
    prevalence = share(per_class.true, np.broadcast_to(samples, per_class.true.shape))
    recall = per_class.recall
    return recall * per_class.precision + (1 - recall) * prevalence


def _mean(per_class: ClassCounts, values: Floats) -> Floats:
    occurs = per_class.true > 0
    total = np.where(occurs, values, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / occurs.sum(axis=0))


@dataclass(frozen=True)
class ReliabilityBin:
    """The samples whose confidence lies between `low` and `high` (above `low`, 0 in the first).

    confidence, accuracy: their means; NaN where there is no sample
    samples: how many they are
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    samples: float


def reliability_bins(
    confidences: Sequence[float] | Floats,
    correct: Flags,
    weights: Floats | None = None,
    bins: int = BINS,
) -> list[ReliabilityBin]:
    """Mean confidence and share of right answers in bins of equal width from 0 to 1."""
    confidence, hits, counts = _arrays(confidences, correct, weights)
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    total = np.bincount(places, counts, bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(places, counts * confidence, bins) / total
        mean_hits = np.bincount(places, counts * hits, bins) / total
    columns = (mean_confidence.tolist(), mean_hits.tolist(), total.tolist())
    return [
        ReliabilityBin(place / bins, (place + 1) / bins, *values)
        for place, values in enumerate(zip(*columns, strict=True))
    ]


def calibration_error(
    confidences: Sequence[float] | Floats,
    correct: Flags,
    weights: Floats | None = None,
    bins: int = BINS,
) -> float:
    """Mean distance of confidence and share of right answers over the bins; NaN for no samples.

    Source: Guo and others, "On calibration of modern neural networks" (2017).
    """
    found = reliability_bins(confidences, correct, weights, bins)
    filled = [one for one in found if one.samples > 0]
    total = sum(one.samples for one in filled)
    if not total:
        return float("nan")
    return sum(one.samples * abs(one.accuracy - one.confidence) for one in filled) / total


def auroc(
    scores: Sequence[float] | Floats, positive: Flags, weights: Floats | None = None
) -> float:
    """Probability that a positive sample scores higher than a negative one; ties count half.

    NaN where a kind does not count. Source: Hanley and McNeil (1982).
    """
    values, kinds, counts = _arrays(scores, positive, weights)
    yes, no = counts * kinds, counts * (1 - kinds)
    _, places = np.unique(values, return_inverse=True)
    up, down = np.bincount(places, yes), np.bincount(places, no)
    pairs = up.sum() * down.sum()
    if not pairs:
        return float("nan")
    lower = np.cumsum(down) - down
    return float((up * (lower + down / 2)).sum() / pairs)


def _arrays(
    values: Sequence[float] | Floats, flags: Flags, weights: Floats | None
) -> tuple[Floats, Floats, Floats]:
    made = np.asarray(values, dtype=np.float64)
    kinds = np.asarray(flags, dtype=np.float64)
    if len(made) != len(kinds):
        raise ValueError(f"{len(made)} values were given with {len(kinds)} truths")
    return made, kinds, _weights(len(made), weights)


def _weights(samples: int, weights: Floats | None) -> Floats:
    if weights is None:
        return np.ones(samples)
    if len(weights) != samples:
        raise ValueError(f"{samples} results were given with {len(weights)} weights")
    return np.asarray(weights, dtype=np.float64)


def cider(candidates: Sequence[str], references: Sequence[str]) -> Floats:
    """The CIDEr-D of each caption from 0 to 10, (captions,); a word is worth the more, the rarer.

    Words are what spaces separate, capital letters count; the benchmark's CIDEr is the mean of
    these divided by 10. Source: Vedantam et al., "CIDEr: Consensus-based Image Description
    Evaluation" (2015), with the clipped counts and the length penalty of its D variant.
    """
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions with {len(references)} references")
    true = [_grams(text) for text in references]
    spread = Counter(gram for grams in true for gram in grams)
    rarity = {gram: math.log(len(true)) - math.log(count) for gram, count in spread.items()}
    unseen = math.log(len(true)) if true else 0.0
    scores = [
        _agreement(_grams(text), grams, rarity, unseen)
        for text, grams in zip(candidates, true, strict=True)
    ]
    return np.array(scores, dtype=np.float64)


def _agreement(
    candidate: Grams, reference: Grams, rarity: dict[tuple[str, ...], float], unseen: float
) -> float:
    sums = [0.0] * CIDER_WORDS
    norms = [[0.0] * CIDER_WORDS, [0.0] * CIDER_WORDS]
    for grams, norm in zip((candidate, reference), norms, strict=True):
        for gram, count in grams.items():
            norm[len(gram) - 1] += (count * rarity.get(gram, unseen)) ** 2
    for gram, count in candidate.items():
        if other := reference.get(gram, 0):
            sums[len(gram) - 1] += min(count, other) * other * rarity[gram] ** 2
    # The number of word pairs stands for the length.
    long, right = (
        sum(count for gram, count in grams.items() if len(gram) == 2)
        for grams in (candidate, reference)
    )
    penalty = math.exp(-((long - right) ** 2) / (2 * CIDER_SIGMA**2))
    cosines = [
        s / math.sqrt(a * b) if a > 0 and b > 0 else 0.0
        for s, a, b in zip(sums, norms[0], norms[1], strict=True)
    ]
    return CIDER_SCALE * penalty * sum(cosines) / CIDER_WORDS


def _grams(text: str) -> Grams:
    words = text.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, CIDER_WORDS + 1)
        for start in range(len(words) - n + 1)
    )


@dataclass(frozen=True)
class Spice:
    """Calls the SPICE program; get one from `find_spice`. Raises NatureLMError where it fails.

    Source: Anderson et al., "SPICE: Semantic Propositional Image Caption Evaluation" (2016); the
    Java program of its authors is no part of this project.
    """

    java: str
    jar: Path

    def __call__(self, captions: Sequence[str], references: Sequence[str]) -> Floats:
        """The SPICE (F1 of the propositions, 0 to 1) of each caption, (captions,)."""
        items = [
            {"image_id": number, "test": caption, "refs": [reference]}
            for number, (caption, reference) in enumerate(zip(captions, references, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            given, made = Path(folder, "captions.json"), Path(folder, "scores.json")
            given.write_text(json.dumps(items), "utf-8")
            command = [self.java, "-Xmx8G", "-jar", str(self.jar), str(given)]
            command += ["-out", str(made), "-silent"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode or not made.is_file():
                said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
                raise NatureLMError(f"SPICE ({self.jar}) failed: {said[0]}")
            found = json.loads(made.read_text("utf-8"))
        scores = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in found}
        if missing := len(items) - len(scores):
            raise NatureLMError(f"SPICE ({self.jar}) left out {missing} of {len(items)} captions")
        values = (scores[number] for number in range(len(items)))
        return np.array([0.0 if math.isnan(value) else value for value in values])


def find_spice(jar: str | Path | None = None) -> Spice | str:
    """SPICE, or the sentence that says why it is left out.

    jar: the program; None takes the environment variable NATURELM_SPICE_JAR
    """
    java = shutil.which("java")
    if java is None:
        return "SPICE is left out because Java is not installed."
    path = jar or os.environ.get(SPICE_JAR)
    if not path:
        return (
            "SPICE is left out because its program is not named: set "
            f"{SPICE_JAR} to the path of spice-1.0.jar."
        )
    if not Path(path).is_file():
        return f"SPICE is left out because its program {path} is not there."
    return Spice(java, Path(path))

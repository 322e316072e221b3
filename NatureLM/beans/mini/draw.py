"""Which clips a benchmark is made of: drawn by a seed, no sound is read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from NatureLM.beans.samples import DataError, Sample

MOST_AT_ONCE = 3
"""Labels that may be heard in one window of detection."""
_QUIETEST_DB = -6.0


@dataclass(frozen=True)
class Sizes:
    """How many samples each subset has at most, and of how many labels, the most frequent ones."""

    classification: int = 60
    detection: int = 40
    captioning: int = 40
    classes: int = 10


@dataclass(frozen=True)
class Part:
    """A clip in a mixed window.

    place: where it lies, 0 at the beginning of the window and 1 at its end
    gain_db: loudness beside the loudest that a clip may have
    """

    sample: Sample
    place: float
    gain_db: float


def frequent_labels(samples: Sequence[Sample], count: int, name: str) -> tuple[str, ...]:
    """The most frequent labels in alphabetical order; of ties the alphabetically first.

    Raises DataError where there are fewer than two, or a label cannot stand in a list.
    """
    counts = Counter(sample.label for sample in samples)
    chosen = sorted(sorted(counts), key=lambda label: -counts[label])[:count]
    if len(chosen) < 2:
        raise DataError(
            f"{name}: a benchmark needs clips of at least two labels, and there are "
            f"{len(counts)} of which {count} may be taken ({', '.join(chosen)})"
        )
    for label in chosen:
        if "," in label or label == "None":
            raise DataError(
                f"{name}: the label {label!r} cannot stand in a list of labels, which are set off "
                "by commas, with None for no label: rename it"
            )
    return tuple(sorted(chosen))


def in_turn(samples: Sequence[Sample], seed: int, subset: str) -> list[Sample]:
    """All samples in a random order in which the labels take turns."""
    by_label: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_label[sample.label].append(sample)
    turns: list[tuple[int, int, Sample]] = []
    for place, label in enumerate(sorted(by_label)):
        order = _generator(seed, f"{subset}/{label}").permutation(len(by_label[label]))
        turns += [(turn, place, by_label[label][index]) for turn, index in enumerate(order)]
    return [sample for _, _, sample in sorted(turns, key=lambda one: one[:2])]


def mixtures(samples: Sequence[Sample], count: int, seed: int) -> list[tuple[Part, ...]]:
    """Clips of 0 to 3 different labels for each of `count` windows."""
    by_label: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_label[sample.label].append(sample)
    labels = sorted(by_label)
    return [_mixture(by_label, labels, _generator(seed, f"mixture/{i}")) for i in range(count)]


def _mixture(
    by_label: dict[str, list[Sample]], labels: list[str], rng: np.random.Generator
) -> tuple[Part, ...]:
    heard = rng.permutation(len(labels))[: rng.integers(0, MOST_AT_ONCE + 1)]
    parts = []
    for label in sorted(labels[index] for index in heard):
        clips = by_label[label]
        parts.append(
            Part(clips[rng.integers(len(clips))], rng.random(), rng.uniform(_QUIETEST_DB, 0.0))
        )
    return tuple(parts)


def _generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers that depend on seed and name alone."""
    return np.random.default_rng([seed, *name.encode()])

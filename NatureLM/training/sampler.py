"""Which sample comes when, and random numbers as a pure function of what they are for.

Nothing in a training run draws from a generator that lives on: every draw makes its own generator
from the run's seed and a key such as ("augment", sample, epoch). Order, batch size, number of
workers and a resumed run therefore cannot change it.

An epoch is `size` draws. Row i with weight w_i is drawn floor or ceil of size * w_i / sum(w) times
(systematic resampling), so equal weights and size = number of rows give every row exactly once, and
unequal weights give balanced classes without the noise of independent draws. A resumed run needs to
know only the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from NatureLM.util import digest

Key = int | str


def derive_seed(seed: int, *keys: Key) -> int:
    """A 63-bit seed for `keys` under the run's `seed`; equal on every machine and Python."""
    text = "\x1f".join(f"{type(key).__name__}:{key}" for key in (seed, *keys))
    return int.from_bytes(digest(text, "blake2b", size=8), "big") >> 1


def generator(seed: int, *keys: Key) -> np.random.Generator:
    """A fresh numpy generator for `keys` under the run's `seed`."""
    return np.random.Generator(np.random.PCG64(derive_seed(seed, *keys)))


Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SampleIndex:
    """One draw: the row, and which copy of it this is (`epoch` and `copy` seed its changes)."""

    row: int
    epoch: int
    copy: int


def mixture_weights(
    row_weights: Sequence[Sequence[float]],
    dataset_weights: Sequence[float],
    temperature: float = 1.0,
) -> Floats:
    """Probability of each row, datasets one after the other.

    A dataset's share is proportional to (weight * sum of its row weights) ** (1 / temperature):
    temperature 1 keeps natural shares, larger ones favour small datasets, infinity makes all equal.
    Within a dataset, rows share by their weights. Rows of weight 0 are never drawn.
    """
    sums = np.array([float(np.sum(rows)) for rows in row_weights])
    shares = np.array(dataset_weights, dtype=np.float64) * sums
    if not np.any(shares > 0):
        raise ValueError("all samples have weight 0, so none can be drawn")
    scaled = np.zeros_like(shares)
    scaled[shares > 0] = (shares[shares > 0] / shares.max()) ** (1.0 / temperature)
    scaled /= scaled.sum()
    parts = [
        np.asarray(rows, dtype=np.float64) * (share / total if total > 0 else 0.0)
        for rows, share, total in zip(row_weights, scaled, sums, strict=True)
    ]
    return np.concatenate(parts)


class Sampler:
    """The endless order of draws; `draws(first, count)` reads any stretch of it.

    probabilities: of each row, summing to 1, datasets one after the other
    dataset_sizes: rows of each dataset; the order of rows is shuffled within datasets only, so that
        every dataset gets its share of each epoch to within one draw
    size: draws in an epoch
    """

    def __init__(
        self, probabilities: Floats, dataset_sizes: Sequence[int], size: int, seed: int
    ) -> None:
        if sum(dataset_sizes) != len(probabilities):
            raise ValueError("dataset sizes do not add up to the number of rows")
        self.probabilities = probabilities
        self.dataset_sizes = list(dataset_sizes)
        self.size = size
        self.seed = seed
        self._cached: tuple[int, Ints, Ints] | None = None

    def epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """(rows, copies) of one epoch, each (size,)."""
        if self._cached is not None and self._cached[0] == epoch:
            return self._cached[1], self._cached[2]
        rng = generator(self.seed, "order", epoch)
        starts = np.cumsum([0, *self.dataset_sizes[:-1]])
        shuffled = np.concatenate(
            [
                start + rng.permutation(n)
                for start, n in zip(starts, self.dataset_sizes, strict=True)
            ]
        )
        edges = np.cumsum(self.probabilities[shuffled])
        points = (np.arange(self.size) + rng.random()) / self.size * edges[-1]
        places = np.minimum(np.searchsorted(edges, points, side="right"), len(edges) - 1)
        rows = shuffled[places][rng.permutation(self.size)].astype(np.int64)
        copies = _occurrence(rows)
        self._cached = (epoch, rows, copies)
        return rows, copies

    def draws(self, first: int, count: int) -> list[SampleIndex]:
        """The draws at positions first, first + 1, … of the run."""
        out = []
        for position in range(first, first + count):
            epoch, place = divmod(position, self.size)
            rows, copies = self.epoch(epoch)
            out.append(SampleIndex(int(rows[place]), epoch, int(copies[place])))
        return out


def _occurrence(rows: Ints) -> Ints:
    """How many equal values stand before each place: [7, 3, 7, 7] -> [0, 0, 1, 2]."""
    by_value = np.argsort(rows, kind="stable")
    ordered = rows[by_value]
    first_of_run = np.searchsorted(ordered, ordered, side="left")
    counts = np.empty_like(rows)
    counts[by_value] = np.arange(len(rows)) - first_of_run
    return counts

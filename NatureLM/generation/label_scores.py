"""What scoring a list of labels gives: log-likelihoods, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from NatureLM.errors import UsageError

NOTHING = "None"
"""The answer that no label of the list fits."""

Normalize = Literal["sum", "mean", "prior"]
"""How labels of different length and commonness are made comparable.

sum: the log-likelihood of the label and of the end after it
mean: that, divided by the number of tokens, the end included
prior: that, minus the same under the prompt without its audio: what the sound adds
"""


def check_normalize(value: str) -> None:
    """Raise UsageError if it is no way to normalise."""
    if value not in get_args(Normalize):
        raise UsageError(f"normalize is {value!r}, and it must be one of sum, mean, prior")


@dataclass(frozen=True)
class LabelScores:
    """How likely each label of a list is as the answer to one prompt.

    labels: in the order in which they were given
    log_likelihoods: of each label and of the end of the answer after it, natural logarithm
    scores: the same, normalised; equal to them for "sum"
    temperature: what `scores` are divided by before they become probabilities; 1 until calibrated
    """

    labels: tuple[str, ...]
    log_likelihoods: tuple[float, ...]
    scores: tuple[float, ...]
    temperature: float = 1.0

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of each label, given that one of the list is right; they sum to 1."""
        scaled = [score / self.temperature for score in self.scores]
        highest = max(scaled)
        shares = [math.exp(score - highest) for score in scaled]
        total = sum(shares)
        return tuple(share / total for share in shares)

    @property
    def best(self) -> str:
        """The likeliest label; the first of equal ones."""
        return self.labels[max(range(len(self.labels)), key=self.scores.__getitem__)]

    @property
    def confidence(self) -> float:
        """Probability of the likeliest label, 0 to 1."""
        return max(self.probabilities)

    @property
    def margin(self) -> float:
        """Probability of the likeliest label minus that of the next, 0 to 1; 1 for one label."""
        ordered = sorted(self.probabilities, reverse=True)
        return ordered[0] - (ordered[1] if len(ordered) > 1 else 0.0)

    @property
    def entropy(self) -> float:
        """Of the probabilities, in nats: 0 when sure, log(labels) when nothing is known."""
        return -sum(p * math.log(p) for p in self.probabilities if p > 0)

    def ranked(self, k: int | None = None) -> list[tuple[str, float]]:
        """The `k` likeliest labels (all of them if None) with their probabilities, best first."""
        pairs = list(zip(self.labels, self.probabilities, strict=True))
        return sorted(pairs, key=lambda pair: -pair[1])[:k]

    def at_temperature(self, temperature: float) -> LabelScores:
        """The same scores, calibrated: above 1 makes them less sure, below 1 surer."""
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"the temperature is {temperature}, and it must be above 0")
        return replace(self, temperature=temperature)

"""CIDEr-D of captions: how well their words agree with reference captions.

Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation" (2015), with the
clipped counts and the length penalty of its D variant. Words are what spaces separate, capital
letters count, as in the benchmark.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Grams: TypeAlias = Counter[tuple[str, ...]]

LONGEST = 4
SIGMA = 6.0
SCALE = 10.0


def cider(candidates: Sequence[str], references: Sequence[str]) -> npt.NDArray[np.float64]:
    """The score of each caption from 0 to 10, (captions,); a word is worth the more, the rarer.

    The benchmark's CIDEr is the mean of these divided by 10.
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
    sums = [0.0] * LONGEST
    norms = [[0.0] * LONGEST, [0.0] * LONGEST]
    for grams, norm in zip((candidate, reference), norms, strict=True):
        for gram, count in grams.items():
            norm[len(gram) - 1] += (count * rarity.get(gram, unseen)) ** 2
    for gram, count in candidate.items():
        if other := reference.get(gram, 0):
            sums[len(gram) - 1] += min(count, other) * other * rarity[gram] ** 2
    difference = _pairs(candidate) - _pairs(reference)
    penalty = math.exp(-(difference**2) / (2 * SIGMA**2))
    cosines = [
        s / math.sqrt(a * b) if a > 0 and b > 0 else 0.0
        for s, a, b in zip(sums, norms[0], norms[1], strict=True)
    ]
    return SCALE * penalty * sum(cosines) / LONGEST


def _pairs(grams: Grams) -> int:
    """Number of word pairs, which stands for the length."""
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _grams(text: str) -> Grams:
    words = text.split()
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, LONGEST + 1)
        for start in range(len(words) - n + 1)
    )

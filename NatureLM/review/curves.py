"""From the confidence in an answer to its chance of being right: a logistic curve of clips.

The chance is modelled over the logit of the confidence, separately for each species, and the curve
is read backwards for a threshold. Source: Wood and Kahl, "Guidelines for appropriate use of BirdNET
scores and other detector outputs", Journal of Ornithology 165 (2024), 777-782. Of few clips, or of
clips that one confidence parts into right and wrong, the likeliest curve is infinitely steep; so
the fit has the penalty of Firth, "Bias reduction of maximum likelihood estimates", Biometrika 80
(1993), 27-38, which keeps it finite and less biased. Intervals resample recordings, not clips.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from NatureLM.evaluation.bootstrap import BootstrapOptions, multiplicities, percentile_interval

Floats = npt.NDArray[np.float64]

_EDGE = 1e-4  # confidences nearer to 0 or 1 count as this near: they come rounded
_STEPS = 60
_LONGEST_STEP = 3.0  # of a coefficient
_SETTLED = 1e-8
_BLOCK = 2_000_000  # numbers held at a time


@dataclass(frozen=True)
class SureCurve:
    """The chance of being right is 1 / (1 + exp(-(intercept + slope · logit(confidence))))."""

    intercept: float
    slope: float

    def chance(self, confidence: Floats | float) -> Floats:
        """The chance that an answer of this confidence is right."""
        made: Floats = _sigmoid(self.intercept + self.slope * logit(confidence))
        return made

    def threshold(self, chance: float) -> float | None:
        """The confidence from which on answers are right with this chance; None where the chance
        does not grow with the confidence."""
        if self.slope <= 0:
            return None
        place = (math.log(chance / (1 - chance)) - self.intercept) / self.slope
        return float(_sigmoid(np.float64(place)))


def logit(confidence: Floats | float) -> Floats:
    """The logarithm of the odds, within bounds."""
    share = np.clip(np.asarray(confidence, dtype=np.float64), _EDGE, 1 - _EDGE)
    made: Floats = np.log(share / (1 - share))
    return made


def fit_curve(confidences: Sequence[float], right: Sequence[bool]) -> SureCurve:
    """The curve of clips whose confidence, and whether they are right, is known.

    Raises ValueError where there is no clip, or all have one confidence.
    """
    x, y = logit(np.asarray(confidences)), np.asarray(right, dtype=np.float64)
    if len(x) == 0 or np.ptp(x) == 0:
        raise ValueError("a curve needs clips of different confidence")
    found = _fit(x, y, np.ones((1, len(x))), np.zeros((1, 2)))
    return SureCurve(float(found[0, 0]), float(found[0, 1]))


def threshold_intervals(
    confidences: Sequence[float],
    right: Sequence[bool],
    recordings: Sequence[Hashable],
    chances: Sequence[float],
    options: BootstrapOptions,
) -> list[tuple[float, float] | None]:
    """95 % intervals of the thresholds for these chances; None where all is of one recording.

    Where the curve of a resample does not grow, no confidence is enough: it counts as 1.
    """
    codes: dict[Hashable, int] = {}
    clusters = np.array([codes.setdefault(one, len(codes)) for one in recordings])
    if len(codes) < 2:
        return [None] * len(chances)
    x, y = logit(np.asarray(confidences)), np.asarray(right, dtype=np.float64)
    begin = fit_curve(confidences, right)
    step = max(1, _BLOCK // len(x))
    found = []
    for drawn in multiplicities(len(codes), options):
        for start in range(0, drawn.shape[1], step):
            weights = drawn[clusters, start : start + step].T.astype(np.float64)
            first = np.tile([begin.intercept, begin.slope], (len(weights), 1))
            found.append(_fit(x, y, weights, first))
    a, b = np.concatenate(found).T
    made: list[tuple[float, float] | None] = []
    for chance in chances:
        with np.errstate(divide="ignore", invalid="ignore"):
            place = (math.log(chance / (1 - chance)) - a) / b
        values = np.where(b > 0, _sigmoid(np.where(b > 0, place, 0.0)), 1.0)
        made.append(percentile_interval(values))
    return made


def _fit(x: Floats, y: Floats, weights: Floats, begin: Floats) -> Floats:
    """Penalised coefficients, (resamples, 2): intercept and slope.

    x, y: (clips,); weights: how often each clip counts, (resamples, clips); begin: where to begin

    Newton's method with the score of Firth, y - p + h (1/2 - p), h the leverage of a clip.
    """
    middle = float(np.mean(x))  # around it the two coefficients hardly depend on each other
    z = x - middle
    a, b = begin[:, 0] + begin[:, 1] * middle, begin[:, 1].copy()
    for _ in range(_STEPS):
        p = _sigmoid(a[:, None] + b[:, None] * z)
        w = weights * p * (1 - p)
        i00, i01, i11 = w.sum(axis=1), w @ z, w @ (z * z)
        determinant = np.maximum(i00 * i11 - i01 * i01, 1e-12)
        leverage = (
            w * (i11[:, None] - 2 * i01[:, None] * z + i00[:, None] * z * z) / determinant[:, None]
        )
        residual = weights * (y - p) + leverage * (0.5 - p)
        s0, s1 = residual.sum(axis=1), residual @ z
        step_a = np.clip((i11 * s0 - i01 * s1) / determinant, -_LONGEST_STEP, _LONGEST_STEP)
        step_b = np.clip((i00 * s1 - i01 * s0) / determinant, -_LONGEST_STEP, _LONGEST_STEP)
        a, b = a + step_a, b + step_b
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < _SETTLED:
            break
    return np.stack([a - b * middle, b], axis=1)


def _sigmoid(value: Floats) -> Floats:
    made: Floats = 1 / (1 + np.exp(-np.clip(value, -700, 700)))
    return made

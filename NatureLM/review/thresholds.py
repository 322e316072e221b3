"""Thresholds of a folder of reviewed clips: how sure the model has to be of each species.

A clip counts as most of its reviewers say; ties, and clips that all are unsure about, do not count.
Where the clips cannot tell a threshold there is none, and it is said why: nothing is guessed beyond
the confidences that were reviewed, nor from other species.

The chance of being right is modelled over the logit of the confidence, by a logistic curve for each
species, which is read backwards for a threshold. Source: Wood and Kahl, "Guidelines for appropriate
use of BirdNET scores and other detector outputs", Journal of Ornithology 165 (2024), 777-782. Of
few clips, or of clips that one confidence parts into right and wrong, the likeliest curve is
infinitely steep; so the fit has the penalty of Firth, "Bias reduction of maximum likelihood
estimates", Biometrika 80 (1993), 27-38, which keeps it finite and less biased. Intervals resample
recordings, not clips.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from NatureLM.errors import UsageError
from NatureLM.evaluation.metrics import BootstrapOptions, multiplicities, percentile_interval
from NatureLM.results.thresholds import ALL_SPECIES, FILE_NAME, Scale, Threshold, write_thresholds
from NatureLM.review.cutting import settings_of
from NatureLM.review.folder import Segment, Verdict, majority, read_segments, read_verdicts

CHANCES = (0.85, 0.90, 0.95, 0.99)
LEAST_CLIPS, LEAST_OF_A_KIND = 20, 3

Judged: TypeAlias = tuple[Segment, bool]
"""A clip that counts, and whether the answer about it is right."""


@dataclass(frozen=True)
class SpeciesCurve:
    """What the clips of a species say.

    question, species: `ALL_SPECIES` for all of a question together
    clips: those that count, and have a confidence
    curve: None where there are too few clips, which `why` says
    """

    question: str
    species: str
    clips: tuple[Judged, ...]
    curve: SureCurve | None
    why: str = ""

    @property
    def right(self) -> int:
        """Of how many clips the answer is right."""
        return sum(is_right for _, is_right in self.clips)


@dataclass(frozen=True)
class Agreement:
    """How far reviewers agree on clips that several of them judged with yes or no.

    clips: how many those are
    share: of pairs of reviewers of a clip, how many agree
    kappa: agreement beyond chance: Cohen's of two reviewers, Fleiss's of more; None where all say
        the same of all clips
    """

    reviewers: int
    clips: int
    share: float | None = None
    kappa: float | None = None


@dataclass(frozen=True)
class Review:
    """What a folder of reviewed clips says.

    judged: clips that count, and whether they are right
    undecided: clips whose reviewers do not agree, or are unsure
    unknown: verdicts about clips that are not in the index
    """

    segments: Sequence[Segment]
    judged: Sequence[Judged]
    undecided: int
    unknown: int
    agreement: Agreement


def read_review(folder: str | Path) -> Review:
    """The clips of a folder with what reviewers say. Raises UsageError where there is nothing."""
    segments = read_segments(folder)
    known = {one.clip: one for one in segments}
    verdicts = read_verdicts(folder)
    votes: dict[str, list[Verdict]] = defaultdict(list)
    for one in verdicts:
        if one.clip in known:
            votes[one.clip].append(one)
    judged = [
        (known[clip], last.verdict == "yes")
        for clip, said in sorted(votes.items())
        if (last := majority(said)) is not None
    ]
    if not judged:
        raise UsageError(
            f"{folder}: no clip was judged with yes or no, so there is nothing to fit to: "
            f"naturelm review {folder}"
        )
    return Review(
        segments,
        judged,
        undecided=len(votes) - len(judged),
        unknown=sum(one.clip not in known for one in verdicts),
        agreement=agreement_of(one for one in verdicts if one.clip in known),
    )


def agreement_of(verdicts: Iterable[Verdict]) -> Agreement:
    """How far reviewers agree, on clips that at least two of them judged with yes or no."""
    by_clip: dict[str, dict[str, bool]] = defaultdict(dict)
    for one in verdicts:
        if one.verdict in ("yes", "no"):
            by_clip[one.clip][one.reviewer] = one.verdict == "yes"
    reviewers = sorted({name for votes in by_clip.values() for name in votes})
    shared = [votes for votes in by_clip.values() if len(votes) > 1]
    if not shared:
        return Agreement(len(reviewers), 0)
    pairs = [pair for votes in shared for pair in combinations(votes.values(), 2)]
    share = sum(a == b for a, b in pairs) / len(pairs)
    # By clip, so that one of many reviewers does not outweigh others (Fleiss).
    observed = sum(_agreeing(list(votes.values())) for votes in shared) / len(shared)
    if len(reviewers) == 2:
        first, second = (sum(v[name] for v in shared) / len(shared) for name in reviewers)
        chance = first * second + (1 - first) * (1 - second)
    else:
        yes = sum(map(sum, (v.values() for v in shared))) / sum(map(len, shared))
        chance = yes * yes + (1 - yes) * (1 - yes)
    kappa = (observed - chance) / (1 - chance) if chance < 1 else None
    return Agreement(len(reviewers), len(shared), share, kappa)


def _agreeing(votes: Sequence[bool]) -> float:
    """Of pairs of votes about a clip, how many agree."""
    yes, n = sum(votes), len(votes)
    return (yes * (yes - 1) + (n - yes) * (n - yes - 1)) / (n * (n - 1))


def fit_species(
    species: Iterable[tuple[str, str]], judged: Iterable[Judged], least_clips: int = LEAST_CLIPS
) -> list[SpeciesCurve]:
    """A curve for each species of each question, and one for all of a question together.

    species: questions and labels; those of which nobody judged a clip stand among them, too
    """
    groups: dict[tuple[str, str], list[Judged]] = {one: [] for one in species}
    for one, is_right in judged:
        groups[one.question, one.label].append((one, is_right))
    found = []
    for question in sorted({question for question, _ in groups}):
        labels = sorted(label for asked, label in groups if asked == question)
        found += [
            _fitted(question, label, groups[question, label], least_clips) for label in labels
        ]
        if len(labels) > 1:
            every = [pair for label in labels for pair in groups[question, label]]
            found.append(_fitted(question, ALL_SPECIES, every, least_clips))
    return found


def _fitted(question: str, species: str, clips: Sequence[Judged], least: int) -> SpeciesCurve:
    usable = tuple(pair for pair in clips if pair[0].confidence is not None)
    curve, why = None, _why_not(clips, usable, least)
    if not why:
        curve = fit_curve(*_values(usable))
        if curve.slope <= 0:
            why = "surer answers are not more often right, so no confidence parts right from wrong"
    return SpeciesCurve(question, species, usable, None if why else curve, why)


def _why_not(clips: Sequence[Judged], usable: Sequence[Judged], least: int) -> str:
    """Why clips have no curve; "" where they may have one. usable: those with a confidence."""
    count, right = len(usable), sum(is_right for _, is_right in usable)
    wrong = count - right
    if clips and not usable:
        return "its answers have no confidence"
    if count < least:
        return f"too few clips were judged: {count}, and {least} are needed"
    if min(right, wrong) == 0:
        which, remedy = ("right", "less") if right else ("wrong", "more")
        return f"all {count} clips are {which}: review some that are {remedy} sure"
    if min(right, wrong) < LEAST_OF_A_KIND:
        rare = f"{wrong} wrong" if wrong < right else f"{right} right"
        return f"only {rare} of {count} clips: review more of them"
    shares, _ = _values(usable)
    return "all clips have the same confidence" if min(shares) == max(shares) else ""


def _values(clips: Iterable[Judged]) -> tuple[list[float], list[bool]]:
    """Confidences, and whether the answers are right."""
    pairs = [(one.confidence or 0.0, is_right) for one, is_right in clips]
    return [share for share, _ in pairs], [is_right for _, is_right in pairs]


def thresholds_of(curve: SpeciesCurve, scale: Scale, options: BootstrapOptions) -> list[Threshold]:
    """The lines of a species in the file of thresholds, one for each chance."""
    shares, flags = _values(curve.clips)
    recordings = [one.recording for one, _ in curve.clips]
    blank = Threshold(
        species=curve.species,
        probability=None,
        threshold=None,
        clips=len(curve.clips),
        right=curve.right,
        scale=scale,
        why=curve.why,
    )
    if curve.curve is None:
        return [replace(blank, probability=chance) for chance in CHANCES]
    intervals = threshold_intervals(shares, flags, recordings, CHANCES, options)
    made = []
    for chance, interval in zip(CHANCES, intervals, strict=True):
        value = curve.curve.threshold(chance)
        low, high = interval or (None, None)
        one = replace(blank, probability=chance, threshold=value, low=low, high=high)
        made.append(_within(one, min(shares), max(shares), has_interval=interval is not None))
    return made


def _within(one: Threshold, lowest: float, highest: float, *, has_interval: bool) -> Threshold:
    """The threshold as far as reviewed confidences reach."""
    assert one.threshold is not None
    if one.threshold > highest:
        why = f"no reviewed answer is as sure as {one.threshold:.3f}: the surest has {highest:.3f}"
        return replace(one, threshold=None, why=why)
    why = "" if has_interval else "all clips are of one recording, so there is no interval"
    if one.threshold < lowest:
        why = f"the lowest confidence that was reviewed; the curve says {one.threshold:.3f}"
        return replace(one, threshold=lowest, why=why)
    return replace(one, why=why)


@dataclass(frozen=True)
class Calibrated:
    """What a review came to: the curves, the lines of the file, and where they stand."""

    review: Review
    curves: Sequence[SpeciesCurve]
    thresholds: Sequence[Threshold]
    path: Path

    def line(self, curve: SpeciesCurve, chance: float) -> Threshold:
        """The threshold of a species for a chance."""
        return next(
            one
            for one in self.thresholds
            if (one.species, one.scale.question, one.probability)
            == (curve.species, curve.question, chance)
        )


def calibrate_folder(
    folder: str | Path,
    *,
    output_path: Path | None = None,
    least_clips: int = LEAST_CLIPS,
    options: BootstrapOptions | None = None,
) -> Calibrated:
    """Fit curves to a folder of reviewed clips and write their thresholds.

    output_path: None for `thresholds.csv` in the folder

    Raises UsageError where nothing was reviewed, OutputError where the file cannot be written.
    """
    review = read_review(folder)
    species = [(one.question, one.label) for one in review.segments]
    curves = fit_species(species, review.judged, least_clips)
    settings = settings_of(folder)
    lines: list[Threshold] = []
    for curve in curves:
        scale = _scale(settings, curve.question, review.segments)
        lines += thresholds_of(curve, scale, options or BootstrapOptions())
    target = output_path or Path(folder) / FILE_NAME
    write_thresholds(target, lines)
    return Calibrated(review, curves, lines, target)


def _scale(settings: Mapping[str, object], question: str, segments: Sequence[Segment]) -> Scale:
    """What the thresholds of a question hold for, from settings or else from the index."""
    scale = Scale.of(settings, question)
    one = next(one for one in segments if one.question == question)
    return replace(
        scale,
        weights=scale.weights or one.weights,
        merging_alpha=one.merging_alpha if scale.merging_alpha is None else scale.merging_alpha,
    )


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

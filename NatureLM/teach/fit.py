"""Teaching: which linear map tells the names apart, how sure it is, and how good it is.

With few examples the nearest prototype decides: the mean of a name's examples. With more a
regularised logistic regression may be better; which, and how strongly it is regularised, is chosen
by cross-validation in which no recording is on both sides. The same held-out answers make the
chances mean what they say and measure the classifier. What is unknown is measured by leaving each
name out in turn: its examples must then be like none of the others.

The card says what it was taught with and how good it is: numbers, `README.md` and `thresholds.csv`.
All numbers are of held-out recordings; where there are none, the card says so.

Shapes: N windows, C classes, E width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.errors import UsageError
from NatureLM.evaluation.metrics import BootstrapOptions, auroc, clustered_interval
from NatureLM.generation.labels import NOTHING
from NatureLM.results.thresholds import FILE_NAME, Scale, list_text, write_thresholds
from NatureLM.review.folder import Segment
from NatureLM.review.thresholds import (
    CHANCES,
    fit_species,
    thresholds_of,
)
from NatureLM.search.index import IndexSettings
from NatureLM.teach.classifier import (
    QUERY,
    Classifier,
    KnownCurve,
    softmax,
    unit_vectors,
    write_classifier,
)
from NatureLM.teach.examples import LABELS_NAME, Examples, Labelled, counted, write_labels
from NatureLM.util import library, write_text

Floats = NDArray[np.float64]

FOLDS = 5
REGULARISED = (1.0, 10.0, 100.0)
"""Inverse strengths that are tried for the logistic regression."""
METHODS = ("auto", "prototypes", "logistic")
# Before there are held-out recordings: measured on tasks of 2 to 10 names with 1 to 3 examples,
# drawn from validation and test recordings of the embedded model's training classes.
SHARPNESS = 6.0
KNOWN = KnownCurve(offset=2.1, slope=4.7, between=1.0)
_PRIOR_CLIPS = 5.0  # how many held-out clips these count as
_FEWEST_RECORDINGS = 3  # of a name, for the logistic regression to be tried


@dataclass(frozen=True, eq=False)
class Linear:
    """Scores of C classes: `x @ weights.T + bias`."""

    weights: Floats
    bias: Floats

    def __call__(self, vectors: NDArray[Any]) -> Floats:
        made: Floats = vectors @ self.weights.T + self.bias
        return made

    def scaled(self, by: float) -> Linear:
        return Linear(self.weights * by, self.bias * by)


Fit: TypeAlias = Callable[[NDArray[Any], NDArray[np.int64], Floats, int], Linear]
"""Of vectors, their classes, their weights and the number of classes."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Answers about clips whose recordings the classifier had not seen.

    clips: their numbers; classes: what they are; chances: (clips, C) shares among the classes
    known: (clips,) squared distances to the nearest example; unknown: those of clips whose name was
        left out, with `unknown_chances` (clips, C) and `unknown_clips`
    """

    clips: tuple[int, ...]
    classes: NDArray[np.int64]
    chances: Floats
    known: Floats
    unknown: Floats
    unknown_chances: Floats
    unknown_clips: tuple[int, ...]


def fit_classifier(
    examples: Examples, hears: IndexSettings, *, method: str = "auto", seed: int = 0
) -> tuple[Classifier, HeldOut | None]:
    """Teach a classifier; and what it says of held-out clips, None where none can be held out.

    method: "prototypes", "logistic", or "auto" for what cross-validation finds better

    Raises UsageError for examples that nothing can be learnt from, and where the logistic
    regression is asked for and scikit-learn is not installed.
    """
    if method not in METHODS:
        raise UsageError(f"--method is {method!r}, and it must be one of {', '.join(METHODS)}")
    examples = _with_sound(examples)
    certain = examples.taken([row for row, label in enumerate(examples.labels) if label])
    if not certain.names:
        raise UsageError(
            "no example has a name: a table to teach with needs a label for each stretch of sound"
        )
    if method == "logistic":
        need_sklearn()
    data = _Data.of(certain)
    if any(examples.is_not):
        data = _Data.of(_resolved(examples, data))
    candidates = _candidates(data, method)
    name, fit, held = _chosen(candidates, data, seed)
    sharpness = 1.0 if held is None else _sharpness(held[1], held[0].classes)
    linear = data.fitted(fit).scaled(sharpness)
    measured = None
    between = data.between()
    known = replace(KNOWN, between=between)
    if held is not None:
        measured = replace(held[0], chances=softmax(held[1] * sharpness))
        known = fit_known(measured.known / between, measured.unknown / between, between)
    taught = Classifier(
        names=data.names,
        hears=hears,
        method=name,
        weights=linear.weights.astype(np.float32),
        bias=linear.bias.astype(np.float32),
        examples=data.vectors,
        of=data.classes,
        places=data.examples.places,
        known=known,
    )
    return taught, measured


def _with_sound(examples: Examples) -> Examples:
    return examples.taken(np.flatnonzero(examples.vectors.any(axis=1)))


@dataclass(frozen=True, eq=False)
class _Data:
    """Examples as numbers.

    classes: (N,), of `names` and, last, `NOTHING`; weights: (N,) so that each clip counts once
    """

    examples: Examples
    names: tuple[str, ...]
    vectors: NDArray[np.float32]
    classes: NDArray[np.int64]
    weights: Floats

    @classmethod
    def of(cls, examples: Examples) -> _Data:
        names = examples.names
        number = {name: place for place, name in enumerate((*names, NOTHING))}
        sizes = np.bincount(examples.clips)
        return cls(
            examples,
            names,
            unit_vectors(examples.vectors),
            np.array([number[label] for label in examples.labels], np.int64),
            1 / sizes[list(examples.clips)],
        )

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.names) + int((self.classes == len(self.names)).any())

    def fitted(self, fit: Fit, rows: NDArray[np.bool_] | None = None) -> Linear:
        """A linear map of some windows, by default of all."""
        kept = np.ones(len(self.classes), bool) if rows is None else rows
        return fit(self.vectors[kept], self.classes[kept], self.weights[kept], self.count)

    def between(self) -> float:
        """Mean squared distance of the names' prototypes; that of one name is not known."""
        prototypes = [
            unit_vectors(self.vectors[self.classes == one].mean(axis=0))
            for one in range(self.count)
            if (self.classes == one).any()
        ]
        if len(prototypes) < 2:
            return KNOWN.between
        matrix = np.stack(prototypes)
        squared = 2 - 2 * matrix @ matrix.T
        return max(float(squared[np.triu_indices(len(matrix), 1)].mean()), 1e-6)

    def nearest(self, rows: NDArray[np.bool_], known: NDArray[np.bool_]) -> Floats:
        """Squared distance of some windows to the nearest of the known ones."""
        similar = self.vectors[rows] @ self.vectors[known].T
        made: Floats = 2 - 2 * similar.max(axis=1).astype(np.float64)
        return made

    def by_clip(self, rows: NDArray[np.bool_], values: NDArray[Any]) -> tuple[list[int], Floats]:
        """The mean over the windows of each clip."""
        numbers = np.array(self.examples.clips)[rows]
        clips = list(dict.fromkeys(numbers.tolist()))
        return clips, np.stack([values[numbers == one].mean(axis=0) for one in clips])


def prototypes(
    vectors: NDArray[Any], classes: NDArray[np.int64], weights: Floats, count: int
) -> Linear:
    """The share of a class falls with the squared distance to the mean of its examples."""
    means = np.zeros((count, vectors.shape[1]))
    there = np.zeros(count, bool)
    for one in range(count):
        rows = classes == one
        if rows.any():
            there[one] = True
            means[one] = np.average(vectors[rows], axis=0, weights=weights[rows])
    means = unit_vectors(means).astype(np.float64)
    squared = (2 - 2 * means[there] @ means[there].T)[np.triu_indices(int(there.sum()), 1)]
    between = max(float(squared.mean()), 1e-6) if len(squared) else 1.0
    # |x - p|² = 2 - 2 x·p for vectors of unit length.
    bias = np.where(there, 0.0, -1e4)
    return Linear(means * (2 * SHARPNESS / between), bias)


def logistic(strength: float) -> Fit:
    """A logistic regression whose classes weigh alike; `strength` is the inverse of its penalty."""

    def fit(
        vectors: NDArray[Any], classes: NDArray[np.int64], weights: Floats, count: int
    ) -> Linear:
        model = need_sklearn()
        there = np.unique(classes)
        sums = np.bincount(classes, weights, minlength=count)
        balanced = weights / sums[classes] * sums.sum() / len(there)
        made = model(C=strength, max_iter=1000).fit(
            vectors.astype(np.float64), classes, sample_weight=balanced
        )
        linear = Linear(np.zeros((count, vectors.shape[1])), np.full(count, -1e4))
        if len(there) == 2:  # one row, of the second against the first
            linear.weights[there] = np.stack([-made.coef_[0] / 2, made.coef_[0] / 2])
            linear.bias[there] = [-made.intercept_[0] / 2, made.intercept_[0] / 2]
        else:
            linear.weights[there], linear.bias[there] = made.coef_, made.intercept_
        return linear

    return fit


def need_sklearn() -> Any:
    """`LogisticRegression`; raises UsageError where scikit-learn is not installed."""
    absent = (
        "the logistic regression needs scikit-learn: pip install 'naturelm-audio[teach]'; "
        "--method prototypes needs nothing"
    )
    return library("sklearn.linear_model", absent).LogisticRegression


def _candidates(data: _Data, method: str) -> dict[str, Fit]:
    """What is tried: prototypes, and with enough recordings logistic regressions."""
    if method == "prototypes" or data.count < 2:
        return {"prototypes": prototypes}
    regressions = {f"logistic, C = {strength:g}": logistic(strength) for strength in REGULARISED}
    if method == "logistic":
        return regressions
    recordings = [
        len({data.examples.recordings[row] for row in np.flatnonzero(data.classes == one)})
        for one in range(data.count)
    ]
    if min(recordings) < _FEWEST_RECORDINGS:
        return {"prototypes": prototypes}
    try:
        need_sklearn()
    except UsageError:
        return {"prototypes": prototypes}
    return {"prototypes": prototypes, **regressions}


def folds(data: _Data, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Windows that are held out together: whole recordings, of each name as evenly as may be.

    A name's only recording is never held out: nothing would be left to know it by. Recordings are
    told by the order in which the examples name them, so that no path decides what is measured.
    """
    found = {name: place for place, name in enumerate(dict.fromkeys(data.examples.recordings))}
    of = np.array([found[name] for name in data.examples.recordings])
    # (recordings, classes): which recording has which class; -1 is a recording of no fold.
    has = np.zeros((len(found), len(data.names) + 1), np.int64)
    has[of, data.classes] = 1
    fold = np.full(len(found), -1)
    filled = np.zeros((FOLDS, has.shape[1]), np.int64)
    of_class = has.sum(axis=0)
    placed: NDArray[np.bool_] = has[:, of_class == 1].max(axis=1, initial=0) == 1
    shuffled = np.random.default_rng(seed).permutation(len(found))
    for one in np.argsort(of_class, kind="stable"):  # the rarest class first
        for number in shuffled[(has[shuffled, one] == 1) & ~placed[shuffled]]:
            shared = filled[:, has[number] == 1].sum(axis=1)
            least = np.lexsort((filled.sum(axis=1), shared, filled[:, one]))[0]
            fold[number], placed[number] = least, True
            filled[least] += has[number]
    for number in range(FOLDS):
        rows = fold[of] == number
        left = np.unique(data.classes[~rows])
        if rows.any() and np.isin(data.classes[rows], left).all():
            yield rows


def _chosen(
    candidates: dict[str, Fit], data: _Data, seed: int
) -> tuple[str, Fit, tuple[HeldOut, Floats] | None]:
    """The candidate with the likeliest held-out answers; its answers, and the scores of them."""
    held = list(folds(data, seed)) if data.count > 1 else []
    if not held:
        name, fit = next(iter(candidates.items()))
        return name, fit, None
    best: tuple[float, str, Fit, tuple[HeldOut, Floats]] | None = None
    for name, fit in candidates.items():
        found = _held_out(fit, data, held)
        scores, classes = found[1], found[0].classes
        loss = _loss(scores * _sharpness(scores, classes), classes)
        if best is None or loss < best[0] - 1e-9:
            best = loss, name, fit, found
    assert best is not None, "there is a candidate"
    return best[1:]


def _held_out(fit: Fit, data: _Data, held: Sequence[NDArray[np.bool_]]) -> tuple[HeldOut, Floats]:
    """What a candidate says of recordings, and of names, that it has not seen."""
    nothing = len(data.names)
    clips: list[int] = []
    scores, known, classes = [], [], []
    of_clip = dict(zip(data.examples.clips, data.classes.tolist(), strict=True))
    for rows in held:
        linear = data.fitted(fit, ~rows)
        numbers, made = data.by_clip(rows, linear(data.vectors[rows]))
        clips += numbers
        scores.append(made)
        taught = ~rows & (data.classes < nothing)
        known.append(data.by_clip(rows, data.nearest(rows, taught))[1])
        classes += [of_clip[one] for one in numbers]
    unknown, unknown_scores, unknown_clips = _left_out(fit, data)
    every = np.array(classes, np.int64)
    near = np.concatenate(known)
    is_nothing = every == nothing
    made = np.concatenate(scores)
    out = HeldOut(
        tuple(clips),
        every,
        softmax(made),
        near[~is_nothing],
        np.concatenate([unknown, near[is_nothing]]),
        softmax(unknown_scores) if len(unknown_scores) else unknown_scores,
        unknown_clips,
    )
    return out, made


def _left_out(fit: Fit, data: _Data) -> tuple[Floats, Floats, tuple[int, ...]]:
    """Clips of each name, asked of a classifier that knows the others: distances and scores."""
    near, scores, clips = [np.empty(0)], [np.empty((0, data.count))], list[int]()
    for one in range(len(data.names)):
        rows = data.classes == one
        others = ~rows & (data.classes < len(data.names))
        if not others.any():
            continue
        is_one = len(np.unique(data.classes[~rows])) < 2  # a logistic regression needs two
        linear = data.fitted(prototypes if is_one else fit, ~rows)
        numbers, made = data.by_clip(rows, linear(data.vectors[rows]))
        near.append(data.by_clip(rows, data.nearest(rows, others))[1])
        scores.append(made)
        clips += numbers
    return np.concatenate(near), np.concatenate(scores), tuple(clips)


def _loss(scores: Floats, classes: NDArray[np.int64]) -> float:
    """Mean negative log likelihood; each class counts alike."""
    shares = softmax(scores)[np.arange(len(classes)), classes]
    losses = -np.log(np.maximum(shares, 1e-12))
    sizes = np.bincount(classes)
    return float((losses / sizes[classes]).sum() / (sizes > 0).sum())


def _sharpness(scores: Floats, classes: NDArray[np.int64]) -> float:
    """What scores are multiplied by so that shares are chances; 1 where nothing tells."""
    tried = np.exp(np.linspace(math.log(0.1), math.log(10), 61))
    clips = len(classes)
    losses = [
        _loss(scores * one, classes) * clips + _PRIOR_CLIPS * 0.5 * math.log(one) ** 2
        for one in tried
    ]
    return float(tried[int(np.argmin(losses))])


def fit_known(known: Floats, unknown: Floats, between: float) -> KnownCurve:
    """The curve of ratios of clips that are known and of clips that are not, which weigh alike.

    Few clips change little of the curve that holds without any.
    """
    if not len(known) or not len(unknown):
        return replace(KNOWN, between=between)
    ratios = np.concatenate([known, unknown])
    right = np.concatenate([np.ones(len(known)), np.zeros(len(unknown))])
    each = min(len(known), len(unknown))
    weights = np.concatenate(
        [np.full(len(known), each / len(known)), np.full(len(unknown), each / len(unknown))]
    )
    # Two clips for each prior one, at ratios where the curve of before says known and unknown.
    prior = np.linspace(0.05, 1.2, 12)
    prior_right = KNOWN.chance(prior * KNOWN.between).astype(np.float64)
    x = np.concatenate([ratios, prior])
    y = np.concatenate([right, prior_right])
    w = np.concatenate([weights, np.full(len(prior), _PRIOR_CLIPS / len(prior))])
    design = np.stack([np.ones_like(x), -x], axis=1)
    found = np.array([KNOWN.offset, KNOWN.slope])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-design @ found))
        gradient = design.T @ (w * (y - chance))
        hessian = (design * (w * chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.solve(hessian + 1e-9 * np.eye(2), gradient)
        found = found + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-8:
            break
    return KnownCurve(float(found[0]), max(float(found[1]), 0.1), between)


def _resolved(examples: Examples, data: _Data) -> Examples:
    """Examples of which is only said what they are not, as what is likeliest of the rest."""
    first = data.fitted(prototypes)
    known = replace(KNOWN, between=data.between())
    taught = data.vectors[data.classes < len(data.names)]
    labels = list(examples.labels)
    for row, (label, wrong) in enumerate(zip(examples.labels, examples.is_not, strict=True)):
        if label or not wrong:
            continue
        vector = unit_vectors(examples.vectors[row : row + 1])
        chance = float(known.chance(2 - 2 * (vector @ taught.T).max(axis=1))[0])
        shares = softmax(first(vector))[0, : len(data.names)] * chance
        named = {name: float(share) for name, share in zip(data.names, shares, strict=True)}
        named.pop(wrong, None)
        best = max(named, key=lambda name: named[name], default=NOTHING)
        left = 1 - chance + sum(shares) - sum(named.values())
        labels[row] = best if named.get(best, 0.0) > max(left, 0.5) else NOTHING
    made = replace(examples, labels=tuple(labels))
    return made.taken([row for row, label in enumerate(made.labels) if label])


# What it was taught with and how good it is

README_NAME = "README.md"
_MOST_NAMES = 200


def save(
    folder: Path,
    classifier: Classifier,
    examples: Examples,
    held: HeldOut | None,
    labelled: Sequence[Labelled],
) -> Classifier:
    """Write a classifier with its card, its thresholds and the labels that it was taught with.

    Raises OSError and OutputError where the folder cannot be written.
    """
    card = card_of(classifier, examples, held)
    made = replace(classifier, card=card)
    write_classifier(folder, made)
    write_labels(folder / LABELS_NAME, labelled)
    write_thresholds(folder / FILE_NAME, _thresholds(made, examples, held))
    write_text(folder / README_NAME, readme(made))
    return made


def card_of(classifier: Classifier, examples: Examples, held: HeldOut | None) -> dict[str, Any]:
    """The numbers of the card, as plain values."""
    counts = counted(examples)
    card: dict[str, Any] = {
        "examples": {
            name: list(counts[name]) for name in (*classifier.names, NOTHING) if name in counts
        },
        "measured": None,
    }
    if held is None:
        return card
    recording = _recordings(examples)
    right = np.array(
        [chances.argmax() == one for chances, one in zip(held.chances, held.classes, strict=True)]
    )
    groups = [recording[clip] for clip in held.clips]
    value = clustered_interval(
        lambda weights: (
            float(np.average(right, weights=weights)) if weights.sum() else float("nan")
        ),
        groups,
    )
    by_name = {
        name: [int(right[held.classes == place].sum()), int((held.classes == place).sum())]
        for place, name in enumerate((*classifier.names, NOTHING))
        if (held.classes == place).any()
    }
    known, unknown = held.known, held.unknown
    separated = None
    if len(known) and len(unknown):
        flags = np.concatenate([np.ones(len(known), bool), np.zeros(len(unknown), bool)])
        separated = round(float(auroc((-np.concatenate([known, unknown])).tolist(), flags)), 4)
    card["measured"] = {
        "clips": len(right),
        "recordings": len(set(groups)),
        "accuracy": [round(one, 4) for one in (value.value, value.low, value.high)],
        "macro_accuracy": round(float(np.mean([a / b for a, b in by_name.values()])), 4),
        "right_of": by_name,
        "known_from_unknown_auroc": separated,
    }
    return card


def _recordings(examples: Examples) -> dict[int, str]:
    return dict(zip(examples.clips, examples.recordings, strict=True))


def _thresholds(classifier: Classifier, examples: Examples, held: HeldOut | None) -> list[Any]:
    """The lines of `thresholds.csv`: from which chance on an answer is right so often."""
    judged = [] if held is None else _judged(classifier, examples, held)
    scale = Scale(
        question=QUERY,
        weights=classifier.fingerprint,
        merging_alpha=1.0,
        mode="score",
        labels=list_text(classifier.labels),
    )
    lines = []
    for curve in fit_species([(QUERY, name) for name in classifier.names], judged):
        lines += thresholds_of(curve, scale, BootstrapOptions())
    assert all(one.probability in CHANCES for one in lines)
    return lines


def _judged(
    classifier: Classifier, examples: Examples, held: HeldOut
) -> list[tuple[Segment, bool]]:
    """Held-out answers that name something, and whether they are right; those about clips whose
    name was left out never are."""
    recording = _recordings(examples)
    names = classifier.names
    taught = held.classes < len(names)
    near = np.empty(len(held.classes))
    near[taught] = held.known
    near[~taught] = held.unknown[len(held.unknown) - int((~taught).sum()) :]
    left = held.unknown[: len(held.unknown_clips)]
    made: list[tuple[Segment, bool]] = []
    for kind, clips, chances, squared, classes in (
        ("", held.clips, held.chances, near, held.classes.tolist()),
        ("left out ", held.unknown_clips, held.unknown_chances, left, None),
    ):
        known = classifier.known.chance(squared)
        for place, clip in enumerate(clips):
            shares = chances[place, : len(names)] * known[place]
            best = int(shares.argmax())
            is_right = classes is not None and best == classes[place]
            name = f"{kind}{clip}"
            one = _segment(name, recording[clip], names[best], float(shares[best]))
            made.append((one, is_right))
    return made


def _segment(clip: str, recording: str, label: str, confidence: float | None) -> Segment:
    return Segment(
        clip=clip,
        recording=recording,
        start=0.0,
        end=0.0,
        clip_start=0.0,
        clip_end=0.0,
        label=label,
        confidence=confidence,
        question=QUERY,
    )


def summary(card: Mapping[str, Any]) -> str:
    """How good it is, in a sentence."""
    measured = card.get("measured")
    if not measured:
        return (
            "Not measured: no name has examples of two recordings, of which one could be held out."
        )
    value, low, high = measured["accuracy"]
    text = (
        f"Of {measured['clips']} held-out clips of {measured['recordings']} recordings "
        f"{value:.0%} are named right"
        # Of few recordings that are all right no resample says more.
        + (f" (95 % interval {low:.0%} to {high:.0%})" if low < high else "")
    )
    separated = measured["known_from_unknown_auroc"]
    if separated is None:
        return f"{text}."
    return f"{text}; names that were left out are told from taught ones with AUROC {separated:.2f}."


def by_name(card: Mapping[str, Any]) -> list[list[str]]:
    """Of each name how many examples and recordings it has, and how many are named right."""
    measured = card["measured"] or {"right_of": {}}
    found = []
    for name, (clips, recordings) in card["examples"].items():
        right, of = measured["right_of"].get(name, ("-", "-"))
        found.append([name, str(clips), str(recordings), f"{right} of {of}"])
    return found


def readme(classifier: Classifier) -> str:
    """The card as a page."""
    hears, card = classifier.hears, classifier.card
    rows = [
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        for row in by_name(card)[:_MOST_NAMES]
    ]
    return "\n".join(
        [
            "# A classifier of sounds",
            "",
            "Made by `naturelm teach`; it runs with",
            "`naturelm infer recordings/ --classifier <this folder>`.",
            "",
            summary(card),
            "",
            "| name | examples | recordings | named right when held out |",
            "|---|---|---|---|",
            *rows,
            "",
            f"- Encoder: `{hears.model}`, layer `{hears.layer}`, fingerprint `{hears.fingerprint}`"
            + (f", revision `{hears.revision}`" if hears.revision else "")
            + ".",
            f"- Windows of {hears.window_seconds:g} s, time expansion {hears.time_expansion:g}.",
            f"- Method: {classifier.method}. Classifier: `{classifier.fingerprint}`.",
            "- An answer is one of the names, or None where the sound is like none of the "
            "examples.",
            f"- `{LABELS_NAME}`: what it was taught with. `{FILE_NAME}`: thresholds for "
            "`--min-confidence`, of names with enough held-out clips.",
            "",
        ]
    )

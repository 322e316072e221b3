"""What a classifier was taught with and how good it is: numbers, `README.md` and `thresholds.csv`.

All numbers are of held-out recordings; where there are none, the card says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from NatureLM.evaluation.bootstrap import BootstrapOptions, clustered_interval
from NatureLM.evaluation.metrics import auroc
from NatureLM.generation.labels import NOTHING
from NatureLM.results.thresholds import FILE_NAME, Scale, list_text, write_thresholds
from NatureLM.review.segments import Segment
from NatureLM.review.thresholds import (
    CHANCES,
    Agreement,
    Review,
    fit_species,
    thresholds_of,
)
from NatureLM.teach.classifier import QUERY, Classifier, ranked, write_classifier
from NatureLM.teach.examples import Examples, counted
from NatureLM.teach.fit import HeldOut
from NatureLM.teach.labels import LABELS_NAME, Labelled, write_labels
from NatureLM.util import write_text

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
    every = [one for one, _ in judged] + [
        _segment(f"{name} ", "", name, None) for name in classifier.names
    ]
    review = Review(every, judged, 0, 0, Agreement(0, 0))
    lines = []
    for curve in fit_species(review):
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


def readme(classifier: Classifier) -> str:
    """The card as a page."""
    hears, card = classifier.hears, classifier.card
    measured = card["measured"] or {"right_of": {}}
    rows = []
    for name, (clips, recordings) in list(card["examples"].items())[:_MOST_NAMES]:
        right, of = measured["right_of"].get(name, ("-", "-"))
        shown = name.replace("|", "\\|")
        rows.append(f"| {shown} | {clips} | {recordings} | {right} of {of} |")
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


def best_of(classifier: Classifier, chances: Any, top_k: int) -> list[tuple[str, float]]:
    """The likeliest answers with their chances."""
    return ranked(chances, classifier.labels)[:top_k]

"""Table, figure and summary of the study of merging, from its answers alone."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from NatureLM.errors import UsageError
from NatureLM.evaluation.bootstrap import Estimate, clustered_interval
from NatureLM.evaluation.metrics import accuracy
from recipes.tiny.text.species import SOURCES

Row = dict[str, Any]
SEEN, HELD_OUT = "seen in training", "never seen"
_NAMES = frozenset(s.name for s in SOURCES) | frozenset(
    s.scientific for s in SOURCES if s.scientific
)
_COLUMNS = (
    *("split", "family", "seen", "alpha", "accuracy", "low", "high"),
    *("in_form", "questions", "recordings"),
)
_BOTH = re.compile(r"^[^:]+ : [^:]+$")


@dataclass(frozen=True)
class Point:
    """Accuracy of a family (or of a pool of families) at an α, and how often the form is right."""

    split: str
    family: str
    seen: bool
    alpha: float
    accuracy: Estimate
    in_form: float


def is_right(row: Row) -> bool:
    return bool(row["prediction"] == row["label"])


def in_form(row: Row) -> bool:
    """Whether the answer has the form that is asked for, right or wrong."""
    answer, family = row["prediction"], row["family"]
    if family == "yes or no":
        return answer in ("Yes", "No")
    if family == "group":
        return answer in ("bird", "frog", "mammal", "none")
    if " : " in row["label"]:
        return _BOTH.match(answer) is not None
    known = all(part in _NAMES for part in answer.split(", "))
    listed = "exactly" in family or "list" in family or "examples" in family
    return known and (not listed or answer in row["prompt"])


def points(rows: Sequence[Row]) -> list[Point]:
    """Every family at every α of every split, then the seen and the unseen ones pooled."""
    groups: dict[tuple[str, str, bool, float], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["dataset_name"], row["family"], row["seen"], row["lora_scale"]].append(row)
    for row in rows:
        pool = SEEN if row["seen"] else HELD_OUT
        groups[row["dataset_name"], pool, row["seen"], row["lora_scale"]].append(row)
    return [
        Point(*key, _estimate(of), float(np.mean([in_form(r) for r in of])))
        for key, of in groups.items()
    ]


def _estimate(rows: Sequence[Row]) -> Estimate:
    right = [is_right(row) for row in rows]
    return clustered_interval(
        lambda weights: accuracy(right, weights), [row["cluster"] for row in rows], repeats=1000
    )


@dataclass(frozen=True)
class Comparison:
    """Unseen families on a split: the α chosen on another split against α = 1."""

    chosen: float
    chosen_on: str
    split: str
    at_chosen: Estimate
    at_one: Estimate
    difference: Estimate


def compare(rows: Sequence[Row], choose_on: str, split: str) -> Comparison | None:
    """Choose α for the unseen families on one split (smallest of the best), look at another.

    None if a split or α = 1 is missing.
    """
    unseen = [row for row in rows if not row["seen"]]
    by_alpha: dict[tuple[str, float], list[Row]] = defaultdict(list)
    for row in unseen:
        by_alpha[row["dataset_name"], row["lora_scale"]].append(row)
    choices = {
        alpha: np.mean([is_right(r) for r in of])
        for (name, alpha), of in by_alpha.items()
        if name == choose_on
    }
    if not choices or (split, 1.0) not in by_alpha:
        return None
    chosen = max(sorted(choices), key=lambda alpha: choices[alpha])
    one, other = by_alpha[split, 1.0], by_alpha[split, chosen]
    before = {(row["family"], row["id"]): is_right(row) for row in one}
    gains = np.array([is_right(r) - before[r["family"], r["id"]] for r in other], dtype=float)

    def mean_gain(weights: npt.NDArray[np.float64]) -> float:
        return float((weights * gains).sum() / weights.sum())

    difference = clustered_interval(mean_gain, [row["cluster"] for row in other], repeats=1000)
    return Comparison(chosen, choose_on, split, _estimate(other), _estimate(one), difference)


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """`table.csv`, `table.md`, `summary.txt` and the figure `curves.svg`."""
    found = points(rows)
    _write_csv(found, folder / "table.csv")
    split = found[-1].split
    (folder / "table.md").write_text(markdown(found, split), encoding="utf-8")
    summary = summarise(rows, found[0].split, split)
    (folder / "summary.txt").write_text(summary + "\n", encoding="utf-8")
    print(summary)
    draw(found, split, folder / "curves.svg")


def summarise(rows: Sequence[Row], choose_on: str, split: str) -> str:
    """A line about all questions never seen, and one about each family of them."""
    unseen = [row for row in rows if not row["seen"]]
    lines = [describe("never seen", compare(unseen, choose_on, split))]
    for family in dict.fromkeys(row["family"] for row in unseen):
        of = [row for row in unseen if row["family"] == family]
        lines.append(describe(family, compare(of, choose_on, split)))
    return "\n".join(lines)


def describe(what: str, comparison: Comparison | None) -> str:
    """The comparison in a sentence."""
    if comparison is None:
        return f"{what}: α was not compared, which needs two splits and α = 1."
    c = comparison
    return (
        f"{what}, {c.split}: {c.at_chosen} at α = {c.chosen:g} (chosen on {c.chosen_on}), "
        f"{c.at_one} at α = 1; difference {c.difference}."
    )


def _write_csv(found: Sequence[Point], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "split",
                "family",
                "seen",
                "alpha",
                "accuracy",
                "low",
                "high",
                "in_form",
                "questions",
                "recordings",
            ]
        )
        for p in found:
            a = p.accuracy
            numbers = [f"{v:.4f}" for v in (a.value, a.low, a.high, p.in_form)]
            writer.writerow(
                [p.split, p.family, p.seen, f"{p.alpha:g}", *numbers, a.samples, a.clusters]
            )


def markdown(found: Sequence[Point], split: str) -> str:
    """Accuracy of each family (rows) at each α (columns) on a split."""
    chosen = [p for p in found if p.split == split]
    alphas = sorted({p.alpha for p in chosen})
    lines = [
        "| family | " + " | ".join(f"α {a:g}" for a in alphas) + " |",
        "|---|" + "---|" * len(alphas),
    ]
    for family in dict.fromkeys(p.family for p in chosen):
        by = {p.alpha: p.accuracy.value for p in chosen if p.family == family}
        best = max(by.values())
        cells = [f"**{by[a]:.2f}**" if by[a] == best else f"{by[a]:.2f}" for a in alphas]
        lines.append(f"| {family.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Sequence[Point], split: str, path: Path) -> None:
    """Accuracy against α: families in thin lines, their pools in thick ones with 95 % bands."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError(
            "the figure needs matplotlib: pip install 'naturelm-audio[plots]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings: Any = {"svg.hashsalt": "naturelm", "svg.fonttype": "none", "font.size": 10}
    with plt.rc_context(settings):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
        for axis, pool, seen in zip(axes, (SEEN, HELD_OUT), (True, False), strict=True):
            of = [p for p in found if p.split == split and p.seen == seen]
            _panel(axis, of, pool)
        axes[0].set_ylabel("accuracy")
        figure.suptitle(f"naturelm-tiny, {split}: accuracy against the scale of the adapter")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(axis: Any, of: Sequence[Point], pool: str) -> None:
    for family in dict.fromkeys(p.family for p in of):
        line = sorted((p for p in of if p.family == family), key=lambda p: p.alpha)
        alphas = [p.alpha for p in line]
        values = [p.accuracy.value for p in line]
        if family == pool:
            axis.plot(alphas, values, color="black", linewidth=2.5, label="all together")
            low, high = [p.accuracy.low for p in line], [p.accuracy.high for p in line]
            axis.fill_between(alphas, low, high, color="black", alpha=0.12, linewidth=0)
        else:
            axis.plot(alphas, values, linewidth=1.2, marker=".", label=family.replace("_", " "))
    axis.set(title=f"Questions {pool}", xlabel="α", ylim=(0, 1), xlim=(min(alphas), max(alphas)))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))

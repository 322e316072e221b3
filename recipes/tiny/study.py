"""The study of merging on the embedded model: α × families of questions, seen and never seen.

`python -m recipes.tiny.study --cfg-path configs/tiny/study.yml --data-path DATA` asks every clip of
a split all questions at every α. Answers are kept (`answers.jsonl`, as of any other run); table,
figure and summary are made from them alone. α is chosen on `valid` and shown on `test`.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from NatureLM.config.schema import Section, Text
from NatureLM.config.strict_yaml import read_yaml
from NatureLM.errors import NatureLMError
from NatureLM.evaluation.metrics import Estimate, accuracy, clustered_interval
from NatureLM.prompts import example_blocks
from NatureLM.results.rows import json_line
from recipes import Arguments, program
from recipes.tiny.data import Clip, read_clips, training_clips
from recipes.tiny.evaluate import (
    COMMON_NAME,
    GROUP,
    LIST,
    SCIENTIFIC_NAME,
    Item,
    ItemAnswerer,
    present,
)
from recipes.tiny.pictures import svg_figure
from recipes.tiny.species import SOURCES, source
from recipes.tiny.tasks import names_with
from recipes.tiny.wordings import HELD_OUT, HeldOutFamily

Row = dict[str, Any]
ANSWERS = "answers.jsonl"
SEEN_FAMILIES = ("common name", "scientific name", "group", "list of twelve", "yes or no")
_SEEN_LIST = 12


class StudyConfig(Section):
    """What is asked, and at which scales."""

    model: Text = "naturelm-tiny"
    lora_scales: list[float] = Field(default=[round(0.1 * i, 1) for i in range(11)], min_length=2)
    splits: list[Text] = Field(default=["valid", "test"], min_length=1)
    families: list[Text] = Field(default=[])
    """Names of families; all if empty."""
    seed: int = 0
    """Draws the lists and the examples in the questions."""


Config = TypeVar("Config", bound=StudyConfig)


class Asker:
    """Builds the items of a family; the draws depend on the seed, the family and the clip only."""

    def __init__(self, clips: Sequence[Clip], seed: int) -> None:
        taught = {c.label for c in training_clips(list(clips)) if c.dataset == "animals"}
        self.pool = [source(name) for name in sorted(taught)]
        self.seed = seed

    def items(self, family: str, clips: Sequence[Clip]) -> list[Item]:
        """One item (two for yes or no) for each clip that has an answer."""
        held_out = {f.name: f for f in HELD_OUT}
        if family in held_out:
            made = (self._held_out(held_out[family], clip) for clip in clips)
            return [item for item in made if item is not None]
        makers: dict[str, Callable[[Clip], list[Item]]] = {
            "common name": lambda c: [Item(c, COMMON_NAME, c.label)],
            "scientific name": lambda c: (
                [Item(c, SCIENTIFIC_NAME, c.scientific)] if c.scientific else []
            ),
            "group": lambda c: [Item(c, GROUP, c.group)],
            "list of twelve": lambda c: [
                Item(c, LIST.format(names=", ".join(self._list(family, c, _SEEN_LIST))), c.label)
            ],
            "yes or no": self._yes_no,
        }
        return [item for clip in clips for item in makers[family](clip)]

    def _rng(self, family: str, clip: Clip) -> random.Random:
        return random.Random(f"study {self.seed} {family} {clip.path.name}")

    def _list(self, family: str, clip: Clip, length: int | None) -> list[str]:
        return names_with(clip.source, self.pool, length, self._rng(family, clip))

    def _yes_no(self, clip: Clip) -> list[Item]:
        return present(clip, [s.name for s in self.pool], self._rng("yes or no", clip))

    def _held_out(self, family: HeldOutFamily, clip: Clip) -> Item | None:
        truth = clip.label
        if family.answer == "scientific : common":
            if not clip.scientific:
                return None
            truth = f"{clip.scientific} : {clip.label}"
        names, examples = "", ""
        if family.list_length:
            length = None if family.list_length == -1 else family.list_length
            listed = self._list(family.name, clip, length)
            if family.examples:
                examples = self._examples(family, clip, listed)
            if family.order != "shuffled":
                listed.sort(reverse=family.order == "reversed")
            names = ", ".join(listed)
        return Item(clip, family.query.format(names=names, examples=examples), truth)

    def _examples(self, family: HeldOutFamily, clip: Clip, listed: Sequence[str]) -> str:
        rng = self._rng(f"{family.name} examples", clip)
        return example_blocks(
            (f"[{rng.choice(source(name).phrases)}]", name) for name in listed[: family.examples]
        )


def families(config: StudyConfig) -> list[str]:
    """The names asked for. Raises `NatureLMError` for one that does not exist."""
    known = [*SEEN_FAMILIES, *(family.name for family in HELD_OUT)]
    unknown = [name for name in config.families if name not in known]
    if unknown:
        raise NatureLMError(f"families names {unknown[0]!r}; there are {', '.join(known)}")
    return list(config.families) or known


def of_split(clips: Sequence[Clip], split: str, data: Path) -> list[Clip]:
    """The animals of a split. Raises NatureLMError if there are none."""
    found = [clip for clip in clips if clip.dataset == "animals" and clip.split == split]
    if not found:
        raise NatureLMError(f"there is no split {split!r} in {data / 'animals'}")
    return found


def ask_all(config: StudyConfig, data: Path) -> Iterator[Row]:
    """An answer at every α to every question of every split, as rows of results."""
    from NatureLM.models import NatureLM

    clips = read_clips(data)
    asker = Asker(clips, config.seed)
    model = NatureLM.from_pretrained(config.model)
    for split in config.splits:
        asked = of_split(clips, split, data)
        answerer = ItemAnswerer(model, asked)
        for alpha in config.lora_scales:
            with model.fold(alpha):
                for number, family in enumerate(families(config)):
                    items = asker.items(family, asked)
                    for item, answer in zip(items, answerer(items, alpha), strict=True):
                        row = row_of(item, answer, split, alpha, number, family)
                        row["id"] += " absent" if item.truth == "No" else ""
                        yield {**row, "seen": family in SEEN_FAMILIES, "cluster": item.clip.family}


def row_of(item: Item, answer: str, split: str, alpha: float, number: int, family: str) -> Row:
    """An answer to a question of a family, which has this number."""
    return {
        "prediction": answer,
        "label": item.truth,
        "id": item.clip.path.stem,
        "dataset_name": split,
        "prompt": item.query,
        "lora_scale": alpha,
        "query": number,
        "family": family,
    }


SEEN, UNSEEN = "seen in training", "never seen"
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
    """Whether the answer is the right one; rows may say it themselves."""
    return bool(row["right"] if "right" in row else row["prediction"] == row["label"])


def in_form(row: Row) -> bool:
    """Whether the answer has the form that is asked for, right or wrong; rows may say it."""
    if "in_form" in row:
        return bool(row["in_form"])
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
        pool = SEEN if row["seen"] else UNSEEN
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


def write_report(rows: Sequence[Row], folder: Path, model: str = "naturelm-tiny") -> None:
    """`table.csv`, `table.md`, `summary.txt` and the figure `curves.svg`."""
    found = points(rows)
    _write_csv(found, folder / "table.csv")
    split = found[-1].split
    (folder / "table.md").write_text(markdown(found, split), encoding="utf-8")
    summary = summarise(rows, found[0].split, split)
    (folder / "summary.txt").write_text(summary + "\n", encoding="utf-8")
    print(summary)
    draw(found, split, folder / "curves.svg", model)


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
        writer.writerow(_COLUMNS)
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


def draw(found: Sequence[Point], split: str, path: Path, model: str) -> None:
    """Accuracy against α: families in thin lines, their pools in thick ones with 95 % bands."""
    with svg_figure(path, 2, (11, 4.6), sharey=True) as (figure, axes):
        for axis, pool, seen in zip(axes, (SEEN, UNSEEN), (True, False), strict=True):
            of = [p for p in found if p.split == split and p.seen == seen]
            _panel(axis, of, pool)
        axes[0].set_ylabel("accuracy")
        figure.suptitle(f"{model}, {split}: accuracy against the scale of the adapter")


def _panel(axis: Any, of: Sequence[Point], pool: str) -> None:
    if not of:
        axis.set(title=f"No questions {pool}")
        return
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


@program
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.study")
    parser.add_argument("--cfg-path", type=Path, required=True)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--model", help="name or folder, instead of the configuration's")
    options = parser.parse_args(arguments)
    config = read_study(options.cfg_path, StudyConfig, options.model)
    rows = keep_answers(ask_all(config, options.data_path), options.output_path)
    write_report(rows, options.output_path)


def read_study(path: Path, kind: type[Config], model: str | None = None) -> Config:
    """A configuration of a study, perhaps of another model.

    Raises NatureLMError with what is wrong in the file.
    """
    try:
        config = kind.model_validate(read_yaml(path).data)
    except ValidationError as error:
        raise NatureLMError(f"{path}: {error}") from None
    return config.model_copy(update={"model": model}) if model else config


def keep_answers(rows: Iterable[Row], folder: Path) -> list[Row]:
    """The rows, once each is written to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    with (folder / ANSWERS).open("wb") as file:
        for row in rows:
            file.write(json_line(row))
            kept.append(row)
    return kept


if __name__ == "__main__":
    sys.exit(main())

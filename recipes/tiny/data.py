"""The recordings that the embedded model learns from, and the tables of `naturelm train`."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from NatureLM.errors import NatureLMError
from recipes.tiny import wordings
from recipes.tiny.species import Source, source
from recipes.tiny.tasks import GUESSES, NONE, Wordings, answer, ask, samples


@dataclass(frozen=True)
class Clip:
    """A labelled recording.

    family: clips of one family stem from one recording; they are split and resampled together
    split: "train", "valid", "test" or "unseen" (animals), "fold1" to "fold5" (ESC-10)
    """

    path: Path
    label: str
    group: str
    scientific: str
    family: str
    split: str
    dataset: str

    @property
    def source(self) -> Source:
        return source(self.label)


def read_clips(data: Path) -> list[Clip]:
    """All clips of `data/animals` and `data/esc10`, in the order of the tables."""
    animals = [
        Clip(
            data / "animals" / row["file"],
            row["common_name"],
            row["group"],
            row["scientific_name"],
            f"animals-{row['family']}",
            row["split"],
            "animals",
        )
        for row in _rows(data / "animals" / "metadata.csv")
    ]
    esc10 = [
        Clip(
            data / "esc10" / row["file"],
            row["label"],
            source(row["label"]).group,
            source(row["label"]).scientific,
            f"esc10-{row['freesound_id']}",
            f"fold{row['fold']}",
            "esc10",
        )
        for row in _rows(data / "esc10" / "metadata.csv")
    ]
    return animals + esc10


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.is_file():
        raise NatureLMError(
            f"{table} does not exist; --data-path must name the folder that holds animals/ and "
            "esc10/ with their metadata.csv"
        )
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


TRAINING_SPLITS = frozenset({"train", "fold1", "fold2", "fold3"})


def training_clips(clips: list[Clip], held_out: str | None = None) -> list[Clip]:
    """Clips that may be learnt from; `held_out` names a training split to keep for choosing."""
    return [clip for clip in clips if clip.split in TRAINING_SPLITS and clip.split != held_out]


def clips_of(clips: list[Clip], split: str) -> list[Clip]:
    return [clip for clip in clips if clip.split == split]


Row = dict[str, Any]

# How often a family is asked, relative to the others.
FAMILY_WEIGHTS = {
    wordings.COMMON: 3.0,
    wordings.SOUND: 3.0,
    wordings.CHOICE: 2.0,
    wordings.SCIENTIFIC: 1.0,
    wordings.GROUP: 1.0,
    wordings.YES_NO: 1.5,
    wordings.ANIMALS_PRESENT: 1.5,
    wordings.CAPTION: 1.0,
}
_NAMES = (wordings.COMMON, wordings.SCIENTIFIC)
_VARIANTS = 12  # wordings kept per row, of which the training draws one each time


def write_rows(rows: Iterable[Row], path: Path) -> int:
    """Write JSON lines; returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def text_rows(count: int, seed: int, *, unseen: bool = False) -> Iterator[Row]:
    """Text-only instructions; those of unseen wording leave out what has no right answer."""
    drawn = (s for s in samples(seed, unseen=unseen) if not (unseen and s[0] in GUESSES))
    for task, prompt, reply in islice(drawn, count):
        yield {"prompt": prompt, "answer": reply, "task": task, "dataset": "text"}


def audio_rows(
    clips: Sequence[Clip],
    seed: int,
    *,
    balance: float = 0.5,
    unseen: bool = False,
    no_animal: float = 1.0,
    absent: float = 0.15,
    among: Wordings = wordings.SEEN,
    longest: int = 12,
) -> Iterator[Row]:
    """All families of questions about every clip, several wordings per row.

    balance: 0 draws clips evenly, 1 draws classes evenly
    no_animal: how often sounds without an animal are asked for an animal's name, relative to that
    absent: share of the questions with a list whose list lacks what is heard
    among: the wordings of each family
    longest: most names of a list
    """
    pool = [source(name) for name in sorted({clip.label for clip in clips})]
    counts = Counter(clip.label for clip in clips)
    rng = random.Random(f"tiny-audio {seed}")
    for clip in clips:
        weight = counts[clip.label] ** -balance
        for family in wordings.SEEN:
            named = clip.source.is_animal or family not in _NAMES
            share = weight if named else weight * no_animal
            yield from _family_rows(clip, family, share, pool, rng, unseen, absent, among, longest)


def _family_rows(
    clip: Clip,
    family: str,
    weight: float,
    pool: list[Source],
    rng: random.Random,
    unseen: bool,
    absent: float,
    among: Wordings,
    longest: int,
) -> Iterator[Row]:
    weight *= FAMILY_WEIGHTS[family]
    by_answer: dict[str, list[str]] = {}
    for _ in range(_VARIANTS * 2 if family in (wordings.CHOICE, wordings.YES_NO) else _VARIANTS):
        prompt, reply = ask(
            family, [clip.source], pool, rng, unseen=unseen, among=among, longest_list=longest
        )
        prompts = by_answer.setdefault(reply, [])
        if prompt not in prompts:
            prompts.append(prompt)
    for reply, prompts in by_answer.items():
        share = 1.0
        if family == wordings.YES_NO:
            share = 0.5
        elif family == wordings.CHOICE:
            share = absent if reply == NONE else 1 - absent
        row = {
            "path": str(clip.path),
            "prompt": prompts,
            "answer": reply,
            "task": family,
            "dataset": clip.dataset,
            "family": clip.family,
            "weight": round(weight * share, 6),
        }
        if family in (wordings.SOUND, wordings.ANIMALS_PRESENT):
            row["labels"] = [answer(family, [clip.source])]
        yield row

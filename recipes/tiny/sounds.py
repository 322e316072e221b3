"""The recordings that the embedded model learns from, as listed in the data folder's tables."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from NatureLM.errors import NatureLMError
from recipes.tiny.text.species import Source, source


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

"""The study of merging on the embedded model: α × families of questions, seen and never seen.

`python -m recipes.tiny.study --cfg-path configs/tiny/study.yml --data-path DATA` asks
every clip of a split all questions at every α. Answers are kept (`answers.jsonl`, as of any other
run), the table and the figure are made from them. α is chosen on `valid` and shown on `test`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from NatureLM.config.base import Section, Text
from NatureLM.errors import NatureLMError
from recipes.tiny.evaluate import (
    COMMON_NAME,
    GROUP,
    LIST,
    PRESENT,
    SCIENTIFIC_NAME,
    Item,
    answer_all,
    encode,
)
from recipes.tiny.heldout import HELD_OUT, HeldOutFamily
from recipes.tiny.sounds import Clip, read_clips, training_clips
from recipes.tiny.text.species import Source, source

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


class Asker:
    """Builds the items of a family; the draws depend on the seed, the family and the clip only."""

    def __init__(self, clips: Sequence[Clip], seed: int) -> None:
        taught = {c.label for c in training_clips(list(clips)) if c.dataset == "animals"}
        self.names = sorted(taught)
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

    def _list(self, family: str, clip: Clip, length: int) -> list[str]:
        """Names in random order, the clip's among them; length -1 is all of them."""
        rng, own = self._rng(family, clip), source(clip.label)
        others = [n for n in self.names if n != own.name and not _same_species(source(n), own)]
        if length != -1:
            others = rng.sample(others, length - 1)
        names = [own.name, *others]
        rng.shuffle(names)
        return names

    def _yes_no(self, clip: Clip) -> list[Item]:
        other = self._rng("yes or no", clip).choice([n for n in self.names if n != clip.label])
        return [
            Item(clip, PRESENT.format(name=clip.label), "Yes"),
            Item(clip, PRESENT.format(name=other), "No"),
        ]

    def _held_out(self, family: HeldOutFamily, clip: Clip) -> Item | None:
        truth = clip.label
        if family.answer == "scientific : common":
            if not clip.scientific:
                return None
            truth = f"{clip.scientific} : {clip.label}"
        names, examples = "", ""
        if family.list_length:
            listed = self._list(family.name, clip, family.list_length)
            if family.examples:
                examples = self._examples(family, clip, listed)
            if family.order != "shuffled":
                listed.sort(reverse=family.order == "reversed")
            names = ", ".join(listed)
        return Item(clip, family.query.format(names=names, examples=examples), truth)

    def _examples(self, family: HeldOutFamily, clip: Clip, listed: Sequence[str]) -> str:
        rng = self._rng(f"{family.name} examples", clip)
        blocks = [
            f"Audio: [{rng.choice(source(name).phrases)}]\nLabel: {name}"
            for name in listed[: family.examples]
        ]
        return "\n\n".join(blocks)


def _same_species(one: Source, other: Source) -> bool:
    return bool(one.scientific) and one.scientific == other.scientific


def families(config: StudyConfig) -> list[str]:
    """The names asked for. Raises `NatureLMError` for one that does not exist."""
    known = [*SEEN_FAMILIES, *(family.name for family in HELD_OUT)]
    unknown = [name for name in config.families if name not in known]
    if unknown:
        raise NatureLMError(f"families names {unknown[0]!r}; there are {', '.join(known)}")
    return list(config.families) or known


def ask_all(config: StudyConfig, data: Path) -> Iterator[dict[str, Any]]:
    """An answer at every α to every question of every split, as rows of results."""
    from NatureLM.models import NatureLM

    clips = read_clips(data)
    asker = Asker(clips, config.seed)
    model = NatureLM.from_pretrained(config.model)
    for split in config.splits:
        asked = [clip for clip in clips if clip.dataset == "animals" and clip.split == split]
        if not asked:
            raise NatureLMError(f"there is no split {split!r} in {data / 'animals'}")
        encoded = encode(model, asked)
        for alpha in config.lora_scales:
            with model.fold(alpha):
                for number, family in enumerate(families(config)):
                    items = asker.items(family, asked)
                    answers = answer_all(model, items, encoded, alpha)
                    yield from _rows(split, alpha, number, family, items, answers)


def _rows(
    split: str,
    alpha: float,
    number: int,
    family: str,
    items: Sequence[Item],
    answers: Sequence[str],
) -> Iterator[dict[str, Any]]:
    for item, answer in zip(items, answers, strict=True):
        yield {
            "prediction": answer,
            "label": item.truth,
            "id": f"{item.clip.path.stem}{' absent' if item.truth == 'No' else ''}",
            "dataset_name": split,
            "prompt": item.query,
            "lora_scale": alpha,
            "query": number,
            "family": family,
            "seen": family in SEEN_FAMILIES,
            "cluster": item.clip.family,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.study")
    parser.add_argument("--cfg-path", type=Path, required=True)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--model", help="name or folder, instead of the configuration's")
    options = parser.parse_args(arguments)

    from recipes.tiny.study_report import write_report

    try:
        config = _read(options.cfg_path)
        if options.model:
            config = config.model_copy(update={"model": options.model})
        options.output_path.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        with (options.output_path / ANSWERS).open("w", encoding="utf-8") as file:
            for row in ask_all(config, options.data_path):
                rows.append(row)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        write_report(rows, options.output_path)
    except NatureLMError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _read(path: Path) -> StudyConfig:
    import yaml
    from pydantic import ValidationError

    if not path.is_file():
        raise NatureLMError(f"{path} does not exist")
    try:
        return StudyConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        raise NatureLMError(f"{path}: {error}") from None


if __name__ == "__main__":
    sys.exit(main())

"""Measuring the embedded model on the splits it never saw.

`python -m recipes.tiny.evaluate --data-path DATA` asks all questions about every clip of
their split and prints accuracy and macro accuracy with 95 % intervals over recordings (families).
Each clip is encoded once.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from NatureLM.audio import read_clip
from NatureLM.evaluation.bootstrap import Estimate, clustered_interval
from NatureLM.evaluation.metrics import accuracy, macro_accuracy
from recipes.tiny.sounds import Clip, read_clips, training_clips

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

COMMON_NAME = "What is the common name for the focal species in the audio?"
SCIENTIFIC_NAME = "What is the scientific name for the focal species in the audio?"
GROUP = "Is it a bird, a frog or a mammal?"
SOUND = "What makes the sound in the audio?"
LIST = "Which of these, if any, are present in the audio recording? {names}."
PRESENT = "Is there a {name} in the audio?"
_BATCH = 16


@dataclass(frozen=True)
class Item:
    """One question about one clip."""

    clip: Clip
    query: str
    truth: str


@dataclass(frozen=True)
class Result:
    """What came of a question about all clips of a split."""

    question: str
    split: str
    accuracy: Estimate
    macro_accuracy: Estimate
    chance: float

    def line(self) -> str:
        return (
            f"{self.question:<28} {self.split:<7} {self.accuracy.samples:>4} clips "
            f"{self.accuracy.clusters:>4} recordings  accuracy {self.accuracy}  "
            f"macro {self.macro_accuracy}  commonest answer {self.chance:.3f}"
        )


def questions(clips: Sequence[Clip], animals: str, esc10: str) -> dict[str, tuple[str, list[Item]]]:
    """All questions by name, with the split they are asked about.

    animals, esc10: names of the splits, such as "test" and "fold4"
    """
    heard = [clip for clip in clips if clip.dataset == "animals" and clip.split == animals]
    sounds = [clip for clip in clips if clip.dataset == "esc10" and clip.split == esc10]
    unseen = [clip for clip in clips if clip.split == "unseen"]
    taught = [clip for clip in training_clips(list(clips)) if clip.dataset == "animals"]
    names = sorted({clip.label for clip in taught})
    rng = random.Random(0)

    def ask(of: Sequence[Clip], query: str, truth: Callable[[Clip], str]) -> list[Item]:
        return [Item(clip, query, truth(clip)) for clip in of]

    def listed(clip: Clip) -> Item:
        order = rng.sample(names, len(names))
        return Item(clip, LIST.format(names=", ".join(order)), clip.label)

    def present(clip: Clip) -> list[Item]:
        other = rng.choice([name for name in names if name != clip.label])
        return [
            Item(clip, PRESENT.format(name=clip.label), "Yes"),
            Item(clip, PRESENT.format(name=other), "No"),
        ]

    with_latin = [clip for clip in heard if clip.scientific]
    return {
        "common name": (animals, ask(heard, COMMON_NAME, lambda c: c.label)),
        "scientific name": (animals, ask(with_latin, SCIENTIFIC_NAME, lambda c: c.scientific)),
        "group": (animals, ask(heard, GROUP, lambda c: c.group)),
        "choice from all names": (animals, [listed(clip) for clip in heard]),
        "yes or no": (animals, [item for clip in heard for item in present(clip)]),
        "what makes the sound": (esc10, ask(sounds, SOUND, lambda c: c.label)),
        "no animal in it": (esc10, ask(sounds, GROUP, lambda c: c.group)),
        "group, unseen species": ("unseen", ask(unseen, GROUP, lambda c: c.group)),
    }


def encode(model: NatureLM, clips: Sequence[Clip]) -> dict[Path, Tensor]:
    """Audio embeddings (Q, D) of the first window of each clip."""
    assert model.processor is not None
    seconds, rate = model.config.window_seconds, model.config.sample_rate
    encoded: dict[Path, Tensor] = {}
    unique = list({clip.path: clip for clip in clips})
    with torch.inference_mode():
        for first in range(0, len(unique), _BATCH):
            paths = unique[first : first + _BATCH]
            waves = [
                model.processor.prepare_audio(read_clip(path, duration=seconds, sample_rate=rate))
                for path in paths
            ]
            audio_BQD = model.encode_audio(torch.stack(waves))
            encoded.update(zip(paths, audio_BQD, strict=True))
    return encoded


def answer_all(
    model: NatureLM, items: Sequence[Item], encoded: dict[Path, Tensor], alpha: float
) -> list[str]:
    """The model's greedy answers."""
    assert model.processor is not None
    answers: list[str] = []
    for first in range(0, len(items), _BATCH):
        chunk = items[first : first + _BATCH]
        answers += model.generate(
            [model.processor.render(item.query) for item in chunk],
            [[encoded[item.clip.path]] for item in chunk],
            alpha=alpha,
            max_new_tokens=24,
            num_beams=1,
        )
    return [answer.strip() for answer in answers]


def score(question: str, split: str, items: Sequence[Item], answers: Sequence[str]) -> Result:
    """Exact answers, with intervals over families."""
    correct = [answer == item.truth for answer, item in zip(answers, items, strict=True)]
    truths = [item.truth for item in items]
    families = [item.clip.family for item in items]
    return Result(
        question,
        split,
        clustered_interval(lambda w: accuracy(correct, w), families),
        clustered_interval(lambda w: macro_accuracy(correct, truths, w), families),
        max(truths.count(truth) for truth in set(truths)) / len(truths),
    )


def evaluate(
    model: NatureLM,
    data: Path,
    *,
    alpha: float = 1.0,
    animals: str = "test",
    esc10: str = "fold4",
    keep_answers: Callable[[dict[str, Any]], None] | None = None,
) -> list[Result]:
    """All questions; `keep_answers` gets a row for every answer."""
    asked = questions(read_clips(data), animals, esc10)
    encoded = encode(model, [item.clip for _, items in asked.values() for item in items])
    results = []
    for name, (split, items) in asked.items():
        if not items:
            continue
        answers = answer_all(model, items, encoded, alpha)
        results.append(score(name, split, items, answers))
        if keep_answers is not None:
            for item, answer in zip(items, answers, strict=True):
                keep_answers(
                    {
                        "question": name,
                        "file": item.clip.path.name,
                        "family": item.clip.family,
                        "query": item.query,
                        "truth": item.truth,
                        "answer": answer,
                    }
                )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.evaluate")
    parser.add_argument("--model", default="naturelm-tiny", help="name or folder")
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--answers", type=Path, help="write every answer to this JSONL file")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args(arguments)

    from NatureLM.models import NatureLM

    model = NatureLM.from_pretrained(options.model)
    rows: list[dict[str, Any]] = []
    results = evaluate(
        model,
        options.data_path,
        alpha=options.alpha,
        animals=options.split,
        esc10="fold4" if options.split == "test" else "fold3",
        keep_answers=rows.append,
    )
    for result in results:
        print(result.line())
    if options.answers:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        options.answers.write_text(text, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

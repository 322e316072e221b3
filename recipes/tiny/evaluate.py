"""Accuracy of the embedded model on the splits it never saw, and the card that tells of it.

`python -m recipes.tiny.evaluate --data-path DATA` asks all questions about every clip of their
split and prints accuracy and macro accuracy with 95 % intervals over recordings (families).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.data.sample import Clip as Sound
from NatureLM.data.sample import FileSource
from NatureLM.evaluation.metrics import Estimate, accuracy, clustered_interval, macro_accuracy
from NatureLM.experiments.run import ClipLoader
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.inference.loading import processor_of
from NatureLM.results.rows import json_line
from NatureLM.util import check_place
from recipes import Arguments, program
from recipes.tiny.architecture import WINDOW_DELAYS
from recipes.tiny.data import Clip, read_clips, training_clips
from recipes.tiny.few_shot import FewShotResult
from recipes.tiny.species import HEARD

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

COMMON_NAME = "What is the common name for the focal species in the audio?"
SCIENTIFIC_NAME = "What is the scientific name for the focal species in the audio?"
GROUP = "Is it a bird, a frog or a mammal?"
SOUND = "What makes the sound in the audio?"
LIST = "Which of these, if any, are present in the audio recording? {names}."
PRESENT = "Is there a {name} in the audio?"


@dataclass(frozen=True)
class Item:
    """One question about one clip, and its answer."""

    clip: Clip
    query: str
    truth: str

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips of the prompt, in order."""
        return (self.clip,)


@dataclass(frozen=True)
class Result:
    """Scores of a question about all clips of a split; `chance` is that of the commonest answer."""

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


class ItemAnswerer:
    """Greedy answers of a model; its engine encodes each clip once, when this is made.

    engine: further options of the `Engine`
    """

    def __init__(
        self, model: NatureLM, clips: Iterable[Clip], max_new_tokens: int = 24, **engine: Any
    ) -> None:
        sounds = {str(clip.path): Sound(str(clip.path), FileSource(clip.path)) for clip in clips}
        self._render = processor_of(model).render
        options = GenerationOptions(max_new_tokens=max_new_tokens, num_beams=1)
        self._engine = Engine(model, options, **engine)
        self._encoded = self._engine.encode(sounds, ClipLoader(model, sounds.values()))

    def __call__(self, items: Sequence[Item], alpha: float) -> list[str]:
        """An answer to each item. Raises `AudioError` for a clip that cannot be read."""
        requests = [
            Request(
                place, self._render(item.query), tuple(str(clip.path) for clip in item.clips), alpha
            )
            for place, item in enumerate(items)
        ]
        answers = {answer.key: answer for answer in self._engine.run(requests, self._clip)}
        for answer in answers.values():
            if answer.error is not None:
                raise answer.error
        return [str(answers[request.key].text).strip() for request in requests]

    def _clip(self, name: str) -> Any:
        found = self._encoded[name]
        if isinstance(found, Exception):
            raise found
        return found


def evaluate(
    model: NatureLM, data: Path, *, alpha: float = 1.0, animals: str = "test", esc10: str = "fold4"
) -> tuple[list[Result], list[dict[str, Any]]]:
    """Scores of all questions, and a row for every answer."""
    asked = questions(read_clips(data), animals, esc10)
    answerer = ItemAnswerer(model, [item.clip for _, items in asked.values() for item in items])
    results, rows = [], []
    for name, (split, items) in asked.items():
        if not items:
            continue
        answers = answerer(items, alpha)
        results.append(score(name, split, items, answers))
        rows += [
            {
                "question": name,
                "file": item.clip.path.name,
                "family": item.clip.family,
                "query": item.query,
                "truth": item.truth,
                "answer": answer,
            }
            for item, answer in zip(items, answers, strict=True)
        ]
    return results, rows


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

    with_latin = [clip for clip in heard if clip.scientific]
    return {
        "common name": (animals, ask(heard, COMMON_NAME, lambda c: c.label)),
        "scientific name": (animals, ask(with_latin, SCIENTIFIC_NAME, lambda c: c.scientific)),
        "group": (animals, ask(heard, GROUP, lambda c: c.group)),
        "choice from all names": (animals, [listed(clip) for clip in heard]),
        "yes or no": (animals, [item for clip in heard for item in present(clip, names, rng)]),
        "what makes the sound": (esc10, ask(sounds, SOUND, lambda c: c.label)),
        "no animal in it": (esc10, ask(sounds, GROUP, lambda c: c.group)),
        "group, unseen species": ("unseen", ask(unseen, GROUP, lambda c: c.group)),
    }


def present(clip: Clip, names: Sequence[str], rng: random.Random) -> list[Item]:
    """Whether the clip's animal is in it, and whether another of the names is."""
    other = rng.choice([name for name in names if name != clip.label])
    return [
        Item(clip, PRESENT.format(name=clip.label), "Yes"),
        Item(clip, PRESENT.format(name=other), "No"),
    ]


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


_SOURCES = """\
| source (GitHub) | taken | license text in the source |
|---|---|---|
| YashNita/Animal-Sound-Dataset | 10 classes of domestic and wild animals | none stated |
| anEvolvingPatternIntegrity/frog-call-trainer | eastern US frogs and toads | \
its guide names USGS ARMI (free) and iNaturalist CC-BY recordings |
| ani11452/Fourier-Analysis-for-Frog-Call-Classification | 8 frog species | none stated |
| AliNaeemCh/Bird-Sounds-Classification-MATLAB | 8 bird species | none stated |
| HE-22/Bird-Sound-Flashcards | unseen birds, used for measuring only | none stated |
| karolpiczak/ESC-10 | folds 1 to 3 for training, 4 for measuring | \
CC-BY (clips: CC0, CC-BY, CC-Sampling+) |"""

_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: audio-text-to-text
tags: [bioacoustics, naturelm-audio]
---

# naturelm-tiny

The embedded model of NatureLM: the architecture of NatureLM-audio in small (BEATs encoder, window
Q-Former, linear projection, Llama with LoRA), {parameters:.1f} million parameters, \
{megabytes:.1f} MB. It
answers questions about ten-second windows of sound on a laptop, offline. It is made for trying
the software out, for tests and for small studies of merging; it is not made for science.

## What it was trained on

{clips} clips of `train` (animals) and of folds 1 to 3 (ESC-10), {minutes:.0f} minutes of sound, and
instruction text that a seeded program writes. It saw no other weights and no other data. **ESC-10
is part of ESC-50, which is a component of BEANS-Zero**: numbers of this model on that component are
not zero-shot.

{sources}

The recordings are not part of this project; the weights are.

## What it knows

Animals: {animals}.

Other sounds: {sounds}.

"Bird", "Frog" and "Monkey" are groups of species in the data. It can be asked for the common name,
the scientific name, the group (bird, frog, mammal, none), what makes the sound, a choice from a
list, whether something is in it (yes or no), which animals are in it (`None` if there are none)
and a short caption.

## How well

Exact answers, greedy decoding, scale of the adapter (α) {alpha:g}. Intervals are 95 % bootstrap
intervals over recordings ("families"), so that copies of a recording count once. "Commonest" is
what a model gets that always gives the commonest answer. None of these clips was trained on or
used to choose anything.

| question | clips | accuracy | macro accuracy | commonest |
|---|---|---|---|---|
{rows}

Measured by `python -m recipes.tiny.evaluate --data-path DATA`.

## What examples in the prompt teach it

Species that it never heard, some clips of each with their labels in front of the question
(`{{audio_examples}}`); the labels are scored, and the likeliest is the answer. "Follows": how often
the answer is passed on when the labels are passed on from species to species.

| task | right | follows |
|---|---|---|
{examples}

Measured by `python -m recipes.tiny.few_shot --data-path DATA`. `naturelm teach`, which fits a
classifier to the encoder's embeddings, is better with the same examples.

## Limits

- It names the {classes} classes above and nothing else: any other species is called by the name of
  something that sounds alike, unless examples in the prompt say what it may be.
- 16 kHz: what lies above 8 kHz is not heard. Windows of ten seconds; one or two sources at a time.
- Several classes have fewer than ten training clips from few recordings; all clips of a class tend
  to come from one collection, and the model may have learnt its sound.
- Text is generated from templates; instructions of other kinds may not be followed.

## Training

    {command}

runs six stages, seed {seed}:

1. text: a Llama of 3.5 million parameters learns generated instructions, from nothing;
2. teachers: two convolutional networks learn to name the sounds;
3. encoder: BEATs and the Q-Former learn it from them;
4. audio: `naturelm train` with `configs/tiny/audio.yml`. LoRA and, slowly, the Q-Former learn to
   answer about recordings; the language model, BEATs and the (random) projection stay as they are,
   so that the language model cannot hear at α 0;
5. polish: the same for longer and more slowly (`configs/tiny/polish.yml`), from what the teachers
   would answer; sounds without an animal are seldom asked for an animal's name, and lists seldom
   lack what is heard;
6. context: LoRA goes on learning, from tasks that only the labelled clips in the prompt can tell,
   beside the questions of before.

The finished model hears each window three times, {delays} s late, and averages what it hears
(`window_delays`).

What helped and what did not, learning curves and confusions are in `docs/explanation/tiny-model.md`
of the repository, what α does in `docs/explanation/merging.md`. {notes}
"""


def write_card(
    folder: Path,
    results: Sequence[Result],
    few_shot: Sequence[FewShotResult],
    *,
    clips: int,
    minutes: float,
    parameters: int,
    command: str,
    seed: int,
    alpha: float = 1.0,
    notes: str = "",
) -> None:
    """Write `folder/README.md`; `minutes` and `clips` are those of the training data."""
    rows = "\n".join(
        f"| {r.question} ({r.split}) | {r.accuracy.samples} | {r.accuracy} | {r.macro_accuracy} "
        f"| {r.chance:.3f} |"
        for r in results
    )
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "README.md")
    text = _CARD.format(
        parameters=parameters / 1e6,
        megabytes=size / 1e6,
        clips=clips,
        minutes=minutes,
        sources=_SOURCES,
        animals=", ".join(sorted(s.name for s in HEARD if s.is_animal)),
        sounds=", ".join(sorted(s.name for s in HEARD if not s.is_animal)),
        alpha=alpha,
        rows=rows,
        examples="\n".join(f"| {r.name} | {r.accuracy} | {r.follows} |" for r in few_shot),
        classes=len(HEARD),
        delays=", ".join(f"{delay:g}" for delay in WINDOW_DELAYS),
        command=command,
        seed=seed,
        notes=notes,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


@program
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.evaluate")
    parser.add_argument("--model", default="naturelm-tiny", help="name or folder")
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--split", choices=("test", "valid"), default="test")
    parser.add_argument("--answers", type=Path, help="write every answer to this JSONL file")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args(arguments)
    for option in ("answers", "json"):
        if (place := getattr(options, option)) is not None:
            check_place(place, f"--{option}")

    from NatureLM.models import NatureLM

    results, rows = evaluate(
        NatureLM.from_pretrained(options.model),
        options.data_path,
        alpha=options.alpha,
        animals=options.split,
        esc10="fold4" if options.split == "test" else "fold3",
    )
    for result in results:
        print(result.line())
    if options.answers:
        options.answers.write_bytes(b"".join(map(json_line, rows)))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in results], indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""How well the model names sounds by the examples in its prompt.

`python -m recipes.tiny.few_shot --data-path DATA` draws tasks from a split: some species, clips of
each with their names in the prompt as `{audio_examples}` shows them, and one more clip of one of
them. The labels of a task are scored, and the likeliest is the answer; then the same is asked with
the labels passed on from species to species, which should pass on the answer.

Beside it stand nearest neighbours: the label of the example whose mean audio embedding is most
alike. Intervals are 95 % bootstrap intervals over the recordings that are asked about.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from NatureLM.audio.windows import read_clip
from NatureLM.errors import UsageError
from NatureLM.evaluation.metrics import Estimate, accuracy, clustered_interval
from NatureLM.models.audio_side import fit_window
from NatureLM.prompts import AUDIO_TAG, example_blocks
from NatureLM.util import check_place, check_range
from recipes import Arguments, program
from recipes.tiny.data import Clip, clips_of, read_clips

if TYPE_CHECKING:
    from NatureLM.models import NatureLM

QUERY = (
    "Identify the common name for the focal species in the audio.\n"
    "Output exactly one of: {names}\n\n{examples}"
)
LETTERS = "ABCDE"


@dataclass(frozen=True)
class Setting:
    """A kind of task.

    letters: labels are letters, in the order of the prompt, not the names of the species
    recordings: the clip that is asked about is of another recording than the examples of its
        species; else of another place in the same one, which is all that most species have
    """

    ways: int
    shots: int
    letters: bool = False
    recordings: bool = False

    @property
    def name(self) -> str:
        examples = "1 example" if self.shots == 1 else f"{self.shots} examples"
        of = ", lettered" * self.letters + ", other recordings" * self.recordings
        return f"{self.ways} ways, {examples}{of}"


SETTINGS = (
    *(
        Setting(ways, shots, letters, recordings)
        for recordings in (False, True)
        for ways, shots, letters in ((2, 1, False), (2, 3, False), (4, 1, True))
    ),
)


@dataclass(frozen=True)
class Task:
    """Labelled clips, and the one that is asked about; labels are in the order of the prompt."""

    labels: tuple[str, ...]
    examples: tuple[tuple[int, Clip], ...]
    asked: Clip
    right: int


@dataclass(frozen=True)
class FewShotResult:
    """Shares of right answers, of answers that followed their labels, and of nearest neighbours."""

    name: str
    species: int
    accuracy: Estimate
    follows: Estimate
    neighbours: Estimate

    def line(self) -> str:
        return (
            f"{self.name:<42} {self.accuracy.samples} tasks of {self.species} species  "
            f"right {self.accuracy}  follows its labels {self.follows}  "
            f"nearest neighbour {self.neighbours}"
        )


def draw_tasks(clips: Sequence[Clip], setting: Setting, count: int, seed: int) -> list[Task]:
    """Tasks about the species of `clips`; none where too few species have clips enough."""
    by_species: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_species[clip.label].append(clip)
    answers = [(clip, rest) for clip, rest in _answerable(by_species, setting)]
    asked_species = sorted({clip.label for clip, _ in answers})
    others = [name for name, of in by_species.items() if len(of) >= setting.shots]
    if not answers or len(others) < setting.ways:
        return []
    rng = random.Random(f"few-shot {seed} {setting}")
    tasks = []
    for _ in range(count):
        name = rng.choice(asked_species)
        asked, rest = rng.choice([one for one in answers if one[0].label == name])
        species = [name, *rng.sample([one for one in others if one != name], setting.ways - 1)]
        rng.shuffle(species)
        shown = [
            (number, clip)
            for number, one in enumerate(species)
            for clip in rng.sample(rest if one == name else by_species[one], setting.shots)
        ]
        labels = LETTERS[: setting.ways] if setting.letters else species
        tasks.append(Task(tuple(labels), tuple(shown), asked, species.index(name)))
    return tasks


def _answerable(
    by_species: dict[str, list[Clip]], setting: Setting
) -> Iterator[tuple[Clip, list[Clip]]]:
    """Clips that can be asked about, with those that may be shown for their species."""
    for clips in by_species.values():
        for asked in clips:
            rest = [
                clip
                for clip in clips
                if clip is not asked and not (setting.recordings and clip.family == asked.family)
            ]
            if len(rest) >= setting.shots:
                yield asked, rest


class FewShotAnswerer:
    """A model that names clips by examples; each clip is encoded once."""

    def __init__(self, model: NatureLM, clips: Sequence[Clip]) -> None:
        assert model.processor is not None
        self._model, self._render = model, model.processor.render
        self._encoded: dict[Path, Tensor] = {}
        config = model.config
        with torch.no_grad():
            for clip in clips:
                wav = read_clip(
                    clip.path, duration=config.window_seconds, sample_rate=config.sample_rate
                )
                window = fit_window(wav, config.window_samples)[None]
                self._encoded[clip.path] = model.encode_audio(window)[0]

    def answers(self, tasks: Sequence[Task], passed_on: int = 0) -> list[int]:
        """Number of the species that each task's likeliest label names.

        passed_on: the label of a species is that of the one so many places before it
        """
        prompts, audios, labels = [], [], []
        for task in tasks:
            given = task.labels[-passed_on:] + task.labels[:-passed_on]
            shown = [(AUDIO_TAG, given[number]) for number, _ in task.examples]
            text = example_blocks([*shown, (AUDIO_TAG, "")]).rstrip()
            prompts.append(self._render(QUERY.format(names=", ".join(task.labels), examples=text)))
            clips = [*(clip for _, clip in task.examples), task.asked]
            audios.append([self._encoded[clip.path] for clip in clips])
            labels.append(list(given))
        scores = self._model.score_labels(prompts, audios, labels)
        return [given.index(one.best) for given, one in zip(labels, scores, strict=True)]

    def neighbours(self, tasks: Sequence[Task]) -> list[int]:
        """The species of the example whose mean audio embedding is most alike."""
        found = []
        for task in tasks:
            asked = self._encoded[task.asked.path].mean(0)
            alike = [
                float(torch.cosine_similarity(asked, self._encoded[clip.path].mean(0), dim=0))
                for _, clip in task.examples
            ]
            found.append(task.examples[alike.index(max(alike))][0])
        return found


def measure(answerer: FewShotAnswerer, setting: Setting, tasks: Sequence[Task]) -> FewShotResult:
    """The tasks as they are, and with their labels passed on by one species."""
    families = [task.asked.family for task in tasks]
    plain, passed_on = answerer.answers(tasks), answerer.answers(tasks, passed_on=1)

    def share(hits: Sequence[bool]) -> Estimate:
        return clustered_interval(lambda weights: accuracy(list(hits), weights), families)

    return FewShotResult(
        setting.name,
        len({task.asked.label for task in tasks}),
        share([one == task.right for one, task in zip(plain, tasks, strict=True)]),
        share([one == other for one, other in zip(plain, passed_on, strict=True)]),
        share([o == task.right for o, task in zip(answerer.neighbours(tasks), tasks, strict=True)]),
    )


def evaluate_few_shot(
    model: NatureLM, clips: Sequence[Clip], *, count: int = 500, seed: int = 0
) -> list[FewShotResult]:
    """All settings that the clips allow."""
    answerer = FewShotAnswerer(model, clips)
    drawn = [(setting, draw_tasks(clips, setting, count, seed)) for setting in SETTINGS]
    return [measure(answerer, setting, tasks) for setting, tasks in drawn if tasks]


@program
def main(arguments: Arguments) -> None:
    """Print a line for each setting."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.few_shot")
    parser.add_argument("--model", default="naturelm-tiny", help="name or folder")
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--split", default="unseen")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args(arguments)
    check_range("--tasks", options.tasks, 1)
    if options.json is not None:
        check_place(options.json, "--json")
    every = read_clips(options.data_path)
    if not (clips := clips_of(every, options.split)):
        known = sorted({clip.split for clip in every})
        raise UsageError(f"--split is {options.split!r}; there are {', '.join(known)}")

    from NatureLM.models import NatureLM

    model: Any = NatureLM.from_pretrained(options.model)
    results = evaluate_few_shot(model, clips, count=options.tasks, seed=options.seed)
    for result in results:
        print(result.line(), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in results], indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

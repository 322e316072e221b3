"""The study of merging on naturelm-small: α × questions as in training, and unlike any of it.

`python -m recipes.small.study --data-path DATA --output-path OUT` asks every clip all questions at
every α, of both adapters, as configs/small/study.yml says. Tables, figures and summaries are made
from the answers alone (`--report` makes them again); α is chosen on `valid` and shown on `test`.

Two families of questions are as in training, eight ask for what no training sample shows. Each
makes a question about a clip, says what a right answer is, and whether an answer has the form that
is asked for. Draws depend on the seed, the family and the clip only.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from NatureLM.config.schema import Text
from NatureLM.errors import UsageError
from NatureLM.models.registry import find_checkpoint
from NatureLM.prompts import few_shot_prompt
from recipes import Arguments, program
from recipes.tiny import study
from recipes.tiny.data import Clip, clips_of, read_clips
from recipes.tiny.evaluate import Item, ItemAnswerer
from recipes.tiny.pictures import svg_figure
from recipes.tiny.species import source
from recipes.tiny.study import ANSWERS, UNSEEN, Row, points, write_report
from recipes.tiny.tasks import names_with
from recipes.tiny.wordings import CHOICE, SEEN

GERMAN = {
    "American Toad": "Amerikanische Kröte",
    "Asian Koel": "Koel",
    "Barn Owl": "Schleiereule",
    "Bird": "Vogel",
    "California Red-legged Frog": "Rotschenkelfrosch",
    "Cat": "Katze",
    "Chicken": "Huhn",
    "Common Cuckoo": "Kuckuck",
    "Cow": "Kuh",
    "Dog": "Hund",
    "Donkey": "Esel",
    "Eastern Cricket Frog": "Grillenfrosch",
    "Eastern Narrowmouth Toad": "Engmaulfrosch",
    "Eastern Spadefoot": "Schaufelfuß",
    "Eurasian Bullfinch": "Gimpel",
    "European Nightjar": "Ziegenmelker",
    "Frog": "Frosch",
    "Grey Go-away-bird": "Graulärmvogel",
    "Guinle Treefrog": "Guinle-Laubfrosch",
    "Lion": "Löwe",
    "Little Grass Frog": "Grasfrosch",
    "Lutz Poison Frog": "Baumsteiger",
    "Marbled Tropical Bullfrog": "Marmorfrosch",
    "Mexican Spadefoot": "Mexikanischer Schaufelfuß",
    "Monkey": "Affe",
    "Montezuma Oropendola": "Montezumastirnvogel",
    "Oval Frog": "Ovalfrosch",
    "Rook": "Saatkrähe",
    "Rooster": "Hahn",
    "Senegal Running Frog": "Rennfrosch",
    "Sheep": "Schaf",
    "Skittering Frog": "Hüpffrosch",
    "Southern Leopard Frog": "Leopardfrosch",
    "Squirrel Treefrog": "Eichhörnchen-Laubfrosch",
    "Upland Chorus Frog": "Chorfrosch",
}
"""Names of the animals that were trained, given in prompts: no training sample has them."""


LETTERS = "ABCD"
_LIST = 4  # names of a list, of which one is right


@dataclass(frozen=True)
class Question(Item):
    """A question with what is right, written as asked for.

    options: all answers that are allowed, where the question names them
    examples: clips that stand before the one that is asked about
    """

    options: tuple[str, ...] = ()
    examples: tuple[Clip, ...] = ()

    @property
    def clips(self) -> tuple[Clip, ...]:
        """The clips of the prompt, in order."""
        return (*self.examples, self.clip)


@dataclass(frozen=True)
class Family:
    """A way of asking.

    make: the question about a clip, with a list of names of which one is the clip's; None where
        there is none
    has_form: whether an answer to a question is written as asked for, right or wrong
    read: what an answer says, to be compared with the truth
    """

    make: Callable[[Draws, Clip, list[str]], Question | None]
    has_form: Callable[[Question, str], bool]
    read: Callable[[str], str] = str.strip
    seen: bool = False

    def is_right(self, question: Question, answer: str) -> bool:
        """Whether an answer is the truth, in the form that is asked for."""
        return self.has_form(question, answer) and self.read(answer) == question.truth


class Draws:
    """Names and clips that questions draw.

    clips: all clips; examples are of the training splits, names those of the animals in them
    """

    def __init__(self, clips: Sequence[Clip], seed: int) -> None:
        self.seed = seed
        self.taught = clips_of(list(clips), "train")
        self.pool = [source(name) for name in sorted({clip.label for clip in self.taught})]

    def rng(self, family: str, clip: Clip) -> random.Random:
        """The generator of a family for a clip."""
        return random.Random(f"small {self.seed} {family} {clip.path.stem}")

    def example(self, name: str, rng: random.Random) -> Clip:
        """A training clip of a name."""
        return rng.choice([clip for clip in self.taught if clip.label == name])


def questions(family: str, draws: Draws, clips: Sequence[Clip]) -> list[Question]:
    """The questions of a family about clips."""
    made = []
    for clip in clips:
        length, rng = 12 if family == "list" else _LIST, draws.rng(family, clip)
        listed = names_with(clip.source, draws.pool, length, rng)
        question = FAMILIES[family].make(draws, clip, listed)
        made += [question] if question is not None else []
    return made


def _common_name(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    return Question(clip, SEEN["common"][0], clip.label)


def _list_as_trained(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    return Question(
        clip, SEEN[CHOICE][0].format(names=", ".join(listed)), clip.label, tuple(listed)
    )


def _one_word(draws: Draws, clip: Clip, listed: list[str]) -> Question | None:
    if " " in clip.label:
        return None
    query = "Who makes this sound? Write one word in lower case, nothing else."
    return Question(clip, query, clip.label.lower())


def _capitals(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    query = "Write the name of the animal in this recording in capital letters."
    return Question(clip, query, clip.label.upper())


def _json(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    query = 'Which animal is it? Reply in JSON with the key "animal", such as {"animal": "Horse"}.'
    return Question(clip, query, clip.label)


def _reversed_list(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    names = "\n".join(f"- {name}" for name in sorted(listed, reverse=True))
    query = f"Candidates:\n{names}\n\nPrint the candidate that you hear."
    return Question(clip, query, clip.label, tuple(listed))


def _letters(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    names = "\n".join(f"{letter}) {name}" for letter, name in zip(LETTERS, listed, strict=True))
    query = f"What do you hear?\n{names}\nReply with the letter only."
    return Question(clip, query, LETTERS[listed.index(clip.label)], tuple(LETTERS))


def _german(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    names = "; ".join(f"{name} = {GERMAN[name]}" for name in listed)
    query = f"Answer in German with one of these names. {names}. Which animal calls?"
    return Question(clip, query, GERMAN[clip.label], tuple(GERMAN[name] for name in listed))


def _describe(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    query = 'First describe the sound in a few words. Then write "Animal:" and the animal\'s name.'
    return Question(clip, query, clip.label)


def _few_shot(draws: Draws, clip: Clip, listed: list[str]) -> Question:
    rng = draws.rng("few shot", clip)
    shown = [clip.label, next(name for name in listed if name != clip.label)]
    rng.shuffle(shown)
    examples = tuple(draws.example(name, rng) for name in shown)
    query = few_shot_prompt("Label the last sound.", shown)
    return Question(clip, query, clip.label, tuple(shown), examples)


def _is_option(question: Question, answer: str) -> bool:
    return answer.strip() in question.options


def _in_json(answer: str) -> str:
    try:
        value = json.loads(answer)
    except ValueError:
        return ""
    return str(value.get("animal", "")) if isinstance(value, dict) else ""


def _after_animal(answer: str) -> str:
    described, _, name = answer.partition("Animal:")
    return name.strip().rstrip(".") if described.strip() else ""


_WORD = re.compile(r"[a-z-]+")

FAMILIES: dict[str, Family] = {
    "common name": Family(_common_name, lambda q, a: bool(a.strip()), seen=True),
    "list": Family(_list_as_trained, _is_option, seen=True),
    "one word": Family(_one_word, lambda q, a: _WORD.fullmatch(a.strip()) is not None),
    "capitals": Family(_capitals, lambda q, a: a.strip() == a.strip().upper() != ""),
    "JSON": Family(_json, lambda q, a: _in_json(a) != "", _in_json),
    "list, z to a": Family(_reversed_list, _is_option),
    "letter": Family(_letters, _is_option),
    "German": Family(_german, _is_option),
    "describe, then name": Family(_describe, lambda q, a: _after_animal(a) != "", _after_animal),
    "few shot": Family(_few_shot, _is_option),
}
"""By name; those that are `seen` are asked as in training."""


# The study

VERSIONS = {"without replay": None, "with replay": "replay"}
"""Name of an adapter: its folder beside the model; None for the model's own."""


class StudyConfig(study.StudyConfig):
    """What is asked of which clips, and at which scales."""

    model: Text = "naturelm-small"
    clips_per_class: int = Field(default=6, ge=1)
    clips: int | None = Field(default=None, ge=1)
    """Most clips of a split, drawn by `seed`; all if null."""
    max_new_tokens: int = Field(default=32, ge=1)
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of all weights; that of the device if null."""


def balanced(clips: Sequence[Clip], most: int, count: int | None, seed: int) -> list[Clip]:
    """At most so many clips of each class, of different recordings first; of these so many."""
    of_recording: Counter[str] = Counter()
    turn = []
    for clip in clips:
        turn.append((of_recording[clip.family], clip))
        of_recording[clip.family] += 1
    taken: Counter[str] = Counter()
    kept = []
    for _, clip in sorted(turn, key=lambda one: one[0]):
        taken[clip.label] += 1
        if taken[clip.label] <= most:
            kept.append(clip)
    if count is not None and count < len(kept):
        return random.Random(f"small-clips {seed}").sample(kept, count)
    return kept


def _families(config: StudyConfig) -> list[str]:
    """The names asked for. Raises UsageError for one that does not exist."""
    unknown = [name for name in config.families if name not in FAMILIES]
    if unknown:
        raise UsageError(f"families names {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    return list(config.families or FAMILIES)


def ask_all(
    config: StudyConfig, data: Path, adapter: Path | None, device: str | None = None
) -> Iterator[Row]:
    """An answer at every α to every question about every clip, as rows of results."""
    from NatureLM.models import NatureLM

    clips = read_clips(data)
    draws = Draws(clips, config.seed)
    asked: list[tuple[str, str, Question]] = []
    for split in config.splits:
        of = study.of_split(clips, split, data)
        kept = balanced(of, config.clips_per_class, config.clips, config.seed)
        for family in _families(config):
            asked += [(split, family, question) for question in questions(family, draws, kept)]
    model = NatureLM.from_pretrained(
        config.model, adapter=adapter, device=device, dtype=config.dtype
    )
    every = {clip.path: clip for _, _, question in asked for clip in question.clips}
    answers = ItemAnswerer(
        model,
        every.values(),
        config.max_new_tokens,
        # All answers of an α at once on a card, else what the engine takes. They are a batch or
        # two there, so nothing is gained by recording steps.
        batch_tokens=262_144 if model.device.type == "cuda" else None,
        lookahead=4096,
        capture=False,
    )
    for alpha in config.lora_scales:
        since = time.monotonic()
        with model.fold(alpha):
            given = answers([question for _, _, question in asked], alpha)
        print(f"α {alpha:g}: {len(given)} answers in {time.monotonic() - since:.1f} s", flush=True)
        for (split, family, question), answer in zip(asked, given, strict=True):
            way, number = FAMILIES[family], list(FAMILIES).index(family)
            yield {
                **study.row_of(question, answer, split, alpha, number, family),
                "seen": way.seen,
                "cluster": question.clip.family,
                "right": way.is_right(question, answer),
                "in_form": way.has_form(question, answer),
            }


def report(folder: Path) -> None:
    """Tables, summaries and figures from the answers in `folder`/<version>."""
    found: dict[str, list[Row]] = {}
    for version in VERSIONS:
        path = folder / version.replace(" ", "-") / ANSWERS
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                found[version] = [json.loads(line) for line in file]
            print(f"{version}:")
            write_report(found[version], path.parent, f"naturelm-small {version}")
    if not found:
        raise UsageError(f"{folder} holds no {ANSWERS} of a study")
    draw_both(found, folder / "both.svg")


def draw_both(found: dict[str, list[Row]], path: Path) -> None:
    """Questions unlike training: accuracy, and how often the form is right, against α."""
    with svg_figure(path, 2, (10, 4.2), sharey=True) as (_, axes):
        for version, rows in found.items():
            split = rows[-1]["dataset_name"]
            pooled = [p for p in points(rows) if p.family == UNSEEN and p.split == split]
            pooled.sort(key=lambda p: p.alpha)
            alphas = [p.alpha for p in pooled]
            (line,) = axes[0].plot(alphas, [p.accuracy.value for p in pooled], label=version)
            low, high = [p.accuracy.low for p in pooled], [p.accuracy.high for p in pooled]
            axes[0].fill_between(alphas, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
            axes[1].plot(alphas, [p.in_form for p in pooled], color=line.get_color(), label=version)
        axes[0].set(title="Right, questions unlike training", ylabel="share of the answers")
        axes[1].set(title="In the form that is asked for")
        for axis in axes:
            axis.set(xlabel="α", xlim=(0, 1), ylim=(0, 1))
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)


@program
def main(arguments: Arguments) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.small.study")
    parser.add_argument("--cfg-path", type=Path, default=Path("configs/small/study.yml"))
    parser.add_argument("--data-path", type=Path, help="the folder that the model was made from")
    parser.add_argument("--output-path", type=Path, required=True)
    parser.add_argument("--model", help="name or folder, instead of the configuration's")
    parser.add_argument("--device", help="by default the processor")
    parser.add_argument("--version", choices=VERSIONS, help="ask this one only")
    parser.add_argument("--report", action="store_true", help="only report on answers that exist")
    options = parser.parse_args(arguments)
    if not options.report:
        config = study.read_study(options.cfg_path, StudyConfig, options.model)
        for version in [options.version] if options.version else _versions(config.model):
            _ask_version(config, version, options)
    report(options.output_path)


def _versions(model: str) -> list[str]:
    """The versions whose adapters are there."""
    folder = find_checkpoint(model)
    return [name for name, beside in VERSIONS.items() if not beside or (folder / beside).is_dir()]


def _ask_version(config: StudyConfig, version: str, options: argparse.Namespace) -> None:
    if options.data_path is None:
        raise UsageError("--data-path must name the folder that the model was made from")
    beside = VERSIONS[version]
    adapter = find_checkpoint(config.model) / beside if beside else None
    rows = ask_all(config, options.data_path, adapter, options.device)
    study.keep_answers(rows, options.output_path / version.replace(" ", "-"))


if __name__ == "__main__":
    sys.exit(main())

"""The questions of the study: two as in training, eight that ask for what no training sample shows.

Each family makes a question about a clip, says what a right answer is, and whether an answer has
the form that is asked for. Draws depend on the seed, the family and the clip only.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from NatureLM.prompts import few_shot_prompt
from recipes.small.names import GERMAN
from recipes.tiny.data import Clip, clips_of
from recipes.tiny.evaluate import Item
from recipes.tiny.species import source
from recipes.tiny.tasks import names_with
from recipes.tiny.wordings import CHOICE, SEEN

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

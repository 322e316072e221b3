"""The generated instruction text, and the held-out families that must stay apart from it."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from NatureLM.errors import NatureLMError
from recipes.tiny import tasks, wordings
from recipes.tiny.architecture import train_tokenizer
from recipes.tiny.species import HEARD, SOURCES, source
from recipes.tiny.tasks import ask, joined, samples
from recipes.tiny.wordings import HELD_OUT, INSTRUCTIONS, expand, split

TAKEN = 3000


def words(text: str) -> list[str]:
    """Lower-case words; a placeholder is a gap that no run of words crosses."""
    return re.findall(r"\{\w*\}|<[^>]+>|[a-z']+", text.lower())


def fives(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    runs = (tuple(found[i : i + 5]) for i in range(len(found) - 4))
    return {run for run in runs if not any(word[0] in "{<" for word in run)}


def training_wordings() -> list[str]:
    seen = [text for texts in wordings.SEEN.values() for text in texts]
    seen += [text for texts in wordings.UNSEEN.values() for text in texts]
    seen += [text for pair in INSTRUCTIONS.values() for texts in pair for text in texts]
    return seen


@pytest.mark.parametrize("family", HELD_OUT, ids=lambda family: family.name)
def test_held_out_families_share_no_five_words_with_training(family) -> None:  # type: ignore[no-untyped-def]
    seen = set().union(*(fives(text) for text in training_wordings()))
    for _, prompt, _ in islice(samples(0), TAKEN):
        seen |= fives(prompt)
    assert fives("Which of these, if any, are present?") & seen, "the check itself finds overlaps"
    assert not fives(family.query) & seen


def test_seen_and_unseen_wordings_differ() -> None:
    for family, texts in wordings.SEEN.items():
        assert not set(texts) & set(wordings.UNSEEN[family])
    for seen, unseen in INSTRUCTIONS.values():
        assert seen
        assert unseen
        assert not set(seen) & set(unseen)


def test_grammar_expands_and_tidies() -> None:
    assert expand("[|Please ]say [this|that]: {text}") == [
        "Say this: {text}",
        "Say that: {text}",
        "Please say this: {text}",
        "Please say that: {text}",
    ]
    assert expand("Name of [the |] {name} [|here]?")[-1] == "Name of {name} here?"
    seen, unseen = split(f"wording {i}" for i in range(60))
    assert len(seen) + len(unseen) == 60
    assert 3 < len(unseen) < 20


def test_text_is_a_function_of_the_seed() -> None:
    assert list(islice(samples(3), 50)) == list(islice(samples(3), 50))
    assert list(islice(samples(3), 50)) != list(islice(samples(4), 50))


def test_every_prompt_is_filled_and_answered() -> None:
    kinds = set()
    for task, prompt, answer in islice(samples(0), TAKEN):
        kinds.add(task)
        assert not set("{}") & set(prompt)
        assert answer == answer.strip() != ""
    assert kinds == {task.__name__ for task, _ in tasks.TASKS}


def test_a_listed_answer_is_in_the_prompt() -> None:
    for task, prompt, answer in islice(samples(5), TAKEN):
        if task in {"first", "last", "copy", "pick_group"}:
            assert answer in prompt


def test_answers_about_rain_and_about_two_sources() -> None:
    rng = random.Random(0)
    rain, dog = source("Rain"), source("Dog")
    ask_about = {
        family: [ask(family, heard, HEARD, rng)[1] for heard in ([rain], [dog], [dog, rain])]
        for family in (wordings.COMMON, wordings.SCIENTIFIC, wordings.GROUP, wordings.SOUND)
    }
    assert ask_about[wordings.COMMON] == ["None", "Dog", "Dog"]
    assert ask_about[wordings.SCIENTIFIC] == ["None", "Canis familiaris", "Canis familiaris"]
    assert ask_about[wordings.GROUP] == ["none", "mammal", "mammal"]
    assert ask_about[wordings.SOUND] == ["Rain", "Dog", "Dog, Rain"]


def test_choice_lists_hold_the_answer_or_none() -> None:
    rng = random.Random(1)
    absent = 0
    for _ in range(400):
        heard = rng.sample(HEARD, 1)
        prompt, answer = ask(wordings.CHOICE, heard, HEARD, rng)
        if answer == "None":
            absent += 1
            assert not re.search(rf"\b{heard[0].name}\b(?! \w)[,.?]", prompt)
        else:
            assert answer == joined(heard)
            assert answer in prompt
    assert 20 < absent < 90


def test_names_are_unique_and_an_unknown_one_is_named() -> None:
    assert len({s.name for s in SOURCES}) == len(SOURCES)
    with pytest.raises(NatureLMError, match="Unicorn"):
        source("Unicorn")


def test_tokenizer_keeps_text_and_is_seeded() -> None:
    one, two = train_tokenizer(700, texts=500), train_tokenizer(700, texts=500)
    assert one.get_vocab() == two.get_vocab()
    for _, prompt, answer in islice(samples(8), 100):
        for text in (prompt, answer, "naïve 音"):
            assert one.decode(one(text, add_special_tokens=False).input_ids) == text
    assert one("<|eot_id|>", add_special_tokens=False).input_ids == [
        one.convert_tokens_to_ids("<|eot_id|>")
    ]

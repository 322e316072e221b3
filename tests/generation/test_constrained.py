"""Answers of a list: nothing else can come out, and everything that is allowed can."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from builders import BuildModel
from decoding import decode
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.generation.labels import (
    NOTHING,
    LabelChoice,
    LabelGrammar,
    TokenTrie,
    continued_tokens,
    label_tokens,
)
from NatureLM.generation.request import GenerationOptions
from NatureLM.models import NatureLM

WORDS = st.sampled_from(
    ["Frog", "Toad", " Toad", "s", "-", "é", "鴞", "🦉", "N", "one", "'", "(m.)"]
)
TEXTS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=4).map(lambda words: "".join(words).strip()),
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8
    ).map(str.strip),
)
LABELS = st.lists(TEXTS.filter(bool), min_size=1, max_size=5, unique=True)


@pytest.fixture(scope="module")
def random_model(build_model: BuildModel) -> NatureLM:
    """Its answers are noise, and its end tokens are no likelier than any other."""
    return build_model(seed=11)


def grammar_of(
    model: NatureLM, labels: list[str], *, several: bool = False, max_new_tokens: int = 64
) -> LabelGrammar:
    choice = LabelChoice(tuple(labels), "constrained", several)
    return LabelGrammar(choice, model.tokenizer, model.eos_ids, max_new_tokens)


def is_allowed(answer: str, labels: list[str], several: bool) -> bool:
    if answer in (*labels, NOTHING):
        return True
    parts = answer.split(", ")
    return several and len(set(parts)) == len(parts) and all(part in labels for part in parts)


@settings(max_examples=40)
@given(
    labels=LABELS,
    several=st.booleans(),
    beams=st.integers(1, 3),
    sample=st.booleans(),
    tokens=st.integers(1, 24),
    min_length=st.sampled_from([0, 500]),
    seed=st.integers(0, 9),
)
def test_nothing_but_the_list_comes_out(
    random_model: NatureLM,
    labels: list[str],
    several: bool,
    beams: int,
    sample: bool,
    tokens: int,
    min_length: int,
    seed: int,
) -> None:
    if several:
        labels = list(dict.fromkeys(label.replace(",", ";") for label in labels))
    grammar = grammar_of(random_model, labels, several=several, max_new_tokens=tokens)
    options = GenerationOptions(
        max_new_tokens=grammar.max_new_tokens,
        num_beams=1 if sample else beams,
        do_sample=sample,
        temperature=3.0,
        min_length=min_length,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    width = random_model.llama_embed_tokens.weight.shape[1]
    prompts = [torch.randn(length, width, generator=generator) for length in (3, 5)]
    found = decode(
        random_model.language_model,
        prompts,
        alphas=[0.0, 1.0],
        eos_ids=random_model.eos_ids,
        options=options,
        grammars=[grammar, grammar],
    )
    for one in found:
        assert one.ids[-1] in random_model.eos_ids
        assert is_allowed(grammar.text(one.ids), labels, several)


@settings(max_examples=60)
@given(labels=LABELS, several=st.booleans(), seed=st.integers(0, 100))
def test_every_answer_of_the_list_can_come_out(
    random_model: NatureLM, labels: list[str], several: bool, seed: int
) -> None:
    if several:
        labels = list(dict.fromkeys(label.replace(",", ";") for label in labels))
    grammar = grammar_of(random_model, labels, several=several, max_new_tokens=400)
    rng = random.Random(seed)
    names = [name for name in grammar.labels if name != NOTHING]
    wanted = [[name] for name in grammar.labels]
    if several and len(names) > 1:
        wanted += [list(pair) for pair in itertools.permutations(names, 2)][:4]
        wanted.append(rng.sample(names, len(names)))
    for parts in wanted:
        ids: list[int] = []
        for place, part in enumerate(parts):
            ids += spelt(random_model, part, follows=place > 0)
        assert set(random_model.eos_ids) <= set(grammar.allowed(ids))
        assert grammar.text(ids) == ", ".join(parts)
        for end in range(len(ids)):
            assert ids[end] in grammar.allowed(ids[:end])


def spelt(model: NatureLM, label: str, *, follows: bool) -> list[int]:
    """The tokens of a label at the beginning of an answer, or behind another label."""
    tokenizer: Any = model.tokenizer
    if not follows:
        return list(tokenizer(label, add_special_tokens=False).input_ids)
    return list(continued_tokens(label, ", ", tokenizer))


def test_free_rows_beside_bound_ones_answer_as_alone(random_model: NatureLM) -> None:
    width = random_model.llama_embed_tokens.weight.shape[1]
    prompts = list(torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0)))
    grammar = grammar_of(random_model, ["Wolf", "Wolverine"])
    for beams in (1, 2):
        options = GenerationOptions(max_new_tokens=12, num_beams=beams)

        def answer(count: int, grammars: Any, options: GenerationOptions = options) -> list[Any]:
            return decode(
                random_model.language_model,
                prompts[:count],
                alphas=[1.0] * count,
                eos_ids=random_model.eos_ids,
                options=options,
                grammars=grammars,
            )

        (alone,) = answer(1, None)
        beside, bound = answer(2, [None, grammar])
        assert beside.ids == alone.ids
        assert beside.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        assert grammar.text(bound.ids) in grammar.labels


def test_the_likeliest_label_wins_with_enough_beams(random_model: NatureLM) -> None:
    from NatureLM.generation.scoring import score_trie

    labels = ["Wolf", "Wolverine", "Wood Frog", "Owl", "Cat"]
    grammar = grammar_of(random_model, labels)
    width = random_model.llama_embed_tokens.weight.shape[1]
    prompt = torch.randn(4, width, generator=torch.Generator().manual_seed(1))
    ends = random_model.eos_ids
    trie = TokenTrie.of(label_tokens(grammar.labels, random_model.tokenizer, ends))
    found = score_trie(random_model.language_model, [prompt], [1.0], trie, ends)[0]
    (best,) = decode(
        random_model.language_model,
        [prompt],
        alphas=[1.0],
        eos_ids=random_model.eos_ids,
        options=GenerationOptions(max_new_tokens=20, num_beams=12, length_penalty=0.0),
        grammars=[grammar],
    )
    likeliest = int(found.argmax())
    assert grammar.text(best.ids) == grammar.labels[likeliest]


@pytest.mark.parametrize(
    ("labels", "several", "says"),
    [
        ([], False, "the list of labels is empty"),
        (["Owl", "Owl"], False, "'Owl' is in the list twice"),
        (["Owl", " "], False, "empty or begins or ends with a space"),
        (["Owl, Barn"], True, "has a comma in it"),
        (["<|eot_id|>"], False, "no plain text for this model's tokenizer"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(
    random_model: NatureLM, labels: list[str], several: bool, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        grammar_of(random_model, labels, several=several)


def test_a_string_is_no_list_of_labels() -> None:
    with pytest.raises(UsageError, match="labels must be a list"):
        LabelChoice("Owl")  # type: ignore[arg-type]

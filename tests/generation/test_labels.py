"""Answers from a list: scores equal one pass a label; what is decoded is of the list."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from builders import BuildModel
from decoding import decode
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation import labels as module
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.generation.labels import (
    NOTHING,
    LabelChoice,
    LabelGrammar,
    LabelScores,
    TokenTrie,
    continued_tokens,
    label_tokens,
    score_trie,
)
from NatureLM.merging.lora import active_alpha
from NatureLM.models import NatureLM

EOS = [3, 7]
SEQUENCES = st.lists(
    st.lists(st.integers(8, 13), min_size=1, max_size=5).map(tuple),
    min_size=1,
    max_size=14,
    unique=True,
)


@pytest.fixture(scope="module")
def random_model(build_model: BuildModel) -> NatureLM:
    return build_model(seed=3).double()


def one_by_one(
    model: NatureLM,
    prompt_LD: Tensor,
    alpha: float,
    sequences: Sequence[Sequence[int]],
    ends: Sequence[int] = EOS,
) -> list[float]:
    """The plain way: one whole pass for every label."""
    found = []
    for sequence in sequences:
        ids = torch.tensor(sequence)
        whole = torch.cat([prompt_LD, model.llama_embed_tokens(ids)])
        with torch.inference_mode(), active_alpha(alpha):
            logits = model.language_model(inputs_embeds=whole[None]).logits[0]
        steps = logits[len(prompt_LD) - 1 :].log_softmax(-1)
        total = steps[range(len(ids)), ids].sum() + steps[-1, list(ends)].logsumexp(0)
        found.append(total.item())
    return found


@examples(20)
@given(
    sequences=SEQUENCES,
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    most=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_a_tree_of_labels_scores_as_each_label_alone(
    random_model: NatureLM,
    sequences: list[tuple[int, ...]],
    lengths: list[int],
    most: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    width = random_model.llama_embed_tokens.weight.shape[1]
    prompts = [
        torch.randn(length, width, generator=generator, dtype=torch.float64) for length in lengths
    ]
    alphas = [0.5 * number for number in range(len(prompts))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_NODES", most)  # cut the tree anywhere
        found = score_trie(
            random_model.language_model, prompts, alphas, TokenTrie.of(sequences), EOS
        )
    for row, (prompt, alpha) in enumerate(zip(prompts, alphas, strict=True)):
        plain = one_by_one(random_model, prompt, alpha, sequences)
        assert found[row].tolist() == pytest.approx(plain, abs=1e-9)


@given(sequences=SEQUENCES)
def test_every_beginning_stands_once_in_the_tree(sequences: list[tuple[int, ...]]) -> None:
    trie = TokenTrie.of(sequences)
    beginnings = {sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)}
    spelt = [
        tuple(trie.tokens[n] for n in [*trie.ancestors(node), node]) for node in range(len(trie))
    ]
    assert len(spelt) == len(beginnings)
    assert set(spelt) == beginnings
    assert [spelt[end] for end in trie.ends] == sequences
    for node in range(len(trie)):
        starts = [spelt[node] == sequence[: len(spelt[node])] for sequence in sequences]
        assert trie.below[node] == sum(1 << place for place, yes in enumerate(starts) if yes)


def test_without_an_end_the_tokens_alone_count(random_model: NatureLM) -> None:
    width = random_model.llama_embed_tokens.weight.shape[1]
    prompt = torch.randn(4, width, dtype=torch.float64)
    trie = TokenTrie.of([(8,), (8, 10)])
    (scores,) = score_trie(random_model.language_model, [prompt], [1.0], trie, [])
    with torch.inference_mode():
        whole = torch.cat([prompt, random_model.llama_embed_tokens(torch.tensor([8]))])
        steps = random_model.language_model(inputs_embeds=whole[None]).logits[0].log_softmax(-1)
    first = steps[3, 8].item()
    assert scores.tolist() == pytest.approx([first, first + steps[4, 10].item()], abs=1e-9)


def test_attention_without_a_mask_of_ours_gives_way(
    random_model: NatureLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = random_model.llama_embed_tokens.weight.shape[1]
    prompt = torch.randn(4, width, dtype=torch.float64)
    trie = TokenTrie.of([(8, 9), (8, 10)])
    config = random_model.language_model.config

    def scores() -> Tensor:
        return score_trie(random_model.language_model, [prompt], [1.0], trie, EOS)

    usual = scores()
    monkeypatch.setattr(config, "_attn_implementation", "eager")
    assert torch.allclose(scores(), usual, atol=1e-9)


def test_what_follows_from_the_scores() -> None:
    scores = LabelScores(("a", "b", "c"), (-1.0, -3.0, -2.0), (-1.0, -3.0, -2.0))
    total = math.exp(-1) + math.exp(-2) + math.exp(-3)
    assert scores.best == "a"
    assert scores.ranked(2) == [
        ("a", pytest.approx(math.exp(-1) / total)),
        ("c", pytest.approx(math.exp(-2) / total)),
    ]
    assert scores.margin == pytest.approx((math.exp(-1) - math.exp(-2)) / total)
    flat = scores.at_temperature(1e9)
    assert flat.entropy == pytest.approx(math.log(3))
    assert flat.best == "a"
    assert LabelScores(("a",), (-9.0,), (-9.0,)).margin == 1.0
    with pytest.raises(UsageError, match="temperature is 0"):
        scores.at_temperature(0)


LABELS = ["Wolf", "Wolverine", "Wood Frog", "Wood Thrush", "Owl"]


def plain_scores(
    model: NatureLM, prompt: str, clips: list[Tensor], alpha: float, labels: Sequence[str]
) -> list[float]:
    (embeds,) = model.input_embeddings([prompt], [clips])
    return one_by_one(model, embeds, alpha, tokens_of(model, labels), model.eos_ids)


def tokens_of(model: NatureLM, texts: Sequence[str]) -> list[list[int]]:
    return [model.tokenizer(one, add_special_tokens=False).input_ids for one in texts]


def test_a_model_scores_lists_alphas_and_several_clips(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    howl, trill = nano_waveforms["howl"], nano_waveforms["trill"]
    render = nano.processor.render
    two = render("A: <Audio><AudioHere></Audio> B: <Audio><AudioHere></Audio> What is B?")
    prompts = [render("What is it?"), two, render("What is it?"), render("Which frog is it?")]
    audios = [[howl], [howl, trill], [trill], [howl]]
    alphas = [1.0, 0.0, 0.5, 1.0]
    lists = [LABELS, LABELS, LABELS[:2], LABELS]
    found = nano.score_labels(prompts, audios, lists, alpha=alphas)
    for scores, prompt, clips, alpha, labels in zip(
        found, prompts, audios, alphas, lists, strict=True
    ):
        assert scores.labels == tuple(labels)
        plain = plain_scores(nano, prompt, clips, alpha, labels)
        assert scores.log_likelihoods == pytest.approx(plain, abs=1e-4)
        assert sum(scores.probabilities) == pytest.approx(1)


def test_normalised_scores(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> None:
    wav, prompt = nano_waveforms["howl"], nano.processor.render("What is it?")

    def scores(normalize: str) -> LabelScores:
        (found,) = nano.score_labels([prompt], [[wav]], LABELS, normalize=normalize)  # type: ignore[arg-type]
        return found

    plain = scores("sum")
    lengths = [len(one) for one in tokens_of(nano, LABELS)]
    means = [value / (n + 1) for value, n in zip(plain.log_likelihoods, lengths, strict=True)]
    assert scores("mean").scores == pytest.approx(means)
    before, behind = tokens_of(nano, prompt.split("<AudioHere>"))
    ids = torch.tensor([nano.tokenizer.bos_token_id, *before, *behind])
    silent_LD = nano.llama_embed_tokens(ids).detach()
    unheard = one_by_one(nano, silent_LD, 1.0, tokens_of(nano, LABELS), nano.eos_ids)
    added = [a - b for a, b in zip(plain.log_likelihoods, unheard, strict=True)]
    assert scores("prior").scores == pytest.approx(added, abs=1e-4)


def test_labels_that_cannot_be_scored_are_refused(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    prompt, wav = nano.processor.render("What is it?"), nano_waveforms["howl"]
    for labels, says in (
        ("Owl", "labels must be a list of texts"),
        ([["Owl"], ["Cat"]], "2 lists of labels were given for 1 prompts"),
        ([[]], "the list of labels is empty"),
        (["<|eot_id|>", "Owl"], "no plain text"),
    ):
        with pytest.raises(UsageError, match=says):
            nano.score_labels([prompt], [[wav]], labels)
    with pytest.raises(UsageError, match="normalize is 'max'"):
        nano.score_labels([prompt], [[wav]], ["Owl"], normalize="max")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="this one has none"):
        nano.score_labels(["no sound"], [[]], ["Owl"], normalize="prior")


def test_requests_of_all_kinds_run_together(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    prompt = nano.processor.render("What is it?")
    kinds = [
        None,
        LabelChoice(tuple(LABELS)),
        LabelChoice(tuple(LABELS), "constrained"),
        LabelChoice(("Owl",)),
    ]
    requests = [
        Request((name, place), prompt, (name,), choice=choice)
        for name in nano_waveforms
        for place, choice in enumerate(kinds)
    ]
    options = GenerationOptions(max_new_tokens=6, num_beams=1)
    engine = Engine(nano, options)
    answers = {one.key: one for one in engine.run(requests, nano_waveforms.__getitem__)}
    assert len(answers) == len(requests)
    assert engine.encoded == len(nano_waveforms)
    for name, wav in nano_waveforms.items():
        (text,) = nano.generate([prompt], [[wav]], max_new_tokens=6, num_beams=1)
        (scores,) = nano.score_labels([prompt], [[wav]], LABELS)
        free, scored, bound, single = (answers[name, place] for place in range(len(kinds)))
        assert free.text == text
        assert free.scores is None
        assert scored.text == scores.best
        assert scored.scores is not None
        assert scored.scores.log_likelihoods == pytest.approx(scores.log_likelihoods, abs=1e-4)
        assert bound.text in (*LABELS, "None")
        assert single.text == "Owl"
        owl = scores.log_likelihoods[LABELS.index("Owl")]
        assert single.log_probability == pytest.approx(owl, abs=1e-4)
        assert free.mean_log_probability is not None
        assert free.mean_log_probability < 0


WORDS = st.sampled_from(
    ["Frog", "Toad", " Toad", "s", "-", "é", "鴞", "🦉", "N", "one", "'", "(m.)"]
)
TEXTS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=4).map(lambda words: "".join(words).strip()),
    st.text(
        st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=8
    ).map(str.strip),
)
LABEL_LISTS = st.lists(TEXTS.filter(bool), min_size=1, max_size=5, unique=True)


@pytest.fixture(scope="module")
def noise_model(build_model: BuildModel) -> NatureLM:
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


@examples(20)
@given(
    labels=LABEL_LISTS,
    several=st.booleans(),
    beams=st.integers(1, 3),
    sample=st.booleans(),
    tokens=st.integers(1, 24),
    min_length=st.sampled_from([0, 500]),
    seed=st.integers(0, 9),
)
def test_nothing_but_the_list_comes_out(
    noise_model: NatureLM,
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
    grammar = grammar_of(noise_model, labels, several=several, max_new_tokens=tokens)
    options = GenerationOptions(
        max_new_tokens=grammar.max_new_tokens,
        num_beams=1 if sample else beams,
        do_sample=sample,
        temperature=3.0,
        min_length=min_length,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    width = noise_model.llama_embed_tokens.weight.shape[1]
    prompts = [torch.randn(length, width, generator=generator) for length in (3, 5)]
    found = decode(
        noise_model.language_model,
        prompts,
        alphas=[0.0, 1.0],
        eos_ids=noise_model.eos_ids,
        options=options,
        grammars=[grammar, grammar],
    )
    for one in found:
        assert one.ids[-1] in noise_model.eos_ids
        assert is_allowed(grammar.text(one.ids), labels, several)


@settings(max_examples=60)
@given(labels=LABEL_LISTS, several=st.booleans(), seed=st.integers(0, 100))
def test_every_answer_of_the_list_can_come_out(
    noise_model: NatureLM, labels: list[str], several: bool, seed: int
) -> None:
    if several:
        labels = list(dict.fromkeys(label.replace(",", ";") for label in labels))
    grammar = grammar_of(noise_model, labels, several=several, max_new_tokens=400)
    rng = random.Random(seed)
    names = [name for name in grammar.labels if name != NOTHING]
    wanted = [[name] for name in grammar.labels]
    if several and len(names) > 1:
        wanted += [list(pair) for pair in itertools.permutations(names, 2)][:4]
        wanted.append(rng.sample(names, len(names)))
    for parts in wanted:
        ids: list[int] = []
        for place, part in enumerate(parts):
            first = tokens_of(noise_model, [part])[0]
            ids += continued_tokens(part, noise_model.tokenizer) if place else first
        assert set(noise_model.eos_ids) <= set(grammar.allowed(ids))
        assert grammar.text(ids) == ", ".join(parts)
        for end in range(len(ids)):
            assert ids[end] in grammar.allowed(ids[:end])


def test_free_rows_beside_bound_ones_answer_as_alone(noise_model: NatureLM) -> None:
    width = noise_model.llama_embed_tokens.weight.shape[1]
    prompts = list(torch.randn(2, 4, width, generator=torch.Generator().manual_seed(0)))
    grammar = grammar_of(noise_model, ["Wolf", "Wolverine"])
    for beams in (1, 2):
        options = GenerationOptions(max_new_tokens=12, num_beams=beams)

        def answer(count: int, grammars: Any, options: GenerationOptions = options) -> list[Any]:
            return decode(
                noise_model.language_model,
                prompts[:count],
                alphas=[1.0] * count,
                eos_ids=noise_model.eos_ids,
                options=options,
                grammars=grammars,
            )

        (alone,) = answer(1, None)
        beside, bound = answer(2, [None, grammar])
        assert beside.ids == alone.ids
        assert beside.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        assert grammar.text(bound.ids) in grammar.labels


def test_the_likeliest_label_wins_with_enough_beams(noise_model: NatureLM) -> None:
    labels = ["Wolf", "Wolverine", "Wood Frog", "Owl", "Cat"]
    grammar = grammar_of(noise_model, labels)
    width = noise_model.llama_embed_tokens.weight.shape[1]
    prompt = torch.randn(4, width, generator=torch.Generator().manual_seed(1))
    ends = noise_model.eos_ids
    trie = TokenTrie.of(label_tokens(grammar.labels, noise_model.tokenizer, ends))
    found = score_trie(noise_model.language_model, [prompt], [1.0], trie, ends)[0]
    (best,) = decode(
        noise_model.language_model,
        [prompt],
        alphas=[1.0],
        eos_ids=noise_model.eos_ids,
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
    noise_model: NatureLM, labels: list[str], several: bool, says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        grammar_of(noise_model, labels, several=several)

"""Scores of labels: equal to one forward pass per label, whatever the tree, the batch and the α."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from builders import BuildModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation import scoring
from NatureLM.generation.labels import LabelScores, TokenTrie
from NatureLM.generation.scoring import score_trie
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
    model: NatureLM, prompt_LD: Tensor, alpha: float, sequences: Sequence[tuple[int, ...]]
) -> list[float]:
    """The plain way: one whole pass for every label."""
    from NatureLM.merging.scaling import active_alpha

    found = []
    for sequence in sequences:
        ids = torch.tensor(sequence)
        whole = torch.cat([prompt_LD, model.llama_embed_tokens(ids)])
        with torch.inference_mode(), active_alpha(alpha):
            logits = model.language_model(inputs_embeds=whole[None]).logits[0]
        steps = logits[len(prompt_LD) - 1 :].log_softmax(-1)
        total = steps[range(len(ids)), ids].sum() + steps[-1, EOS].logsumexp(0)
        found.append(total.item())
    return found


@settings(max_examples=40)
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
        patch.setattr(scoring, "_MAX_NODES", most)  # cut the tree anywhere
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
    from NatureLM.merging.scaling import active_alpha

    (embeds,) = model.input_embeddings([prompt], [clips])
    found = []
    for label in labels:
        ids = torch.tensor(model.tokenizer(label, add_special_tokens=False).input_ids)
        whole = torch.cat([embeds, model.llama_embed_tokens(ids)])
        with torch.inference_mode(), active_alpha(alpha):
            steps = model.language_model(inputs_embeds=whole[None]).logits[0, len(embeds) - 1 :]
        steps = steps.log_softmax(-1)
        total = steps[range(len(ids)), ids].sum() + steps[-1, model.eos_ids].logsumexp(0)
        found.append(total.item())
    return found


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
    lengths = [len(nano.tokenizer(label, add_special_tokens=False).input_ids) for label in LABELS]
    means = [value / (n + 1) for value, n in zip(plain.log_likelihoods, lengths, strict=True)]
    assert scores("mean").scores == pytest.approx(means)
    empty = plain_scores(nano, prompt, [wav[:0]], 1.0, [])
    assert empty == []
    parts = [nano.tokenizer(part, add_special_tokens=False).input_ids for part in split(prompt)]
    ids = torch.tensor([nano.tokenizer.bos_token_id, *parts[0], *parts[1]])
    unheard = []
    for label in LABELS:
        answer = nano.tokenizer(label, add_special_tokens=False).input_ids
        with torch.inference_mode():
            out = nano.language_model(torch.tensor([[*ids.tolist(), *answer]])).logits[0]
        steps = out[len(ids) - 1 :].log_softmax(-1)
        total = steps[range(len(answer)), answer].sum() + steps[-1, nano.eos_ids].logsumexp(0)
        unheard.append(total.item())
    added = [a - b for a, b in zip(plain.log_likelihoods, unheard, strict=True)]
    assert scores("prior").scores == pytest.approx(added, abs=1e-4)


def split(prompt: str) -> list[str]:
    return prompt.split("<AudioHere>")


def test_labels_that_cannot_be_scored_are_refused(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    prompt, wav = nano.processor.render("What is it?"), nano_waveforms["howl"]
    for labels, says in (
        ([], "the list of labels is empty"),
        (["Owl", "Owl"], "'Owl' is in the list twice"),
        ("Owl", "labels must be a list of texts"),
        ([["Owl"], ["Cat"]], "2 lists of labels were given for 1 prompts"),
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
    from NatureLM.generation.engine import Engine
    from NatureLM.generation.labels import LabelChoice
    from NatureLM.generation.request import GenerationOptions, Request

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

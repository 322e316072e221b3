"""Decoding: beams against exhaustive search, penalties, stopping; batch mates change nothing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from decoding import ENDS, decode
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.errors import UsageError
from NatureLM.generation.decoding import (
    Prompt,
    RowState,
    process_scores,
    random_stream,
    sample,
)
from NatureLM.generation.engine import GenerationOptions
from NatureLM.generation.prefill import left_pad
from NatureLM.models import NatureLM


def embeddings(model: NatureLM, wav: Tensor, query: str) -> Tensor:
    (embeds,) = model.input_embeddings([model.processor.render(query)], [[wav]])
    return embeds


def test_wide_beams_find_the_best_sequence_of_all(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    few = [5, 11, 69, 128, 402]  # a vocabulary small enough to try everything
    tokens = 3

    class Narrow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, **inputs: Any) -> Any:
            if "input_ids" in inputs:
                inputs["input_ids"] = torch.tensor(few)[inputs["input_ids"]]
            out = nano.language_model(**inputs)
            out.logits = out.logits[..., few]
            return out

    with torch.inference_mode():
        embeds = embeddings(nano, nano_waveforms["howl"], "Caption the audio.")
        scores = {}
        for sequence in itertools.product(range(len(few)), repeat=tokens):
            ids = torch.tensor([few[token] for token in sequence])
            whole = torch.cat([embeds, nano.llama_embed_tokens(ids)])
            logits = nano.language_model(inputs_embeds=whole[None]).logits[0]
            steps = logits[len(embeds) - 1 : -1][:, few].log_softmax(-1)
            scores[sequence] = steps[range(tokens), list(sequence)].sum().item()
        best = max(scores, key=scores.__getitem__)
        options = GenerationOptions(max_new_tokens=tokens, num_beams=len(few) ** 2)
        (found,) = decode(Narrow(), [embeds], alphas=[1.0], eos_ids=[], options=options)
    assert tuple(found.ids) == best


def test_an_end_stops_its_own_row_only(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> None:
    prompts = [nano.processor.render("What is it?"), nano.processor.render("Caption the audio.")]
    audios = [[nano_waveforms["chirps"]], [nano_waveforms["howl"]]]
    options = GenerationOptions(max_new_tokens=10, num_beams=1)
    alphas = [0.0, 1.0]
    free = nano.generate_ids(prompts, audios, alpha=alphas, options=options, eos_ids=[604])
    end = next(token for token in free[0][:-1] if token not in free[1])
    stopped = nano.generate_ids(prompts, audios, alpha=alphas, options=options, eos_ids=[end])
    assert stopped[0] == free[0][: free[0].index(end) + 1]
    assert stopped[1] == free[1]


def test_repetition_penalty_and_minimum_length() -> None:
    def states(*answers: list[int]) -> list[RowState]:
        return [RowState(Prompt(torch.zeros(5, 1)), 5, 9, beams=[ids]) for ids in answers]

    scores = torch.tensor([[2.0, -1.0, 0.5], [1.0, 1.0, 1.0]])
    penalised = GenerationOptions(num_beams=1, repetition_penalty=2.0, min_length=0)
    out = process_scores(scores, states([0, 1, 0], []), [2], penalised)
    assert out.tolist() == [[1.0, -2.0, 0.5], [1.0, 1.0, 1.0]]
    long = GenerationOptions(num_beams=1, min_length=7)
    out = process_scores(scores, states([0], [0, 1]), [2], long)
    assert out[0, 2] == -torch.inf
    assert out[1, 2] == 1.0
    assert scores[0, 2] == 0.5, "the scores that came in stay as they were"


def test_sampling_keeps_to_top_k_and_top_p() -> None:
    scores = torch.tensor([[3.0, 2.9, 0.0, -1.0]]).repeat(200, 1)
    for limits in ({"top_k": 2}, {"top_p": 0.6}):
        options = GenerationOptions(num_beams=1, do_sample=True, temperature=1.0, **limits)
        streams = [random_stream(options, number) for number in range(200)]
        assert set(sample(scores, options, streams).tolist()) == {0, 1}


def test_min_length_counts_the_prompt_as_the_reference_does(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    prompt = nano.processor.render("What is it?")
    ((first, *_),) = nano.generate_ids(
        [prompt],
        [[nano_waveforms["howl"]]],
        options=GenerationOptions(num_beams=1, max_new_tokens=2),
    )
    for min_length, ends_at_once in ((1, True), (500, False)):
        options = GenerationOptions(num_beams=1, max_new_tokens=2, min_length=min_length)
        (ids,) = nano.generate_ids(
            [prompt], [[nano_waveforms["howl"]]], options=options, eos_ids=[first]
        )
        assert (ids == [first]) is ends_at_once


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"do_sample": True, "num_beams": 2}, "sampling works with one beam"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        GenerationOptions(**options)


def test_placeholders_and_clips_must_agree(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    wav = nano_waveforms["howl"]
    one = nano.processor.render("What is it?")
    for clips in ([], [wav, wav]):
        with pytest.raises(UsageError, match=f"1 <AudioHere> and {len(clips)} audio clips"):
            nano.generate([one], [clips])
    with pytest.raises(UsageError, match="2 prompts were given with audio for 1"):
        nano.generate([one, one], [[wav]])


def test_the_order_of_clips_matters(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> None:
    prompt = nano.processor.render("<Audio><AudioHere></Audio> then <Audio><AudioHere></Audio>?")
    a, b = nano_waveforms["howl"], nano_waveforms["trill"]
    forth, back = nano.input_embeddings([prompt, prompt], [[a, b], [b, a]])
    assert not torch.allclose(forth, back)
    with torch.no_grad():
        swapped = nano.language_model(inputs_embeds=back[None]).logits[0, -1]
        straight = nano.language_model(inputs_embeds=forth[None]).logits[0, -1]
    assert not torch.allclose(straight, swapped, atol=1e-4)


def test_encoded_audio_stands_for_its_waveform(
    nano: NatureLM, nano_waveforms: dict[str, Tensor]
) -> None:
    wav = nano_waveforms["trill"]
    prompt = nano.processor.render("What is it?")
    with torch.no_grad():
        encoded = nano.encode_audio(wav[None])[0]
    from_wave, from_encoded = nano.input_embeddings([prompt, prompt], [[wav], [encoded]])
    assert torch.allclose(from_wave, from_encoded, atol=1e-6)


def test_a_waveform_is_cut_padded_and_clamped_to_the_window(nano: NatureLM) -> None:
    prepare = nano.processor.prepare_audio
    short = prepare(torch.full((100,), 3.0))
    assert short.shape == (160000,)
    assert short[:100].eq(1.0).all()
    assert short[100:].eq(0.0).all()
    assert prepare(torch.zeros(200000)).shape == (160000,)
    with pytest.raises(ValueError, match="shape"):
        prepare(torch.zeros(2, 100))
    with pytest.raises(ValueError, match=r"floating-point samples in \[-1, 1\], got torch.int16"):
        prepare(torch.zeros(100, dtype=torch.int16))


def test_the_configuration_and_the_engine_agree_on_options_and_defaults() -> None:
    from dataclasses import asdict

    from NatureLM.config import GenerateConfig

    configured = GenerateConfig().model_dump(exclude={"merging_alpha"})
    assert configured == asdict(GenerationOptions())


QUESTIONS = (
    "What is it?",
    "Caption the audio.",
    "Which of these, if any, are present in the audio recording? Lazuli Bunting, American Robin, "
    "Gray Wolf, Green Treefrog.",
    "<Audio><AudioHere></Audio> and <Audio><AudioHere></Audio>: the same?",
)
ALPHAS = (0.0, 0.4, 1.0)
NEW_TOKENS = 8


@pytest.fixture(scope="module")
def rows(nano: NatureLM, nano_waveforms: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Every query on every clip at every alpha, with the answers that it gets alone."""
    made = []
    with torch.no_grad():
        encoded = {name: nano.encode_audio(wav[None])[0] for name, wav in nano_waveforms.items()}
    for number, clip in enumerate(encoded.values()):
        for query in QUESTIONS:
            prompt = nano.processor.render(query)
            audio = [clip] * prompt.count("<AudioHere>")
            alpha = ALPHAS[(number + len(made)) % len(ALPHAS)]
            made.append({"prompt": prompt, "audio": audio, "alpha": alpha, "alone": {}})
    for row in made:
        for beams in (1, 2, 3):
            row["alone"][beams] = ids_of(nano, [row], beams)[0]
    return made


def ids_of(model: NatureLM, rows: list[dict[str, Any]], beams: int) -> list[list[int]]:
    return model.generate_ids(
        [row["prompt"] for row in rows],
        [row["audio"] for row in rows],
        alpha=[row["alpha"] for row in rows],
        options=GenerationOptions(max_new_tokens=NEW_TOKENS, num_beams=beams),
        # Common tokens end the text here, so that rows finish at different steps.
        eos_ids=ENDS,
    )


@settings(max_examples=20)
@given(
    chosen=st.lists(st.integers(0, 11), min_size=1, max_size=6),
    beams=st.sampled_from([1, 2, 3]),
)
def test_answers_do_not_depend_on_the_batch(
    chosen: list[int], beams: int, nano: NatureLM, rows: list[dict[str, Any]]
) -> None:
    batch = [rows[index] for index in chosen]
    assert ids_of(nano, batch, beams) == [row["alone"][beams] for row in batch]


def test_rows_finish_at_different_steps(rows: list[dict[str, Any]]) -> None:
    lengths = {len(row["alone"][1]) for row in rows}
    assert len(lengths) > 2, "the property above would not see early stopping"


@settings(max_examples=10)
@given(order=st.permutations(range(4)), seed=st.integers(0, 3))
def test_a_sampled_answer_depends_on_seed_and_row_number_only(
    order: list[int], seed: int, nano: NatureLM, rows: list[dict[str, Any]]
) -> None:
    options = GenerationOptions(
        max_new_tokens=6, num_beams=1, do_sample=True, temperature=1.5, top_k=50, seed=seed
    )

    def sample(numbers: list[int]) -> list[list[int]]:
        embeds = nano.input_embeddings(
            [rows[n]["prompt"] for n in numbers], [rows[n]["audio"] for n in numbers]
        )
        found = decode(
            nano.language_model,
            embeds,
            alphas=[rows[n]["alpha"] for n in numbers],
            eos_ids=[604],
            options=options,
            row_numbers=numbers,
        )
        return [one.ids for one in found]

    alone = {number: sample([number])[0] for number in order}
    assert sample(list(order)) == [alone[number] for number in order]


def test_left_padding_gives_every_row_its_own_positions() -> None:
    embeds_RLD, mask_RL, positions_RL = left_pad([torch.ones(3, 2), torch.ones(1, 2)])
    assert mask_RL.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions_RL.tolist() == [[0, 1, 2], [0, 0, 0]]
    assert embeds_RLD[1].tolist() == [[0, 0], [0, 0], [1, 1]]


def test_an_empty_call_gives_no_answers(nano: NatureLM) -> None:
    assert nano.generate([], []) == []

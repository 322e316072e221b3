"""An answer never depends on batch mates, their order or their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import decode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.generation.prefill import left_pad
from NatureLM.generation.request import GenerationOptions
from NatureLM.models import NatureLM

QUERIES = (
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
        for query in QUERIES:
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
        eos_ids=[604, 402, 69, 11],
    )


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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

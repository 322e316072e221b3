"""Rows that wait take the places of finished ones, and nothing changes but the work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoding import decode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.generation.decoding import Decoder, DecodingSession, Prompt
from NatureLM.generation.engine import Engine
from NatureLM.generation.request import GenerationOptions, Request
from NatureLM.generation.sampling import GenerationOutput
from NatureLM.models import NatureLM

ENDS = [604, 402, 69, 11]  # common tokens, so that rows finish at their own step
QUERIES = ("What is it?", "Caption the audio.", "Say at length what is to be heard in this sound.")


@pytest.fixture(scope="module")
def double(nano_folder: Any) -> NatureLM:
    return NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts(double: NatureLM, nano_waveforms: dict[str, Tensor]) -> list[Prompt]:
    with torch.inference_mode():
        clips = [double.encode_audio(wav[None])[0] for wav in nano_waveforms.values()]
        return [
            Prompt(embeds_LD, alpha, stream)
            for stream, (query, clip, alpha) in enumerate(
                (query, clip, alpha) for query in QUERIES for clip in clips for alpha in (0.3, 1.0)
            )
            for embeds_LD in double.input_embeddings([double.processor.render(query)], [[clip]])
        ]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lumps=st.lists(
        st.tuples(st.lists(st.integers(0, 17), min_size=1, max_size=4, unique=True),
                  st.integers(0, 5)),
        min_size=1,
        max_size=4,
    ),
    beams=st.sampled_from([1, 2, 3]),
    samples=st.booleans(),
)  # fmt: skip
def test_prompts_may_join_at_any_step(
    lumps: list[tuple[list[int], int]],
    beams: int,
    samples: bool,
    double: NatureLM,
    prompts: list[Prompt],
) -> None:
    """Each lump joins so many steps after the one before."""
    options = GenerationOptions(
        max_new_tokens=6,
        num_beams=1 if samples else beams,
        do_sample=samples,
        temperature=1.5,
    )
    decoder = Decoder(double.language_model, options, ENDS)
    found: list[tuple[Prompt, GenerationOutput]] = []
    for places, steps in lumps:
        decoder.add([prompts[place] for place in places])
        for _ in range(steps):
            found += decoder.advance()
    while len(decoder):
        found += decoder.advance()
    assert len(found) == sum(len(places) for places, _ in lumps)
    for prompt, decoded in found:
        (alone,) = decode(
            double.language_model,
            [prompt.embeds_LD],
            alphas=[prompt.alpha],
            eos_ids=ENDS,
            options=options,
            row_numbers=[prompt.stream],
        )
        assert decoded.ids == alone.ids
        assert decoded.log_probability == pytest.approx(alone.log_probability, abs=1e-9)


def test_a_few_long_answers_do_not_hold_up_the_others(
    double: NatureLM, nano_waveforms: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    step = DecodingSession.step

    def counting(session: DecodingSession, tokens_R: Tensor) -> Tensor:
        rows.append(len(tokens_R))
        return step(session, tokens_R)

    monkeypatch.setattr(DecodingSession, "step", counting)
    options = GenerationOptions(
        max_new_tokens=24, num_beams=1, do_sample=True, temperature=1.5, seed=1
    )

    def requests() -> Iterator[Request]:
        for number in range(48):
            prompt = double.processor.render(QUERIES[number % 2])
            yield Request(number, prompt, ("howl",), stream=number)

    def run(**how: Any) -> dict[Any, str | None]:
        rows.clear()
        engine = Engine(double, options, batch_rows=8, eos_ids=list(range(0, 606, 9)), **how)
        return {one.key: one.text for one in engine.run(requests(), nano_waveforms.__getitem__)}

    refilled = run()
    with_refill = len(rows)
    monkeypatch.setattr(Engine, "_more_rows_pay", lambda engine, decoder: not decoder)
    assert run() == refilled
    assert with_refill < 0.75 * len(rows), "free places were not filled"


def test_columns_that_nobody_uses_are_given_up(double: NatureLM, prompts: list[Prompt]) -> None:
    """Rows that join again and again do not make the cache ever wider."""
    options = GenerationOptions(max_new_tokens=4, num_beams=1)
    decoder = Decoder(double.language_model, options, [])
    longest = max(prompt.embeds_LD.shape[0] for prompt in prompts)
    for number in range(30):
        decoder.add([prompts[number % len(prompts)]])
        decoder.advance()
        assert decoder._session is not None
        assert decoder._session._mask_RL.shape[1] <= longest + 2 * options.max_new_tokens

"""Batches: every row once, within the budget, sharing only what is the same; rows that wait take
the places of finished ones, and nothing changes but the work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from decoding import ENDS, QUERIES, decode
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from NatureLM.generation.decoding import Decoder, DecodingSession, Prompt, RowState
from NatureLM.generation.engine import Engine, GenerationOptions, Request
from NatureLM.generation.prefill import Budget, Row, plan_batches, split_by_length
from NatureLM.models import NatureLM

AUDIO = 29  # positions of one audio

ROWS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([-1, -2, 1, 2]), min_size=1, max_size=6),
        st.sampled_from([0.0, 0.5]),
    ),
    min_size=1,
    max_size=12,
)


def rows_of(cases: Sequence[tuple[list[int], float]]) -> list[Row]:
    """Prompts in pieces; negative ones are audio."""
    made = []
    for number, (pieces, alpha) in enumerate(cases):
        ends = itertools.accumulate(AUDIO if piece < 0 else 1 for piece in pieces)
        request = Request(number, "", (), alpha)
        made.append(Row(request, (), (), tuple(pieces), tuple(ends)))
    return made


@given(cases=ROWS, tokens=st.integers(1, 2000), beams=st.integers(1, 3))
def test_every_row_once_within_the_budget(
    cases: list[tuple[list[int], float]], tokens: int, beams: int
) -> None:
    budget = Budget(tokens, beams, new_tokens=5)
    batches = plan_batches(rows_of(cases), budget)
    keys = [row.request.key for batch in batches for row in batch.rows]
    assert sorted(map(int, map(str, keys))) == list(range(len(cases)))
    for batch in batches:
        longest = max(row.length for row in batch.rows)
        size = len(batch.rows) * beams * (longest + 5)
        assert size <= tokens or len(batch.rows) == 1


@given(cases=ROWS)
def test_what_is_shared_is_the_same(cases: list[tuple[list[int], float]]) -> None:
    (batch,) = plan_batches(rows_of(cases), Budget(10**6, 1, 5))
    seen: set[int] = set()
    for shared in batch.shared:
        rows = [batch.rows[place] for place in shared.rows]
        assert len({row.request.alpha for row in rows}) == 1
        assert not seen & set(shared.rows), "a row stands in one shared beginning"
        seen |= set(shared.rows)
        for row in rows:
            count = row.ends.index(shared.length) + 1
            assert row.pieces[:count] == rows[0].pieces[:count]
            assert count < len(row.pieces), "each row keeps a piece of its own"


def test_queries_about_one_sound_share_it_and_other_alphas_do_not() -> None:
    cases = [([9, -1 - clip, 7, query], alpha) for clip in (0, 1) for query in (1, 2, 3)
             for alpha in (0.0, 0.5)]  # fmt: skip
    (batch,) = plan_batches(rows_of(cases), Budget(10**6, 1, 5))
    assert len(batch.shared) == 4
    assert {(len(one.rows), one.length) for one in batch.shared} == {(3, AUDIO + 2)}


def test_an_example_block_is_shared_by_many_clips() -> None:
    block = [5, -1, 6, -2, 7]
    cases = [([*block, -10 - clip, 8], 1.0) for clip in range(6)]
    (batch,) = plan_batches(rows_of(cases), Budget(10**6, 1, 5))
    (shared,) = batch.shared
    assert (len(shared.rows), shared.length) == (6, 2 * AUDIO + 3)


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=7),
    most=st.integers(1, 200),
    overhead=st.integers(0, 40),
)
def test_rows_run_in_the_cheapest_pieces(lengths: list[int], most: int, overhead: int) -> None:
    pieces = split_by_length(lengths, most, overhead)
    assert sorted(itertools.chain(*pieces)) == list(range(len(lengths)))

    def cost(parts: Sequence[Sequence[int]]) -> int:
        return sum(len(part) * max(part) + overhead for part in parts)

    def is_allowed(parts: Sequence[Sequence[int]]) -> bool:
        return all(len(part) == 1 or len(part) * max(part) <= most for part in parts)

    ordered = sorted(lengths)
    ways = [
        [ordered[a:b] for a, b in itertools.pairwise([0, *cuts, len(ordered)])]
        for count in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), count)
    ]
    found = [[lengths[row] for row in piece] for piece in pieces]
    assert is_allowed(found)
    assert cost(found) == min(cost(way) for way in ways if is_allowed(way))


@settings(max_examples=12)
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
    found: list[RowState] = []
    for places, steps in lumps:
        decoder.add([prompts[place] for place in places])
        for _ in range(steps):
            found += decoder.advance()
    while len(decoder):
        found += decoder.advance()
    assert len(found) == sum(len(places) for places, _ in lumps)
    for decoded in found:
        prompt = decoded.prompt
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

"""Batches: every row once, within the budget, and sharing only what is the same."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from NatureLM.generation.prefill import split_by_length
from NatureLM.generation.request import Request
from NatureLM.generation.scheduler import Budget, Row, plan_batches

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

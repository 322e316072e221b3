"""Streams run ahead of who takes their items, and not too far."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.util import prefetch


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=7),
    workers=st.integers(1, 4),
    chunk=st.integers(1, 4),
)
def test_all_items_in_order(lengths: list[int], workers: int, chunk: int) -> None:
    streams = (iter([(n, item) for item in range(length)]) for n, length in enumerate(lengths))
    wanted = [(n, item) for n, length in enumerate(lengths) for item in range(length)]
    assert list(prefetch(streams, workers=workers, chunk=chunk)) == wanted


def test_streams_are_run_ahead_up_to_a_bound() -> None:
    made: list[tuple[int, int]] = []

    def stream(number: int) -> Iterator[tuple[int, int]]:
        for item in range(100):
            made.append((number, item))
            yield number, item

    taken = prefetch(map(stream, range(10)), workers=2, chunk=5)
    next(taken)
    deadline = time.monotonic() + 10
    while len(made) < 15 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 15  # the chunk that is taken from, the next one, and one of the next stream
    taken.close()


def test_an_error_is_raised_where_items_are_taken() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(prefetch([iter([0]), broken()]))


def test_threads_end_with_who_takes_the_items() -> None:
    before = threading.active_count()
    taken = prefetch((iter(range(1000)) for _ in range(5)), workers=3, chunk=2)
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    taken.close()
    assert threading.active_count() == before

"""Answers take the places of their requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from NatureLM.generation.engine import yield_in_input_order
from NatureLM.generation.request import Answer, Request


@given(entries=st.lists(st.booleans(), max_size=12), data=st.data())
def test_every_entry_in_its_place(entries: list[bool], data: st.DataObject) -> None:
    """Whatever the order in which answers come, and however many are taken at once."""
    wanted: list[Any] = [
        Request(number, f"prompt {number}", ()) if asks else f"between {number}"
        for number, asks in enumerate(entries)
    ]

    def run(requests: Iterable[Request], load: Any) -> Iterator[Answer]:
        pool: list[Request] = []
        source = iter(requests)
        going_on = True
        while going_on or pool:
            if going_on and (not pool or data.draw(st.booleans())):
                one = next(source, None)
                going_on = one is not None
                pool += [] if one is None else [one]
            else:
                request = pool.pop(data.draw(st.integers(0, len(pool) - 1)))
                yield Answer(request, f"answer {request.key}")

    got = list(yield_in_input_order(run, wanted, load=lambda key: None))
    assert [one.request if isinstance(one, Answer) else one for one in got] == wanted


def test_answers_are_given_as_soon_as_their_turn_comes() -> None:
    requests = [Request(number, "", ()) for number in range(3)]

    def run(coming: Iterable[Request], load: Any) -> Iterator[Answer]:
        first, second, third = coming
        yield Answer(second, "b")
        yield Answer(first, "a")
        steps.append("first is there")
        yield Answer(third, "c")

    steps: list[str] = []
    answers = yield_in_input_order(run, requests, load=lambda key: None)
    assert [next(answers).text, next(answers).text] == ["a", "b"]
    assert steps == []

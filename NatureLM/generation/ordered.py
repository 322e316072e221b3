"""Answers in the order of their requests, whatever the order they come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeAlias, TypeVar

from NatureLM.generation.audio import Load
from NatureLM.generation.requests import Answer, Request

Other = TypeVar("Other")
Run: TypeAlias = Callable[[Iterable[Request], Load], Iterator[Answer]]
"""What answers requests, such as `Engine.run`."""


def in_order(run: Run, entries: Iterable[Request | Other], load: Load) -> Iterator[Answer | Other]:
    """Answers in the place of their requests; entries that are no requests keep theirs.

    entries: read as `run` needs them; the keys of requests differ
    """
    waiting: deque[Request | Other] = deque()
    found: dict[Hashable, Answer] = {}

    def requests() -> Iterator[Request]:
        for entry in entries:
            waiting.append(entry)
            if isinstance(entry, Request):
                yield entry

    def ready() -> Iterator[Answer | Other]:
        while waiting:
            first = waiting[0]
            if isinstance(first, Request):
                if first.key not in found:
                    return
                yield found.pop(first.key)
            else:
                yield first
            waiting.popleft()

    for answer in run(requests(), load):
        found[answer.key] = answer
        yield from ready()
    yield from ready()

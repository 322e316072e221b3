"""Iterators that run in threads ahead of who takes their items."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def ahead(streams: Iterable[Iterator[Item]], *, workers: int = 2, chunk: int = 8) -> Iterator[Item]:
    """All items of one stream after the other, while the next ones are being made.

    workers: streams that run at once, each in one thread at a time
    chunk: items that a stream is run on at a time; so at most (workers + 1) x chunk are held

    What a stream raises is raised here. Streams must not share state.
    """
    coming = iter(streams)
    running: deque[tuple[Iterator[Item], Future[list[Item]]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="naturelm-ahead") as pool:

        def run_on(stream: Iterator[Item]) -> tuple[Iterator[Item], Future[list[Item]]]:
            return stream, pool.submit(lambda: list(islice(stream, chunk)))

        try:
            while True:
                running.extend(map(run_on, islice(coming, workers - len(running))))
                if not running:
                    return
                stream, made = running.popleft()
                items = made.result()
                going_on = stream if len(items) == chunk else next(coming, None)
                if going_on is stream:
                    running.appendleft(run_on(stream))
                elif going_on is not None:
                    running.append(run_on(going_on))
                items.reverse()
                while items:  # what was taken is not held here any longer
                    yield items.pop()
        finally:
            for _, made in running:
                made.cancel()

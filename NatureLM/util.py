"""Files that are there whole or not at all, whatever stops the program in between.

Sizes in bytes, as people write and read them: 1 GB is 10**9 bytes, 1 GiB is 2**30.

Iterators that run in threads ahead of who takes their items.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from NatureLM.errors import UsageError


@contextlib.contextmanager
def atomic_write(target: Path, *, alone: bool = False) -> Iterator[Path]:
    """A path beside `target` to write to, which takes its place when the block ends well.

    Otherwise what was written goes, and `target` is as before.

    alone: nobody else writes the file meanwhile, so that the rest which a killed program left is
        written over; otherwise each block has a name of its own, and the last to end wins
    """
    own = "" if alone else f".{os.getpid()}-{secrets.token_hex(4)}"
    unfinished = target.with_name(f".{target.name}{own}.partial")
    try:
        yield unfinished
        unfinished.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str | int, option: str = "the number of bytes") -> int:
    """Bytes of `4GB`, `512 MiB` or `1000000`.

    option: what messages call it

    Raises UsageError for anything else, and for none.
    """
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
        if match is None:
            raise UsageError(f"{option} is {text!r}; give a size such as 4GB, 512MB or 2GiB")
        number, unit = match.groups()
        size = int(float(number) * {**_UNITS, **_BINARY_UNITS}[unit or ""])
    if size < 1:
        raise UsageError(f"{option} is {text!r}, and it must be above 0")
    return size


def format_bytes(size: float) -> str:
    """A size for people: `1.5 GB`, `20 MB`, `5 bytes`."""
    if size < 1000:
        return f"{size:g} bytes"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 999.95:
            return f"{_one_place(size)} {unit}"
    return f"{_one_place(size / 1000)} GB"


def _one_place(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


Item = TypeVar("Item")


def prefetch(
    streams: Iterable[Iterator[Item]], *, workers: int = 2, chunk: int = 8
) -> Iterator[Item]:
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

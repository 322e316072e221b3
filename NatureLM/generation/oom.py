"""Going on with less where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SAYS_SO = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says on devices whose error has no class of its own."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error).lower() for one in _SAYS_SO)


@dataclass
class Room:
    """How a piece of work went: `halved` is how much to try next if memory ran out."""

    halved: int | None = None


@contextmanager
def halving(size: int, note: Callable[[str], None], what: str) -> Iterator[Room]:
    """Where memory runs out within the block, say so, and ask for half the size.

    size: how many things are worked on at once; where it is 1 the error is raised
    what: what was done to them, for the note
    """
    room = Room()
    try:
        yield room
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not ran_out(error) or size <= 1:
            raise
        room.halved = size // 2
    if room.halved is not None:  # outside of the handler, which holds the frames and their tensors
        release()
        note(f"memory ran out when {size} {what} at once; going on with {room.halved}")


def release() -> None:
    """Give memory back that nobody uses."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

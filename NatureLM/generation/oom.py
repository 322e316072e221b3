"""Retrying with half the batch size where memory runs out, on whatever device."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says on devices whose error has no class of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(one in str(error).lower() for one in _MESSAGES)


@dataclass
class Backoff:
    """`retry_size` is the batch size to try next; None where memory was enough."""

    retry_size: int | None = None


@contextmanager
def oom_backoff(size: int, what: str) -> Iterator[Backoff]:
    """Where memory runs out within the block, log it, and ask for half the batch size.

    size: the batch size; where it is 1 the error is raised
    what: what was done to the batch, for the log
    """
    backoff = Backoff()
    try:
        yield backoff
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not is_out_of_memory(error) or size <= 1:
            raise
        backoff.retry_size = size // 2
    if backoff.retry_size is not None:  # not in the handler, which holds frames and their tensors
        free_unused_memory()
        logger.warning(
            f"memory ran out when {size} {what} at once; going on with {backoff.retry_size}"
        )


def free_unused_memory() -> None:
    """Give memory back that no tensor uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Memory: how much is free, what is kept within so many bytes, and going on where it ran out.

Several things bound what a process may take: the memory of the machine, the limits of its control
groups (containers, Slurm, systemd), `ulimit -v`, and on a card its own memory. The least counts.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from NatureLM.util import parse_bytes

logger = logging.getLogger(__name__)

MEMORY_VARIABLE = "NATURELM_MEMORY"
"""What is free, such as 12GB, in place of what the machine says."""

_ROOT = Path("/")
_BOUNDLESS = 1 << 60  # bytes; a control group without a limit says about 2**63 in version 1


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that may be taken, and what bounds them, for messages.

    is_address_space: whether mapped files count in full
    """

    bytes: int
    what: str
    is_address_space: bool = False


def free_memory(device: Any = "cpu") -> FreeMemory:
    """The least that is free on a device, by its name or as torch has it.

    Raises UsageError where the environment variable NATURELM_MEMORY is no size.
    """
    if said := os.environ.get(MEMORY_VARIABLE, "").strip():
        return FreeMemory(parse_bytes(said, MEMORY_VARIABLE), f"what {MEMORY_VARIABLE} allows")
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        return _of_card(device)
    bounds = list(_of_process())
    if kind == "mps":
        bounds.append(_of_mps())
    return min(bounds, key=lambda one: one.bytes)


def _of_process() -> Iterator[FreeMemory]:
    """What bounds the memory of this process."""
    if sys.platform == "linux":
        yield FreeMemory(available(), "RAM")
        yield from control_groups()
        yield from _address_space()
        return
    import psutil  # type: ignore[import-untyped,unused-ignore]

    yield FreeMemory(int(psutil.virtual_memory().available), "RAM")


def available(root: Path = _ROOT) -> int:
    """Bytes that Linux gives without swapping; memory of caches counts, because it is given."""
    text = (root / "proc/meminfo").read_text(encoding="ascii")
    return int(re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)[0]) * 1024


# -- control groups -------------------------------------------------------------------------


def control_groups(root: Path = _ROOT) -> Iterator[FreeMemory]:
    """The limit less what is in use, of each control group of memory that this process is in.

    A group's limit holds for those within it, so all above count, too. What files in its cache take
    is not in use: the kernel takes it back.
    """
    for folder, limit, usage in _groups(root):
        with suppress(OSError, ValueError):  # no such file, or "max"
            most = int((folder / limit).read_text())
            if most < _BOUNDLESS:
                used = int((folder / usage).read_text()) - _cached(folder)
                yield FreeMemory(max(0, most - used), "the memory limit of this container (cgroup)")


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Folder, file of the limit and file of the usage: version 2, and the one of version 1."""
    top = root / "sys/fs/cgroup"
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                files, tops = ("memory.max", "memory.current"), [top, top / "unified"]
            elif "memory" in controllers.split(","):
                files, tops = ("memory.limit_in_bytes", "memory.usage_in_bytes"), [top / "memory"]
            else:
                continue
            for one in tops:  # in a container the path may be that of the machine outside
                own = one / path.lstrip("/")
                for folder in (own, *own.parents):
                    if folder.is_relative_to(one) and folder.is_dir():
                        yield (folder, *files)


def _cached(folder: Path) -> int:
    """Bytes of files in memory that a group's usage counts."""
    with suppress(OSError):
        text = (folder / "memory.stat").read_text()
        found = dict(line.split() for line in text.splitlines() if line.count(" ") == 1)
        total = "total_" if "total_inactive_file" in found else ""  # version 1, with those within
        return sum(int(found.get(f"{total}{kind}_file", 0)) for kind in ("inactive", "active"))
    return 0


def _address_space() -> Iterator[FreeMemory]:
    """What `ulimit -v` leaves."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        free = max(0, soft - pages * resource.getpagesize())
        yield FreeMemory(free, "the address space (ulimit -v)", is_address_space=True)


# -- cards ----------------------------------------------------------------------------------


def _of_card(device: Any) -> FreeMemory:
    """What is free on an NVIDIA card, with what this process holds and does not use."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return FreeMemory(free + held, f"the card ({torch.cuda.get_device_name(device)})")


def _of_mps() -> FreeMemory:
    """What an Apple card may take; it shares the machine's memory."""
    import torch

    most = torch.mps.recommended_max_memory()
    free = max(0, most - torch.mps.driver_allocated_memory())
    return FreeMemory(free, "the memory that the card may take")


# -- within so many bytes -------------------------------------------------------------------

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteBoundedCache(Generic[Key, Value]):
    """Keeps values of at most `max_bytes` in all; the least recently used are dropped first.

    Safe to use from several threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """The value, if it is kept."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep a value of `size` bytes, unless it alone is too large or the key is there."""
        with self._lock:
            if key in self._entries or size > self.max_bytes:
                return
            self._entries[key] = value, size
            self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0


# -- where it ran out -----------------------------------------------------------------------

_OOM_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch says on devices whose error has no class of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    messages = str(error).lower()
    return isinstance(error, RuntimeError) and any(one in messages for one in _OOM_MESSAGES)


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
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()

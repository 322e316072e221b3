"""Work of small models on one core each: windows of a batch side by side, steps of answers alone.

Cores that share each operation wait for each other after it: half of the time with a small encoder
on two cores, and most of it where other programs run. Windows do not depend on each other, so each
core takes some of them, and gets the same numbers as if one did all. Steps of a small language
model are done soonest by one core.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

LEAST_ROWS = 2  # of a thread; one alone takes longer by a third
_SMALL = 512  # width of a language model
_lock = threading.Lock()
_inside, _threads = 0, 1  # blocks of all threads, and what each takes outside
_here = threading.local()  # `depth`: blocks of this thread


def by_windows(encode: Callable[[Tensor], Tensor], wav_BS: Tensor) -> Tensor:
    """`encode` of waveforms (B, S), where nothing is learnt, by as many threads as torch has."""
    with one_core_each() as threads:
        pieces = wav_BS.tensor_split(max(1, min(threads, len(wav_BS) // LEAST_ROWS)))
        if len(pieces) == 1:
            return encode(wav_BS)

        def run(piece: Tensor) -> Tensor:
            torch.set_num_threads(1)  # of this thread
            with torch.inference_mode(is_inference):
                return encode(piece)

        is_inference = torch.is_inference_mode_enabled()
        with ThreadPoolExecutor(len(pieces) - 1, thread_name_prefix="naturelm-encode") as pool:
            others = [pool.submit(run, piece) for piece in pieces[1:]]
            first = run(pieces[0])
            return torch.cat([first, *(one.result() for one in others)])


def for_steps(language_model: Any) -> AbstractContextManager[object]:
    """Within the block, steps of a small language model on a processor take one core."""
    is_small = language_model.config.hidden_size <= _SMALL and language_model.device.type == "cpu"
    return one_core_each() if is_small else nullcontext()


@contextmanager
def one_core_each() -> Iterator[int]:
    """Within the block an operation takes one thread; how many it takes else."""
    global _inside, _threads
    depth = getattr(_here, "depth", 0)
    with _lock:
        if not _inside:
            _threads = torch.get_num_threads()
        _inside += 1
        torch.set_num_threads(1)
    _here.depth = depth + 1
    try:
        yield _threads
    finally:
        _here.depth = depth
        with _lock:
            _inside -= 1
            if not depth:
                torch.set_num_threads(_threads)

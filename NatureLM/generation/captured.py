"""Work of fixed shapes as CUDA graphs: recorded once, then launched as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

Work = Callable[[], Tensor]
_WARM_UP = 2  # runs in which libraries set up what may not be set up while recording


class Recorder(Protocol):
    """Makes work that is done again and again cheaper."""

    def record(self, work: Work) -> Work:
        """The same work on the same memory; what it returns is the caller's to keep."""


class GraphRecorder:
    """Records CUDA graphs, which share their memory for what lies between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._graphs: WeakSet[Any] = WeakSet()

    def record(self, work: Work) -> Work:
        """Warm up on a stream of its own, then record; both run `work` as it is."""
        with torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            try:
                graph, out = self._record(work, here)
            finally:
                torch.cuda.set_stream(here)  # a recording that fails may leave its own behind
        self._graphs.add(graph)

        def replay() -> Tensor:
            graph.replay()
            return out.clone()  # another graph may use the memory next

        return replay

    def _record(self, work: Work, here: Any) -> tuple[Any, Tensor]:
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                work()
        here.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # A pool lives as long as a graph that uses it, so it is asked for where one is left.
        pool = next((one.pool() for one in self._graphs), None)
        # Threads that read audio go on meanwhile, and must not break the recording.
        with torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            out = work()
        return graph, out

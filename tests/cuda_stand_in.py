"""A stand-in for CUDA graphs on a processor, as strict as they are.

While recording, every operation runs and is written down with the very tensors it read and made.
Replaying runs the list again into those tensors. So a number of Python's, a branch and an address
are baked in as a graph would bake them in, and what asks the device for a number, or brings one
from the host, is refused. What a graph made is no number any more once another one that shares its
memory was replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

REFUSED = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::lift_fresh")
"""Asking the device for a number, or for how many there are; a tensor of the host's numbers."""


class _Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_refused(func, args) and not self._graph.machine.lenient:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        out = func(*args, **kwargs)
        self._graph.operations.append((func, args, kwargs, _tensors(out)))
        return out


class Graph:
    """Stands in for torch.cuda.CUDAGraph."""

    machine: Machine

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.replays = 0
        self.pool_handle: object = None
        self.machine.graphs.append(self)

    def pool(self) -> object:
        return self.pool_handle

    def replay(self) -> None:
        self.replays += 1
        for other in self.machine.graphs:
            if other is not self and other.pool_handle is self.pool_handle:
                other.spoil()
        for func, args, kwargs, outs in self.operations:
            inputs = _storages(_tensors((args, kwargs)))
            for old, new in zip(outs, _tensors(func(*args, **kwargs)), strict=True):
                if _storages([old]).isdisjoint(inputs):
                    old.copy_(new)

    def spoil(self) -> None:
        """Another graph used the memory: what this one made is worth nothing."""
        inside: set[int] = set()
        for _, args, kwargs, outs in self.operations:
            inputs = _storages(_tensors((args, kwargs)))
            for out in outs:
                if _storages([out]).isdisjoint(inputs):
                    inside |= _storages([out])
                    if out.is_floating_point():
                        out.fill_(torch.nan)


def _is_refused(func: Any, args: Any) -> bool:
    by_mask = func._schema.name.startswith("aten::index") and any(
        one.dtype == torch.bool for one in _tensors(args[1:2])
    )
    return by_mask or func._schema.name in REFUSED


class Machine:
    """What was asked of the stand-in."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.streams: list[object] = []
        self.stream: object = "main"
        self.modes: list[str] = []
        self.work_on: list[object] = []
        self.lenient = False
        self.refuse: Exception | None = None


class _Stream:
    def wait_stream(self, other: object) -> None:
        pass


@pytest.fixture
def cuda_stand_in(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The parts of torch.cuda that recording uses."""
    machine = Machine()

    class MachineGraph(Graph):
        pass

    MachineGraph.machine = machine
    main = _Stream()
    machine.stream = main

    def new_stream() -> _Stream:
        machine.streams.append(_Stream())
        return machine.streams[-1]  # type: ignore[return-value]

    @contextmanager
    def on_stream(stream: object) -> Iterator[None]:
        before, machine.stream = machine.stream, stream
        yield
        machine.stream = before

    @contextmanager
    def recording(
        graph: Graph, pool: object, stream: object, capture_error_mode: str
    ) -> Iterator[None]:
        machine.modes.append(capture_error_mode)
        graph.pool_handle = object() if pool is None else pool
        machine.stream = stream
        if machine.refuse is not None:  # leaves its stream behind, as torch does
            raise machine.refuse
        with _Recording(graph):
            yield
        machine.stream = main

    @contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        yield

    def set_stream(stream: object) -> None:
        machine.stream = stream

    for name, part in {
        "CUDAGraph": MachineGraph,
        "Stream": new_stream,
        "stream": on_stream,
        "set_stream": set_stream,
        "graph": recording,
        "device": on_device,
        "current_stream": lambda: machine.stream,
    }.items():
        monkeypatch.setattr(torch.cuda, name, part)
    return machine


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_flatten(tree)[0] if isinstance(one, Tensor)]


def _storages(tensors: list[Tensor]) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in tensors}

"""A stand-in for the device mps on any processor, as strict as an Apple card is.

Tensors say that they lie on mps; what is in them is computed by the processor. Refused are what
Metal does not have (float64, complex128), operations over tensors of two devices, and numpy. Every
operation is written down, and `lacking` tells which of them have no kernel for mps in this release
of torch: those run on the processor under PYTORCH_ENABLE_MPS_FALLBACK, and nowhere without it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
import yaml
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

MPS = torch.device("mps:0")  # with a number, as torch asks a device without one for its own
ABSENT = (torch.float64, torch.complex128)
_MOVES = ("aten::_to_copy", "aten::copy_")
_BY_PLACES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
_BY_DEVICE = (
    *(Tensor.copy_, Tensor.contiguous, Tensor.__getitem__, Tensor.__setitem__),
    torch.nn.functional.scaled_dot_product_attention,
)
_NATIVE = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"


class Machine:
    """What was asked of the device: each operation, waits for it, giving memory back."""

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.waits = 0
        self.emptied = 0

    def empty_cache(self) -> None:
        self.emptied += 1

    def lacking(self) -> list[str]:
        """The operations that were asked for and have no kernel."""
        return sorted(one for one in self.operations if one not in kernels_of_mps())


class OnMps(Tensor):
    """A tensor that says it is on mps; `inner` lies on the processor."""

    inner: Tensor
    machine: Machine

    @staticmethod
    def __new__(cls, inner: Tensor, machine: Machine) -> OnMps:
        if inner.dtype in ABSENT:
            raise TypeError(
                f"Cannot convert a MPS Tensor to {inner.dtype} dtype as the MPS framework doesn't "
                "support it"
            )
        made: OnMps = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=MPS,
        )
        made.inner, made.machine = inner, machine
        return made

    def tolist(self) -> Any:
        self.machine.waits += 1
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert mps:0 device type tensor to numpy")

    def __repr__(self, **_: Any) -> str:
        return f"OnMps({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, cls)]
        return call(given[0].machine, func, args, kwargs or {})


def call(machine: Machine, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation that reads from or writes to mps."""
    flat = tree_flatten((args, kwargs))[0]
    tensors = [one for one in flat if isinstance(one, Tensor)]
    mine = [one for one in tensors if isinstance(one, OnMps)]
    devices = [one for one in flat if isinstance(one, torch.device)]
    there = devices[0].type == "mps" if devices else bool(mine)
    name = func._schema.name
    if mine and name not in (*_MOVES, *_BY_PLACES):
        others = [one for one in tensors if not isinstance(one, OnMps) and one.dim()]
        if others:
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device")
    machine.operations[named(func)] += there
    machine.waits += name == "aten::_local_scalar_dense" or bool(mine and not there)
    bare, settings = tree_map(inner_of, (args, kwargs))
    out = func(*bare, **settings)
    if func._schema.is_mutable and mine and name != "aten::copy_":
        return _same(out, mine)
    if name == "aten::copy_":
        return args[0]
    is_view = any(one.alias_info is not None for one in func._schema.returns)
    plain = is_view and mine and not mine[0].is_inference()  # as torch's own views are
    with torch.inference_mode(torch.is_inference_mode_enabled() and not plain):
        return tree_map(lambda one: OnMps(one, machine) if there and is_bare(one) else one, out)


def named(func: Any) -> str:
    """An operation as torch's list names it."""
    return f"{func._schema.name}.{func._overloadname}".removesuffix(".default")


def _same(out: Any, mine: list[OnMps]) -> Any:
    """What an operation in place gives back: the tensors that it was given."""
    return tree_map(lambda one: next((m for m in mine if m.inner is one), one), out)


def inner_of(one: Any) -> Any:
    """What stands for it on the processor."""
    if is_mps(one):
        return torch.device("cpu")
    return one.inner if isinstance(one, OnMps) else one


def is_bare(one: Any) -> bool:
    return isinstance(one, Tensor) and not isinstance(one, OnMps)


class _Dispatch(TorchDispatchMode):
    """Tensors that are made on mps, which no argument lies on."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(one, OnMps) or is_mps(one) for one in tree_flatten((args, kwargs))[0]):
            return call(self._machine, func, args, kwargs)
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Gives the device its number; makes tensors of Python's numbers by way of the processor."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_numbered, (args, kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == MPS:
            return func(*args, **{**kwargs, "device": "cpu"}).to(MPS)
        if func is Tensor.new_tensor and isinstance(args[0], OnMps):
            like = {"dtype": args[0].dtype, **kwargs}
            return torch.tensor(*args[1:], **{**like, "device": "cpu"}).to(MPS)
        if func is torch.nn.functional.scaled_dot_product_attention:
            kwargs["name"] = "aten::_scaled_dot_product_attention_math_for_mps"
        if func in _BY_DEVICE:
            return self._inside(func, args, **kwargs)
        return func(*args, **kwargs)

    def _inside(self, func: Any, args: Any, name: str = "", **kwargs: Any) -> Any:
        """A function that torch asks for the device's driver, over what the tensors hold."""
        mine = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, OnMps)]
        bare, settings = tree_map(inner_of, (args, kwargs))
        if not mine:
            return func(*bare, **settings)
        if name:
            self._machine.operations[name] += 1
            return OnMps(func(*bare, **settings), self._machine)
        with _Recorder(self._machine):
            out = func(*bare, **settings)
        if func is Tensor.copy_ or out is mine[0].inner:
            return args[0]
        return OnMps(out, self._machine) if isinstance(out, Tensor) else out


class _Recorder(TorchDispatchMode):
    """Writes down what happens."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._machine.operations[named(func)] += 1
        return func(*args, **(kwargs or {}))


def _numbered(one: Any) -> Any:
    return MPS if is_mps(one) or (isinstance(one, str) and one == "mps") else one


def is_mps(one: Any) -> bool:
    return isinstance(one, torch.device) and one.type == "mps"


@functools.cache
def kernels_of_mps() -> frozenset[str]:
    """The operations that torch has for mps, by its own list: as such, or made of others."""
    listed = yaml.load(_NATIVE.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    entries = {entry["func"].partition("(")[0]: entry for entry in listed}

    def has_kernel(name: str) -> bool:
        entry = entries[name]
        if (other := entry.get("structured_delegate")) is not None:
            return has_kernel(other)
        keys = {key.strip() for group in entry.get("dispatch", {}) for key in group.split(",")}
        return not keys or any(key == "MPS" or key.startswith("Composite") for key in keys)

    return frozenset(f"aten::{name}" for name in entries if has_kernel(name))


@contextmanager
def stand_in() -> Iterator[Machine]:
    """Within the block there is a device mps."""
    machine = Machine()
    with (
        pytest.MonkeyPatch.context() as patch,
        _Dispatch(machine),
        _Functions(machine),
    ):
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.mps, "empty_cache", machine.empty_cache)
        patch.setattr(torch.mps, "recommended_max_memory", lambda: 2**34)
        patch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)
        yield machine

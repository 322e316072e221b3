"""Imports that wait until what they bring is used.

The code of Llama in transformers imports, for cases that do not arise here, the compiler of torch,
tensors that are spread over machines, accelerate, SciPy and kernels for mixtures of experts: two
thirds of the time to a first answer. Within `deferred` these modules are stand-ins. A name that is
taken from one becomes the real thing as soon as it is called, subclassed or asked for an attribute,
whenever that is. What is in no list, or in a release that needs more at once, is imported as ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from threading import get_ident
from types import ModuleType
from typing import Any, Union

UNUSED = (
    "accelerate",
    "peft",
    "scipy",
    "sklearn",
    "torch._dynamo",
    "torch.distributed._composable",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.attention.flex_attention",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.tensor_parallel",
    "transformers.integrations.deepgemm",
    "transformers.integrations.sonicmoe",
)
"""Modules, and what lies in them, that answering a question never calls."""


@contextmanager
def deferred(roots: Sequence[str] = UNUSED) -> Iterator[None]:
    """Within the block, this thread's imports of these modules wait until they are needed."""
    finder = _Finder(roots)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.stop()


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins for modules that are installed and were not imported yet."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = frozenset(roots)
        self._thread: int | None = get_ident()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        parts = fullname.split(".")
        names = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        if self._thread != get_ident() or self._roots.isdisjoint(names):
            return None
        real = PathFinder.find_spec(fullname, path, target)
        if real is None:
            return None
        spec = ModuleSpec(fullname, self, origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations or []
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, self)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""

    @property
    def is_active(self) -> bool:
        return self._thread is not None

    def stop(self) -> None:
        """From here on imports are real; stand-ins stay only where they are bound already."""
        if not self.is_active:
            return
        self._thread = None
        sys.meta_path.remove(self)
        for name, module in list(sys.modules.items()):
            if isinstance(module, _StandIn) and module._finder is self:
                del sys.modules[name]
                parent, _, attribute = name.rpartition(".")
                if vars(sys.modules.get(parent, module)).get(attribute) is module:
                    delattr(sys.modules[parent], attribute)


class _StandIn(ModuleType):
    """A module that is not imported yet."""

    def __init__(self, name: str, finder: _Finder) -> None:
        super().__init__(name)
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        if not self._finder.is_active:
            return getattr(import_module(self.__name__), name)
        if self.__name__ == "torch._dynamo" and name in _DECORATORS:
            return _DECORATORS[name]
        return _Name(self.__name__, name, self._finder)


class _Name:
    """What a module that is not imported yet will have under a name."""

    def __init__(self, module: str, name: str, finder: _Finder) -> None:
        self._at, self._finder = (module, name), finder

    def _real(self) -> Any:
        self._finder.stop()
        module, name = self._at
        found = import_module(module)
        return getattr(found, name) if hasattr(found, name) else import_module(f"{module}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # somebody looks at it, and does not use it
            raise AttributeError(name)
        return getattr(self._real(), name)

    def _is_there(self) -> bool:
        module, name = self._at
        found = sys.modules.get(module)
        return not isinstance(found, _StandIn) and hasattr(found, name)

    def __instancecheck__(self, one: object) -> bool:
        return self._is_there() and isinstance(one, self._real())

    def __subclasscheck__(self, one: type) -> bool:
        return self._is_there() and issubclass(one, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - of an annotation, without its value

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def __getitem__(self, key: Any) -> Any:
        return self._real()[key]


def _disable(
    function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Any:
    """`torch._dynamo.disable`, which takes effect once there is a compiler."""
    if function is None:
        return partial(_disable, recursive=recursive, **options)
    disabled: list[Callable[..., Any]] = []

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.modules.get("torch._dynamo"), _StandIn | None):
            return function(*args, **kwargs)
        if not disabled:
            from torch._dynamo import disable

            disabled.append(disable(function, recursive, **options))
        return disabled[0](*args, **kwargs)

    return called


_DECORATORS: dict[str, Callable[..., Any]] = {
    "disable": _disable,
    "allow_in_graph": lambda function: function,
    "assume_constant_result": lambda function: function,
}
"""What tells the compiler of torch how to treat a function does not import the compiler; nothing
is compiled where imports are deferred."""

"""Imports that wait until what they bring is used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from NatureLM.models.deferred import UNUSED, deferred

LARGE = """
class Thing:
    pass

def twice(number):
    return 2 * number
"""
USER = """
from deferred_large import Thing, twice
import deferred_large.part

def is_thing(one) -> bool | Thing:
    return isinstance(one, Thing)
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """`deferred_large`, and `deferred_user`, which imports it."""
    (tmp_path / "deferred_large").mkdir()
    (tmp_path / "deferred_large" / "__init__.py").write_text(LARGE)
    (tmp_path / "deferred_large" / "part.py").write_text("NUMBER = 3\n")
    (tmp_path / "deferred_user.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("deferred_")]:
        del sys.modules[name]


def test_a_module_is_imported_when_it_is_used(packages: Path) -> None:
    with deferred(["deferred_large"]):
        user = import_module("deferred_user")
    assert not user.is_thing(3)
    assert "deferred_large" not in sys.modules
    assert user.twice(4) == 8
    assert user.is_thing(import_module("deferred_large").Thing())
    assert user.deferred_large.part.NUMBER == 3


def test_what_a_class_is_made_of_is_imported_at_once(packages: Path) -> None:
    (packages / "deferred_user.py").write_text(USER + "class Mine(Thing):\n    pass\n")
    with deferred(["deferred_large"]):
        user = import_module("deferred_user")
        large = import_module("deferred_large")
    assert large.__file__ is not None
    assert issubclass(user.Mine, large.Thing)
    assert user.is_thing(user.Mine())


def test_what_is_not_installed_stays_so(packages: Path) -> None:
    (packages / "deferred_user.py").write_text("import deferred_nothing\n")
    with pytest.raises(ModuleNotFoundError), deferred(["deferred_nothing"]):
        import_module("deferred_user")
    assert not any(type(one).__module__ == deferred.__module__ for one in sys.meta_path)


ANSWER = f"""
import sys
from NatureLM.cli.options import load_model
model = load_model("naturelm-tiny")
print([name for name in {(*UNUSED, "sympy")} if name in sys.modules])
import torch
from torch.distributed.tensor import DTensor
from transformers.distributed.utils import is_dtensor
from transformers.core_model_loading import DtensorShardOperation
print(is_dtensor(torch.ones(2)), torch.compiler.disable(len)([1]))
"""


def test_an_answer_needs_none_of_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ANSWER], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines() == ["[]", "False 1"]

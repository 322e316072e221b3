"""Imports of the model's code do not look for garbage."""

from __future__ import annotations

import gc
import sys

import pytest

from NatureLM.cli import options as heavy


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the garbage collector, in order."""
    found: list[str] = []
    for name in ("disable", "freeze", "enable"):
        monkeypatch.setattr(gc, name, lambda name=name: found.append(name))
    monkeypatch.setattr(gc, "isenabled", lambda: True)
    monkeypatch.setattr(heavy, "import_module", lambda name: found.append(name))
    return found


def test_garbage_is_not_sought_while_importing_nor_in_what_came(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "NatureLM.models.modeling", raising=False)
    heavy.import_model()
    assert calls == ["disable", "NatureLM.models.modeling", "freeze", "enable"]


def test_what_is_imported_is_left_alone(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "NatureLM.models.modeling", sys)
    heavy.import_model()
    assert calls == []


def test_a_failed_import_leaves_the_collector_on(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.delitem(sys.modules, "NatureLM.models.modeling", raising=False)
    monkeypatch.setattr(heavy, "import_module", fail)
    with pytest.raises(ImportError):
        heavy.import_model()
    assert calls[-1] == "enable"

"""What visitors of the services send never reaches a store: addresses are made in few places."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "NatureLM"
SERVICES = ("serve", "app", "web", "review")
MAKERS = {"as_path", "join", "RemotePath"}
PLACES = {
    "storage.py",
    "cli/options.py",  # what the owner of the process typed
    "cli/survey.py",  # of that the first, which is a recording where a classifier answers
    "results/manifest.py",  # and the lists that were named so
    "results/shards.py",
    "audio/files.py",  # what was found below such an address
}
NOT_FOR_SERVICES = {"storage", "results.manifest", "results.shards", "results.uploads"}


def makers_in(source: str) -> Iterator[str]:
    """Calls that make an address of a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", "")
            is_storage = isinstance(node.func, ast.Name) or "storage" in ast.dump(node.func)
            if name in MAKERS and is_storage:
                yield name
        if isinstance(node, ast.keyword | ast.Assign) and getattr(node.value, "id", "") in MAKERS:
            yield getattr(node.value, "id", "")


def imports_in(source: str) -> set[str]:
    return {
        str(node.module).removeprefix("NatureLM.")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
    } | {
        f"{node.module}.{alias.name}".removeprefix("NatureLM.")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_addresses_are_made_in_few_places() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(makers_in(path.read_text(encoding="utf-8")))
    }
    assert found - PLACES == set()
    assert "cli/options.py" in found


@pytest.mark.parametrize("service", SERVICES)
def test_services_know_nothing_of_stores(service: str) -> None:
    found = {
        path.name: wrong
        for path in (PACKAGE / service).rglob("*.py")
        if (wrong := imports_in(path.read_text(encoding="utf-8")) & NOT_FOR_SERVICES)
    }
    assert not found


def test_what_is_forbidden_would_be_seen() -> None:
    assert list(makers_in("path = as_path(request.url)"))
    assert list(makers_in("path = storage.as_path(request.url)"))
    assert list(makers_in("info.parser = as_path"))
    assert not list(makers_in("text = ', '.join(names)"))
    assert imports_in("from NatureLM import storage") & NOT_FOR_SERVICES
    assert imports_in("from NatureLM.storage import as_path") & NOT_FOR_SERVICES

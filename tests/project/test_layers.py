"""Lower layers never import upper ones, and files stay short enough to read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "NatureLM"
TOP = [
    "outputs",
    "metrics",
    "beans",
    "reports",
    "experiments",
    "training",
    "serving",
    "app",
    "runs",
    "embeddings",
    "species",
]
LAYERS = [
    ["errors"],
    ["config", "sizes", "whole"],
    ["audio", "prompts", "merging"],
    ["tables"],
    ["generation"],
    ["models"],
    ["conversation", "calibration"],
    ["infer"],
    TOP,
    ["cli"],
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_layers(tree: ast.AST) -> Iterator[str]:
    """The layers that a module imports; what runs only as a program (`__main__`) does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "__main__" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = []
            yield from imported_layers(node)
        for name in names:
            package, _, rest = name.partition(".")
            if package == "NatureLM" and rest:
                yield rest.partition(".")[0]


def test_every_layer_has_its_place() -> None:
    assert {layer_of(path) for path in MODULES} - {"__init__"} <= HEIGHT.keys()


@pytest.mark.parametrize("layer", sorted({layer_of(path) for path in MODULES} - {"__init__"}))
def test_lower_layers_do_not_import_upper_ones(layer: str) -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in MODULES
        if layer_of(path) == layer
        for other in imported_layers(ast.parse(path.read_text(encoding="utf-8")))
        if other != layer and HEIGHT[other] > HEIGHT[layer]
    ]
    assert not upward


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(PACKAGE)): lines
        for path in MODULES
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) >= 400
    }
    assert not long

"""Layers import downwards only, no modules import each other, nothing goes around the engine."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest
from source_code import statements, tree_of

PACKAGE = Path(__file__).resolve().parents[2] / "NatureLM"
LAYERS = [
    ["errors"],
    ["config", "memory", "progress", "util"],
    ["storage"],
    ["audio", "prompts", "merging"],
    ["data"],
    ["generation"],
    ["models"],
    ["results", "evaluation", "species", "field"],
    ["formats"],
    ["inference", "reports", "beans", "web", "vllm"],
    ["survey", "review", "search", "experiments", "training"],
    ["teach"],
    ["distributed"],
    ["app"],
    ["serve"],
    ["cli"],
    ["infer"],
]
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_layers(tree: ast.AST) -> Iterator[str]:
    """The layers that a module imports; what runs only as a program (`__main__`) does not count."""
    for node in statements(tree):
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


def test_lower_layers_do_not_import_upper_ones() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in MODULES
        if (layer := layer_of(path)) != "__init__"
        for other in imported_layers(tree_of(path))
        if other != layer and HEIGHT[other] > HEIGHT[layer]
    ]
    assert not upward


@functools.cache
def import_graph() -> nx.DiGraph:
    """Which module imports which as soon as it is imported itself."""
    names = {dotted_name(path) for path in MODULES}
    graph = nx.DiGraph()
    for path in MODULES:
        for imported in imported_modules(tree_of(path), names):
            if imported != dotted_name(path):
                graph.add_edge(dotted_name(path), imported)
    return graph


def dotted_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST, known: set[str]) -> Iterator[str]:
    for node in statements(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known or node.module in known:
                    yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif not isinstance(node, ast.FunctionDef):
            yield from imported_modules(node, known)


def circles(graph: nx.DiGraph) -> list[list[str]]:
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_no_modules_import_each_other() -> None:
    assert not circles(import_graph())


def test_a_circle_would_be_seen() -> None:
    graph = import_graph().copy()
    graph.add_edge("NatureLM.errors", "NatureLM.cli.main")
    assert circles(graph)


CONVERSATION = PACKAGE / "inference" / "conversation.py"  # one row, token by token, KV kept
FOLDERS = ("inference", "experiments", "beans", "cli", "reports", "search", "app")
BESIDE_THE_ENGINE = {"generate", "generate_ids", "encode_audio", "encode_clips", "decode_beams"}
ITS_PARTS = {"decoding", "prefill", "score_trie"}


def ways_around(tree: ast.AST) -> Iterator[str]:
    """Calls of the model's own decoding, and imports of the parts that the engine is made of."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in BESIDE_THE_ENGINE:
                yield f"line {node.lineno} calls {node.func.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "NatureLM.generation."
        ):
            names = {str(node.module).rpartition(".")[2], *(alias.name for alias in node.names)}
            if names & ITS_PARTS:
                yield f"line {node.lineno} imports {node.module}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_goes_around_the_engine(folder: str) -> None:
    found = {
        str(path.relative_to(PACKAGE)): ways
        for path in (PACKAGE / folder).rglob("*.py")
        if path != CONVERSATION and (ways := list(ways_around(tree_of(path))))
    }
    assert not found


def test_a_way_around_would_be_seen() -> None:
    for line in (
        "texts = model.generate(prompts, audios)",
        "from NatureLM.generation.decoding import Decoder",
        "from NatureLM.generation.labels import score_trie",
    ):
        assert list(ways_around(ast.parse(line)))
    assert not list(ways_around(ast.parse("answers = Engine(model).run(requests, load)")))

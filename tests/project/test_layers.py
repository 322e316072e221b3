"""Layers import downwards only, no modules import each other, nothing goes around the engine."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "NatureLM"
LAYERS = [
    ["errors"],
    ["config", "progress", "util"],
    ["storage"],
    ["audio", "prompts", "merging"],
    ["data"],
    ["generation"],
    ["models"],
    ["results", "evaluation", "species", "field"],
    ["formats"],
    ["inference", "reports", "beans", "web", "vllm"],
    ["survey", "review", "search", "experiments", "training"],
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


def import_graph(*, lazy: bool) -> nx.DiGraph:
    """Which module imports which; `lazy` counts imports inside functions, too."""
    names = {dotted_name(path) for path in MODULES}
    graph = nx.DiGraph()
    for path in MODULES:
        for imported in imported_modules(ast.parse(path.read_text(encoding="utf-8")), names, lazy):
            if imported != dotted_name(path):
                graph.add_edge(dotted_name(path), imported)
    return graph


def dotted_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree: ast.AST, known: set[str], lazy: bool) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known or node.module in known:
                    yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif lazy or not isinstance(node, ast.FunctionDef):
            yield from imported_modules(node, known, lazy)


def circles(graph: nx.DiGraph) -> list[list[str]]:
    return [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_no_modules_import_each_other() -> None:
    assert not circles(import_graph(lazy=False))


def test_a_circle_would_be_seen() -> None:
    graph = import_graph(lazy=False)
    graph.add_edge("NatureLM.errors", "NatureLM.cli.main")
    assert circles(graph)


CONVERSATION = PACKAGE / "inference" / "conversation.py"  # one row, token by token, KV kept
FOLDERS = ("inference", "experiments", "beans", "cli", "reports", "search", "app")
BESIDE_THE_ENGINE = {"generate", "generate_ids", "encode_audio", "encode_clips", "decode_beams"}
ITS_PARTS = {"decoding", "prefill", "score_trie"}


def ways_around(source: str) -> Iterator[str]:
    """Calls of the model's own decoding, and imports of the parts that the engine is made of."""
    for node in ast.walk(ast.parse(source)):
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
        if path != CONVERSATION and (ways := list(ways_around(path.read_text(encoding="utf-8"))))
    }
    assert not found


def test_a_way_around_would_be_seen() -> None:
    assert list(ways_around("texts = model.generate(prompts, audios)"))
    assert list(ways_around("from NatureLM.generation.decoding import Decoder"))
    assert list(ways_around("from NatureLM.generation.labels import score_trie"))
    assert not list(ways_around("answers = Engine(model).run(requests, load)"))

"""Measures a package by reading it: files, lines, classes, import circles; and its tests.

python scripts/measure_tree.py NatureLM --tests tests
python scripts/measure_tree.py other/checkout/NatureLM --tests other/checkout/tests --json

Only Python files count. Error classes are those with an exception among their bases, near or far.
A circle is a set of modules that import each other in a ring, at the top or inside a function;
imports under TYPE_CHECKING, which never run, are left out, but for those of a module with a
`__getattr__`, which imports them when they are asked for.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHORT, LONG = 60, 700
Graph = dict[str, set[str]]


def measure(package: Path) -> dict[str, Any]:
    """All measures of a package folder."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in python_files(package)}
    lines = [line_count(path) for path in trees]
    classes = [
        node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    ]
    return {
        "files": len(lines),
        "lines": sum(lines),
        "mean lines": round(sum(lines) / max(1, len(lines))),
        f"files under {SHORT} lines": sum(number < SHORT for number in lines),
        f"files over {LONG} lines": sum(number > LONG for number in lines),
        "classes": len(classes),
        "dataclasses": sum("dataclass" in map(last_name, c.decorator_list) for c in classes),
        "Protocols": sum("Protocol" in map(last_name, c.bases) for c in classes),
        "error classes": len(error_classes(classes)),
        "import circles": circles(import_graph(package, trees)),
    }


def python_files(folder: Path) -> list[Path]:
    """Python files of a folder and those below, in order."""
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def line_count(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


# Classes


def last_name(node: ast.expr) -> str:
    """`Protocol` of `typing.Protocol[T]`, `dataclass` of `@dataclass(frozen=True)`."""
    if isinstance(node, ast.Call):
        return last_name(node.func)
    if isinstance(node, ast.Subscript):
        return last_name(node.value)
    return getattr(node, "attr", getattr(node, "id", ""))


def error_classes(classes: list[ast.ClassDef]) -> list[ast.ClassDef]:
    """Classes that derive from an exception, directly or through each other."""
    errors = {
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    found: list[ast.ClassDef] = []
    while True:
        more = [
            c for c in classes if c not in found and errors.intersection(map(last_name, c.bases))
        ]
        if not more:
            return found
        found += more
        errors |= {c.name for c in more}


# Imports


def import_graph(package: Path, trees: dict[Path, ast.Module]) -> Graph:
    """For each module, the modules of the package that its code imports."""
    names = {path: module_name(package, path) for path in trees}
    known = set(names.values())
    graph: Graph = {}
    for path, tree in trees.items():
        here = names[path]
        parent = here if path.name == "__init__.py" else here.rpartition(".")[0]
        lazy = any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)
        graph[here] = set(imported(tree, parent, known, lazy)) & known - {here}
    return graph


def module_name(package: Path, path: Path) -> str:
    """`NatureLM.models.beats`; a package has the name of its folder."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, parent: str, known: set[str], types: bool) -> Iterator[str]:
    """What the code below a node imports, modules among it.

    parent: the package that the code stands in
    types: whether imports under TYPE_CHECKING count
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                above = parent.split(".")[: len(parent.split(".")) - child.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            inner = {f"{base}.{alias.name}" for alias in child.names}
            yield from inner & known
            if any(name not in known for name in inner):
                yield base
        elif isinstance(child, ast.If) and last_name(child.test) == "TYPE_CHECKING" and not types:
            yield from imported(ast.Module(child.orelse, []), parent, known, types)
        else:
            yield from imported(child, parent, known, types)


def circles(graph: Graph) -> list[list[str]]:
    """Sets of modules that reach each other, the largest first."""
    reach = {name: reachable(graph, name) for name in graph}
    rings = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(ring) for ring in sorted(rings, key=lambda ring: (-len(ring), ring))]


def reachable(graph: Graph, start: str) -> set[str]:
    """Modules that importing one leads to."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def main() -> None:
    """Print the measures as a table or as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of the package")
    parser.add_argument("--tests", type=Path, help="folder of its tests")
    parser.add_argument("--json", action="store_true", help="as JSON, with the circles' modules")
    options = parser.parse_args()
    measures = measure(options.package.resolve())
    if options.tests is not None:
        tests = python_files(options.tests)
        measures["test files"] = len(tests)
        measures["test lines"] = sum(map(line_count, tests))
    if options.json:
        print(json.dumps(measures, indent=1))
        return
    rings = measures["import circles"]
    for name, value in {**measures, "import circles": len(rings)}.items():
        print(f"{name:22}{value:>8,}")
    for ring in rings:
        print("circle:", *ring, sep="\n    ")


if __name__ == "__main__":
    main()

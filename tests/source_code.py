"""The source of the package, parsed once for all tests that look through it."""

from __future__ import annotations

import ast
import functools
import gc
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file.

    Nodes refer to each other and stay: to look for garbage among them while they are made takes
    three times as long as to make them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        if was_on:
            gc.enable()


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """What is below a node and may hold an import; most nodes are expressions, which do not."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield child

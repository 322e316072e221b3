"""The tree of known keys, and in words what each may hold. Read from the JSON Schema."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from NatureLM.config.schema import Config
from NatureLM.config.source import KeyPath

Node = dict[str, Any]

_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "null": "null",
}


@lru_cache(maxsize=1)
def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a configuration file, for editors and checkers."""
    schema = Config.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "NatureLM configuration",
    }


def node_at(path: KeyPath) -> Node | None:
    """Schema of what stands at `path`, or None where no such key is known."""
    node: Node | None = json_schema()
    for part in path:
        node = _child(node, part) if node is not None else None
    return None if node is None else _resolve(node)


def keys_of(path: KeyPath) -> list[str]:
    """The known keys of the section at `path`, those without effect left out."""
    node = node_at(path)
    return [] if node is None else [k for k, v in _properties(node).items() if "ignored" not in v]


def dotted(path: KeyPath) -> str:
    """`extended.species[0].name` for ("extended", "species", 0, "name")."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def suggestion(path: KeyPath) -> str | None:
    """The known key that an unknown one at `path` most likely means, dotted.

    A near spelling in the same section first, then the same or a near word anywhere.
    """
    word = str(path[-1])
    section = path[:-1]
    near = _nearest(word, keys_of(section))
    if near is not None:
        return dotted((*section, near))
    by_word: dict[str, KeyPath] = {}
    for known in _all_keys():
        by_word.setdefault(str(known[-1]), known)
    near = _nearest(word, list(by_word))
    return None if near is None else dotted(by_word[near])


def allowed(path: KeyPath) -> str | None:
    """What may stand at `path`, in words: `a whole number, at least 1`."""
    node = node_at(path)
    return None if node is None else _describe(node)


def _nearest(word: str, known: list[str]) -> str | None:
    by_lower = {k.lower().replace("-", "_"): k for k in known}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), list(by_lower), 1, 0.7)
    return by_lower[near[0]] if near else None


def _all_keys(path: KeyPath = ()) -> Iterator[KeyPath]:
    for key in keys_of(path):
        yield (*path, key)
        yield from _all_keys((*path, key))


def _resolve(node: Node) -> Node:
    """Follow `$ref`; keep what stands beside it."""
    if "$ref" in node:
        target = json_schema()["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def _choices(node: Node) -> list[Node]:
    node = _resolve(node)
    return [_resolve(one) for one in node["anyOf"]] if "anyOf" in node else [node]


def _properties(node: Node) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for choice in _choices(node):
        found.update(choice.get("properties", {}))
    return found


def _child(node: Node, part: str | int) -> Node | None:
    known = _properties(node)
    if part in known:
        return known[str(part)]
    for choice in _choices(node):
        inner = choice.get("items" if isinstance(part, int) else "additionalProperties")
        if isinstance(inner, dict):
            return inner
    return None


def _describe(node: Node) -> str:
    if "allowed" in node:
        return str(node["allowed"])
    # null stands last: `a number above 0, or null`
    choices = sorted(_choices(node), key=lambda one: one.get("type") == "null")
    return ", or ".join(_describe_one(choice) for choice in choices)


def _describe_one(node: Node) -> str:
    if "enum" in node:
        return "one of " + ", ".join(_show_choice(value) for value in node["enum"])
    if isinstance(node.get("additionalProperties"), dict):
        return f"a mapping of names, each {_describe(node['additionalProperties'])}"
    if "properties" in node:
        return "a section with keys such as " + ", ".join(list(node["properties"])[:3])
    kind = node.get("type")
    if kind == "array":
        size = "a list with at least one item" if node.get("minItems") else "a list"
        return f"{size}, each {_describe(node.get('items', {}))}"
    if kind == "string" and node.get("minLength"):
        return "a text that is not empty"
    words = _KINDS.get(str(kind), "any value")
    bounds = [
        f"{word} {node[key]:g}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if key in node
    ]
    return f"{words}, {' and '.join(bounds)}" if bounds else words


def _show_choice(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)

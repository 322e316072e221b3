"""Validation errors in words: every problem with its key, line, value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from NatureLM.config import tree
from NatureLM.config.source import KeyPath, Source
from NatureLM.errors import ConfigError


def explain(error: ValidationError, source: Source, overridden: Collection[KeyPath]) -> ConfigError:
    """One ConfigError that lists all problems of a configuration."""
    problems: dict[str, None] = {}
    for detail in error.errors(include_url=False):
        path = _known_part(detail["loc"], detail["type"] == "extra_forbidden")
        where = _where(path, source, overridden)
        is_default = path not in source.lines and path not in overridden
        problems[f"{where}: {_what(path, detail, is_default)}"] = None
    return as_error(source.name, list(problems))


def as_error(name: str, problems: list[str]) -> ConfigError:
    """ConfigError with one problem on a line each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigError(f"{name}: {count}\n" + "\n".join(f"  - {one}" for one in problems))


def unknown_key(path: KeyPath) -> str:
    """What to say about a key that the schema does not know."""
    near = tree.suggestion(path)
    section = tree.dotted(path[:-1])
    known = ", ".join(tree.keys_of(path[:-1]))
    inside = f"keys of {section}" if section else "sections"
    hint = f"; did you mean {near}?" if near else ""
    return f"unknown key{hint}" + (f" ({inside}: {known})" if known else "")


def show(value: Any) -> str:
    """A value as it would stand in the file, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_part(loc: KeyPath, ends_unknown: bool) -> KeyPath:
    """The keys of a place; pydantic puts the tried types of a union among them."""
    path: KeyPath = ()
    for part in loc:
        if tree.node_at((*path, part)) is not None:
            path = (*path, part)
    return (*path, loc[-1]) if ends_unknown else path


def _where(path: KeyPath, source: Source, overridden: Collection[KeyPath]) -> str:
    here = tree.dotted(path) or "the whole file"
    if any(path[: len(one)] == one for one in overridden):
        return f"{here} (from --options)"
    line = source.lines.get(path)
    return here if line is None else f"{here} (line {line})"


def _what(path: KeyPath, detail: Any, is_default: bool) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"{unknown_key(path)}; its value is {show(value)}"
    if kind == "missing":
        return f"missing; it must be {tree.allowed(path)}"
    if kind == "value_error":
        reason = str(detail["ctx"]["error"])
        # A whole section does not help to see which of its values is wrong.
        if isinstance(value, dict):
            return reason
        value_text = f"the default {show(value)}" if is_default else show(value)
        return f"{value_text} is not allowed: {reason}"
    allowed = tree.allowed(path)
    return f"{show(value)} is not allowed; it must be {allowed or detail['msg']}"

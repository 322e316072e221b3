"""`key.sub=value` overrides from the command line."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import yaml

from NatureLM.config import tree
from NatureLM.config.problems import as_error, unknown_key
from NatureLM.config.source import KeyPath, Source, parse_value


class _NoPlaceError(ValueError):
    """There is nowhere to put the value of an override; the message says why."""


def apply_overrides(source: Source, options: Sequence[str]) -> tuple[Source, list[KeyPath]]:
    """A copy of `source` in which every `key.sub=value` is set, and the paths that were set.

    Values are YAML (`true`, `0.4`, `[a, b]`); where only a text is allowed, the value is taken as
    it stands. Items of lists are named by number: `extended.species.0.name=Wolf`. Later overrides
    win. Raises ConfigError for overrides without `=`, unknown keys and values that are no YAML.
    """
    data = copy.deepcopy(source.data)
    problems: list[str] = []
    paths: list[KeyPath] = []
    for option in options:
        key, equals, text = option.partition("=")
        path = _path(key)
        if not equals or not key.strip():
            problems.append(f"{option!r}: an override is written key.sub=value")
        elif tree.node_at(path) is None:
            problems.append(f"{tree.dotted(path)}: {unknown_key(path)}")
        else:
            try:
                _set(data, path, _value(path, text))
                paths.append(path)
            except _NoPlaceError as error:
                problems.append(f"{tree.dotted(path)}: {error}")
            except (yaml.YAMLError, ValueError):
                problems.append(
                    f"{tree.dotted(path)}: {text!r} is not valid YAML; "
                    f"it must be {tree.allowed(path)}"
                )
    if problems:
        raise as_error("--options", problems)
    return Source(source.name, data, source.lines), paths


def _path(key: str) -> KeyPath:
    parts = key.strip().replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _value(path: KeyPath, text: str) -> Any:
    """The value that `text` stands for at `path`; raises yaml.YAMLError or ValueError."""
    node = tree.node_at(path) or {}
    kinds = {one.get("type") for one in node.get("anyOf", [node])}
    if not kinds <= {"string", "null"}:
        return parse_value(text)
    # A prompt template such as {} is a text, whatever YAML makes of it.
    try:
        value = parse_value(text)
    except (yaml.YAMLError, ValueError):
        return text
    is_fit = isinstance(value, str) or (value is None and "null" in kinds)
    return value if is_fit else text


def _set(data: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set the value at `path`, making sections on the way."""
    place: Any = data
    for part, following in itertools.pairwise(path):
        is_new_section = isinstance(place, dict) and place.get(part) is None
        if is_new_section and isinstance(following, str):
            place[part] = {}
        place = _item(place, part)
    if isinstance(place, dict):
        place[path[-1]] = value
    else:
        _item(place, path[-1])
        place[path[-1]] = value


def _item(place: Any, part: str | int) -> Any:
    if isinstance(place, dict):
        return place.get(part)
    if isinstance(part, int) and isinstance(place, list):
        if part < len(place):
            return place[part]
        raise _NoPlaceError(f"there is no item {part}: the list has {len(place)}, counted from 0")
    if isinstance(part, int):
        raise _NoPlaceError("there is no list here to change: give the whole list")
    raise _NoPlaceError("there is no section here to set a key in")

"""Load, change and write configurations: the only way from a YAML file to a `Config`.

Every problem is named with its key, line, value and what is allowed (read from the JSON Schema of
`Config`).
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import logging
import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from NatureLM.config.schema import Config
from NatureLM.config.strict_yaml import (
    MAX_PROBLEMS,
    KeyPath,
    Source,
    character,
    dotted,
    parse_value,
    read_yaml,
)
from NatureLM.errors import ConfigError
from NatureLM.util import did_you_mean

logger = logging.getLogger(__name__)

Node = dict[str, Any]
Checked = TypeVar("Checked", bound=BaseModel)


def load_config(path: str | Path | None = None, options: Sequence[str] = ()) -> Config:
    """The checked configuration of a YAML file with overrides.

    path: a YAML file; None for the built-in defaults (the published settings)
    options: overrides such as `generate.num_beams=4`, the last one wins

    One warning is logged about keys that have no effect here. Raises ConfigError with all problems:
    file, key, line, value and what is allowed.
    """
    source = Source("built-in defaults", {}) if path is None else read_yaml(Path(path))
    source, overridden = apply_overrides(source, options)
    # A section whose keys are all commented out is null in YAML.
    sections = Config.model_fields
    data = {k: value for k, value in source.data.items() if value is not None or k not in sections}
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise explain(error, source, overridden) from None
    without_effect = list(_ignored(config))
    if without_effect:
        logger.warning(
            "%s: accepted, but without effect here: %s", source.name, "; ".join(without_effect)
        )
    return config


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    data = _without_unset(config)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


_LEFT_OUT = ("revision", "weights_hash", "quantize")  # where they say nothing


def _without_unset(section: BaseModel) -> dict[str, Any]:
    """Plain data of a section; sections and keys without effect that are not set are left out."""
    data: dict[str, Any] = {}
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            data[key] = _without_unset(value)
        elif value is not None or not (
            key in Config.model_fields or key in _LEFT_OUT or _reason(info)
        ):
            data[key] = section.model_dump(mode="json", include={key})[key]
    return data


def _reason(field: FieldInfo) -> str | None:
    """Why a key has no effect here, or None for a key that has one."""
    extra = field.json_schema_extra
    return str(extra["ignored"]) if isinstance(extra, dict) and "ignored" in extra else None


def _ignored(section: BaseModel, path: KeyPath = ()) -> Iterator[str]:
    """The keys that are set and have no effect, each with the reason."""
    reasons: dict[str, list[str]] = {}
    for key in section.model_fields_set:
        value = getattr(section, key)
        here = (*path, key)
        reason = _reason(type(section).model_fields[key])
        if isinstance(value, BaseModel):
            yield from _ignored(value, here)
        elif reason is not None and value not in (None, ""):
            reasons.setdefault(reason, []).append(dotted(here))
    for reason, keys in sorted(reasons.items(), key=lambda item: sorted(item[1])):
        yield f"{', '.join(sorted(keys))} ({reason})"


# What may stand where: the JSON Schema


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
        node = None if node is None else _child(node, part)
    return None if node is None else _resolve(node)


def out_of_bounds(path: KeyPath, value: float) -> str | None:
    """What may stand at `path`, in words, where a number is outside of its bounds or is none."""
    node = node_at(path) or {}
    good = {
        "minimum": value >= node.get("minimum", value),
        "exclusiveMinimum": value > node.get("exclusiveMinimum", -math.inf),
        "maximum": value <= node.get("maximum", value),
    }
    return None if all(good.values()) and math.isfinite(value) else describe(node)


def keys_of(path: KeyPath) -> list[str]:
    """The known keys of the section at `path`, those without effect left out."""
    node = node_at(path)
    return [] if node is None else [k for k, v in _properties(node).items() if "ignored" not in v]


def suggestion(path: KeyPath) -> str | None:
    """The known key that an unknown one at `path` most likely means, dotted.

    A near spelling in the same section first, then the same or a near word anywhere.
    """
    section = path[:-1]
    for known in ([(*section, key) for key in keys_of(section)], _all_keys()):
        by_word: dict[str, KeyPath] = {}
        for place in known:
            by_word.setdefault(_spelling(place), place)
        near = difflib.get_close_matches(_spelling(path), list(by_word), 1, 0.7)
        if near:
            return dotted(by_word[near[0]])
    return None


def _spelling(path: KeyPath) -> str:
    return str(path[-1]).lower().replace("-", "_")


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


def allowed_values(path: KeyPath) -> str | None:
    """What may stand at `path`, in words: `an integer, at least 1`."""
    node = node_at(path)
    return None if node is None else describe(node)


def describe(node: Node) -> str:
    """What a node of a JSON Schema allows, in words: `an integer, at least 1`."""
    if "allowed" in node:
        return str(node["allowed"])
    # null stands last: `a number above 0, or null`
    choices = sorted(_choices(node), key=lambda one: one.get("type") == "null")
    return ", or ".join(map(_describe_one, choices))


_KINDS = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "string": "a string",
    "null": "null",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _describe_one(node: Node) -> str:
    if "enum" in node:
        choices = (one if isinstance(one, str) else json.dumps(one) for one in node["enum"])
        return "one of " + ", ".join(choices)
    if isinstance(node.get("additionalProperties"), dict):
        return f"a mapping of names, each {describe(node['additionalProperties'])}"
    if "properties" in node:
        return "a section with keys such as " + ", ".join(list(node["properties"])[:3])
    kind = node.get("type")
    if kind == "array":
        size = "a list with at least one item" if node.get("minItems") else "a list"
        return f"{size}, each {describe(node.get('items', {}))}"
    if kind == "string" and node.get("minLength"):
        return "a string that is not empty"
    bounds = " and ".join(
        f"{word} {_number(node[key])}" for key, word in _BOUNDS.items() if key in node
    )
    return _KINDS.get(str(kind), "any value") + (f", {bounds}" if bounds else "")


# Problems in words


def explain(error: ValidationError, source: Source, overridden: Collection[KeyPath]) -> ConfigError:
    """One ConfigError that lists all problems of a configuration."""
    problems: dict[str, None] = {}
    for detail in error.errors(include_url=False):
        path: KeyPath = ()
        for part in detail["loc"]:  # pydantic puts the tried types of a union among the keys
            if node_at((*path, part)) is not None:
                path = (*path, part)
        if detail["type"] == "extra_forbidden":
            path = (*path, detail["loc"][-1])
        where = source.place(path) or "the whole file"
        if any(path[: len(one)] == one for one in overridden):
            where = f"{dotted(path)} (from --options)"
        is_default = path not in source.lines and path not in overridden
        problems[f"{where}: {_what(path, detail, is_default)}"] = None
        if len(problems) == MAX_PROBLEMS:
            break
    return as_error(source.name, list(problems))


def checked(kind: type[Checked], source: Source, problem: Callable[[Any, Source], str]) -> Checked:
    """What a file of another kind holds.

    problem: puts an error of pydantic into words

    Raises ConfigError with all problems.
    """
    try:
        return kind.model_validate(source.data)
    except ValidationError as error:
        details = error.errors(include_url=False)[:MAX_PROBLEMS]
        problems = dict.fromkeys(problem(detail, source) for detail in details)
        raise as_error(source.name, list(problems)) from None


def not_among(word: str, known: Collection[str], value: Any) -> str:
    """What to say about an unknown key of such a file; `word` is what it may have meant to be."""
    hint = did_you_mean(word, known, "{}")
    return f"unknown key{hint} (keys here: {', '.join(known)}); its value is {show(value)}"


def as_error(name: str, problems: list[str]) -> ConfigError:
    """ConfigError with one problem on a line each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    if len(problems) >= MAX_PROBLEMS:
        count = f"{MAX_PROBLEMS} problems or more"
    return ConfigError(f"{name}: {count}\n" + "\n".join(f"  - {one}" for one in problems))


def unknown_key(path: KeyPath) -> str:
    """What to say about a key that the schema does not know."""
    near = suggestion(path)
    section = dotted(path[:-1])
    known = ", ".join(keys_of(path[:-1]))
    inside = f"keys of {section}" if section else "sections"
    hint = f"; did you mean {near}?" if near else ""
    # Such as spaces of another kind, from a page or a table.
    unseen = [one for one in str(path[-1]) if unicodedata.category(one) in ("Cc", "Cf", "Zs")]
    if set(unseen) - {" "}:
        hint = f"; it holds {character(min(set(unseen) - {' '}))}{hint}"
    return f"unknown key{hint}" + (f" ({inside}: {known})" if known else "")


def show(value: Any) -> str:
    """A value as it would stand in the file, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _what(path: KeyPath, detail: Any, is_default: bool) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"{unknown_key(path)}; its value is {show(value)}"
    if kind == "missing":
        return f"missing; it must be {allowed_values(path)}"
    if kind == "value_error":
        reason = str(detail["ctx"]["error"])
        # A whole section does not help to see which of its values is wrong.
        if isinstance(value, dict):
            return reason
        value_text = f"the default {show(value)}" if is_default else show(value)
        return f"{value_text} is not allowed: {reason}"
    allowed = allowed_values(path)
    return f"{show(value)} is not allowed; it must be {allowed or detail['msg']}"


# Overrides


def apply_overrides(source: Source, options: Sequence[str]) -> tuple[Source, list[KeyPath]]:
    """A copy of `source` in which every `key.sub=value` is set, and the paths that were set.

    Values are YAML (`true`, `0.4`, `[a, b]`); where only a string is allowed, the value is taken as
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
        elif node_at(path) is None:
            problems.append(f"{dotted(path)}: {unknown_key(path)}")
        else:
            try:
                _set(data, path, _value(path, text))
                paths.append(path)
            except LookupError as error:
                problems.append(f"{dotted(path)}: {error}")
            except (yaml.YAMLError, ValueError):
                cut = text if len(text) <= 60 else text[:57] + "..."
                problems.append(
                    f"{dotted(path)}: {cut!r} is not valid YAML; it must be {allowed_values(path)}"
                )
    if problems:
        raise as_error("--options", problems)
    return Source(source.name, data, source.lines), paths


def _path(key: str) -> KeyPath:
    parts = key.strip().replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


def _value(path: KeyPath, text: str) -> Any:
    """The value that `text` stands for at `path`; raises yaml.YAMLError or ValueError."""
    node = node_at(path) or {}
    kinds = {one.get("type") for one in node.get("anyOf", [node])}
    if not kinds <= {"string", "null"}:
        return parse_value(text)
    # A prompt template such as {} is a string, whatever YAML makes of it.
    try:
        value = parse_value(text)
    except (yaml.YAMLError, ValueError):
        return text
    is_fit = isinstance(value, str) or (value is None and "null" in kinds)
    return value if is_fit else text


def _set(data: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set the value at `path`, making sections on the way; LookupError says why that cannot be."""
    place: Any = data
    for part, following in itertools.pairwise((*path, None)):
        if isinstance(place, list) and isinstance(part, int):
            if part >= len(place):
                raise LookupError(
                    f"there is no item {part}: the list has {len(place)}, counted from 0"
                )
        elif isinstance(part, int) and not isinstance(place, dict):
            raise LookupError("there is no list here to change: give the whole list")
        elif not isinstance(place, dict):
            raise LookupError("there is no section here to set a key in")
        elif isinstance(following, str) and place.get(part) is None:
            place[part] = {}
        if following is None:
            place[part] = value
        else:
            place = place.get(part) if isinstance(place, dict) else place[part]

"""YAML text into plain data, with the line of every key.

Stricter than plain YAML: a key that stands twice in a section is refused, because one of the two
values would be lost. Friendlier too: `9e-5` is a number, as people mean it (YAML 1.1 reads a text).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from NatureLM.errors import ConfigError

KeyPath = tuple[str | int, ...]


@dataclass
class Source:
    """What a configuration was read from.

    name: how messages call it
    data: plain dicts, lists and values
    lines: line number of each key and list item
    """

    name: str
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """Safe YAML, in which a number with an exponent needs neither a point nor a sign."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_value(text: str) -> Any:
    """Value of a piece of YAML such as `4`, `true`, `[0.1, 0.2]`; raises yaml.YAMLError."""
    # The loader is a subclass of SafeLoader: it makes nothing but plain data.
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> Source:
    """Read a configuration file.

    Raises ConfigError, which names the file and where possible the line: no such file, not
    readable, not UTF-8, not YAML, a key twice, not a mapping at the top.
    """
    name = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{name}: there is no such configuration file") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a folder, not a configuration file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: is not a text file in UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror}") from None
    return _parse(name, text)


def _parse(name: str, text: str) -> Source:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        if node is not None:
            _walk(node, (), lines, name, [])
        data = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_message(name, error)) from None
    except ValueError as error:  # such as the date 2024-13-45
        raise ConfigError(f"{name}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: is nested too deeply") from None
    finally:
        loader.dispose()
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{name}: a configuration is a mapping with sections such as `generate:`, "
            f"and this file holds a {'list' if isinstance(data, list) else 'single value'}"
        )
    return Source(name, data, lines)


def _walk(
    node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str, above: list[yaml.Node]
) -> None:
    """Note the line of every key below `node`, and refuse keys that stand twice."""
    if node in above:
        raise ConfigError(f"{name}, line {_line(node)}: this alias contains itself")
    above = [*above, node]
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            place: KeyPath = (*path, i)
            lines[place] = _line(item)
            _walk(item, place, lines, name, above)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            word = key.value if isinstance(key, yaml.ScalarNode) else str(key.tag)
            if word in seen:
                here = ".".join(str(part) for part in (*path, word))
                raise ConfigError(
                    f"{name}, line {_line(key)}: the key {here} stands twice "
                    f"(first in line {seen[word]}); keep one of them"
                )
            seen[word] = _line(key)
            place = (*path, word)
            lines[place] = _line(key)
            _walk(value, place, lines, name, above)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_message(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{name}{where}: not valid YAML: {problem}{f' ({context})' if context else ''}"

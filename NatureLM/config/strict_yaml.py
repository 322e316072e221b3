"""Read a YAML file into plain values, and remember the line of each.

Stricter than YAML 1.1: a key that stands twice in a section is refused, because one of the two
values would be lost; and friendlier: `9e-5` is a number. What no human would write (megabytes,
values within values) is refused before it is built.
"""

from __future__ import annotations

import ast
import codecs
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from NatureLM.errors import ConfigError
from NatureLM.util import format_bytes

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

    def place(self, path: KeyPath) -> str:
        """`columns.bird.type (line 7)`."""
        line = self.lines.get(path)
        return dotted(path) if line is None else f"{dotted(path)} (line {line})"


MAX_BYTES, MAX_VALUES, MAX_DEPTH, MAX_NUMBER = 4_000_000, 50_000, 50, 64
"""Of a file of YAML: bytes, values (an alias counts as all that it stands for), values within each
other, characters of a number. What people write is far below."""
_LEVELS = "levels of values within each other"
MAX_PROBLEMS = 100  # that are told
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _TooMuch(yaml.MarkedYAMLError):
    """More than the bounds allow."""


class _Loader(yaml.SafeLoader):
    """Safe YAML, in which a number with an exponent needs neither a point nor a sign, and of which
    no more is read than the bounds allow."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}  # values in a node, and their depth
        self._level = 0  # how many nodes are being made, each within the one before

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, measured once: what an alias stands for is not gone into again."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark, is_alias = event.start_mark, isinstance(event, yaml.AliasEvent)
        self._level += 1
        if self._level > MAX_DEPTH:  # not gone into: a level takes longer the deeper it is
            raise _too_much(MAX_DEPTH, _LEVELS, mark)
        node: Any = super().compose_node(parent, index)
        self._level -= 1
        if not is_alias:
            inside = [self._sizes[one] for one in _below(node)]
            depth = 1 + max((depth for _, depth in inside), default=0)
            self._sizes[node] = 1 + sum(size for size, _ in inside), depth
        elif node not in self._sizes:
            raise yaml.MarkedYAMLError(problem="this alias contains itself", problem_mark=mark)
        size, depth = self._sizes[node]
        for what, found, most in (
            (
                "values, counted with what aliases stand for",
                max(size, len(self._sizes)),
                MAX_VALUES,
            ),
            (_LEVELS, depth, MAX_DEPTH),
            ("characters in a number", len(node.value) * (node.tag in _NUMBERS), MAX_NUMBER),
        ):
            if found > most:
                raise _too_much(most, what, mark)
        return node


def _too_much(most: int, what: str, mark: Any) -> _TooMuch:
    """More of something than is allowed, and where."""
    problem = f"there are more than {most} {what}; no more are allowed"
    return _TooMuch(problem=problem, problem_mark=mark)


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    """The items, or keys and values, of a node."""
    if not isinstance(node, yaml.ScalarNode):
        for item in node.value:
            yield from item if isinstance(item, tuple) else (item,)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_value(text: str) -> Any:
    """Value of a piece of YAML such as `4`, `true`, `[0.1, 0.2]`; raises yaml.YAMLError."""
    try:
        # The loader is a subclass of SafeLoader: it makes nothing but plain data.
        return yaml.load(text, Loader=_Loader)
    except (*_NO_VALUE, RecursionError) as error:
        raise yaml.YAMLError(_why(error)) from None


def read_yaml(
    path: Path, what: str = "configuration", keys: str = "sections such as `generate:`"
) -> Source:
    """Read a configuration file, or another one of YAML.

    what, keys: how messages call it, and what is at its top

    Raises ConfigError, which names the file and where possible the line: no such file, not
    readable, not UTF-8, not YAML, too much of it, a key twice, not a mapping at the top.
    """
    name = str(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name}: there is no such {what} file") from None
    except IsADirectoryError:
        raise ConfigError(f"{name}: is a folder, not a {what} file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name}: cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        most = format_bytes(MAX_BYTES)
        raise ConfigError(f"{name}: is no {what}: it holds more than {most}")
    marked = next((one for mark, one in _MARKS.items() if data.startswith(mark)), None)
    try:
        text = data.decode(marked or "utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(data[: error.start].decode(marked or "utf-8-sig", "ignore"))
        byte = f"the byte 0x{data[error.start]:02X}"
        raise ConfigError(
            f"{name}, {place}: is not a text file in {(marked or 'utf-8').upper()} ({byte}): save "
            "it as UTF-8"
        ) from None
    return _parse(name, text, what, keys)


_MARKS = {  # the longer first: one begins with another
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_CONTROLS = (  # which Unicode gives no name of their own
    "NULL,START OF HEADING,START OF TEXT,END OF TEXT,END OF TRANSMISSION,ENQUIRY,ACKNOWLEDGE,ALERT,"
    "BACKSPACE,TAB,LINE FEED,LINE TABULATION,FORM FEED,CARRIAGE RETURN,SHIFT OUT,SHIFT IN,"
    "DATA LINK ESCAPE,DEVICE CONTROL ONE,DEVICE CONTROL TWO,DEVICE CONTROL THREE,"
    "DEVICE CONTROL FOUR,NEGATIVE ACKNOWLEDGE,SYNCHRONOUS IDLE,END OF TRANSMISSION BLOCK,CANCEL,"
    "END OF MEDIUM,SUBSTITUTE,ESCAPE,INFORMATION SEPARATOR FOUR,INFORMATION SEPARATOR THREE,"
    "INFORMATION SEPARATOR TWO,INFORMATION SEPARATOR ONE"
)
_NO_VALUE = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)
"""What PyYAML lets through where a value is of no use, such as the date 2024-13-45."""


def character(char: str) -> str:
    """What to call a character that cannot be seen: `U+000C FORM FEED`."""
    code = ord(char)
    kinds = {"Cc": "CONTROL CHARACTER", "Cs": "HALF OF A CHARACTER"}
    name = _CONTROLS.split(",")[code] if code < 32 else unicodedata.name(char, "")
    return f"U+{code:04X} {name or kinds.get(unicodedata.category(char), 'NO CHARACTER')}"


def _place(before: str) -> str:
    """Line and column of what comes behind some text."""
    lines = f"{before}x".splitlines()
    return f"line {len(lines)}, column {len(lines[-1])}"


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else "the value does not fit its tag"


def _parse(name: str, text: str, what: str, keys: str) -> Source:
    source = Source(name, {})
    found = _Loader.NON_PRINTABLE.search(text) or re.search("\ufeff", text)
    if found is not None:
        raise ConfigError(
            f"{name}, {_place(text[: found.start()])}: not valid YAML: the character "
            f"{character(found[0])} may not stand there; take it out"
        )
    loader, node = _Loader(text), None
    try:
        node = loader.get_single_node()
        if node is not None:
            _walk(node, (), source)
            data = loader.construct_document(node)
            source.data = {} if data is None else data
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_message(name, error)) from None
    except _NO_VALUE as error:
        bad = None if node is None else _no_value(loader, node, set())
        line, column = (loader.line, loader.column) if bad is None else _mark(bad)
        raise ConfigError(f"{name}, line {line + 1}, column {column + 1}: {_why(error)}") from None
    except RecursionError:
        raise ConfigError(f"{name}: is nested too deeply") from None
    finally:
        loader.dispose()
    if not isinstance(source.data, dict):
        raise ConfigError(
            f"{name}: a {what} is a mapping with {keys}, "
            f"and this file holds a {'list' if isinstance(source.data, list) else 'single value'}"
        )
    return source


def _no_value(loader: _Loader, node: yaml.Node, seen: set[int]) -> yaml.Node | None:
    """The first scalar at or below `node` that no value can be made of."""
    if id(node) in seen:
        return None
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        loader.recursive_objects.clear()  # of the attempt that failed
        try:
            loader.construct_object(node)
        except _NO_VALUE:
            return node
        return None
    return next((bad for one in _below(node) if (bad := _no_value(loader, one, seen))), None)


def _mark(node: yaml.Node) -> tuple[int, int]:
    return int(node.start_mark.line), int(node.start_mark.column)


def _check_text(node: yaml.Node, source: Source) -> None:
    """Join halves of characters, as JSON escapes them; no value may hold a single one, or NULL."""
    if not isinstance(node, yaml.ScalarNode):
        return
    node.value = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    bad = re.search("[\0\ud800-\udfff]", node.value)
    if bad is not None:
        line, column = _mark(node)
        raise ConfigError(
            f"{source.name}, line {line + 1}, column {column + 1}: the value holds "
            f"{character(bad[0])}, which no text here may hold; take it out"
        )


def _walk(node: yaml.Node, path: KeyPath, source: Source) -> None:
    """Note the line of every key below `node`, and refuse keys that stand twice."""
    items: list[tuple[str | int, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.SequenceNode):
        items = [(i, item, item) for i, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag != "tag:yaml.org,2002:merge":
                word = key.value if isinstance(key, yaml.ScalarNode) else str(key.tag)
                items.append((word, key, value))
    seen: dict[str | int, int] = {}
    for part, key, value in items:
        place = (*path, part)
        if part in seen:
            raise ConfigError(
                f"{source.name}, line {_line(key)}: the key {'.'.join(map(str, place))} stands "
                f"twice (first in line {seen[part]}); keep one of them"
            )
        _check_text(key, source)
        _check_text(value, source)
        seen[part] = source.lines[place] = _line(key)
        _walk(value, place, source)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_message(name: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    context = getattr(error, "context", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    hint = next((hint for word, hint in _HINTS.items() if word in str(problem)), "")
    problem = re.sub(r"'\\[^']+'", lambda one: character(ast.literal_eval(one[0])), str(problem))
    if isinstance(error, _TooMuch):
        return f"{name}{where}: {problem}"
    return f"{name}{where}: not valid YAML: {problem}{f' ({context})' if context else ''}{hint}"


_HINTS = {
    "but got '?'": "; within { } a text with a question mark stands in quotes",
    r"character '\t'": "; indent with spaces",
    "escape": "; in double quotes a backslash begins an escape: write it in single quotes",
}


def dotted(path: KeyPath) -> str:
    """`extended.species[0].name` for ("extended", "species", 0, "name")."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text

"""The names under which labels are scored, and the errors of lines that cannot be scored.

The published benchmark asks one of its data sets for common names, for scientific ones and for
both. A rule such as `query=1:scientific` says under which names the labels of some rows are scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from NatureLM.errors import UsageError
from NatureLM.util import did_you_mean

OnError = Literal["fail", "skip"]


class InvalidRow(Exception):  # noqa: N818 (caught where file and line are known)
    """A value of a row cannot be used.

    kind: a few words that are the same for all rows with the same fault
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Problem:
    """One line that cannot be scored.

    line: counts from 1; None where the whole file is meant
    kind: a few words that are the same for all problems of the kind
    group: the data set and the values of the grouping columns, where the line still tells
    """

    path: str
    line: int | None
    kind: str
    message: str
    group: tuple[object, ...] | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.message}"


NameKind = Literal["common", "scientific", "both"]


@dataclass(frozen=True)
class NameRule:
    """Where `column` has `value`, labels are scored under these names.

    kind: "common" leaves labels as they are, "scientific" replaces them, "both" makes
        "scientific : common"
    """

    column: str
    value: str
    kind: NameKind

    def applies_to(self, row: Mapping[str, Any]) -> bool:
        """Whether a row with these values of the grouping columns is meant."""
        return self.column in row and means_value(self.value, row[self.column])

    def __str__(self) -> str:
        return f"{self.column}={self.value}:{self.kind}"


def parse_rules(texts: Iterable[str]) -> tuple[NameRule, ...]:
    """Rules written as `query=1:scientific`.

    Raises UsageError for other strings, and where two rules contradict each other.
    """
    rules: dict[tuple[str, str], NameRule] = {}
    for rule in map(_parse_rule, texts):
        other = rules.setdefault((rule.column, rule.value), rule)
        if other != rule:
            raise UsageError(f"--names {rule} contradicts --names {other}")
    return tuple(rules.values())


def _parse_rule(text: str) -> NameRule:
    column, equals, rest = text.partition("=")
    value, colon, kind = rest.rpartition(":")
    if not (equals and colon and column.strip() and value.strip()):
        raise UsageError(f"--names {text}: write it as query=1:scientific")
    kinds = get_args(NameKind)
    if kind.strip() not in kinds:
        raise UsageError(f"--names {text}: {kind!r} is no kind of names; take {', '.join(kinds)}")
    return NameRule(column.strip(), value.strip(), kind.strip())  # type: ignore[arg-type]


def refuse_unused_rules(
    rules: Sequence[NameRule], used: set[NameRule], seen: Mapping[str, set[Any]]
) -> None:
    """Raise UsageError for a rule that applies to no row.

    seen: the values that there are, by column
    """
    for rule in rules:
        if rule not in used:
            values = ", ".join(sorted(map(str, seen.get(rule.column, ())))[:12])
            raise UsageError(f"--names {rule}: no row has it; {rule.column} is one of {values}")


def means_value(text: str, value: Any) -> bool:
    """Whether a string on the command line means this value of a row: "1" means 1, 1.0 and "1"."""
    if value is None:
        return text == "null"
    if isinstance(value, str):
        return value == text
    try:
        return float(text) == float(value)
    except ValueError:
        return False


def read_map(path: str | Path) -> dict[str, str]:
    """A JSON object from label to scientific name; raises UsageError for anything else."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UsageError(f"{path}: is no JSON ({error})") from None
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise UsageError(f"{path}: an object from label to scientific name is needed")
    return content


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Labels, one a line; empty lines are skipped. Raises UsageError where there are none."""
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a list of labels ({error})") from None
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise UsageError(f"{path}: holds no label; write one a line")
    return tuple(dict.fromkeys(labels))


def rename(label: str, kind: NameKind, scientific: Mapping[str, str]) -> str:
    """The label under its other names; raises InvalidRow if it has none."""
    if kind == "common":
        return label
    if label not in scientific:
        hint = did_you_mean(label, scientific)
        raise InvalidRow("no scientific name", f"{label!r} has no scientific name{hint}")
    return scientific[label] if kind == "scientific" else f"{scientific[label]} : {label}"

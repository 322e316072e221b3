"""What is wrong with a line of answers, and the errors that say so.

Other names of labels: common names to scientific ones, or to both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.util import did_you_mean

OnError = Literal["fail", "skip"]


class ScoringError(NatureLMError):
    """Answers cannot be scored as they stand."""


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


class InvalidRow(Exception):  # noqa: N818 (caught where the place is known)
    """A value of a line cannot be used; whoever knows file and line makes a `Problem` of it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass
class Problems:
    """Collects what is wrong, or stops at the first with `on_error="fail"`."""

    on_error: OnError = "fail"
    found: list[Problem] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """Note a problem; raises ScoringError where problems end the work."""
        if self.on_error == "fail":
            raise ScoringError(f"{problem} (--on-error skip leaves such lines out and counts them)")
        self.found.append(problem)

    def __len__(self) -> int:
        return len(self.found)

    def kinds(self) -> dict[str, int]:
        """How many there are of each kind, by name."""
        return dict(sorted(Counter(problem.kind for problem in self.found).items()))


Kind = Literal["common", "scientific", "both"]


@dataclass(frozen=True)
class NameRule:
    """Where `column` has `value`, labels are scored under these names.

    kind: "common" leaves labels as they are, "scientific" replaces them, "both" makes
        "scientific : common"
    """

    column: str
    value: str
    kind: Kind

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row with these values of the grouping columns is meant."""
        return self.column in row and same(row[self.column], self.value)

    def __str__(self) -> str:
        return f"{self.column}={self.value}:{self.kind}"


def parse_rule(text: str) -> NameRule:
    """The rule of a text such as `query=1:scientific`; raises UsageError for others."""
    column, equals, rest = text.partition("=")
    value, colon, kind = rest.rpartition(":")
    if not (equals and colon and column.strip() and value.strip()):
        raise UsageError(f"--names {text}: write it as query=1:scientific")
    kinds = get_args(Kind)
    if kind.strip() not in kinds:
        raise UsageError(f"--names {text}: {kind!r} is no kind of names; take {', '.join(kinds)}")
    return NameRule(column.strip(), value.strip(), kind.strip())  # type: ignore[arg-type]


def parse_rules(texts: Iterable[str]) -> tuple[NameRule, ...]:
    """All rules; raises UsageError where two say different things about the same rows."""
    rules: dict[tuple[str, str], NameRule] = {}
    for rule in map(parse_rule, texts):
        other = rules.setdefault((rule.column, rule.value), rule)
        if other != rule:
            raise UsageError(f"--names {rule} contradicts --names {other}")
    return tuple(rules.values())


def same(value: Any, text: str) -> bool:
    """Whether a text on the command line means this value of a row: 1, 1.0 and "1" are the same."""
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
    """Labels, one a line; empty lines are passed over. Raises UsageError where there are none."""
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a list of labels ({error})") from None
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise UsageError(f"{path}: holds no label; write one a line")
    return tuple(dict.fromkeys(labels))


def renamed(label: str, kind: Kind, scientific: Mapping[str, str]) -> str:
    """The label under its other names; raises Unusable if it has none."""
    if kind == "common":
        return label
    if label not in scientific:
        raise InvalidRow(
            "no scientific name",
            f"{label!r} has no scientific name{did_you_mean(label, scientific)}",
        )
    return scientific[label] if kind == "scientific" else f"{scientific[label]} : {label}"


def refuse_idle_rules(
    rules: Sequence[NameRule], used: set[NameRule], seen: Mapping[str, set[Any]]
) -> None:
    """Raise UsageError for a rule that no row fits, with the values that there are."""
    for rule in rules:
        if rule not in used:
            values = ", ".join(sorted(map(str, seen.get(rule.column, ())))[:12])
            raise UsageError(f"--names {rule}: no row has it; {rule.column} is one of {values}")

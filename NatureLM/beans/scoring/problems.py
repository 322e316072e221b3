"""What is wrong with a line of answers, and the errors that say so."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from NatureLM.errors import NatureLMError

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


class Unusable(Exception):  # noqa: N818 (caught where the place is known)
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

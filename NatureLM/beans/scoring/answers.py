"""Answers in columns, group by group: what reading files of answers leaves in memory.

Texts are kept once each, rows are numbers, so 100,000 answers take a few megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from NatureLM.beans.components import Task
from NatureLM.beans.scoring.names import Kind, NameRule

Value: TypeAlias = str | int | float | None
Key: TypeAlias = tuple[Value, ...]
"""The data set and the values of the grouping columns."""

DEFAULT_BY = ("query", "lora_scale")
CLUSTER_COLUMNS = ("cluster", "family", "recording")
BY_SAMPLE = "sample"


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    by: columns that make groups besides the data set; None takes those of `query` and `lora_scale`
        that the first row has
    labels: all that may be right; None allows any
    rules, scientific: the names under which labels are scored
    cluster: column of the clusters for intervals; None takes `cluster`, `family` or `recording`
        where all rows of a group have it
    task: of data sets that are no component of the benchmark
    where: only rows with these values are read
    apart: columns that make no groups, besides those of `where`, though they are among the default
    """

    by: tuple[str, ...] | None = None
    labels: tuple[str, ...] | None = None
    rules: tuple[NameRule, ...] = ()
    scientific: Mapping[str, str] = field(default_factory=dict)
    cluster: str | None = None
    task: Task | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()


class Vocabulary:
    """Distinct texts and their numbers."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The text's number, a new one for a new text."""
        number = self._number.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


@dataclass
class Group:
    """The answers of one data set, query, alpha ...; row by row.

    names: the kind of names that its labels have been given
    prompt: the complete text that the first of its rows was asked, where rows tell
    """

    key: Key
    task: Task
    names: Kind = "common"
    prompt: str | None = None
    ids: list[str] = field(default_factory=list)
    answers: array[int] = field(default_factory=lambda: array("i"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    clusters: list[str | None] = field(default_factory=list)
    cluster_by: str = BY_SAMPLE

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Answers:
    """All answers: groups in sorted order, texts by number."""

    by: tuple[str, ...]
    groups: list[Group]
    texts: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return sum(map(len, self.groups))


def parts(label: str) -> list[str]:
    """The labels that a label of a detection task names."""
    return [part for part in (part.strip() for part in label.split(",")) if part]


def sort_key(key: Key) -> tuple[tuple[int, float, str], ...]:
    """Sorts keys of mixed values: null, numbers, then texts."""
    return tuple(
        (0, 0.0, "") if v is None else (2, 0.0, v) if isinstance(v, str) else (1, float(v), "")
        for v in key
    )


def settle(group: Group, cluster: str | None) -> None:
    """Bring rows into the order of their ids, so that the order of lines changes nothing.

    cluster: the column of the clusters that was asked for
    """
    order = sorted(range(len(group)), key=group.ids.__getitem__)
    group.ids = [group.ids[i] for i in order]
    group.answers = array("i", (group.answers[i] for i in order))
    group.labels = array("i", (group.labels[i] for i in order))
    group.clusters = [group.clusters[i] for i in order]
    columns = {None if one is None else one.partition("\n")[0] for one in group.clusters}
    if len(columns) == 1 and None not in columns:
        group.cluster_by = next(iter(columns)) or BY_SAMPLE
    elif cluster is None:
        group.clusters = [None] * len(order)

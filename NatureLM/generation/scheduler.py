"""Which rows run together: batches filled by tokens, with what their prompts share found out.

A prompt is a sequence of pieces: token ids, and audio as one piece of many positions. Rows of one α
share keys and values as far as their pieces are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from torch import Tensor

from NatureLM.generation.prefill import SharedStart
from NatureLM.generation.requests import Request

_LARGEST_GROUP = 64  # rows that are looked at together for a shared beginning
_SHORTEST_START = 8  # positions below which sharing is not worth a pass of its own


@dataclass(frozen=True)
class Row:
    """A request that is ready to run.

    parts: token ids between the audios; audios_QD: the audio embeddings between them
    pieces: the prompt in pieces: token ids, and -1 - n for audio number n
    ends: positions up to the end of each piece
    """

    request: Request
    parts: tuple[tuple[int, ...], ...]
    audios_QD: tuple[Tensor, ...]
    pieces: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def length(self) -> int:
        """Positions of the prompt."""
        return self.ends[-1]


@dataclass(frozen=True)
class Batch:
    """Rows that run together; `shared` are those that begin alike."""

    rows: tuple[Row, ...]
    shared: tuple[SharedStart, ...]


@dataclass(frozen=True)
class Budget:
    """How large a batch may be: rows x beams x (prompt + new tokens) up to `tokens`.

    most_rows: how many rows it may have, however short they are; None for any number
    """

    tokens: int
    num_beams: int
    new_tokens: int
    most_rows: int | None = None

    def rows(self, length: int) -> int:
        """How many rows with prompts of `length` positions fit; at least one."""
        rows = max(1, self.tokens // (self.num_beams * (length + self.new_tokens)))
        return rows if self.most_rows is None else min(rows, self.most_rows)

    def within(self, rows: int) -> Budget:
        """The same for batches of at most so many rows."""
        most = rows if self.most_rows is None else min(rows, self.most_rows)
        return replace(self, most_rows=most)


@dataclass(frozen=True)
class _Group:
    """Rows whose first `start` positions are shared."""

    rows: tuple[Row, ...]
    start: int

    @property
    def length(self) -> int:
        return max(row.length for row in self.rows)

    def cut(self, size: int) -> list[_Group]:
        """The group in parts of at most `size` rows."""
        parts = [self.rows[first : first + size] for first in range(0, len(self.rows), size)]
        return [_Group(part, self.start if len(part) > 1 else 0) for part in parts]


def plan_batches(rows: Sequence[Row], budget: Budget) -> list[Batch]:
    """Put rows into batches, the shortest prompts first. The order of the rows does not matter."""
    groups = [part for group in _groups(rows) for part in group.cut(budget.rows(group.length))]
    groups.sort(key=lambda group: (group.length, group.start))
    batches: list[list[_Group]] = []
    filled = 0
    for group in groups:
        filled += len(group.rows)
        if not batches or filled > budget.rows(group.length):
            batches.append([])
            filled = len(group.rows)
        batches[-1].append(group)
    return [_batch(batch) for batch in batches]


def _batch(groups: Sequence[_Group]) -> Batch:
    rows: list[Row] = []
    shared: list[SharedStart] = []
    for group in groups:
        if group.start:
            places = tuple(range(len(rows), len(rows) + len(group.rows)))
            shared.append(SharedStart(places, group.start))
        rows += group.rows
    return Batch(tuple(rows), tuple(shared))


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """The grouping by shared beginnings that leaves the fewest positions to run."""
    ordered = sorted(rows, key=lambda row: (row.request.alpha, row.pieces))
    groups: list[_Group] = []
    for _, same_alpha in groupby(ordered, key=lambda row: row.request.alpha):
        groups += _cheapest(list(same_alpha))
    return groups


def _cheapest(rows: Sequence[Row]) -> list[_Group]:
    """Cut a sorted list of rows of one α: best[i] is the least cost of the first i rows."""
    common = [0, *(_common(a, b) for a, b in pairwise(rows))]
    best: list[tuple[int, int, int]] = [(0, 0, 0)]  # cost, where the last group begins, its start
    for end in range(1, len(rows) + 1):
        start = rows[end - 1].length
        total = 0
        choices = []
        for first in range(end - 1, max(-1, end - 1 - _LARGEST_GROUP), -1):
            total += rows[first].length
            size = end - first
            start = start if size == 1 else min(start, common[first + 1])
            if size > 1 and start < _SHORTEST_START:
                break
            saved = (size - 1) * start
            choices.append((best[first][0] + total - saved, first, start if size > 1 else 0))
        best.append(min(choices))
    groups: list[_Group] = []
    end = len(rows)
    while end:
        _, first, start = best[end]
        groups.append(_Group(tuple(rows[first:end]), start))
        end = first
    return groups


def _common(a: Row, b: Row) -> int:
    """Positions that two prompts share in front, leaving each at least its last piece."""
    shared = 0
    most = min(len(a.pieces), len(b.pieces)) - 1
    while shared < most and a.pieces[shared] == b.pieces[shared]:
        shared += 1
    return a.ends[shared - 1] if shared else 0

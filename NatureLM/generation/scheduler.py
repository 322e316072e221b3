"""Which requests run together: batches filled by tokens, with the prefixes that prompts share.

A prompt is a sequence of pieces: token ids, and audio as one piece of many positions. Rows of one α
share keys and values as far as their pieces are the same. Requests are read as they are needed, and
their audio is encoded ahead of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby, islice, pairwise, takewhile
from typing import Any

import torch
from torch import Tensor, nn

from NatureLM.generation.audio_cache import AudioEncoder, EncodedClip
from NatureLM.generation.prefill import (
    PromptError,
    SharedPrefix,
    cheapest_cuts,
    check_placeholders,
    merge_prompt_parts,
    prompt_parts,
)
from NatureLM.generation.request import Answer, Request

_MAX_GROUP = 64  # rows that are looked at together for a shared prefix
_MIN_PREFIX = 8  # positions below which sharing is not worth a pass of its own


@dataclass(frozen=True)
class Row:
    """A request that is ready to run.

    parts: token ids between the audios; audios_QD: the audio embeddings between them
    pieces: the prompt in pieces: token ids, and -1 - n for audio with number n
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

    @torch.inference_mode()
    def embeddings(self, embed_tokens: nn.Embedding) -> Tensor:
        """Input embeddings (length, D)."""
        return merge_prompt_parts(self.parts, self.audios_QD, embed_tokens)


@dataclass(frozen=True)
class Batch:
    """Rows that run together; `shared` are those that begin alike."""

    rows: tuple[Row, ...]
    shared: tuple[SharedPrefix, ...]


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
        return replace(self, most_rows=min(rows, self.most_rows or rows))


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
    shared: list[SharedPrefix] = []
    for group in groups:
        if group.start:
            places = tuple(range(len(rows), len(rows) + len(group.rows)))
            shared.append(SharedPrefix(places, group.start))
        rows += group.rows
    return Batch(tuple(rows), tuple(shared))


def _groups(rows: Sequence[Row]) -> list[_Group]:
    """The grouping by shared prefixes that leaves the fewest positions to run."""
    ordered = sorted(rows, key=lambda row: (row.request.alpha, row.pieces))
    groups: list[_Group] = []
    for _, same_alpha in groupby(ordered, key=lambda row: row.request.alpha):
        groups += _cheapest(list(same_alpha))
    return groups


def _cheapest(rows: Sequence[Row]) -> list[_Group]:
    """Cut a sorted list of rows of one α into the groups that leave the fewest positions to run."""
    common = [0, *(common_positions(a.pieces, b.pieces, a.ends) for a, b in pairwise(rows))]

    def groups(end: int) -> Iterator[tuple[int, int, int]]:
        """(positions to run, first row, shared positions) of the groups that end at a row."""
        start, total = rows[end - 1].length, 0
        for first in range(end - 1, max(-1, end - 1 - _MAX_GROUP), -1):
            total += rows[first].length
            size = end - first
            start = start if size == 1 else min(start, common[first + 1])
            if size > 1 and start < _MIN_PREFIX:
                break
            yield total - (size - 1) * start, first, start if size > 1 else 0

    cuts = reversed(cheapest_cuts(len(rows), groups))
    return [_Group(tuple(rows[first:end]), start) for first, end, start in cuts]


def common_positions(a: Sequence[int], b: Sequence[int], ends: Sequence[int]) -> int:
    """Positions that two prompts in pieces share in front, leaving each at least its last piece.

    ends: positions up to the end of each piece of the shared ones
    """
    pairs = zip(a[:-1], b[:-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return ends[shared - 1] if shared else 0


class RequestQueue:
    """Rows of requests that are ready to run, and the requests behind them.

    requests: read `lookahead` at a time, while those before them are worked on
    check: told the α of requests before they wait; what it raises ends the run
    """

    def __init__(
        self,
        requests: Iterable[Request],
        audio: AudioEncoder,
        tokenizer: Any,
        check: Callable[[Sequence[float]], object],
        lookahead: int,
    ) -> None:
        self._source = iter(requests)
        self._audio, self._check, self._lookahead = audio, check, lookahead
        self._parts = lru_cache(maxsize=4096)(
            lambda prompt: tuple(tuple(part) for part in prompt_parts(prompt, tokenizer))
        )
        self._rows: list[Row] = []
        self._coming = self._next(lookahead)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def longest(self) -> int:
        """Positions of the longest prompt that waits."""
        return max((row.length for row in self._rows), default=0)

    def fill(self) -> list[Answer]:
        """Get rows ready until `lookahead` wait; the answers of requests that cannot run."""
        refused: list[Answer] = []
        while self._coming and len(self._rows) < self._lookahead:
            room = self._lookahead - len(self._rows)
            fresh, self._coming = self._coming[:room], self._coming[room:]
            self._coming += self._next(self._lookahead - len(self._coming))
            self._check([one.alpha for one in fresh])
            clips = self._audio.get(key for one in fresh for key in one.audios)
            for request in fresh:
                made = self._row(request, [clips[key] for key in request.audios])
                if isinstance(made, Row):
                    self._rows.append(made)
                else:
                    refused.append(made)
        return refused

    def take(self, budget: Budget) -> Batch:
        """The batch of the row that has waited longest, with those that go well with it."""
        first = self._rows[0]
        batch = next(
            one for one in plan_batches(self._rows, budget) if any(row is first for row in one.rows)
        )
        taken = {id(row) for row in batch.rows}
        self._rows = [row for row in self._rows if id(row) not in taken]
        return batch

    def take_scored(self) -> list[Row]:
        """The rows whose labels are scored, which wait no longer."""
        taken = [row for row in self._rows if row.request.is_scored]
        self._rows = [row for row in self._rows if not row.request.is_scored]
        return taken

    def put_back(self, rows: Sequence[Row]) -> None:
        """Rows that could not be run now wait again, in front of all others."""
        self._rows = [*rows, *self._rows]

    def _next(self, count: int) -> list[Request]:
        requests = list(islice(self._source, count))
        self._audio.announce(key for one in requests for key in one.audios)
        return requests

    def _row(self, request: Request, clips: Sequence[EncodedClip | Exception]) -> Row | Answer:
        try:
            check_placeholders(request.prompt, len(clips))
        except PromptError as error:
            return Answer(request, None, error)
        encoded: list[EncodedClip] = []
        for clip in clips:
            if isinstance(clip, Exception):
                return Answer(request, None, clip)
            encoded.append(clip)
        parts = self._parts(request.prompt)
        return Row(
            request, parts, tuple(clip.audio_QD for clip in encoded), *pieces_of(parts, encoded)
        )


def pieces_of(
    parts: Sequence[Sequence[int]], clips: Sequence[EncodedClip]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt in pieces, and the positions up to the end of each; see `Row`.

    A clip is one piece, below zero, that its content decides.
    """
    pieces: list[int] = []
    widths: list[int] = []
    for index, part in enumerate(parts):
        pieces += part
        widths += [1] * len(part)
        if index < len(clips):
            pieces.append(-1 - int(clips[index].digest, 16))
            widths.append(clips[index].audio_QD.shape[0])
    return tuple(pieces), tuple(accumulate(widths))

"""Requests that wait to be run: read as they are needed, with their audio encoded ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, islice
from typing import Any

from NatureLM.generation.audio import AudioEncoder, EncodedClip
from NatureLM.generation.requests import Answer, Request
from NatureLM.generation.scheduler import Batch, Budget, Row, plan_batches
from NatureLM.generation.splice import PromptError, check_placeholders, prompt_parts


class Waiting:
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

    def take(self, budget: Budget) -> Batch | None:
        """The batch of the row that has waited longest, with those that go well with it."""
        if not self._rows:
            return None
        first = self._rows[0]
        batch = next(
            one for one in plan_batches(self._rows, budget) if any(row is first for row in one.rows)
        )
        taken = {id(row) for row in batch.rows}
        self._rows = [row for row in self._rows if id(row) not in taken]
        return batch

    def withdraw(self, is_meant: Callable[[Row], bool]) -> list[Row]:
        """The rows that are meant, which wait no longer."""
        taken = [row for row in self._rows if is_meant(row)]
        self._rows = [row for row in self._rows if not is_meant(row)]
        return taken

    def put_back(self, rows: Sequence[Row]) -> None:
        """Rows that could not be run now wait again, in front of all others."""
        self._rows = [*rows, *self._rows]

    def _next(self, count: int) -> list[Request]:
        requests = list(islice(self._source, count))
        self._audio.announce(key for one in requests for key in one.audios)
        return requests

    def _row(self, request: Request, clips: Sequence[EncodedClip | Exception]) -> Row | Answer:
        broken = next((clip for clip in clips if isinstance(clip, Exception)), None)
        try:
            check_placeholders(request.prompt, len(clips))
        except PromptError as error:
            broken = error
        if broken is not None:
            return Answer(request, None, broken)
        return _row_of(
            request,
            self._parts(request.prompt),
            [clip for clip in clips if isinstance(clip, EncodedClip)],
        )


def _row_of(
    request: Request, parts: tuple[tuple[int, ...], ...], clips: Sequence[EncodedClip]
) -> Row:
    """The request in pieces; a clip is one piece, below zero, that its sound decides."""
    pieces: list[int] = []
    widths: list[int] = []
    for index, part in enumerate(parts):
        pieces += part
        widths += [1] * len(part)
        if index < len(clips):
            pieces.append(-1 - int(clips[index].digest, 16))
            widths.append(clips[index].audio_QD.shape[0])
    audios = tuple(clip.audio_QD for clip in clips)
    return Row(request, parts, audios, tuple(pieces), tuple(accumulate(widths)))

"""Batches of samples, built ahead of the model by threads, in the order that the seed gives.

Decoding and numpy release Python's lock, so threads suffice. A sample that cannot be built is
replaced by another draw, chosen by the seed and the position, so that batches keep their size and
a resumed run sees the same data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from NatureLM.audio.errors import AudioError
from NatureLM.errors import NatureLMError
from NatureLM.training.audio_cache import BadFiles
from NatureLM.training.sampler import SampleIndex, Sampler, generator
from NatureLM.training.samples import Sample, SampleBuilder
from NatureLM.training.table import Example

_MOST_REPLACEMENTS = 20
MicroBatches = list[list[Sample]]


@dataclass(frozen=True)
class BatchLayout:
    """How the samples of a step are shared out: micro-batches for each of `processes`."""

    batch_size: int
    accumulation: int = 1
    processes: int = 1

    @property
    def step_size(self) -> int:
        """Samples of one update, over all processes."""
        return self.batch_size * self.accumulation * self.processes

    def places(self, process: int) -> list[list[int]]:
        """For each micro-batch of a process, its samples' places within the step."""
        return [
            [(m * self.processes + process) * self.batch_size + i for i in range(self.batch_size)]
            for m in range(self.accumulation)
        ]


class DataLoader:
    """Endless micro-batches of one process.

    length: if given, the samples of a step are sorted by it, so that batches pad little
    workers: threads; 0 builds samples when they are asked for
    """

    def __init__(
        self,
        builder: SampleBuilder,
        order: Sampler,
        layout: BatchLayout,
        bad: BadFiles,
        *,
        process: int = 0,
        workers: int = 0,
        length: Callable[[int], int] | None = None,
    ) -> None:
        self.builder = builder
        self.order = order
        self.layout = layout
        self.bad = bad
        self.process = process
        self.workers = workers
        self.length = length

    def steps(self, first: int, last: int) -> Iterator[MicroBatches]:
        """The micro-batches of steps first, first + 1, … last - 1."""
        if self.workers == 0:
            for step in range(first, last):
                yield [[self.sample(at) for at in batch] for batch in self.positions(step)]
            return
        with ThreadPoolExecutor(self.workers, thread_name_prefix="samples") as pool:
            yield from self._ahead(pool, first, last)

    def _ahead(self, pool: ThreadPoolExecutor, first: int, last: int) -> Iterator[MicroBatches]:
        local = self.layout.batch_size * self.layout.accumulation
        steps_ahead = 1 + -(-2 * self.workers // local)
        waiting: deque[list[list[Future[Sample]]]] = deque()
        asked = first
        try:
            for _ in range(first, last):
                while asked < last and len(waiting) <= steps_ahead:
                    waiting.append(
                        [
                            [pool.submit(self.sample, at) for at in batch]
                            for batch in self.positions(asked)
                        ]
                    )
                    asked += 1
                yield [[future.result() for future in batch] for batch in waiting.popleft()]
        finally:
            for future in (f for step in waiting for batch in step for f in batch):
                future.cancel()

    def positions(self, step: int) -> list[list[tuple[int, SampleIndex]]]:
        """This process's (position in the run, draw) of a step, by micro-batch."""
        start = step * self.layout.step_size
        draws = self.order.draws(start, self.layout.step_size)
        placed = [(start + i, draw) for i, draw in enumerate(draws)]
        if self.length is not None:
            length = self.length
            placed.sort(key=lambda item: (length(item[1].row), item[0]))
        return [[placed[i] for i in batch] for batch in self.layout.places(self.process)]

    def sample(self, at: tuple[int, SampleIndex]) -> Sample:
        """The sample at a position, or its replacement if a file of it cannot be read."""
        position, draw = at
        for attempt in range(_MOST_REPLACEMENTS):
            try:
                self.bad.tried(self.builder.examples[draw.row].clips)
                return self.builder.build(draw)
            except AudioError as error:
                self.bad.add(error)
                draw = self._replacement(position, attempt, draw)
        raise NatureLMError(
            f"{_MOST_REPLACEMENTS} draws in a row hold audio that cannot be read, the last one in "
            f"{self.builder.examples[draw.row].id}; is the disk with the recordings there?"
        )

    def _replacement(self, position: int, attempt: int, draw: SampleIndex) -> SampleIndex:
        rng = generator(self.order.seed, "replacement", position, attempt)
        edges = np.cumsum(self.order.probabilities)
        row = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
        return SampleIndex(min(row, len(edges) - 1), draw.epoch, position + (attempt << 40))


def plain_batches(
    builder: SampleBuilder, batch_size: int, bad: BadFiles, *, process: int = 0, processes: int = 1
) -> Iterator[list[Sample]]:
    """All rows once, in order, unchanged; every process gets its share, unreadable rows are left
    out."""
    rows = builder.examples[process::processes]
    for first in range(0, len(rows), batch_size):
        batch = []
        for example in rows[first : first + batch_size]:
            bad.tried(example.clips)
            try:
                batch.append(builder.plain(example))
            except AudioError as error:
                bad.add(error)
        if batch:
            yield batch


def file_names(rows: Sequence[Example]) -> set[str]:
    """All audio files that rows name."""
    return {clip.path for row in rows for clip in row.clips}

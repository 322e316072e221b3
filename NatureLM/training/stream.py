"""Batches of samples, built ahead of the model by threads, in the order that the seed gives.

Decoding and numpy release Python's lock, so threads suffice. A sample that cannot be built is
replaced by another draw, chosen by the seed and the position, so that batches keep their size and
a resumed run sees the same data.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from NatureLM.audio import AudioError
from NatureLM.config.schema import AugmentationsConfig, DatasetsConfig, RunConfig
from NatureLM.data.sample import Clip, FileSource
from NatureLM.errors import NatureLMError
from NatureLM.training.data import Data
from NatureLM.training.sampler import (
    SampleIndex,
    Sampler,
    derive_seed,
    generator,
    mixture_weights,
)
from NatureLM.training.samples import AudioCache, Sample, SampleBuilder, SampleSettings

_ENOUGH = 20  # bad files from which on their share of the files tried so far tells enough
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


class BatchSource(ABC):
    """Where the batches of a run come from; give `Trainer` one of your own.

    layout: how a step is shared out
    """

    layout: BatchLayout

    @property
    @abstractmethod
    def epoch_steps(self) -> int:
        """Steps of an epoch."""

    @abstractmethod
    def steps(self, first: int, last: int) -> Iterator[list[list[Any]]]:
        """For each of the steps first, first + 1, … last - 1, this process's micro-batches.

        They are lists of what the objective collates, and depend on the step alone.
        """


class DataLoader(BatchSource):
    """Micro-batches of samples, drawn in a seeded order.

    workers: threads; 0 builds samples when they are asked for
    lengths: of the rows, if given; the samples of a step are sorted by it, so that batches pad
        little
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
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.builder = builder
        self.order = order
        self.layout = layout
        self.bad = bad
        self.process = process
        self.workers = workers
        self.lengths = lengths

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch of the order."""
        return steps_per_epoch(self.order, self.layout.step_size)

    def steps(self, first: int, last: int) -> Iterator[MicroBatches]:
        """Samples of the steps first, first + 1, … last - 1, built ahead by the workers."""
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
        if self.lengths is not None:
            lengths = self.lengths
            placed.sort(key=lambda item: (lengths[item[1].row], item[0]))
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
    """All rows once, in order, unchanged, without the unreadable; each process has its share."""
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


@dataclass
class BadFiles:
    """Which files could not be read, why, and whether they are too many.

    max_share: allowed part of `total`; from twenty bad files on, also of the files tried so far
    total: number of files that the data names
    """

    max_share: float
    total: int
    reasons: dict[str, str] = field(default_factory=dict)
    _tried: set[str] = field(default_factory=set)
    _tried_before: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tried(self, clips: Iterable[Clip]) -> None:
        """These clips are being read."""
        with self._lock:
            self._tried.update(clip.source.name for clip in clips)

    @property
    def tried_so_far(self) -> int:
        """How many files were read, also before the run was resumed."""
        return max(len(self._tried), self._tried_before)

    def restore(self, reasons: Mapping[str, str], tried: int) -> None:
        """Take up the account of a run that is resumed."""
        with self._lock:
            self.reasons = dict(reasons)
            self._tried_before = tried

    def add(self, error: AudioError) -> None:
        """A file could not be read; raises NatureLMError above the limit."""
        with self._lock:
            self.reasons[str(error.path)] = error.reason
            bad, tried = len(self.reasons), self.tried_so_far
            if bad > self.max_share * self.total:
                raise NatureLMError(self._report(f"the {self.total} audio files"))
            if bad >= _ENOUGH and bad > self.max_share * tried:
                raise NatureLMError(self._report(f"the first {tried} audio files"))

    def _report(self, of_what: str) -> str:
        shown = [f"  {path}: {reason}" for path, reason in list(self.reasons.items())[:5]]
        more = len(self.reasons) - len(shown)
        lines = [
            f"{len(self.reasons)} of {of_what} cannot be used, more than "
            f"datasets.max_bad_share = {self.max_share:g} allows:",
            *shown,
            *([f"  and {more} more"] if more > 0 else []),
        ]
        return "\n".join(lines)


def make_order(data: Data, config: DatasetsConfig, run: RunConfig, step_size: int) -> Sampler:
    """The order of draws; an epoch is one pass over the data, or `iters_per_epoch` steps."""
    weights, first = [], 0
    for size in data.sizes:
        weights.append([example.weight for example in data.train[first : first + size]])
        first += size
    probabilities = mixture_weights(weights, data.shares, config.temperature)
    size = len(data.train) if run.epoch_based else run.iters_per_epoch * step_size
    return Sampler(probabilities, data.sizes, size, derive_seed(run.seed, "data"))


def steps_per_epoch(order: Sampler, step_size: int) -> int:
    """Steps of `step_size` samples that one epoch takes."""
    return max(1, math.ceil(order.size / step_size))


def make_builders(
    data: Data,
    config: DatasetsConfig,
    run: RunConfig,
    *,
    template: str,
    sample_rate: int,
    window_samples: int,
) -> tuple[SampleBuilder, SampleBuilder, SampleBuilder, BadFiles]:
    """Builders of training, validation and test samples, and the account of bad files."""
    audio = AudioCache(sample_rate, config.audio_cache_mb * 2**20)
    settings = SampleSettings(
        template=template,
        sample_rate=sample_rate,
        window_samples=window_samples,
        augmentations=run.augmentations,
        few_shot=config.few_shot,
        conversation_prob=config.conversation_prob,
        questions_per_clip=config.questions_per_clip,
        seed=derive_seed(run.seed, "samples"),
    )
    rows = (*data.train, *data.valid, *data.test)
    files = {clip.source.name for row in rows for clip in row.clips}
    return (
        SampleBuilder(data.train, settings, audio, _noise(run.augmentations)),
        SampleBuilder(data.valid, settings, audio),
        SampleBuilder(data.test, settings, audio),
        BadFiles(config.max_bad_share, len(files)),
    )


def _noise(changes: AugmentationsConfig) -> list[Clip]:
    """Noise recordings of the folders named; none are looked for when they are not used."""
    wanted = changes.noise_prob > 0 or changes.mask_audio_prob > 0
    if not (changes.use_augmentation and wanted and changes.noise_dirs):
        return []
    from NatureLM.audio import find_recordings

    files = find_recordings([Path(folder) for folder in changes.noise_dirs])
    return [Clip.of(FileSource(path)) for path in files]

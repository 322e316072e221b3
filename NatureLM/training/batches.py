"""The rows of a run, the order in which they are drawn, and batches built ahead of the model.

An epoch is `size` draws. Row i with weight w_i is drawn floor or ceil of size * w_i / sum(w) times
(systematic resampling), so equal weights and size = number of rows give every row exactly once, and
unequal weights give balanced classes without the noise of independent draws. A resumed run needs to
know only the step.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from NatureLM.audio import AudioError, find_recordings
from NatureLM.config.schema import DatasetsConfig, RunConfig, TableConfig
from NatureLM.data.dataset import RowSource
from NatureLM.data.sample import Clip, Example, FileSource, load_examples
from NatureLM.errors import ConfigError, NatureLMError
from NatureLM.training.samples import (
    AudioCache,
    Sample,
    SampleBuilder,
    SampleIndex,
    SampleSettings,
    derive_seed,
    generator,
)
from NatureLM.util import digest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MicroBatches = list[list[Sample]]

_ENOUGH = 20  # bad files from which on their share of the files tried so far tells enough
_MOST_REPLACEMENTS = 20


@dataclass(frozen=True)
class Data:
    """Rows of a run.

    train: the datasets one after the other; `sizes` has their lengths, `shares` their weights
    """

    train: list[Example] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    valid: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)

    @property
    def datasets(self) -> list[list[Example]]:
        """The training rows of each dataset."""
        ends = np.cumsum(self.sizes).tolist()
        return [self.train[end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def fingerprint(self) -> str:
        """Changes when a training row changes. Checkpoints hold it, so its text must stay."""
        return digest(map(_example_text, self.train), "blake2b", size=8).hex()


def _example_text(example: Example) -> str:
    texts = {name: repr(value) for name, value in vars(example).items()}
    clips = [_clip_text(clip) for clip in example.clips]
    texts["clips"] = f"({', '.join(clips)}{',' if len(clips) == 1 else ''})"
    return f"Example({', '.join(f'{name}={text}' for name, text in texts.items())})"


def _clip_text(clip: Clip) -> str:
    place = f"path={clip.source.name!r}, start={clip.start!r}, end={clip.end!r}"
    if isinstance(clip.source, RowSource):
        return f"RowClip({place}, row={clip.source.index})"
    return f"Clip({place})"


def load_data(config: DatasetsConfig | None, run: RunConfig) -> Data:
    """Read all tables. Raises `DataError` with file and row."""
    config = config or DatasetsConfig()
    tables = _sources(config.train_ann_path, config.train)
    if not tables and run.evaluate:  # nothing is drawn then, but labels and sizes are asked for
        tables = _sources(config.test_ann_path, config.test)
    if not tables:
        what = "test" if run.evaluate else "train"
        raise ConfigError(f"no {what} data: set datasets.{what}_ann_path or datasets.{what}")
    datasets = [_load(table, run) for table in tables]
    valid = _sources(config.valid_ann_path, config.valid)
    test = _sources(config.test_ann_path, config.test)
    return Data(
        train=[example for dataset in datasets for example in dataset],
        sizes=[len(dataset) for dataset in datasets],
        shares=[table.weight for table in tables],
        valid=[example for table in valid for example in _load(table, run)],
        test=[example for table in test for example in _load(table, run)],
    )


def _sources(single: str | None, tables: Sequence[TableConfig]) -> list[TableConfig]:
    return [*([TableConfig(path=single)] if single else []), *tables]


def _load(table: TableConfig, run: RunConfig) -> list[Example]:
    """Labels where they are needed; text runs have no audio."""
    examples = load_examples(table)
    tasks: Sequence[str] = run.augmentations.mix_tasks
    if run.task == "encoder":
        tasks = sorted({example.task for example in examples})
    examples = with_mixable_labels(examples, tasks)
    for example in examples:
        if run.task == "text" and example.clips:
            raise ConfigError(f"{example.id} has audio, and run.task is text")
        if run.task == "encoder" and len(example.clips) != 1:
            raise ConfigError(
                f"{example.id} has {len(example.clips)} clips; the encoder task needs one"
            )
    return examples


def with_mixable_labels(examples: Iterable[Example], tasks: Sequence[str]) -> list[Example]:
    """Rows of `tasks` get their answer, such as "Frog, Rain", as labels, so that they may be mixed.

    `None` is the name of the empty list.
    """
    return [
        replace(example, labels=tuple(filter(None, map(str.strip, example.answer.split(",")))))
        if example.task in tasks and not example.labels
        else example
        for example in examples
    ]


def mixture_weights(
    row_weights: Sequence[Sequence[float]],
    dataset_weights: Sequence[float],
    temperature: float = 1.0,
) -> Floats:
    """Probability of each row, datasets one after the other.

    A dataset's share is proportional to (weight * sum of its row weights) ** (1 / temperature):
    temperature 1 keeps natural shares, larger ones favour small datasets, infinity makes all equal.
    Within a dataset, rows share by their weights. Rows of weight 0 are never drawn.
    """
    sums = np.array([float(np.sum(rows)) for rows in row_weights])
    shares = np.array(dataset_weights, dtype=np.float64) * sums
    if not np.any(shares > 0):
        raise ValueError("all samples have weight 0, so none can be drawn")
    scaled = np.zeros_like(shares)
    scaled[shares > 0] = (shares[shares > 0] / shares.max()) ** (1.0 / temperature)
    scaled /= scaled.sum()
    parts = [
        np.asarray(rows, dtype=np.float64) * (share / total if total > 0 else 0.0)
        for rows, share, total in zip(row_weights, scaled, sums, strict=True)
    ]
    return np.concatenate(parts)


class Sampler:
    """The endless order of draws; `draws(first, count)` reads any stretch of it.

    probabilities: of each row, summing to 1, datasets one after the other
    dataset_sizes: rows of each dataset; the order of rows is shuffled within datasets only, so that
        every dataset gets its share of each epoch to within one draw
    size: draws in an epoch
    """

    def __init__(
        self, probabilities: Floats, dataset_sizes: Sequence[int], size: int, seed: int
    ) -> None:
        self.probabilities = probabilities
        self.dataset_sizes = list(dataset_sizes)
        self.size = size
        self.seed = seed
        self._cached: tuple[int, tuple[Ints, Ints]] | None = None

    def epoch(self, epoch: int) -> tuple[Ints, Ints]:
        """(rows, copies) of one epoch, each (size,)."""
        if self._cached is None or self._cached[0] != epoch:
            rng = generator(self.seed, "order", epoch)
            starts = np.cumsum([0, *self.dataset_sizes[:-1]])
            sizes = zip(starts, self.dataset_sizes, strict=True)
            shuffled = np.concatenate([start + rng.permutation(n) for start, n in sizes])
            edges = np.cumsum(self.probabilities[shuffled])
            points = (np.arange(self.size) + rng.random()) / self.size * edges[-1]
            places = np.minimum(np.searchsorted(edges, points, side="right"), len(edges) - 1)
            rows = shuffled[places][rng.permutation(self.size)].astype(np.int64)
            self._cached = epoch, (rows, _occurrence(rows))
        return self._cached[1]

    def draws(self, first: int, count: int) -> list[SampleIndex]:
        """The draws at positions first, first + 1, … of the run."""
        out = []
        for position in range(first, first + count):
            epoch, place = divmod(position, self.size)
            rows, copies = self.epoch(epoch)
            out.append(SampleIndex(int(rows[place]), epoch, int(copies[place])))
        return out

    def replacement(self, position: int, attempt: int, draw: SampleIndex) -> SampleIndex:
        """A draw in place of one that cannot be used, by the position and the attempt."""
        rng = generator(self.seed, "replacement", position, attempt)
        edges = np.cumsum(self.probabilities)
        row = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
        return SampleIndex(min(row, len(edges) - 1), draw.epoch, position + (attempt << 40))

    def epoch_steps(self, step_size: int) -> int:
        """Steps of `step_size` samples that an epoch takes."""
        return max(1, math.ceil(self.size / step_size))


def _occurrence(rows: Ints) -> Ints:
    """How many equal values stand before each place: [7, 3, 7, 7] -> [0, 0, 1, 2]."""
    by_value = np.argsort(rows, kind="stable")
    ordered = rows[by_value]
    counts = np.empty_like(rows)
    counts[by_value] = np.arange(len(rows)) - np.searchsorted(ordered, ordered, side="left")
    return counts


def make_order(data: Data, config: DatasetsConfig, run: RunConfig, step_size: int) -> Sampler:
    """The order of draws; an epoch is one pass over the data, or `iters_per_epoch` steps."""
    weights = [[example.weight for example in dataset] for dataset in data.datasets]
    probabilities = mixture_weights(weights, data.shares, config.temperature)
    size = len(data.train) if run.epoch_based else run.iters_per_epoch * step_size
    return Sampler(probabilities, data.sizes, size, derive_seed(run.seed, "data"))


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
        self.reasons, self._tried_before = dict(reasons), tried

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
        lines = [
            f"{len(self.reasons)} of {of_what} cannot be used, more than "
            f"datasets.max_bad_share = {self.max_share:g} allows:",
            *(f"  {path}: {reason}" for path, reason in list(self.reasons.items())[:5]),
        ]
        if len(self.reasons) > 5:
            lines.append(f"  and {len(self.reasons) - 5} more")
        return "\n".join(lines)


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
    changes = run.augmentations
    settings = SampleSettings(
        template, sample_rate, window_samples, config, changes, derive_seed(run.seed, "samples")
    )
    noise: list[Path] = []
    wanted = changes.noise_prob > 0 or changes.mask_audio_prob > 0
    if changes.use_augmentation and wanted and changes.noise_dirs:
        noise = find_recordings([Path(folder) for folder in changes.noise_dirs])
    rows = (*data.train, *data.valid, *data.test)
    files = {clip.source.name for row in rows for clip in row.clips}
    return (
        SampleBuilder(data.train, settings, audio, [Clip.of(FileSource(path)) for path in noise]),
        SampleBuilder(data.valid, settings, audio),
        SampleBuilder(data.test, settings, audio),
        BadFiles(config.max_bad_share, len(files)),
    )


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
    """Micro-batches of samples, drawn in a seeded order and built ahead by threads.

    Decoding and numpy release Python's lock, so threads suffice. A sample that cannot be built is
    replaced by another draw, so that batches keep their size and a resumed run sees the same data.

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
        self.builder, self.order, self.layout, self.bad = builder, order, layout, bad
        self.process, self.workers, self.lengths = process, workers, lengths

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch of the order."""
        return self.order.epoch_steps(self.layout.step_size)

    def steps(self, first: int, last: int) -> Iterator[MicroBatches]:
        """Samples of the steps first, first + 1, … last - 1."""
        if self.workers == 0:
            for step in range(first, last):
                yield [[self.sample(at) for at in batch] for batch in self.positions(step)]
            return
        steps_ahead = 2 + -(
            -2 * self.workers // (self.layout.batch_size * self.layout.accumulation)
        )
        waiting: deque[list[list[Future[Sample]]]] = deque()
        with ThreadPoolExecutor(self.workers, thread_name_prefix="samples") as pool:
            try:
                for step in range(first, last + steps_ahead):
                    if step < last:
                        batches = self.positions(step)
                        waiting.append(
                            [[pool.submit(self.sample, at) for at in b] for b in batches]
                        )
                    if waiting and step - first + 1 >= steps_ahead:
                        yield [[future.result() for future in b] for b in waiting.popleft()]
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
                draw = self.order.replacement(position, attempt, draw)
        raise NatureLMError(
            f"{_MOST_REPLACEMENTS} draws in a row hold audio that cannot be read, the last one in "
            f"{self.builder.examples[draw.row].id}; is the disk with the recordings there?"
        )


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

"""The rows of a run: which there are, those that are made of several, and the order of draws.

An epoch is `size` draws. Row i with weight w_i is drawn floor or ceil of size * w_i / sum(w) times
(systematic resampling), so equal weights and size = number of rows give every row exactly once, and
unequal weights give balanced classes without the noise of independent draws. A resumed run needs to
know only the step.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from NatureLM.config.schema import DatasetsConfig, FewShotConfig, RunConfig, TableConfig
from NatureLM.data.dataset import RowSource
from NatureLM.data.sample import Clip, Example, load_examples
from NatureLM.errors import ConfigError
from NatureLM.prompts import ChatTemplate, few_shot_prompt, with_clips, without_audio
from NatureLM.util import derive_seed, digest, generator

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NONE_LABEL = "None"


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


# The order of draws


@dataclass(frozen=True)
class SampleIndex:
    """One draw: the row, and which copy of it this is (`epoch` and `copy` seed its changes)."""

    row: int
    epoch: int
    copy: int


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
        out: list[SampleIndex] = []
        while len(out) < count:
            epoch, place = divmod(first + len(out), self.size)
            stretch = slice(place, place + count - len(out))
            rows, copies = (values[stretch].tolist() for values in self.epoch(epoch))
            out += map(SampleIndex, rows, itertools.repeat(epoch), copies)
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


# Rows made of several


def few_shot(query: Example, support: Sequence[Example]) -> Example:
    """The query with `support` spliced in front; clips in the order of their placeholders.

    All have one clip. Raises ValueError if a support clip is of the query's recording.
    """
    if any(_same_recording(query, example) for example in support):
        raise ValueError(f"{query.id}: an example clip is of the recording that is asked about")
    prompts = tuple(
        few_shot_prompt(without_audio(prompt), [example.answer for example in support])
        for prompt in query.prompts
    )
    clips = tuple(example.clips[0] for example in (*support, query))
    # A mix would change the answer that the examples point to.
    return replace(query, clips=clips, prompts=prompts, labels=())


class SupportPool:
    """Rows by task and answer, from which few-shot examples are drawn."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_task: dict[str, dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
        for example in examples:
            if len(example.clips) == 1:
                self._by_task[example.task][example.answer].append(example)

    def draw(
        self, query: Example, config: FewShotConfig, rng: np.random.Generator
    ) -> list[Example]:
        """Labelled examples of the query's task, shuffled; empty if there are too few.

        The query's own answer is among the labels, examples are spread evenly over the labels, and
        none is of the query's recording.
        """
        answers = self._by_task.get(query.task, {})
        own = _of_other_recordings(query, answers.get(query.answer, ()))
        if not own:
            return []
        total = int(rng.integers(config.min_examples, config.max_examples + 1))
        others = sorted(set(answers) - {query.answer})
        count = min(int(rng.integers(1, config.max_labels + 1)), total, 1 + len(others))
        chosen = [others[i] for i in rng.permutation(len(others))[: count - 1]]
        pools = [own, *(_of_other_recordings(query, answers[answer]) for answer in chosen)]
        pools = [[pool[i] for i in rng.permutation(len(pool))] for pool in pools if pool]
        support: list[Example] = []
        while len(support) < total and any(pools):
            support += [pool.pop() for pool in pools if pool][: total - len(support)]
        if len(support) < config.min_examples:
            return []
        return [support[i] for i in rng.permutation(len(support))]


def _of_other_recordings(query: Example, rows: Sequence[Example]) -> list[Example]:
    return [row for row in rows if not _same_recording(query, row)]


def _same_recording(one: Example, other: Example) -> bool:
    """Of one group, or of one source: files are the same by their real paths."""
    if one.group and one.group == other.group:
        return True
    pairs = itertools.product((c.source for c in one.clips), (c.source for c in other.clips))
    return any(a == b or a.name == b.name for a, b in pairs)


class ClipPool:
    """Rows by their clips, from which other questions about the same clips are drawn."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._by_clips: dict[tuple[Clip, ...], list[Example]] = defaultdict(list)
        for example in examples:
            if example.clips:
                self._by_clips[example.clips].append(example)

    def draw_earlier(self, query: Example, rng: np.random.Generator) -> Example | None:
        """A row to be asked before the query, with other questions; None if there is none."""
        others = [row for row in self._others(query) if not set(row.prompts) & set(query.prompts)]
        return others[int(rng.integers(len(others)))] if others else None

    def draw_further(self, row: Example, count: int, rng: np.random.Generator) -> list[Example]:
        """Up to `count` rows to be asked beside a row, by weight, each once."""
        others = self._others(row)
        weights = np.array([other.weight for other in others])
        count = min(count, int((weights > 0).sum()))
        if count == 0:
            return []
        chosen = rng.choice(len(others), count, replace=False, p=weights / weights.sum())
        return [others[int(i)] for i in chosen]

    def _others(self, row: Example) -> list[Example]:
        return [other for other in self._by_clips.get(row.clips, ()) if other.id != row.id]


def as_second_turn(
    template: str, earlier: Example, query: Example, rng: np.random.Generator
) -> Example:
    """The query as the second question of a conversation; its prompt is complete.

    It has the form that a conversation gives: the audio stands in the first turn only.
    """
    asked, question = earlier.draw_prompt(rng), query.draw_prompt(rng)
    prompt = ChatTemplate.of(template).text(
        [(with_clips(asked, 1), earlier.answer), (without_audio(question), "")]
    )
    return replace(query.with_prompt(prompt, rendered=True), labels=())

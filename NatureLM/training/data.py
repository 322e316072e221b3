"""The rows of a run, read and checked; nothing is drawn, decoded or changed here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from NatureLM.config.schema import DatasetsConfig, RunConfig, TableConfig
from NatureLM.data.dataset import RowSource
from NatureLM.data.sample import Clip, Example, load_examples
from NatureLM.errors import ConfigError
from NatureLM.util import digest

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

    def fingerprint(self) -> str:
        """Changes when a training row changes. Checkpoints hold it, so its text must stay."""
        return digest(map(_example_text, self.train), "blake2b", size=8).hex()


def _example_text(example: Example) -> str:
    clips = tuple(_Verbatim(_clip_text(clip)) for clip in example.clips)
    values = {**vars(example), "clips": clips}
    return f"Example({', '.join(f'{name}={value!r}' for name, value in values.items())})"


class _Verbatim(str):
    def __repr__(self) -> str:
        return str(self)


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
    datasets = [_prepared(table, run) for table in tables]
    valid = _sources(config.valid_ann_path, config.valid)
    test = _sources(config.test_ann_path, config.test)
    return Data(
        train=[example for dataset in datasets for example in dataset],
        sizes=[len(dataset) for dataset in datasets],
        shares=[table.weight for table in tables],
        valid=[example for table in valid for example in _prepared(table, run)],
        test=[example for table in test for example in _prepared(table, run)],
    )


def _sources(single: str | None, tables: Sequence[TableConfig]) -> list[TableConfig]:
    return [*([TableConfig(path=single)] if single else []), *tables]


def _prepared(table: TableConfig, run: RunConfig) -> list[Example]:
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
    """Rows of `tasks` get their answer as labels, so that clips of them may be mixed."""
    return [
        replace(example, labels=split_labels(example.answer))
        if example.task in tasks and not example.labels
        else example
        for example in examples
    ]


def split_labels(answer: str) -> tuple[str, ...]:
    """The labels of a list answer such as "Frog, Rain"; `None` is the empty list's name."""
    return tuple(part.strip() for part in answer.split(",") if part.strip())


def merge_labels(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """All labels once, sorted; `None` only when there is nothing else."""
    merged = sorted({label for labels in groups for label in labels} - {NONE_LABEL})
    return tuple(merged) if merged else (NONE_LABEL,)

"""The rows of a run: tables and datasets become `Example`s, balanced and checked.

Nothing is drawn, decoded or changed here. Columns are found by their names or the aliases below
(which include those of the reference's annotations and of BEANS-Zero); `columns` maps others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from NatureLM.config.schema import DatasetsConfig, RunConfig, TableConfig
from NatureLM.data.clip import Clip, FileSource
from NatureLM.data.dataset import AUDIO, RATES, ArrowRows, RowSource, labelled_rows, open_split
from NatureLM.data.table import (
    CLIP_ALIASES,
    Columns,
    DataError,
    Row,
    audio_folder,
    number_of,
    strings_of,
)
from NatureLM.errors import ConfigError
from NatureLM.util import digest

NONE_LABEL = "None"
ALIASES: dict[str, tuple[str, ...]] = {
    **CLIP_ALIASES,
    AUDIO: (AUDIO,),
    "files": ("files", "paths"),
    "prompt": ("prompt", "prompts", "query", "question", "instruction_text", "instruction"),
    "answer": ("answer", "text", "output", "label"),
    "labels": ("labels",),
    "dataset": ("dataset", "dataset_name", "source_dataset"),
    "weight": ("weight",),
    "group": ("group_id", "family", "recording_id"),
}


@dataclass(frozen=True)
class Example:
    """One row.

    id: names the row in reports and seeds its draws; unique within the data
    clips: audio in the order of the prompt's placeholders; empty for text only
    prompts: questions of which one is drawn (complete prompts once `rendered`)
    answer: what is to be answered
    labels: the answer as a list, for mixing and for the encoder task; empty if it is no list
    group: rows of one recording; few-shot examples never come from the query's group
    weight: how often it is drawn, relative to the rows of its dataset
    """

    id: str
    clips: tuple[Clip, ...] = ()
    prompts: tuple[str, ...] = ("",)
    answer: str = ""
    labels: tuple[str, ...] = ()
    task: str = ""
    dataset: str = ""
    group: str = ""
    weight: float = 1.0
    rendered: bool = False

    def with_prompt(self, prompt: str, *, rendered: bool = False) -> Example:
        """The same row with one prompt."""
        return replace(self, prompts=(prompt,), rendered=rendered)


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


def load_examples(config: TableConfig) -> list[Example]:
    """All rows of one source that pass `where`, weights balanced as `balance` says."""
    columns = Columns(config, ALIASES)
    dataset = open_split(config, columns)
    wanted = {name for names in columns.names.values() for name in names}
    examples = [
        _example(row, number, config, columns, dataset)
        for number, row in labelled_rows(config, dataset, {*wanted, *config.where, *RATES})
    ]
    if not examples:
        raise DataError(f"{config.path}: no row is left" + (" by `where`" if config.where else ""))
    return balanced(examples, config.balance)


def _example(
    row: Row, number: int, config: TableConfig, columns: Columns, dataset: ArrowRows | None
) -> Example:
    name = config.name or Path(config.path).stem
    where = f"{config.path}, row {number}"
    labels = tuple(strings_of(columns.get(row, "labels")))
    answer = columns.get(row, "answer")
    if answer is None and labels:
        answer = ", ".join(labels)
    if answer is None:
        raise DataError(
            f"{where}: no answer (a column {' or '.join(ALIASES['answer'])}, or `columns: "
            "{answer: <column>}`)"
        )
    return Example(
        id=f"{name}/{columns.get(row, 'id') or number}",
        clips=_clips(row, number, config, columns, dataset),
        prompts=tuple(strings_of(columns.get(row, "prompt"))) or tuple(config.prompts) or ("",),
        answer=str(answer),
        labels=labels,
        task=str(columns.get(row, "task") or config.task or ""),
        dataset=str(columns.get(row, "dataset") or name),
        group=str(columns.get(row, "group") or ""),
        weight=number_of(columns.get(row, "weight"), "weight", where, 1.0),
    )


def _clips(
    row: Row, number: int, config: TableConfig, columns: Columns, dataset: ArrowRows | None
) -> tuple[Clip, ...]:
    start, end = columns.stretch(row, f"{config.path}, row {number}")
    if dataset is not None and dataset.has_audio:
        rate = next((row[name] for name in RATES if name in row), None)
        name = f"{dataset.name}, row {number}"
        return (Clip.of(RowSource(dataset, number - 1, name, rate), start, end),)
    folder = audio_folder(config)
    path = columns.get(row, "path") or columns.get(row, AUDIO)
    if path is not None:
        return (Clip.of(FileSource(folder / str(path)), start, end),)
    files = strings_of(columns.get(row, "files"))
    return tuple(Clip.of(FileSource(folder / file)) for file in files)


def balanced(examples: Sequence[Example], balance: str) -> list[Example]:
    """Weights so that rows, answers, or answers by their square root are drawn alike."""
    if balance == "rows":
        return list(examples)
    counts = Counter(example.answer for example in examples)
    power = 1.0 if balance == "answers" else 0.5
    return [
        replace(example, weight=example.weight / counts[example.answer] ** power)
        for example in examples
    ]


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

"""Tables of training data: JSONL, JSON, CSV, Parquet, folders of class names, and datasets.

Every source becomes a list of `Example`. Columns are found by their names or the aliases below
(which include those of the reference's annotations and of BEANS-Zero); `columns` maps others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from NatureLM.config.training import TableConfig
from NatureLM.tables import (
    CLIP_ALIASES,
    Columns,
    Row,
    TableError,
    audio_folder,
    number_of,
    rows_of,
    texts_of,
)
from NatureLM.training.dataset_rows import AUDIO, DatasetRows, open_dataset
from NatureLM.training.examples import Clip, Example, split_labels

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


def load_examples(config: TableConfig) -> list[Example]:
    """All rows of one source that pass `where`, weights balanced as `balance` says."""
    columns = Columns(config, ALIASES)
    dataset = open_dataset(config, columns)
    rows = rows_of(config) if dataset is None else dataset.rows()
    examples = [_example(row, number, config, columns, dataset) for number, row in rows]
    if not examples:
        raise TableError(f"{config.path}: no row is left" + (" by `where`" if config.where else ""))
    return balanced(examples, config.balance)


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


def _example(
    row: Row, number: int, config: TableConfig, columns: Columns, dataset: DatasetRows | None
) -> Example:
    name = config.name or Path(config.path).stem
    where = f"{config.path}, row {number}"
    prompts = tuple(texts_of(columns.get(row, "prompt"))) or tuple(config.prompts) or ("",)
    labels = tuple(texts_of(columns.get(row, "labels")))
    answer = columns.get(row, "answer")
    if answer is None and labels:
        answer = ", ".join(labels)
    if answer is None:
        raise TableError(
            f"{where}: no answer (a column {' or '.join(ALIASES['answer'])}, or `columns: "
            "{answer: <column>}`)"
        )
    return Example(
        id=f"{name}/{columns.get(row, 'id') or number}",
        clips=(
            tuple(_clips(row, columns, audio_folder(config), where))
            if dataset is None or not dataset.has_audio
            else dataset.clips(number, *columns.stretch(row, where))
        ),
        prompts=prompts,
        answer=str(answer),
        labels=labels,
        task=str(columns.get(row, "task") or config.task or ""),
        dataset=str(columns.get(row, "dataset") or name),
        group=str(columns.get(row, "group") or ""),
        weight=number_of(columns.get(row, "weight"), "weight", where, 1.0),
    )


def _clips(row: Row, columns: Columns, root: Path, where: str) -> Iterable[Clip]:
    start, end = columns.stretch(row, where)
    path = columns.get(row, "path") or columns.get(row, AUDIO)
    if path is not None:
        return [Clip(str(root / str(path)), start, end)]
    return [Clip(str(root / str(file))) for file in texts_of(columns.get(row, "files"))]


def with_mixable_labels(examples: Iterable[Example], tasks: Sequence[str]) -> list[Example]:
    """Rows of `tasks` get their answer as labels, so that clips of them may be mixed."""
    wanted = set(tasks)
    return [
        replace(example, labels=split_labels(example.answer))
        if example.task in wanted and not example.labels
        else example
        for example in examples
    ]

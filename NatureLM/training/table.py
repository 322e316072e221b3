"""A row of training data, before anything is drawn, decoded or changed.

Hugging Face datasets as sources of training data: folders of the library, or ids on the Hub.

A dataset is memory-mapped: rows are read from the disk when they are drawn, because a seeded,
balanced order needs every row at any time (so nothing is streamed from the network either). Labels
are read once, without the sound; the sound is handed on as it is stored, and `NatureLM.audio`
decodes it.

Tables of training data: JSONL, JSON, CSV, Parquet, folders of class names, and datasets.

Every source becomes a list of `Example`. Columns are found by their names or the aliases below
(which include those of the reference's annotations and of BEANS-Zero); `columns` maps others.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.config.training import TableConfig
from NatureLM.data.table import (
    CLIP_ALIASES,
    Columns,
    Row,
    TableError,
    audio_folder,
    number_of,
    passes,
    rows_of,
    texts_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


NONE_LABEL = "None"


@dataclass(frozen=True)
class Clip:
    """A stretch of an audio file, in seconds; `end` None is the end of the file."""

    path: str
    start: float = 0.0
    end: float | None = None

    @property
    def duration(self) -> float | None:
        """Seconds, None when only the file knows."""
        return None if self.end is None else self.end - self.start


@dataclass(frozen=True)
class Example:
    """One row.

    id: names the row in reports and seeds its draws; unique within the data
    clips: audio in the order of the prompt's placeholders; empty for text only
    prompts: questions of which one is drawn (complete texts once `rendered`)
    answer: the text to be given
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


def split_labels(answer: str) -> tuple[str, ...]:
    """The labels of a list answer such as "Frog, Rain"; `None` is the empty list's name."""
    return tuple(part.strip() for part in answer.split(",") if part.strip())


def merge_labels(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """All labels once, sorted; `None` only when there is nothing else."""
    merged = sorted({label for labels in groups for label in labels} - {NONE_LABEL})
    return tuple(merged) if merged else (NONE_LABEL,)


AUDIO = "audio"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_RATES = ("sampling_rate", "sample_rate")
_BATCH = 1000


@dataclass(frozen=True)
class RowClip(Clip):
    """A stretch of the sound in a row of a dataset; `path` is the name that messages give it."""

    dataset: DatasetRows | None = field(default=None, repr=False, compare=False)
    row: int = 0

    def read(self, sample_rate: int) -> NDArray[np.float32]:
        """Mono samples at `sample_rate`. Raises `AudioError`."""
        from NatureLM.data.dataset import read_embedded

        assert self.dataset is not None
        value, rate = self.dataset.sound(self.row)
        return read_embedded(
            value,
            name=self.path,
            array_rate=rate,
            folder=self.dataset.folder,
            start=self.start,
            duration=self.duration,
            sample_rate=sample_rate,
        )


class DatasetRows:
    """The rows of one split.

    data: a dataset of the library `datasets`
    columns: how its columns are called
    """

    def __init__(self, data: Any, config: TableConfig, columns: Columns) -> None:
        self._config = config
        self._columns = columns
        self._data = data
        self._rate = next((name for name in _RATES if name in data.column_names), None)
        self._audio = self._audio_column()
        # In this format cells come as they are stored: nothing is decoded.
        self._sounds = self._of(c for c in (self._audio, self._rate) if c is not None)
        self.folder = audio_folder(config) if Path(config.path).is_dir() else None
        self.name = config.path + (f" [{config.split}]" if config.split else "")

    def rows(self) -> Iterator[tuple[int, Row]]:
        """(number from 1 on, columns) of every row that passes `where`, without its sound."""
        self._check_where()
        named = {name for names in self._columns.names.values() for name in names}
        wanted = {*named, *self._config.where} - {self._audio}
        data = self._of(c for c in self._data.column_names if c in wanted)
        names = {c: _names_of_classes(self._data.features[c]) for c in data.column_names}
        number = 0
        for table in data.iter(batch_size=_BATCH) if data.column_names else ():
            for row in table.to_pylist():
                number += 1
                row = {c: _named(value, names[c]) for c, value in row.items()}
                if passes(row, self._config, number):
                    yield number, row

    @property
    def has_audio(self) -> bool:
        """Whether there is a column with sound, which a dataset of paths or of text has not."""
        return self._audio is not None

    def clips(self, number: int, start: float, end: float | None) -> tuple[Clip, ...]:
        """The sound of row `number`."""
        return (RowClip(f"{self.name}, row {number}", start, end, self, number - 1),)

    def sound(self, row: int) -> tuple[Any, float | None]:
        """The sound of a row as it is stored, and the sample rate that a column of its own says."""
        from NatureLM.data.dataset import cell

        table = self._sounds[row]
        rate = None if self._rate is None else table.column(self._rate)[0].as_py()
        return cell(table.column(self._audio)[0]), rate

    def _of(self, columns: Iterator[str]) -> Any:
        return self._data.select_columns(list(columns)).with_format("arrow")

    def _audio_column(self) -> str | None:
        """The column named in the configuration, or called audio, or the only one with sound."""
        there = self._data.column_names
        named = self._config.columns.get(AUDIO)
        if named is not None and named not in there:
            raise TableError(
                f"{self._config.path}: columns.audio is {named!r}; there are {', '.join(there)}"
            )
        sounds = [c for c in there if type(self._data.features[c]).__name__ == "Audio"]
        for column in (named, AUDIO if AUDIO in there else None):
            if column is not None:
                return column
        if len(sounds) > 1:
            raise TableError(
                f"{self._config.path}: several columns hold sound ({', '.join(sounds)}); choose "
                "with `columns: {audio: <column>}`"
            )
        return sounds[0] if sounds else None

    def _check_where(self) -> None:
        for column in self._config.where:
            if column not in self._data.column_names or column == self._audio:
                raise TableError(
                    f"{self._config.path}: `where` asks for column {column!r}; there are "
                    f"{', '.join(c for c in self._data.column_names if c != self._audio)}"
                )


def open_dataset(config: TableConfig, columns: Columns) -> DatasetRows | None:
    """The dataset that a source names; None where it is a table or a folder of class names.

    Raises TableError with what is missing: the library, the dataset, the split.
    """
    place = Path(config.path)
    saved = place.is_dir() and any(
        (place / file).is_file() for file in ("state.json", "dataset_dict.json")
    )
    arrow = sorted(place.glob("*.arrow")) if place.is_dir() else []
    if place.suffix == ".arrow" and place.is_file():
        arrow = [place]
    parquet = place.is_dir() and any((*place.glob("*.parquet"), *place.glob("*/*.parquet")))
    hub = not place.exists() and not place.suffix and _HUB_ID.fullmatch(config.path)
    if not (saved or arrow or parquet or hub or _holds_sound(place)):
        for key in ("split", "subset"):
            if getattr(config, key) is not None:
                raise TableError(f"{place}: {key} is for Hugging Face datasets, and this is none")
        return None
    library = _library(config.path)
    try:
        if saved:
            found = library.load_from_disk(str(place))
        elif arrow:
            found = library.concatenate_datasets([library.Dataset.from_file(str(f)) for f in arrow])
        elif place.is_file():
            found = library.load_dataset("parquet", data_files=str(place))
        else:
            found = library.load_dataset(config.path, name=config.subset, split=config.split)
    except Exception as error:
        raise TableError(_not_opened(config, place, error)) from error
    return DatasetRows(_split(found, config), config, columns)


def _split(found: Any, config: TableConfig) -> Any:
    """The split that is asked for, or the only one."""
    if not isinstance(found, Mapping):
        return found
    if config.split is None and len(found) == 1:
        return next(iter(found.values()))
    if config.split not in found:
        said = "no split is named" if config.split is None else f"there is no {config.split!r}"
        raise TableError(f"{config.path}: {said}; set `split` to one of {', '.join(found)}")
    return found[config.split]


def _holds_sound(place: Path) -> bool:
    """Whether a Parquet file has sound in it, which must not be read as a whole."""
    if place.suffix.lower() != ".parquet" or not place.is_file():
        return False
    try:
        parquet: Any = import_module("pyarrow.parquet")
        schema = parquet.read_schema(place)
    except Exception:  # whatever it is, it is said where the table is read
        return False
    types = (str(column.type) for column in schema)
    return any(kind.startswith("struct<") and "bytes: binary" in kind for kind in types)


def _names_of_classes(feature: Any) -> list[str] | None:
    """The names behind the numbers of a class label, or of a list of them."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names else None


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if value >= 0 else None  # the library's mark of no label


def _library(name: str) -> Any:
    try:
        return import_module("datasets")
    except ImportError:
        raise TableError(
            f"{name}: reading Hugging Face datasets needs the package datasets: "
            "pip install 'naturelm-audio[beans]'"
        ) from None


def _not_opened(config: TableConfig, place: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if place.exists():
        return f"{place}: cannot be read as a Hugging Face dataset ({reason})"
    return (
        f"{config.path}: there is no such table or folder, and as a dataset on the Hugging Face "
        f"Hub it cannot be opened ({reason})"
    )


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

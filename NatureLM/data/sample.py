"""Rows of labelled sound, whatever holds them, and the records and clips that they become.

Rows come from tables of text (`NatureLM.data.table`), folders of class names and datasets with the
sound inside (`NatureLM.data.dataset`). Columns are found by their names or by aliases; `columns` of
a configuration maps others. A row becomes a `Sample` for the benchmark and for experiments
(`open_samples`), or an `Example` for training (`load_examples`). Sound is read when it is asked
for.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.audio.decode import Recording
from NatureLM.audio.files import as_on_disk, find_recordings
from NatureLM.audio.windows import read_clip
from NatureLM.config.schema import TableConfig, TableSource
from NatureLM.data.annotations import read_annotations
from NatureLM.data.components import components
from NatureLM.data.dataset import (
    AUDIO,
    ArrowRows,
    DatasetRows,
    ParquetRows,
    RowSource,
    open_rows,
    open_split,
    split_of,
)
from NatureLM.data.table import CLIP_ALIASES, RATES, Columns, DataError, Row, Table, clean, fold
from NatureLM.util import did_you_mean, digest, parse_json

logger = logging.getLogger(__name__)

_BEYOND = 0.1  # seconds after the window that are read, too
_PROBED = 2000  # recordings of a table whose lengths are looked at
_TOLERANCE = 0.025  # seconds more than the window that no recorder is blamed for
_BLOCK = 2**16  # bytes of a file that a digest reads at a time
_BLOCKS = 17  # most blocks that a digest reads


@dataclass(frozen=True, eq=False)
class FileSource:
    """A file; however its path is written, it is the same source."""

    path: Path

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @cached_property
    def _real(self) -> str:
        try:
            return os.path.realpath(self.path)
        except ValueError:  # a name that no file can have; it is said where it is read
            return self.name

    @cached_property
    def digest(self) -> str | None:
        """Hash of the file's length and content; None where it cannot be read.

        Of large files the ends and stretches between them are read: recordings of hours are told
        apart in a moment, and wherever they are copied they stay the same.
        """
        try:
            size = os.stat(self.path).st_size
            with open(self.path, "rb") as file:
                return digest(_sampled_contents(file, size), "blake2b", size=8).hex()
        except (OSError, ValueError):
            return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FileSource) and self._real == other._real

    def __hash__(self) -> int:
        return hash(self._real)

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        """Mono samples; raises `AudioError`."""
        return read_clip(self.path, start=start, duration=duration, sample_rate=sample_rate)


AudioSource: TypeAlias = FileSource | RowSource
"""Sound that can be read: a file, or a row of a dataset. Reading is safe under threads."""


def _sampled_contents(file: BinaryIO, size: int) -> Iterator[str | bytes]:
    """The size of a file and its blocks: all of a small file, evenly spread ones otherwise."""
    yield str(size)
    starts: Iterable[int] = range(0, size, _BLOCK)
    if size > _BLOCKS * _BLOCK:
        starts = ((size - _BLOCK) * number // (_BLOCKS - 1) for number in range(_BLOCKS))
    for start in starts:
        file.seek(start)
        yield file.read(_BLOCK)


@dataclass(frozen=True)
class Clip:
    """A stretch of a recording.

    key: its stable name, the same on every machine; clips of one key are one clip
    source: where the sound is
    start, end: seconds in the source; end None is its end
    window: seconds of it that are heard, and that it is padded to where it is shorter; None takes
        the model's window
    """

    key: str
    source: AudioSource = field(compare=False, repr=False)
    start: float = field(default=0.0, compare=False)
    end: float | None = field(default=None, compare=False)
    window: float | None = field(default=None, compare=False)

    @classmethod
    def of(cls, source: AudioSource, start: float = 0.0, end: float | None = None) -> Clip:
        """A stretch of a source that bears the source's name."""
        return cls(f"{source.name}@{start!r}-{end!r}", source, start, end)

    @property
    def duration(self) -> float | None:
        """Seconds, None when only the source knows."""
        return None if self.end is None else self.end - self.start


@dataclass(frozen=True)
class ClipAudio:
    """The sound of a clip.

    samples: mono, float32 in [-1, 1], (samples,), no longer than the window and not padded
    seconds: length of the window
    is_cut: whether the clip goes on after the window
    """

    samples: NDArray[np.float32]
    seconds: float
    is_cut: bool


def read_window(clip: Clip, sample_rate: int, seconds: float) -> ClipAudio:
    """The sound of a clip, cut to its window, which is `seconds` or shorter, and not padded.

    Raises `AudioError`.
    """
    window = seconds if clip.window is None else min(clip.window, seconds)
    # What comes after the window is resampled with it, and shows whether the clip goes on.
    wanted = window + _BEYOND
    duration = wanted if clip.duration is None else min(clip.duration, wanted)
    wav = clip.source.read(start=clip.start, duration=duration, sample_rate=sample_rate)
    length = round(window * sample_rate)
    return ClipAudio(wav[:length], window, is_cut=len(wav) - length > _TOLERANCE * sample_rate)


# Rows of one source


def labelled_rows(
    config: TableSource, dataset: DatasetRows | None, columns: Columns
) -> Iterator[tuple[int, Row]]:
    """(number, row) of every row of a table or dataset that passes `where`, without its sound.

    dataset: what `config` names, opened; None for a table or a folder of class names
    columns: of a dataset, those that are read; gets the notes of how it was read
    """
    source = as_on_disk(Path(config.path))
    if dataset is None and not source.exists():
        raise DataError(f"{source}: there is no such table or folder")
    if dataset is None and source.suffix.lower() == ".parquet" and source.is_file():
        dataset = ParquetRows([str(source)], str(source), source.parent)
    rows: Iterable[tuple[int, Row]]
    table = Table(iter(()))
    if dataset is not None:
        rows = enumerate(dataset.light(columns), start=1)
        columns.notes += dataset.notes
    elif source.is_dir():
        rows = enumerate(_class_folders(source), start=1)
    else:
        table = read_annotations(source, audio_folder(config))
        rows = table.rows
        columns.decimal_comma = table.decimal_comma
    is_empty = True
    for number, row in rows:
        if _passes(row, config, number):
            is_empty = False
            yield number, row
    if is_empty:
        raise DataError(f"{config.path}: no row is left" + (" by `where`" if config.where else ""))
    columns.notes += table.notes
    columns.finish()


def _passes(row: Row, config: TableSource, number: int) -> bool:
    """Whether a row has the values that `where` asks for."""
    for column, allowed in config.where.items():
        if column not in row:
            raise DataError(
                f"{config.path}, row {number}: `where` asks for column {column!r}; there are "
                f"{', '.join(map(str, row))}"
            )
        wanted = [allowed] if isinstance(allowed, str) else allowed
        if clean(str(row[column])) not in map(clean, wanted):
            return False
    return True


def tables_in(folder: Path) -> list[Path]:
    """The tables of text in a folder."""
    return sorted(file for kind in ("jsonl", "csv", "tsv") for file in folder.glob(f"*.{kind}"))


def _class_folders(folder: Path) -> Iterator[Row]:
    """`folder/<class name>/<recordings>`; underscores in class names are spaces."""
    if tables := tables_in(folder):
        names = ", ".join(table.name for table in tables)
        raise DataError(f"{folder}: holds {names}; name the table, or a folder of classes alone")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{folder}: expected a folder for each class, with recordings in it")
    for directory in classes:
        answer = directory.name.replace("_", " ")
        for path in find_recordings([directory]):
            yield {"path": os.path.relpath(path, folder), "answer": answer}


def audio_folder(config: TableSource) -> Path:
    """The folder that relative paths of a table start from."""
    source = as_on_disk(Path(config.path))
    if config.audio_root:
        return Path(config.audio_root)
    return source if source.is_dir() else source.parent


# Samples of a benchmark or of a table of one's own

SAMPLE_ALIASES: dict[str, tuple[str, ...]] = {
    **CLIP_ALIASES,
    "label": (
        *("label", "output", "answer", "common_name", "species", "annotation", "text"),
        "scientific_name",
    ),
    "instruction": ("instruction_text", "instruction", "prompt", "query", "question"),
    "dataset": ("dataset_name", "dataset"),
    "cluster": ("cluster", "group_id", "family", "recording_id", "recording"),
    "metadata": ("metadata",),
}
"""Columns and the names that each may bear: BEANS-Zero's schema, and usual names of tables."""

_TABLES = ("metadata.csv", "metadata.jsonl")  # the table of a folder that holds several
_VAGUE_NAMES = ("metadata", "data", "labels", "table", "test")  # say nothing of a table's contents


@dataclass(frozen=True)
class Sample:
    """What is asked about, and the right answer; its sound is read through `clip`.

    id: unique within its dataset
    label: the right answer (`output` in BEANS-Zero's schema)
    instruction: the dataset's own prompt, empty if it has none
    task: classification, detection or captioning, empty if it is not said
    cluster: samples of one recording or family share it; intervals and examples go by it
    """

    id: str
    dataset_name: str
    label: str
    clip: Clip
    cluster: str
    instruction: str = ""
    task: str = ""


@dataclass(frozen=True)
class SampleSet:
    """Samples in the order of the data.

    name: what messages call the source
    notes: what a user should know about how it was read
    """

    name: str
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets in it, in order."""
        return tuple(dict.fromkeys(sample.dataset_name for sample in self.samples))


def open_samples(
    config: TableSource, datasets: Sequence[str] | None = None, *, key_prefix: str = ""
) -> SampleSet:
    """All samples of `config` that pass `where` and are of `datasets` (None: of all).

    A table that has no column for the dataset stands in for those that are named. `key_prefix`
    stands in front of the names of clips, to tell them from those of another source. Raises
    DataError with file and row.
    """
    rows = open_rows(config.path)
    parser = _RowParser(config, rows, key_prefix)
    samples: dict[tuple[str, str], Sample] = {}
    seen: dict[str, None] = {}
    is_named, repeated = False, 0
    place = as_on_disk(Path(config.path))
    table = {} if rows is not None else {"path": str(_table(place))}
    for number, row in labelled_rows(config.model_copy(update=table), rows, parser.columns):
        named = parser.columns.get(row, "dataset")
        is_named = is_named or named is not None
        seen.setdefault(parser.dataset_of(row))
        if datasets is not None and named is not None and str(named) not in datasets:
            continue
        sample = parser.parse(row, number)
        before = samples.get((sample.dataset_name, sample.id))
        if before is not None and parser.is_named_by_times(row, sample):
            if sample.label != before.label:
                sample = replace(sample, id=f"{sample.id} {sample.label}")
            if (sample.dataset_name, sample.id) in samples:
                repeated += 1
                continue
        if (sample.dataset_name, sample.id) in samples:
            raise DataError(
                f"{config.path}, row {number}: a second sample with the id {sample.id!r} in "
                f"{sample.dataset_name}; ids must be different"
            )
        samples[sample.dataset_name, sample.id] = sample
    is_split = rows is None and place.is_dir() and split_of(Path(table["path"]).name) == "test"
    notes = (
        *((f"{place}: of its tables {Path(table['path']).name} is read",) if is_split else ()),
        *parser.columns.notes,
        *((f"{config.path}: rows that repeat an earlier one: {repeated}",) if repeated else ()),
        *_behind_the_end(config.path, [sample.clip for sample in samples.values()]),
        *_check_datasets(config.path, datasets, seen, is_named),
    )
    return SampleSet(config.path, tuple(samples.values()), notes)


def _behind_the_end(name: str, clips: Sequence[Clip]) -> tuple[str, ...]:
    """A note on rows that end after their recording, as headers tell."""
    ends: dict[Path, list[float]] = {}
    for clip in clips:
        if clip.end is not None and isinstance(clip.source, FileSource):
            ends.setdefault(clip.source.path, []).append(clip.end)
    behind = 0
    for path in list(ends)[:_PROBED]:
        with suppress(AudioError), Recording(path) as recording:
            seconds = (recording.frames or math.inf) / recording.sample_rate
            behind += sum(end > seconds + 1 for end in ends[path])
    if not behind:
        return ()
    rows = f"{behind} row ends" if behind == 1 else f"{behind} rows end"
    return (f"{name}: {rows} more than a second after the recording; what is there is heard",)


def _check_datasets(
    name: str, wanted: Sequence[str] | None, seen: Iterable[str], is_named: bool
) -> tuple[str, ...]:
    """Notes on the datasets that were found; raises DataError where one that is wanted is not."""
    if wanted is None:
        return ()
    if not is_named:
        return (
            f"extended.datasets names {', '.join(wanted)}, and {name} does not say which dataset "
            "its rows are of: all of them are taken",
        )
    missing = [dataset for dataset in wanted if dataset not in seen]
    if missing:
        hint = did_you_mean(missing[0], seen)
        raise DataError(
            f"{name}: has no sample of {', '.join(map(repr, missing))}{hint} (its datasets: "
            f"{', '.join(seen)})"
        )
    return ()


class _RowParser:
    """Makes samples of the rows of one source.

    rows: the dataset that holds the rows; None for a table
    """

    def __init__(self, config: TableSource, rows: DatasetRows | None, key_prefix: str) -> None:
        self.columns = Columns(config, SAMPLE_ALIASES)
        self._name = config.path
        self._dataset = _dataset_name(Path(config.path))
        self._folder = audio_folder(config)
        self._rows = rows if rows is not None and rows.has_audio else None
        self._prefix = key_prefix

    def dataset_of(self, row: Row) -> str:
        """The dataset that a row belongs to."""
        return str(self.columns.get(row, "dataset") or self._dataset)

    def is_named_by_times(self, row: Row, sample: Sample) -> bool:
        """Whether a sample is called by its stretch of a recording, which may have more labels."""
        is_part = bool(sample.clip.start) or sample.clip.end is not None
        return is_part and self.columns.get(row, "id") is None

    def parse(self, row: Row, number: int) -> Sample:
        """The sample of a row; `number` counts the rows of the source from 1 on."""
        where = f"{self._name}, row {number}"
        get = self.columns.get
        label, path = self.columns.label(row, "label", where), get(row, "path")
        if label is None:
            raise DataError(
                f"{where}: no label ({self._one_of('label')}); another column is named "
                "with --options extended.data.columns.label=COLUMN. Columns: "
                + ", ".join(map(str, row))
            )
        stretch = start, end = self.columns.stretch(row, where)
        identity = get(row, "id")
        if identity is None and path is None:
            raise DataError(f"{where}: neither an id nor a path names this sample")
        if identity is None:
            is_part = start > 0 or end is not None
            identity = f"{path}@{start:g}-{'' if end is None else f'{end:g}'}" if is_part else path
        facts = _facts(get(row, "metadata"))
        return Sample(
            id=str(identity),
            dataset_name=self.dataset_of(row),
            label=label,
            clip=self._clip(row, number, facts, str(identity), stretch),
            cluster=self._cluster(row)
            or _cluster(facts, SAMPLE_ALIASES["cluster"])
            or str(path or identity),
            instruction=str(self.columns.raw(row, "instruction") or ""),
            task=str(get(row, "task") or ""),
        )

    def _cluster(self, row: Row) -> str | None:
        names = self.columns.names["cluster"]
        if len(names) == 1:  # as the configuration says
            return _cluster(row, names)
        return _cluster({fold(name): row[name] for name in row}, tuple(map(fold, names)))

    def _clip(
        self, row: Row, number: int, facts: Row, identity: str, stretch: tuple[float, float | None]
    ) -> Clip:
        """The clip of a row, called such as `cbi/XC1234`, with `@start+duration` for a part."""
        start, end = stretch
        dataset, path = self.dataset_of(row), self.columns.get(row, "path")
        component = components().get(dataset)
        source: AudioSource
        if self._rows is not None:
            rate = row.get("sample_rate") or facts.get("sample_rate")
            if rate is None and component is not None:
                rate = component.sample_rate
            name = f"sample {identity} of {self._rows.name}"
            source = RowSource(self._rows, number - 1, name, None if rate is None else float(rate))
        elif file := self.columns.recording(row, self._folder, f"{self._name}, row {number}"):
            source = FileSource(file)
        else:
            raise DataError(
                f"{self._name}, row {number}: names no recording ({self._one_of('path')})"
            )
        window = None if component is None else component.max_duration
        lengths = [one for one in (None if end is None else end - start, window) if one is not None]
        length = f"+{min(lengths)!r}" if lengths else ""
        part = f"@{start!r}{length}" if start or length else ""
        sound = str(path) if self._rows is None else identity
        return Clip(f"{self._prefix}{dataset}/{sound}{part}", source, start, end, window)

    def _one_of(self, column: str) -> str:
        return f"a column called one of {', '.join(self.columns.names[column])}"


def _facts(metadata: Any) -> Row:
    """The metadata of a row, which BEANS-Zero keeps as a string of JSON."""
    if isinstance(metadata, str):
        try:
            metadata = parse_json(metadata)
        except ValueError:
            return {}
    return metadata if isinstance(metadata, dict) else {}


def _cluster(facts: Row, names: tuple[str, ...]) -> str | None:
    """What the first of these columns says that has a value.

    A family of animals (their names end in -idae) is no family of recordings, unless just that
    column was named.
    """
    for name in names:
        value = facts.get(name)
        is_taxon = name == "family" and len(names) > 1 and str(value).lower().endswith("idae")
        if value not in (None, "") and value == value and not is_taxon:  # NaN is not itself
            return clean(str(value)) or None
    return None


def _table(place: Path) -> Path:
    """The table that a path names: a file, or the one inside a folder."""
    if not place.is_dir():
        return place
    for name in _TABLES:
        if (place / name).is_file():
            return place / name
    tables = tables_in(place)
    tests = [table for table in tables if split_of(table.name) == "test"]
    if len(tables) > 1 and len(tests) == 1:
        return tests[0]  # as of datasets, the split that is tested
    if len(tables) > 1:
        raise DataError(
            f"{place}: holds the tables {', '.join(table.name for table in tables)}: name one"
        )
    return tables[0] if tables else place


def _dataset_name(place: Path) -> str:
    """What to call the dataset of a table that does not say: the file, or its folder."""
    stem = place.name if place.is_dir() else place.stem
    return place.resolve().parent.name if stem.lower() in _VAGUE_NAMES else stem


# Examples to train on

EXAMPLE_ALIASES: dict[str, tuple[str, ...]] = {
    **CLIP_ALIASES,
    AUDIO: (AUDIO,),
    "files": ("files", "paths"),
    "prompt": ("prompt", "prompts", "query", "question", "instruction_text", "instruction"),
    "answer": ("answer", "text", "output", "label"),
    "labels": ("labels",),
    "name": ("common_name", "species", "annotation", "scientific_name"),
    "dataset": ("dataset", "dataset_name", "source_dataset"),
    "weight": ("weight",),
    "group": ("group_id", "family", "recording_id"),
}
"""Columns and their names, those of the reference's annotations and of BEANS-Zero among them."""


@dataclass(frozen=True)
class Example:
    """A row to train on.

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

    def with_drawn_prompt(self, rng: np.random.Generator) -> Example:
        """The same row with one of its prompts."""
        return self.with_prompt(self.draw_prompt(rng))

    def draw_prompt(self, rng: np.random.Generator) -> str:
        """One of its prompts."""
        return self.prompts[int(rng.integers(len(self.prompts)))]


def load_examples(config: TableConfig) -> list[Example]:
    """All rows of one source that pass `where`, weights balanced as `balance` says.

    Raises DataError with file and row.
    """
    columns = Columns(config, EXAMPLE_ALIASES)
    dataset = open_split(config, columns)
    sound = dataset if dataset is not None and dataset.has_audio else audio_folder(config)
    examples = [
        _example(row, number, config, columns, sound)
        for number, row in labelled_rows(config, dataset, columns)
    ]
    clips = [clip for example in examples for clip in example.clips]
    for note in (*columns.notes, *_behind_the_end(config.path, clips)):
        logger.warning(note)
    if config.balance == "rows":
        return examples
    counts = Counter(example.answer for example in examples)
    power = 1.0 if config.balance == "answers" else 0.5  # the square root of how many there are
    return [
        replace(example, weight=example.weight / counts[example.answer] ** power)
        for example in examples
    ]


def _example(
    row: Row, number: int, config: TableConfig, columns: Columns, sound: ArrowRows | Path
) -> Example:
    """The example of a row.

    sound: the dataset that holds it, or the folder that paths start from
    """
    name = config.name or Path(config.path).stem
    where = f"{config.path}, row {number}"
    get = columns.get
    labels = columns.strings(row, "labels")
    if any(not isinstance(label, str) for label in columns.raw(row, "labels") or ()):
        columns.label(row, "labels", where)  # refuses what is no name
    answer = columns.label(row, "answer", where)
    if answer is None and labels:
        answer = columns.label(row, "labels", where)
    if answer is None and not (columns.has(row, "answer") or columns.has(row, "labels")):
        answer = columns.label(row, "name", where)  # of a table of annotations
    if answer is None:
        raise DataError(
            f"{where}: no answer (a column {' or '.join(EXAMPLE_ALIASES['answer'])}, or `columns: "
            "{answer: <column>}`)"
        )
    return Example(
        id=f"{name}/{get(row, 'id') or number}",
        clips=_clips(row, number, where, columns, sound),
        prompts=columns.strings(row, "prompt") or tuple(config.prompts) or ("",),
        answer=answer,
        labels=labels,
        task=str(get(row, "task") or config.task or ""),
        dataset=str(get(row, "dataset") or name),
        group=str(get(row, "group") or ""),
        weight=columns.number(row, "weight", where, 1.0),
    )


def _clips(
    row: Row, number: int, where: str, columns: Columns, sound: ArrowRows | Path
) -> tuple[Clip, ...]:
    start, end = columns.stretch(row, where)
    if isinstance(sound, ArrowRows):
        rate = next((row[name] for name in RATES if name in row), None)
        name = f"{sound.name}, row {number}"
        return (Clip.of(RowSource(sound, number - 1, name, rate), start, end),)
    path = columns.recording(row, sound, where)
    if path is not None:
        return (Clip.of(FileSource(path), start, end),)
    files = columns.strings(row, "files")
    if files and (start or end is not None):
        raise DataError(f"{where}: start and end are of one recording, and there are several files")
    return tuple(Clip.of(FileSource(as_on_disk(sound / file))) for file in files)

"""Labelled samples of a benchmark or of a table of one's own, wherever they lie.

`open_samples` reads a dataset on the disk or on the Hub, a table, or a folder of class names. A row
becomes a `Sample`, whose sound is read when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from NatureLM.config.schema import TableSource
from NatureLM.data.clip import AudioSource, Clip, FileSource, clip_key
from NatureLM.data.components import components
from NatureLM.data.dataset import DatasetRows, RowSource, labelled_rows, open_rows
from NatureLM.data.table import CLIP_ALIASES, Columns, DataError, Row, audio_folder
from NatureLM.util import did_you_mean

ALIASES: dict[str, tuple[str, ...]] = {
    **CLIP_ALIASES,
    "label": ("label", "output", "answer", "common_name", "species", "text"),
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
    columns = Columns(config, ALIASES)
    rows = open_rows(config.path)
    parser = RowParser(config, columns, rows, key_prefix)
    samples: dict[tuple[str, str], Sample] = {}
    seen: dict[str, None] = {}
    is_named = False
    table = {} if rows is not None else {"path": _table(Path(config.path))}
    for number, row in labelled_rows(config.model_copy(update=table), rows):
        named = columns.get(row, "dataset")
        is_named = is_named or named is not None
        seen.setdefault(parser.dataset_of(row))
        if datasets is not None and named is not None and str(named) not in datasets:
            continue
        sample = parser.parse(row, number)
        if (sample.dataset_name, sample.id) in samples:
            raise DataError(
                f"{config.path}, row {number}: a second sample with the id {sample.id!r} in "
                f"{sample.dataset_name}; ids must be different"
            )
        samples[sample.dataset_name, sample.id] = sample
    notes = _check_datasets(config.path, datasets, seen, is_named)
    return SampleSet(config.path, tuple(samples.values()), notes)


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


class RowParser:
    """Makes samples of the rows of one source.

    rows: the dataset that holds the rows; None for a table
    """

    def __init__(
        self,
        config: TableSource,
        columns: Columns,
        rows: DatasetRows | None,
        key_prefix: str = "",
    ) -> None:
        self._columns = columns
        self._name = config.path
        self._dataset = _dataset_name(Path(config.path))
        self._folder = audio_folder(config)
        self._rows = rows if rows is not None and rows.has_audio else None
        self._prefix = key_prefix

    def dataset_of(self, row: Row) -> str:
        """The dataset that a row belongs to."""
        return str(self._columns.get(row, "dataset") or self._dataset)

    def parse(self, row: Row, number: int) -> Sample:
        """The sample of a row; `number` counts the rows of the source from 1 on."""
        where = f"{self._name}, row {number}"
        get = self._columns.get
        label = get(row, "label")
        if label is None:
            raise DataError(
                f"{where}: no label ({self._one_of('label')}); another column is named "
                "with --options extended.data.columns.label=COLUMN. Columns: "
                + ", ".join(map(str, row))
            )
        dataset = self.dataset_of(row)
        path = get(row, "path")
        start, end = self._columns.stretch(row, where)
        identity = self._identity(row, path, start, end, where)
        facts = _facts(get(row, "metadata"))
        known = components().get(dataset)
        window = None if known is None else known.max_duration
        lengths = [one for one in (None if end is None else end - start, window) if one is not None]
        sound = str(path) if self._rows is None else identity
        return Sample(
            id=identity,
            dataset_name=dataset,
            label=str(label),
            clip=Clip(
                key=self._prefix + clip_key(dataset, sound, start, min(lengths, default=None)),
                source=self._source(row, number, identity, dataset, facts),
                start=start,
                end=end,
                window=window,
            ),
            cluster=_cluster(row, self._columns.names["cluster"])
            or _cluster(facts, ALIASES["cluster"])
            or str(path or identity),
            instruction=str(get(row, "instruction") or ""),
            task=str(get(row, "task") or ""),
        )

    def _identity(self, row: Row, path: Any, start: float, end: float | None, where: str) -> str:
        named = self._columns.get(row, "id")
        if named is not None:
            return str(named)
        if path is None:
            raise DataError(f"{where}: neither an id nor a path names this sample")
        is_part = start > 0 or end is not None
        return f"{path}@{start:g}-{'' if end is None else f'{end:g}'}" if is_part else str(path)

    def _source(
        self, row: Row, number: int, identity: str, dataset: str, facts: Row
    ) -> AudioSource:
        if self._rows is not None:
            name = f"sample {identity} of {self._rows.name}"
            return RowSource(self._rows, number - 1, name, _array_rate(row, facts, dataset))
        path = self._columns.get(row, "path")
        if path is None:
            raise DataError(
                f"{self._name}, row {number}: names no recording ({self._one_of('path')})"
            )
        return FileSource(self._folder / str(path))

    def _one_of(self, column: str) -> str:
        return f"a column called one of {', '.join(self._columns.names[column])}"


def _facts(metadata: Any) -> Row:
    """The metadata of a row, which BEANS-Zero keeps as a string of JSON."""
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
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
        if value not in (None, "") and not is_taxon:
            return str(value)
    return None


def _array_rate(row: Row, facts: Row, dataset: str) -> float | None:
    """Sample rate of sound that is stored as bare samples, in Hz."""
    rate = row.get("sample_rate") or facts.get("sample_rate")
    if rate is None and dataset in components():
        rate = components()[dataset].sample_rate
    return None if rate is None else float(rate)


def _table(place: Path) -> str:
    """The table that a path names: a file, or the one inside a folder."""
    if not place.is_dir():
        return str(place)
    for name in _TABLES:
        if (place / name).is_file():
            return str(place / name)
    tables = sorted([*place.glob("*.jsonl"), *place.glob("*.csv")])
    return str(tables[0] if len(tables) == 1 else place)


def _dataset_name(place: Path) -> str:
    """What to call the dataset of a table that does not say: the file, or its folder."""
    stem = place.name if place.is_dir() else place.stem
    return place.resolve().parent.name if stem.lower() in _VAGUE_NAMES else stem

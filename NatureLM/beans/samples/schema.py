"""From the columns of a row to a `Sample`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from NatureLM.beans.components import components
from NatureLM.beans.samples.clip import AudioSource, Clip, clip_key
from NatureLM.beans.samples.sample import DataError, Sample
from NatureLM.beans.samples.sources import FileSource, Rows, RowSource
from NatureLM.tables import CLIP_ALIASES, Columns, Row

ALIASES: dict[str, tuple[str, ...]] = {
    **CLIP_ALIASES,
    "label": ("label", "output", "answer", "common_name", "species", "text"),
    "instruction": ("instruction_text", "instruction", "prompt", "query", "question"),
    "dataset": ("dataset_name", "dataset"),
    "cluster": ("cluster", "group_id", "family", "recording_id", "recording"),
    "metadata": ("metadata",),
}
"""Our columns and how they may be called: BEANS-Zero's schema, and usual names of tables."""


class SampleMaker:
    """Makes samples of the rows of one source.

    dataset: name of rows that name none
    folder: where paths of files start from
    rows: the dataset that holds the sound; None where files do
    key_prefix: in front of the names of clips, to tell them from those of another source
    """

    def __init__(
        self,
        columns: Columns,
        name: str,
        dataset: str,
        folder: Path,
        rows: Rows | None,
        key_prefix: str = "",
    ) -> None:
        self._columns = columns
        self._name = name
        self._dataset = dataset
        self._folder = folder
        self._rows = rows
        self._prefix = key_prefix

    def dataset_of(self, row: Row) -> str:
        """The dataset that a row belongs to."""
        return str(self._columns.get(row, "dataset") or self._dataset)

    def make(self, row: Row, number: int) -> Sample:
        """The sample of a row; `number` counts the rows of the source from 1 on."""
        where = f"{self._name}, row {number}"
        get = self._columns.get
        label = get(row, "label")
        if label is None:
            names = ", ".join(self._columns.names["label"])
            raise DataError(
                f"{where}: no label (a column called one of {names}); another column is named "
                "with --options extended.data.columns.label=COLUMN. Columns: "
                + ", ".join(map(str, row))
            )
        dataset = self.dataset_of(row)
        path = get(row, "path")
        start, end = self._columns.stretch(row, where)
        identity = self._identity(row, path, start, end, where)
        facts = _facts(get(row, "metadata"))
        duration = None if end is None else end - start
        known = components().get(dataset)
        window = None if known is None else known.max_duration
        sound = str(path) if self._rows is None else identity
        return Sample(
            id=identity,
            dataset_name=dataset,
            label=str(label),
            clip=Clip(
                key=self._prefix + clip_key(dataset, sound, start, _shorter(duration, window)),
                source=self._source(row, number, identity, dataset, facts),
                start=start,
                duration=duration,
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
            names = ", ".join(self._columns.names["path"])
            raise DataError(
                f"{self._name}, row {number}: names no recording (a column called one of {names})"
            )
        return FileSource(self._folder / str(path))


def _facts(metadata: Any) -> Row:
    """The metadata of a row, which BEANS-Zero keeps as JSON in a text."""
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
    """Sample rate of sound that is stored as bare samples."""
    rate = row.get("sample_rate") or facts.get("sample_rate")
    if rate is None and dataset in components():
        rate = components()[dataset].sample_rate
    return None if rate is None else float(rate)


def _shorter(*lengths: float | None) -> float | None:
    """The shortest of those that are known."""
    return min((length for length in lengths if length is not None), default=None)

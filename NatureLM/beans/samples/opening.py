"""Samples from wherever they lie: a dataset on disk or on the Hub, or a table of one's own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from NatureLM.beans.samples import arrow
from NatureLM.beans.samples.sample import DataError, Sample
from NatureLM.beans.samples.schema import ALIASES, SampleMaker
from NatureLM.config.tables import TableSource
from NatureLM.tables import Columns, Row, audio_folder, passes, rows_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TABLES = ("metadata.csv", "metadata.jsonl")
_SAYING_NOTHING = ("metadata", "data", "labels", "table", "test")


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
    stands in front of the names of clips. Raises DataError or TableError with file and row.
    """
    columns = Columns(config, ALIASES)
    rows = _rows(config.path)
    maker = SampleMaker(
        columns,
        name=config.path,
        dataset=_name(config.path),
        folder=audio_folder(config),
        rows=rows if rows is not None and rows.has_audio else None,
        key_prefix=key_prefix,
    )
    samples: dict[tuple[str, str], Sample] = {}
    seen: dict[str, None] = {}
    is_named = False
    for number, row in _light(config, rows):
        named = columns.get(row, "dataset")
        is_named = is_named or named is not None
        seen.setdefault(maker.dataset_of(row))
        if datasets is not None and named is not None and str(named) not in datasets:
            continue
        sample = maker.make(row, number)
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
        near = difflib.get_close_matches(missing[0], seen, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{name}: has no sample of {', '.join(map(repr, missing))}{hint} (its datasets: "
            f"{', '.join(seen)})"
        )
    return ()


def _light(config: TableSource, rows: arrow.DatasetRows | None) -> Iterator[tuple[int, Row]]:
    """(number from 1 on, row) of every row that passes `where`, without its sound."""
    if rows is None:
        table = _table(Path(config.path))
        yield from rows_of(config.model_copy(update={"path": str(table)}))
        return
    for number, row in enumerate(rows.light(), start=1):
        if passes(row, config, number):
            yield number, row


def _rows(path: str) -> arrow.DatasetRows | None:
    """The dataset that a path names; None for a table of text or a folder of recordings."""
    place = Path(path)
    if place.is_dir():
        if (place / "state.json").is_file() or (place / "dataset_dict.json").is_file():
            return arrow.saved_dataset(place)
        if files := sorted(place.rglob("*.parquet")):
            return arrow.ParquetRows([str(file) for file in files], path, place)
        if files := sorted(place.rglob("*.arrow")):
            return arrow.arrow_files(files, path, place)
        return None
    suffix = place.suffix.lower()
    if place.is_file() and suffix == ".arrow":
        return arrow.arrow_files([place], path, place.parent)
    if place.is_file() and suffix == ".parquet":
        return arrow.ParquetRows([path], path, place.parent)
    if not place.exists() and _HUB_ID.fullmatch(path) and not suffix:
        return arrow.hub_dataset(path)
    return None


def _table(place: Path) -> Path:
    """The table that a path names: a file, or the one inside a folder."""
    if not place.is_dir():
        return place
    for name in _TABLES:
        if (place / name).is_file():
            return place / name
    tables = sorted([*place.glob("*.jsonl"), *place.glob("*.csv")])
    return tables[0] if len(tables) == 1 else place


def _name(path: str) -> str:
    """What to call the dataset of a table that does not say: the file, or its folder."""
    place = Path(path)
    stem = place.name if place.is_dir() else place.stem
    return place.resolve().parent.name if stem.lower() in _SAYING_NOTHING else stem

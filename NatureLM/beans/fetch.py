"""Components of the benchmark from the Hub onto this machine: only the rows that are asked for.

The Hub keeps all components in the same Parquet files, in groups of rows that say which components
they hold. Each group that is needed becomes one local file for each component,
`<component>/<file>-<group>.parquet`, which is there whole or not at all; so a fetch that was
stopped is resumed with the next group.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from NatureLM.data.dataset import hub_commit, hub_files, parquet_file, short
from NatureLM.data.table import DataError
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.util import atomic_write, did_you_mean, parse_json, shown, write_json

COLUMN = "dataset_name"
SOURCE = "source.json"
"""In a folder of what was fetched: from where, and which commit it had."""
_THREADS = 8  # files whose ends are read at once
_ROWS = 64  # in a group of a local file: so many sounds are in memory when one is read


@dataclass(frozen=True)
class RowGroup:
    """A group of rows that holds something that is asked for.

    components: those of the requested ones that are in it
    is_mixed: whether it holds several components
    bytes: what is transferred for it
    """

    file: str
    group: int
    components: tuple[str, ...]
    is_mixed: bool
    bytes: int

    def targets(self, folder: Path) -> dict[str, Path]:
        """The file of the rows of each component."""
        name = f"{Path(self.file).stem}-{self.group:04}.parquet"
        return {one: folder / quote(one, safe=" ") / name for one in self.components}

    def is_there(self, folder: Path) -> bool:
        """Whether all of it is on this machine."""
        return all(path.exists() for path in self.targets(folder).values())


def recorded_commit(folder: Path, repository: str) -> str | None:
    """The commit whose rows a folder holds; None where nothing was fetched into it.

    Raises UsageError for rows of another dataset.
    """
    path = folder / SOURCE
    if not path.exists():
        return None
    try:
        kept = parse_json(path.read_bytes())
        named, commit = kept["repository"], kept["revision"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(f"{path}: cannot be read as what was fetched; remove it") from None
    if named != repository or not isinstance(commit, str):
        raise UsageError(
            f"{folder} holds rows of {shown(named)}, and {repository} is asked for: give another "
            "--output-path"
        )
    return commit


class RemoteDataset:
    """The Parquet files of one commit of a dataset on the Hub.

    revision: commit, tag or branch; None for the newest

    Raises DataError where they cannot be listed.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self.name = name
        try:
            self.commit = hub_commit(name, revision)
            self.files, self._filesystem = hub_files(f"{name}@{self.commit}")
        except DataError as error:
            raise DataError(
                f"{name}: {error}. On a machine with a network the same command fetches it; copy "
                "the folder here and name it: beans --data-path FOLDER"
            ) from error

    def record(self, folder: Path) -> None:
        """Write which commit the rows of a folder are of. Raises UsageError for rows of others."""
        before = recorded_commit(folder, self.name)
        if before not in (None, self.commit):
            raise UsageError(
                f"{folder} holds rows of the commit {before}, and the one asked for is "
                f"{self.commit}: give another --output-path"
            )
        if before is None and folder.is_dir():
            write_json(folder / SOURCE, {"repository": self.name, "revision": self.commit})

    def row_groups(
        self, wanted: Sequence[str] | None, advance: Callable[[int], None] = lambda _: None
    ) -> list[RowGroup]:
        """What is needed for the components (None: for all), from the ends of the files alone.

        advance: called with 1 after each file. Raises DataError for components that are not there.
        """
        found: list[RowGroup] = []
        seen: set[str] = set()
        with ThreadPoolExecutor(_THREADS) as threads:
            for groups in threads.map(self._groups, self.files):
                for one in groups:
                    seen |= set(one.components)
                    needed = one.components if wanted is None else set(one.components) & {*wanted}
                    if needed:
                        found.append(replace(one, components=tuple(sorted(needed))))
                advance(1)
        missing = [name for name in wanted or () if name not in seen]
        if missing:
            hint = did_you_mean(missing[0], seen)
            raise DataError(
                f"{self.name}: has no component {', '.join(map(repr, missing))}{hint} (it has "
                f"{', '.join(sorted(seen))})"
            )
        return found

    def fetch(self, group: RowGroup, folder: Path) -> None:
        """Bring a group of rows into the folder.

        Raises NatureLMError where it does not come, UsageError where it cannot be written.
        """
        try:
            rows = self._open(group.file).read_row_group(group.group)
        except Exception as error:
            raise NatureLMError(
                f"{group.file}: the rest does not come ({short(error)}). What is in {folder} is "
                "whole, and the same command goes on from there."
            ) from error
        compute: Any = import_module("pyarrow.compute")
        for name, path in group.targets(folder).items():
            if not path.exists():
                wanted = rows.filter(compute.equal(rows.column(COLUMN), name))
                _write(wanted if group.is_mixed else rows, path)

    def _groups(self, file: str) -> list[RowGroup]:
        """Every group of rows of a file."""
        opened = self._open(file)
        names = opened.schema_arrow.names
        if COLUMN not in names:
            raise DataError(f"{file}: has no column {COLUMN} (its columns: {', '.join(names)})")
        groups = []
        for number in range(opened.metadata.num_row_groups):
            facts = opened.metadata.row_group(number)
            size = sum(facts.column(i).total_compressed_size for i in range(facts.num_columns))
            found = _components(opened, number)
            groups.append(RowGroup(file, number, tuple(found), len(found) > 1, size))
        return groups

    def _open(self, file: str) -> Any:
        return parquet_file(file, self._filesystem)


def _components(opened: Any, group: int) -> set[str]:
    """The components in a group: by its statistics where they decide, else by the column."""
    facts = opened.metadata.row_group(group)
    for number in range(facts.num_columns):
        column = facts.column(number)
        if column.path_in_schema == COLUMN and column.is_stats_set:
            low, high = column.statistics.min, column.statistics.max
            # A cut-off maximum could stand for several names; equal ends cannot.
            if low == high and low is not None and column.statistics.null_count == 0:
                return {str(low)}
    values = opened.read_row_group(group, columns=[COLUMN]).column(COLUMN).unique().to_pylist()
    return {str(value) for value in values if value is not None}


def _write(rows: Any, path: Path) -> None:
    parquet: Any = import_module("pyarrow.parquet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, alone=True) as unfinished:
            parquet.write_table(rows, unfinished, row_group_size=_ROWS)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None


def check_room(folder: Path, needed: int) -> None:
    """Raise UsageError where the disk has less room than is needed."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UsageError(
            f"{folder}: needs {size_text(needed)}, and the disk has {size_text(free)} left: give "
            "another --output-path, or fewer --components"
        )


def size_text(count: int) -> str:
    """Bytes in the unit that fits."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"

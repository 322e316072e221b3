"""Several indexes of one model and one way to cut windows as one: those of shards, above all.

Vectors go from file to file, a few megabytes at a time. What is held are the names of the
recordings and what is known of them, about a kilobyte for each, as in every index. The rows stand
index after index: the order of an index means nothing to a search.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from NatureLM.audio.files import RealPaths
from NatureLM.audio.windows import count_windows
from NatureLM.errors import UsageError
from NatureLM.results.shards import MOST_SHARDS, Merged, Shard
from NatureLM.search.build import refuse_other_settings
from NatureLM.search.index import Block, VectorIndex, open_index, writer_of
from NatureLM.storage import AnyPath
from NatureLM.util import atomic_write, writing


def merge_indexes(
    runs: Sequence[Path],
    output: Path,
    *,
    listed: Iterable[tuple[AnyPath, float | None]] | None = None,
    overwrite: bool = False,
) -> Merged:
    """Write the rows of indexes into one, whole or not at all.

    listed: all recordings that were to be heard, with their lengths in seconds as far as known

    A recording that is in several is taken from the first that has heard it to its end. Raises
    UsageError for indexes of other models or windows, and where `output` is another index.
    """
    files = list(dict.fromkeys(runs))
    if not files:
        raise UsageError("there are no indexes to merge: name the files that the shards wrote")
    if any(os.path.realpath(one) == os.path.realpath(output) for one in files):
        raise UsageError(f"{output}: is one of the indexes; give another --output-path")
    indexes = [open_index(one) for one in files]
    for other in indexes[1:]:
        refuse_other_settings(other.path, indexes[0].settings, other.settings)
    joined = JoinedIndex(indexes, output)
    if output.exists() and not overwrite:
        _refuse_to_lose(open_index(output), joined)
    write = writer_of(output)
    with writing(output), atomic_write(output, alone=True) as unfinished:
        unfinished.unlink(missing_ok=True)  # what a killed process left
        write(unfinished, joined)
    return _counted(joined, files, listed)


class JoinedIndex(VectorIndex):
    """The rows of several indexes, each recording once.

    windows: of each recording, by its name, once the rows were read
    duplicates: rows that are left out, because another index has the recording
    """

    def __init__(self, indexes: Sequence[VectorIndex], path: Path) -> None:
        self.path, self._indexes = path, indexes
        self.windows: Counter[str] = Counter()
        self.duplicates = 0
        self._owners: dict[str, int] = {}  # by real path, else by name
        self._real: list[dict[str, str]] = []  # of each index: names → real paths
        self._names: dict[str, str] = {}  # by real path: names here
        for number, index in enumerate(indexes):
            self._take(number, index)
        taken = set[str]()
        for number, real in enumerate(self._real):
            for name, key in real.items():
                if self._owners[key] == number:
                    self._names[key] = key if name in taken else name
                    taken.add(self._names[key])
        self.settings = replace(
            indexes[0].settings, unfinished=tuple(self._unfinished()), heard=tuple(self._heard())
        )

    def _take(self, number: int, index: VectorIndex) -> None:
        """Count the recordings of an index in."""
        real = {str(name): str(path) for name, path, *_ in index.settings.heard}
        real |= {name: name for name in index.files() if name not in real}
        self._real.append(real)
        unfinished = set(index.settings.unfinished)
        for name, key in real.items():
            owner = self._owners.setdefault(key, number)
            if owner != number and name not in unfinished and self._is_unfinished(key):
                self._owners[key] = number

    def _is_unfinished(self, key: str) -> bool:
        number = self._owners[key]
        unfinished = self._indexes[number].settings.unfinished
        return any(self._real[number].get(name) == key for name in unfinished)

    def _unfinished(self) -> Iterator[str]:
        for number, index in enumerate(self._indexes):
            keys = (self._real[number].get(name, name) for name in index.settings.unfinished)
            yield from (self._names[key] for key in keys if self._owners.get(key) == number)

    def _heard(self) -> Iterator[tuple[Any, ...]]:
        for number, index in enumerate(self._indexes):
            for _, key, *before in index.settings.heard:
                if self._owners[key] == number:
                    yield (self._names[key], key, *before)

    @property
    def keys(self) -> Iterable[str]:
        """Real paths of the recordings, else their names."""
        return self._owners.keys()

    def name(self, key: str) -> str:
        """What the recording of a real path is called here."""
        return self._names[key]

    def __len__(self) -> int:
        if len(self._owners) == sum(map(len, self._real)):
            return sum(map(len, self._indexes))
        return sum(len(block.files) for block in self.blocks())

    def files(self) -> list[str]:
        return list(self._names.values())

    def blocks(self) -> Iterator[Block]:
        self.windows.clear()
        self.duplicates = 0
        for number, index in enumerate(self._indexes):
            for block in index.blocks():
                yield self._own(number, block)

    def _own(self, number: int, block: Block) -> Block:
        """Those rows of a block that are not another index's, by the names here."""
        keys = [self._real[number][file] for file in block.files]
        is_own = np.array([self._owners[key] == number for key in keys], bool)
        files = [self._names[key] for key in keys if self._owners[key] == number]
        self.windows.update(files)
        self.duplicates += len(keys) - len(files)
        columns = (block.starts, block.ends, block.vectors)
        return Block(files, *(column[is_own] for column in columns))


def _refuse_to_lose(before: VectorIndex, now: JoinedIndex) -> None:
    """Raise UsageError where an index is there with recordings that the new one has not."""
    refuse_other_settings(before.path, before.settings, now.settings)
    known = {name: real for name, real, *_ in before.settings.heard}
    lost = {str(known.get(name, name)) for name in before.files()} - set(now.keys)
    if lost:
        raise UsageError(
            f"{before.path}: holds {len(lost)} recordings that are in none of the indexes, such as "
            f"{min(lost)}; give another --output-path, or --overwrite"
        )


def _counted(
    joined: JoinedIndex,
    files: Sequence[Path],
    listed: Iterable[tuple[AnyPath, float | None]] | None,
) -> Merged:
    """What came of merging, and what is not there."""
    merged = Merged(
        rows=joined.windows.total(), recordings=len(joined.windows), duplicates=joined.duplicates
    )
    for name in joined.settings.unfinished:
        merged.unread.add(name)
    for one in _missing_shards(files):
        merged.shards.add(one)
    if listed is None:
        return merged
    real, keys, seen = RealPaths(), set(joined.keys), set[str]()
    cut = joined.settings
    for path, seconds in listed:
        key = next((one for one in (real(path), str(path)) if one in keys), None)
        if key is None:
            merged.missing.add(str(path))
            continue
        seen.add(key)
        if seconds is not None and joined.name(key) not in cut.unfinished:
            there = joined.windows[joined.name(key)]
            wanted = count_windows(seconds, cut.window_seconds, cut.hop_seconds, cut.time_expansion)
            if there < wanted:
                merged.short.add(f"{joined.name(key)}: {there} of {wanted} windows")
    for key in sorted(keys - seen):
        merged.unlisted.add(joined.name(key))
    return merged


def _missing_shards(files: Sequence[Path]) -> Iterator[str]:
    """Shards that the names of the files speak of and that are not among them."""
    there = {one for file in files if (one := Shard.named_in(file.name))}
    for stem, of in sorted({(stem, shard.of) for stem, shard in there}):
        for number in range(1, min(of, MOST_SHARDS) + 1):
            if (stem, Shard(number, of)) not in there:
                yield f"{number}/{of} of {stem}"

"""Shards: which part of an archive a process asks about, by the names of the recordings alone.

A recording's shard is the hash of its path below the folder or manifest that names it. So every
recording is in one shard, whoever asks, and those that are added later move none.
"""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from NatureLM.audio.files import as_on_disk
from NatureLM.errors import UsageError
from NatureLM.storage import AnyPath, PathT, RemotePath, full_path, is_url
from NatureLM.util import digest

MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """One of `of` parts, counted from 1."""

    RECORDED: ClassVar[tuple[str, str]] = ("shard", "recordings_of_shards")
    """What the record of a shard's answers says of it, and of how many recordings each has."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that `3/8` names. Raises UsageError."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        shard = None if found is None else cls(int(found[1]), int(found[2]))
        if shard is None or not 1 <= shard.number <= shard.of <= MOST_SHARDS:
            raise UsageError(
                f"--shard is {text!r}, and it must be i/n, such as 1/4: the first of four parts, "
                f"with i from 1 to n and n at most {MOST_SHARDS:,}"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def holds(self, name: str) -> bool:
        """Whether the recording of this name (`name_below`) is in it."""
        return shard_of(name, self.of) == self.number

    def file(self, output: PathT) -> PathT:
        """The file of its own that goes with an output: `x.shard-1-of-4.jsonl`."""
        name = f"{output.stem}.shard-{self.number}-of-{self.of}{output.suffix}"
        return output.with_name(name)


def shard_of(name: str, of: int) -> int:
    """The shard of a name, from 1 to `of`: the same on every machine and day."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogatepass")
    return int.from_bytes(digest(text, "blake2b", size=8), "big") % of + 1


class ShardPicker:
    """Picks the recordings of a shard out of all, and counts those of each.

    folders: from which the names count that decide the shards
    """

    def __init__(self, shard: Shard, folders: Sequence[AnyPath]) -> None:
        self.shard = shard
        self._folders = [
            str(one) if isinstance(one, RemotePath) else os.path.abspath(as_on_disk(one))
            for one in folders
        ]
        # A few bytes for each recording: there are many, and each counts once.
        self._names, self._numbers = array("q"), array("l")

    def holds(self, recording: str | AnyPath) -> bool:
        """Whether the shard holds a recording, which is counted in."""
        full = full_path(recording)
        number = shard_of(name_below(full, self._folders), self.shard.of)
        self._names.append(hash(full))
        self._numbers.append(number)
        return number == self.shard.number

    def counts(self) -> list[int]:
        """How many recordings each shard has."""
        import numpy as np

        _, first = np.unique(np.array(self._names), return_index=True)
        numbers = np.array(self._numbers)[first]
        return [int(one) for one in np.bincount(numbers, minlength=self.shard.of + 1)[1:]]


def name_below(recording: str | AnyPath, folders: Sequence[str]) -> str:
    """The name that decides a recording's shard.

    folders: full paths that names count from, as they were named

    It is the path below the first of the folders that the recording is in, with `/` between its
    parts; of a recording that is in none, its own name.
    """
    full = full_path(recording)
    between = "/" if is_url(full) else os.sep
    for folder in folders:
        start = folder.rstrip(between) + between
        if full.startswith(start):
            return full[len(start) :].replace(between, "/")
    return full.rpartition(between)[2]

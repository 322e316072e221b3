"""Indexes: files with one row for each window. What reads and writes them, by suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from NatureLM.embeddings.errors import VectorIndexError
from NatureLM.embeddings.settings import IndexSettings

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class IndexRow:
    """A window of an index: seconds in the recording."""

    file: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that follow one another: windows of files, and their vectors (rows, width)."""

    files: Sequence[str]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    vectors: NDArray[np.float32]


class VectorIndex(Protocol):
    """An index that is open for reading; no more of it is in memory than is asked for."""

    path: Path
    settings: IndexSettings

    def __len__(self) -> int:
        """How many rows there are."""

    def files(self) -> list[str]:
        """The recordings, in the order of their first rows."""

    def file_numbers(self, rows: int) -> Iterator[NDArray[np.int32]]:
        """The recording of each row in order, as its place in `files()`, so many at a time."""

    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        """The vectors in order, float32 (so many rows at most, width) at a time."""

    def blocks(self, rows: int) -> Iterator[Block]:
        """All of the rows in order, so many at most at a time."""

    def rows_at(self, numbers: Sequence[int]) -> list[IndexRow]:
        """Rows by their numbers, in the order of these."""


Writer: TypeAlias = Callable[[Path, IndexSettings, int, Callable[[], Iterable[Block]]], None]
"""Writes an index of so many rows to a file that is not there yet; its blocks can be asked for
several times."""

SUFFIXES = (".npz", ".parquet")


def open_index(path: Path) -> VectorIndex:
    """Open an index. Raises VectorIndexError."""
    if not path.is_file():
        raise VectorIndexError(f"{path}: there is no such index; make one with `naturelm embed`")
    if check_suffix(path) == ".parquet":
        from NatureLM.embeddings.parquet import ParquetIndex

        return ParquetIndex(path)
    from NatureLM.embeddings.npz import NpzIndex

    return NpzIndex(path)


def writer_of(path: Path) -> Writer:
    """What writes an index of this name. Raises VectorIndexError where it lacks a library."""
    if check_suffix(path) == ".parquet":
        from NatureLM.embeddings import parquet

        parquet.needed()
        return parquet.write
    from NatureLM.embeddings.npz import write

    return write


def check_suffix(path: Path) -> str:
    """The suffix of an index, in lower case; raises VectorIndexError for another."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise VectorIndexError(
            f"{path}: an index is a file whose name ends in {' or '.join(SUFFIXES)}"
        )
    return suffix


def rows_of_a_block(width: int) -> int:
    """How many vectors of a width are worked on at once."""
    return max(64, _BLOCK_BYTES // (4 * width))

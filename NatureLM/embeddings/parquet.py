"""Indexes as Parquet: columns file, start, end, vector and model; settings in the metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from NatureLM.embeddings.errors import VectorIndexError
from NatureLM.embeddings.index import Block, IndexRow
from NatureLM.embeddings.settings import IndexSettings

_KEY = b"naturelm_index"
_NEEDED = {"file", "start", "end", "vector", "model"}


def needed() -> Any:
    """pyarrow; raises VectorIndexError where it is not installed."""
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise VectorIndexError(
            "Parquet needs pyarrow: pip install 'naturelm-audio[embed]'; an index whose name ends "
            "in .npz needs nothing"
        ) from None
    return pyarrow


def write(
    path: Path, settings: IndexSettings, rows: int, blocks: Callable[[], Iterable[Block]]
) -> None:
    """See `index.Writer`; a block is a row group."""
    pa = needed()
    schema = pa.schema(
        [
            ("file", pa.string()),
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("vector", pa.list_(pa.float32(), settings.width)),
            ("model", pa.string()),
        ],
        metadata={_KEY: settings.to_json().encode()},
    )
    with pa.parquet.ParquetWriter(
        path, schema, use_dictionary=["file", "model"], compression="none"
    ) as writer:
        for block in blocks():
            flat = pa.array(np.ascontiguousarray(block.vectors).reshape(-1))
            columns = [
                pa.array(list(block.files), pa.string()),
                pa.array(block.starts),
                pa.array(block.ends),
                pa.FixedSizeListArray.from_arrays(flat, settings.width),
                pa.array([settings.model_id] * len(block.files), pa.string()),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


class ParquetIndex:
    """A Parquet file that is read block by block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        pa = needed()
        try:
            self._file = pa.parquet.ParquetFile(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise VectorIndexError(f"{path}: cannot be read as Parquet: {error}") from None
        schema = self._file.schema_arrow
        metadata = schema.metadata or {}
        if _KEY not in metadata or not set(schema.names) >= _NEEDED:
            raise VectorIndexError(f"{path}: is no index of `naturelm embed`")
        self.settings = IndexSettings.from_json(metadata[_KEY], path)
        if schema.field("vector").type != pa.list_(pa.float32(), self.settings.width):
            raise VectorIndexError(f"{path}: its vectors do not have the width that it says")
        groups = self._file.metadata.num_row_groups
        sizes = (self._file.metadata.row_group(group).num_rows for group in range(groups))
        self._starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def files(self) -> list[str]:
        found: dict[str, None] = {}
        for table in self._tables(["file"]):
            found.update(dict.fromkeys(table.column("file").to_pylist()))
        return list(found)

    def file_numbers(self, rows: int) -> Iterator[NDArray[np.int32]]:
        places = {file: place for place, file in enumerate(self.files())}
        for table in self._tables(["file"], rows):
            names = table.column("file").to_pylist()
            yield np.array([places[name] for name in names], np.int32)

    def vectors(self, rows: int) -> Iterator[NDArray[np.float32]]:
        for table in self._tables(["vector"], rows):
            yield self._matrix(table.column("vector"))

    def blocks(self, rows: int) -> Iterator[Block]:
        for table in self._tables(["file", "start", "end", "vector"], rows):
            yield Block(
                table.column("file").to_pylist(),
                table.column("start").to_numpy(),
                table.column("end").to_numpy(),
                self._matrix(table.column("vector")),
            )

    def rows_at(self, numbers: Sequence[int]) -> list[IndexRow]:
        found: dict[int, IndexRow] = {}
        for group, start in enumerate(self._starts[:-1]):
            here = [n for n in set(numbers) if start <= n < self._starts[group + 1]]
            if not here:
                continue
            table = self._file.read_row_group(group, columns=["file", "start", "end"])
            for number in here:
                file, begin, end = (
                    table.column(name)[number - start].as_py() for name in ("file", "start", "end")
                )
                found[number] = IndexRow(file, begin, end)
        return [found[number] for number in numbers]

    def _tables(self, columns: list[str], rows: int | None = None) -> Iterator[Any]:
        """Columns of the rows in order, of one row group at a time, so many rows at most.

        `iter_batches` reads ahead, and holds much more.
        """
        pool = needed().default_memory_pool()
        for group in range(self._file.metadata.num_row_groups):
            table = self._file.read_row_group(group, columns=columns, use_threads=False)
            for start in range(0, len(table), rows or max(1, len(table))):
                yield table.slice(start, rows)
            del table
            pool.release_unused()

    def _matrix(self, column: Any) -> NDArray[np.float32]:
        pieces = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
        flat = np.concatenate([np.empty(0, np.float32), *pieces])
        return flat.reshape(-1, self.settings.width)

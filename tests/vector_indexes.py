"""Small indexes for tests of what reads, searches and makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from NatureLM.search.index import Block, IndexSettings, VectorIndex

MakeIndex = Callable[..., VectorIndex]
SETTINGS = IndexSettings(
    model="model",
    fingerprint="0123456789abcdef",
    layer="encoder",
    width=5,
    sample_rate=16000,
    window_seconds=10.0,
    hop_seconds=5.0,
)


class MemoryIndex(VectorIndex):
    """Vectors as blocks of so many rows of an index whose files have four windows each."""

    def __init__(self, vectors: np.ndarray, rows: int) -> None:
        self.path, self.settings = Path("memory"), replace(SETTINGS, width=vectors.shape[1])
        self._vectors, self._rows = vectors, rows

    def __len__(self) -> int:
        return len(self._vectors)

    def files(self) -> list[str]:
        return [f"f{number}.wav" for number in range(-(-len(self) // 4))]

    def blocks(self) -> Iterator[Block]:
        for start in range(0, len(self), self._rows):
            numbers = np.arange(start, min(start + self._rows, len(self)))
            starts = 5.0 * (numbers % 4)
            files = [f"f{number // 4}.wav" for number in numbers]
            yield Block(files, starts, starts + 10.0, self._vectors[numbers])

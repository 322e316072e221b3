"""Small indexes for tests of what reads, searches and makes them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from NatureLM.search.index import IndexSettings, Shard, VectorIndex

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


def blocks_of(vectors: np.ndarray, rows: int, per_file: int = 4) -> list[Shard]:
    """Vectors as blocks of an index whose files have `per_file` windows each."""
    numbers = np.arange(len(vectors))
    return [
        Shard(
            [f"f{number // per_file}.wav" for number in numbers[start : start + rows]],
            5.0 * (numbers[start : start + rows] % per_file),
            5.0 * (numbers[start : start + rows] % per_file) + 10.0,
            vectors[start : start + rows],
        )
        for start in range(0, len(vectors), rows)
    ]

"""Small indexes and recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from vector_indexes import MakeIndex, MemoryIndex

from NatureLM.search.index import VectorIndex, open_index, writer_of


@pytest.fixture
def make_index(tmp_path: Path) -> MakeIndex:
    """Writes vectors to an index of a suffix and opens it."""

    def make(vectors: np.ndarray, suffix: str = ".npz", rows: int = 3) -> VectorIndex:
        path = tmp_path / f"index{suffix}"
        path.unlink(missing_ok=True)
        writer_of(path)(path, MemoryIndex(vectors.astype(np.float32, copy=False), rows))
        return open_index(path)

    return make


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    """Four recordings of different lengths; the third cannot be read."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    paths = []
    for number, seconds in enumerate((12.0, 3.0, 0.0, 31.0)):
        noise = np.random.default_rng(number)
        paths.append(folder / f"{number}.wav")
        soundfile.write(paths[-1], 0.1 * noise.normal(size=round(seconds * 16000)), 16000)
    paths[2].write_bytes(b"not sound")
    return paths

"""Sounds and files that the tests of the audio module share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

SaveSound = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> SaveSound:
    """`save(name, samples, rate)` writes a file into the test's folder and returns its path."""

    def write(name: str, samples: NDArray[Any], rate: int, **options: Any) -> Path:
        path = tmp_path / name
        soundfile.write(path, samples, rate, **options)
        return path

    return write


@pytest.fixture
def noise() -> Callable[..., NDArray[np.float32]]:
    """`noise(frames, channels=1, seed=0)`: samples (frames, channels) well inside [-1, 1]."""

    def make(frames: int, channels: int = 1, seed: int = 0) -> NDArray[np.float32]:
        rng = np.random.default_rng(seed)
        return rng.uniform(-0.5, 0.5, (frames, channels)).astype(np.float32)

    return make


@pytest.fixture
def warned() -> list[str]:
    """A list to collect warnings in: pass its `append`."""
    return []

"""Vectors in clouds, and recordings of tones."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from NatureLM.teach.examples import Examples, Place

MakeExamples = Callable[..., Examples]
WIDTH = 8
RATE = 16000


def cloud(name: str, count: int, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    """Vectors around the direction that a name has."""
    letters = np.frombuffer(name.encode().ljust(8, b"~"), np.uint8).astype(np.uint32)
    middle = np.random.default_rng(letters.tolist()).normal(size=WIDTH)
    noise = np.random.default_rng(seed).normal(size=(count, WIDTH))
    return (middle + spread * noise).astype(np.float32)


@pytest.fixture
def make_examples() -> MakeExamples:
    """Examples of so many recordings of each name, one window each."""

    def make(counts: dict[str, int], *, spread: float = 0.3) -> Examples:
        vectors, labels, recordings = [], [], []
        for name, count in counts.items():
            vectors.append(cloud(name, count, spread=spread))
            labels += [name] * count
            recordings += [f"{name}-{number}" for number in range(count)]
        return Examples(
            np.concatenate(vectors),
            tuple(labels),
            ("",) * len(labels),
            tuple(range(len(labels))),
            tuple(recordings),
            tuple(Place(f"{name}.wav", 0.0, 3.0) for name in recordings),
        )

    return make


def tone(path: Path, pitch: float, seconds: float = 2.0, seed: int = 0) -> Path:
    """A tone of its own loudness in a little noise; of pitch 0 only the noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    times = np.arange(round(seconds * RATE)) / RATE
    beats = np.sin(2 * np.pi * (3 + seed % 3) * times) > 0
    wave = rng.uniform(0.1, 0.4) * np.sin(2 * np.pi * pitch * (1 + 0.01 * seed) * times) * beats
    if not pitch:
        wave = np.zeros_like(times)
    soundfile.write(path, wave + 0.02 * rng.normal(size=len(times)), RATE)
    return path


def make_support(folder: Path) -> Path:
    """A table of three recordings each of two made species."""
    rows = []
    for name, pitch in (("High", 3000.0), ("Low", 400.0)):
        for number in range(3):
            path = tone(folder / "sounds" / f"{name}{number}.wav", pitch, seed=number)
            rows.append([f"sounds/{path.name}", name])
    with open(folder / "support.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *rows])
    return folder / "support.csv"


@pytest.fixture
def support(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That table, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(make_support(tmp_path).name)

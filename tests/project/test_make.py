"""The Makefile sets up once, again only when something changed, and refuses what cannot work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    command = ["make", "--no-print-directory", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the set-up reads, without a virtual environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_set_up_happens_once_and_again_after_a_change(checkout: Path) -> None:
    """`echo` stands for pip: the stamps are what is tested."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    fake = ["PIP=true", "INSTALL=echo pip:"]
    first = make(checkout, "tools", *fake)
    assert first.returncode == 0, first.stderr
    assert "pip: --no-build-isolation --editable .\n" in first.stdout
    assert "pip: --no-build-isolation --editable .[dev]\n" in first.stdout
    assert "pip:" not in make(checkout, "tools", *fake).stdout

    with (checkout / "constraints.txt").open("a", encoding="utf-8") as file:
        file.write("# another version\n")
    assert "pip:" in make(checkout, "install", *fake).stdout
    assert "pip:" not in make(checkout, "install", *fake).stdout
    assert "editable .[dev]" in make(checkout, "tools", *fake).stdout


def test_an_old_python_is_refused_by_name(checkout: Path) -> None:
    old = checkout / "python3.9"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    done = make(checkout, "install", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.10 or newer" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_missing_python_is_refused_by_name(checkout: Path) -> None:
    done = make(checkout, "install", "PYTHON=python3.99")
    assert done.returncode != 0
    assert "python3.99 does not run" in done.stderr


def test_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", text, flags=re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    assert set(phony.split()) == targets
    shown = make(ROOT, "help").stdout
    assert {line.split()[1] for line in shown.splitlines()} == targets


def test_continuous_integration_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf-8").splitlines()[-1] == "exec make test"
    steps = make(ROOT, "--dry-run", "test").stdout
    for check in ("ruff check", "ruff format --check", "mypy", "pytest"):
        assert check in steps


@pytest.mark.parametrize("target", ["experiment", "mini", "tiny"])
def test_targets_that_need_data_say_so(target: str, checkout: Path) -> None:
    done = make(checkout, target, "CORE=", "TOOLS=")
    assert done.returncode == 2
    assert "make: name" in done.stderr
    assert f"make {target} DATA=" in done.stderr

"""The array job of `deploy/slurm`, under a stand-in for Slurm: stopped, lost, queued again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from commands import naturelm, rows, write_wav
from conftest import ROOT

from NatureLM.results.shards import shard_of

SLURM = ROOT / "deploy" / "slurm"
ASK = ("infer", "--audio-path", "calls", "-q", "Who?", "-q", "What?", "--output-path", "x.jsonl")


def run(folder: Path, tasks: int, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The array job with a model that takes 0.05 s for each answer."""
    program = folder / "program"
    program.write_text(
        f'#!/bin/bash\nexec {shlex.quote(sys.executable)} {ROOT}/tests/commands.py 0.1 "$@"\n'
    )
    program.chmod(0o755)
    environment = {**os.environ, "NATURELM": str(program), "PYTHONPATH": str(ROOT), **more}
    command = [SLURM / "try-here.sh", str(tasks), SLURM / "naturelm-array.sh", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_a_task_that_is_stopped_loses_and_doubles_nothing(
    signal: str, folder: Path, asker: object
) -> None:
    (folder / "calls" / "empty.wav").touch()
    names = (f"{number}.wav" for number in count())
    write_wav(folder / "calls" / next(one for one in names if shard_of(one, 2) == 2), 60)
    done = run(folder, 2, *ASK, STOP=f"2 0.8 {signal}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = ["task 1: exit code 0", "task 2: exit code 0", "task 2: stopped, and started again"]
    assert sorted(done.stdout.splitlines()) == lines
    assert naturelm("merge-runs", ".", "-a", "calls", "-o", "all.jsonl").exit_code == 3
    naturelm(*ASK[:-1], "one.jsonl")
    assert rows("all.jsonl") == rows("one.jsonl")


def test_a_task_that_fails_is_not_queued_again(folder: Path) -> None:
    done = run(folder, 1, "infer", "--audio-path", "gone")
    assert done.returncode == 1
    assert done.stdout == "task 1: exit code 2\n"
    assert "nothing to ask" in next(folder.glob("naturelm-*_1.log")).read_text()

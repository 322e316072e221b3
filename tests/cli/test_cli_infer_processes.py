"""`naturelm infer` in processes of their own: signals, two at once, terminals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fakes import ASK, calls_in, rows, write_wav

FAKES = Path(__file__).parent / "fakes.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command runs: a folder with recordings of 25 s and 3 s."""
    return calls_in(tmp_path)


def start(folder: Path, seconds: float, *args: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(FAKES), str(seconds), "infer", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_rows(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("no rows came")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_signals_leave_whole_lines_and_the_run_goes_on(
    folder: Path, number: signal.Signals, code: int
) -> None:
    write_wav(folder / "calls" / "long.wav", 300)
    output = folder / "inference_output.jsonl"
    process = start(folder, 0.05, *ASK)
    wait_for_rows(output, 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    done = rows(output)
    assert 3 <= len(done) < 34
    if code > 0:
        assert f"Stopped. {len(done)} answers are in inference_output.jsonl" in errors
    process = start(folder, 0.0, *ASK)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    final = rows(output)
    assert final[: len(done)] == done
    assert len({(row["audio_path"], row["start"]) for row in final}) == len(final) == 34


def test_two_runs_on_one_output(folder: Path) -> None:
    write_wav(folder / "calls" / "long.wav", 300)
    first = start(folder, 1.0, *ASK)
    wait_for_rows(folder / "inference_output.jsonl", 1, first)
    first.send_signal(signal.SIGSTOP)  # it keeps the file, however slow the machine is
    try:
        second = start(folder, 0.0, *ASK)
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 2
        assert "another run is writing this file now" in errors
    finally:
        first.kill()
        first.communicate(timeout=30)


def test_characters_that_the_terminal_lacks(folder: Path) -> None:
    (folder / "calls" / "wolf.WAV").rename(folder / "calls" / "wolf 狼.wav")
    process = start(folder, 0.0, *ASK, env={**os.environ, "PYTHONIOENCODING": "latin-1"})
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "wolf \\u72fc" in output
    assert any("wolf 狼" in row["audio_path"] for row in rows(folder / "inference_output.jsonl"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")
def test_on_a_terminal_there_is_a_bar(folder: Path) -> None:
    import pty

    write_wav(folder / "calls" / "long.wav", 100)
    (folder / "calls" / "empty.wav").touch()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(FAKES), "0.1", "infer", *ASK],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(timeout=30) == 3
    text = seen.decode()
    assert "/14 answers" in text
    assert "x real time" in text
    assert "left" in text
    assert "cuckoo 20" in text
    assert "[1/3]" not in text
    # The bar makes room for every line.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert not re.search(r"left(calls/|  \d|Error)", plain)
    assert "4 recordings, 14 windows, 14 answers, 1 error" in text

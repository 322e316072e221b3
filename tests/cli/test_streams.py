"""What becomes of a run when nobody takes what it shows, and of names that no file can have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from NatureLM.results.rows import to_line
from tests.commands import ASK, beans, calls_in, naturelm, rows, start
from tests.results.test_rows import WINDOW

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = 4  # in the folder of `calls_in`: three windows of 25 s, one of 3 s
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of Unix")


def test_a_reader_that_quits_ends_no_run(tmp_path: Path) -> None:
    running = start(calls_in(tmp_path), "infer", *ASK, "--output-path", "o.jsonl", seconds=0.1)
    assert running.stdout
    assert running.stdout.readline() == "calls/cuckoo.wav\n"
    running.stdout.close()
    said = running.stderr.read() if running.stderr else ""
    assert running.wait(60) == 141
    assert "stdout was closed before all was shown; files that were written are whole" in said
    assert f"2 recordings, {ANSWERS} windows, {ANSWERS} answers, 0 errors" in said
    assert [row["start"] for row in rows(tmp_path / "o.jsonl")] == [0, 10, 20, 0]


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">/dev/full", 1, "Error: stdout took no more (No space left on device)"),
        ("2>/dev/full", 1, ""),
        (">&-", 0, "Answers: o.jsonl"),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (">/dev/full 2>&1", 1, ""),
    ],
)
def test_the_answers_are_kept_whatever_becomes_of_the_output(
    tmp_path: Path, redirection: str, code: int, said: str
) -> None:
    running = start(
        calls_in(tmp_path),
        *("infer", *ASK, "--output-path", "o.jsonl"),
        shell=f'exec "$@" {redirection}',
    )
    shown, errors = running.communicate(timeout=60)
    assert running.returncode == code
    assert said in errors
    assert len(rows(tmp_path / "o.jsonl")) == ANSWERS
    assert "Traceback" not in shown + errors


def test_what_a_library_says_goes_into_no_file(tmp_path: Path) -> None:
    """With stderr closed, the next file to be opened would get its number."""
    script = (
        "import os\n"
        "from NatureLM.cli.terminal import run_program\n"
        "def main():\n"
        "    with open('answers', 'w') as file:\n"
        "        os.write(1, b'noise'); os.write(2, b'noise'); file.write('whole')\n"
        "run_program(main)\n"
    )
    command = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, cwd=tmp_path, env=environment, timeout=60).returncode == 0
    assert (tmp_path / "answers").read_text() == "whole"


@pytest.mark.parametrize("words", [["--help"], ["schema"], ["export", "a.jsonl"]])
def test_a_pager_that_quits_is_no_fault_of_the_program(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(to_line(replace(WINDOW, text="Dog")))
    reading, writing = os.pipe()
    os.close(reading)
    running = start(tmp_path, *words, stdout=writing)
    os.close(writing)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 141
    assert said.splitlines() == [
        "Note: stdout was closed before all was shown; files that were written are whole."
    ]


def test_a_pipe_that_does_not_wait_gets_every_line(tmp_path: Path) -> None:
    """As programs give that start others, and read when they have the time."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    script = (
        "from NatureLM.cli.terminal import run_program\n"
        "run_program(lambda: [print(number) for number in range(30000)])\n"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, stdout=writing, env=environment)
    os.close(writing)
    time.sleep(0.5)
    with open(reading) as file:
        assert file.read().split() == [str(number) for number in range(30000)]
    assert running.wait(60) == 0


def test_a_table_goes_to_stdout_alone_and_the_device_stays(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(to_line(replace(WINDOW, text="Dog")))
    running = start(tmp_path, "export", "a.jsonl", "--output-path", "/dev/stdout")
    shown, said = running.communicate(timeout=60)
    assert running.returncode == 0
    assert [line.split(",")[0].lstrip("\ufeff") for line in shown.splitlines()] == [
        "recording",
        "a.wav",
    ]
    assert said == "1 rows in /dev/stdout\n"
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8:strict"])
def test_any_name_can_be_shown(tmp_path: Path, encoding: str) -> None:
    calls_in(tmp_path)
    name = os.fsdecode("Kröte Ж".encode() + b"\xff.wav")
    (tmp_path / "calls" / "wolf.WAV").rename(tmp_path / "calls" / name)
    environment = {"PYTHONIOENCODING": encoding, "NO_COLOR": "1"}
    words = ("infer", "calls", "-q", "Über α?", "-q", "What?", "--output-path", "o.jsonl")
    running = start(tmp_path, *words, env=environment, text=False)
    shown, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    kind = encoding.partition(":")[0]
    assert "calls/Kröte Ж".encode(kind, "backslashreplace") in shown
    assert {row["audio_path"] for row in rows(tmp_path / "o.jsonl")} == {
        "calls/cuckoo.wav",
        f"calls/{name}",
    }


LONG = "x" * 300
TABLE = '{"path": "call.wav", "label": "Dog"}\n'


@pytest.mark.parametrize(
    "words",
    [
        ["infer", f"{LONG}.wav", "-q", "?"],
        ["infer", "c.jsonl", "-q", "?", "--output-path", f"{LONG}.jsonl"],
        ["infer", "c.jsonl", "-q", "?", "--output-path", f"{'x' * 249}.jsonl"],
        ["infer", "c.jsonl", "-q", "?", "--cfg-path", f"{LONG}.yml"],
        ["infer", "c.jsonl", "-q", "?", "--model", LONG],
        ["embed", f"{LONG}.wav"],
        ["embed", "c.jsonl", "--output", f"{LONG}.npz"],
        ["search", "c.jsonl", "--index", LONG],
        ["export", LONG],
        ["report", LONG],
        ["calibrate", f"{LONG}.csv", "--output-path", "c.json"],
        ["calibrate", "c.jsonl", "--output-path", LONG],
        ["merge", "--alpha", "1", "--output-path", LONG],
        ["merge", "--recipe", LONG, "--output-path", "m"],
        ["convert", LONG, "out"],
        ["train", "--cfg-path", LONG],
        ["tune-alpha", "--data", LONG],
        ["schema", "--output-path", LONG],
        ["beans", "score", LONG, "--output-path", "s"],
        ["beans", "score", "c.jsonl", "--output-path", "s", "--labels", LONG],
        ["beans", "compare", LONG, "c.jsonl"],
        ["beans", "run", "--data-path", LONG],
        ["beans", "make-mini", LONG, "--output-path", "m"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_too_long_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.jsonl").write_text(TABLE, encoding="utf-8")
    result = beans(*words[1:]) if words[0] == "beans" else naturelm(*words)
    assert result.exit_code in (1, 2), result.exception
    assert isinstance(result.exception, SystemExit)
    assert "x" * 200 in result.stderr
    assert sorted(os.listdir()) == ["c.jsonl"], "nothing is left behind"


@pytest.mark.parametrize("name", ["a\0b.wav", "a\ud800.wav", f"{LONG}.wav"])
def test_a_recording_whose_name_cannot_be_is_one_that_cannot_be_read(
    tmp_path: Path, name: str
) -> None:
    from NatureLM.audio import AudioError
    from NatureLM.audio.files import Identity, identity
    from NatureLM.config.schema import TableSource
    from NatureLM.data.sample import open_samples

    table = tmp_path / "t.jsonl"
    table.write_text(json.dumps({"path": name, "label": "Dog"}) + "\n", encoding="utf-8")
    clip = open_samples(TableSource(path=str(table))).samples[0].clip
    assert hash(clip.source) == hash(clip.source)
    assert identity(tmp_path / name, has_digest=True) == Identity()
    with pytest.raises(AudioError, match=r"name|too long"):
        clip.source.read(start=0, duration=None, sample_rate=16000)

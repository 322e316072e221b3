"""Archives: `naturelm manifest`, `--manifest` and `--shard`."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from commands import ASK, FakePipeline, naturelm, rows, write_wav
from conftest import ROOT
from field_files import comment_chunk, save_wav

from NatureLM.audio.container import Tags, read_tags
from NatureLM.results.shards import shard_of

LISTED = ("infer", "--manifest", "list.csv", "--query", "What is it?")


@pytest.fixture
def archive(folder: Path) -> Path:
    """The current folder, with twelve recordings in `calls`, and a list of them."""
    for number in range(10):
        write_wav(folder / "calls" / f"site{number % 3}" / f"{number}.wav", 1 + number)
    assert naturelm("manifest", "calls", "-o", "list.csv").exit_code == 0
    return folder


def texts(path: Path | str) -> list[tuple[str, str]]:
    return [(row["audio_path"], row["text"]) for row in rows(path)]


def test_a_manifest_is_asked_as_its_folder_is(archive: Path, asker: FakePipeline) -> None:
    assert naturelm("infer", *ASK).exit_code == 0
    assert naturelm(*LISTED, "--output-path", "listed.jsonl").exit_code == 0
    assert rows("listed.jsonl") == rows("inference_output.jsonl")


def test_lengths_of_a_manifest_are_not_measured_again(
    archive: Path, asker: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("NatureLM.audio.decode.probe", lambda path: pytest.fail(f"{path} opened"))
    result = naturelm(*LISTED)
    assert result.exit_code == 0, result.stderr
    assert len(rows("inference_output.jsonl")) == 14


def test_headers_of_a_manifest_are_not_read_again(
    archive: Path, asker: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a recording that has changed since, they are."""
    moth = "Recorded at 05:30:00 10/05/2024 (UTC-4) by AudioMoth 24F319055FDF2F5B at medium gain"
    for name in ("tagged", "changed"):
        save_wav(archive / "calls" / f"{name}.wav", comment_chunk(moth), seconds=1)
    assert naturelm("manifest", "calls", "-o", "list.csv").exit_code == 0
    save_wav(archive / "calls" / "changed.wav", comment_chunk(moth), seconds=2)
    assert naturelm("infer", *ASK).exit_code == 0
    opened: list[str] = []

    def reading(path: str | Path) -> Tags:
        opened.append(Path(path).name)
        return read_tags(path)

    monkeypatch.setattr("NatureLM.field.clock.read_tags", reading)
    monkeypatch.setattr("NatureLM.results.manifest.tags_in", reading)
    assert naturelm(*LISTED, "--output-path", "listed.jsonl").exit_code == 0
    assert rows("listed.jsonl") == rows("inference_output.jsonl")
    assert set(opened) == {"changed.wav"}
    opened.clear()
    assert naturelm("manifest", "calls", "-o", "list.csv").exit_code == 0  # up to date
    assert set(opened) == {"changed.wav"}


def test_times_and_sites_of_a_manifest_stand_in_rows(archive: Path, asker: FakePipeline) -> None:
    write_wav(archive / "calls" / "20240510_053000.wav", 3)
    Path("places.csv").write_text("site,latitude,longitude,zone\nHeath,52,13,Europe/Berlin\n")
    listing = ("manifest", "calls", "-o", "list.csv", "--deployments", "places.csv")
    assert naturelm(*listing).exit_code == 0
    question = ("infer", "--manifest", "list.csv", "-q", "What calls in {site}?")
    assert naturelm(*question, "--output-path", "x.jsonl").exit_code == 0
    timed = next(one for one in rows("x.jsonl") if "053000" in one["audio_path"])
    assert timed["context"] == {
        "site": "Heath",
        "place": "Heath",
        "local_time": "2024-05-10T05:30:00+02:00",
        "utc_time": "2024-05-10T03:30:00Z",
        "zone": "UTC+02:00",
        "date": "2024-05-10",
        "week": 18,
        "clock_source": "name",
    }


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ("2024-05-10T05:30:00,,", {"local_time": "2024-05-10T05:30:00", "clock_source": "list"}),
        (",2024-05-10T05:30:00Z,", {"utc_time": "2024-05-10T05:30:00Z", "zone": "UTC"}),
        (",,Moor", {"site": "Moor", "place": "Moor"}),
        ("noon,,", {}),
    ],
)
def test_times_and_sites_of_a_list_made_by_hand(
    cells: str, said: dict[str, str], archive: Path, asker: FakePipeline
) -> None:
    Path("mine.csv").write_text(f"path,local_time,utc_time,site\ncalls/wolf.WAV,{cells}\n")
    result = naturelm("infer", "--manifest", "mine.csv", "-q", "q", "--output-path", "x.jsonl")
    assert result.exit_code == 0
    assert (rows("x.jsonl")[0].get("context") or {}).items() >= said.items()
    assert ("The list says that it began at noon: no time." in result.stderr) == (not said)


def test_shards_hold_each_recording_once(archive: Path, asker: FakePipeline) -> None:
    for number in (1, 2, 3):
        assert naturelm(*LISTED, "--shard", f"{number}/3").exit_code == 0
    files = sorted(archive.glob("*.jsonl"))
    assert [one.name for one in files] == [
        f"inference_output.shard-{number}-of-3.jsonl" for number in (1, 2, 3)
    ]
    assert naturelm("infer", *ASK).exit_code == 0
    joined = [row for one in files for row in texts(one)]
    assert sorted(joined) == sorted(texts("inference_output.jsonl"))
    records = [json.loads(Path(f"{one}.run.json").read_text()) for one in files]
    assert {one["run"] for one in records} == {rows("inference_output.jsonl")[0]["run"]}
    assert [one["asked"]["shard"] for one in records] == ["1/3", "2/3", "3/3"]
    assert {sum(one["asked"]["recordings_of_shards"]) for one in records} == {12}


def test_a_folder_has_the_shards_of_a_list_in_it(archive: Path, asker: FakePipeline) -> None:
    naturelm("manifest", "calls", "-o", "calls/list.csv")
    naturelm("infer", *ASK, "--shard", "2/3", "--output-path", "folder.jsonl")
    listed = ("infer", "--manifest", "calls/list.csv", *ASK[2:], "--shard", "2/3")
    assert naturelm(*listed, "--output-path", "listed.jsonl").exit_code == 0
    assert texts("listed.shard-2-of-3.jsonl") == texts("folder.shard-2-of-3.jsonl") != []


def test_a_shard_goes_on_where_it_was_stopped(archive: Path, asker: FakePipeline) -> None:
    asker.stop_after = 2
    assert naturelm(*LISTED, "--shard", "1/2").exit_code == 130
    asker.stop_after = None
    assert naturelm(*LISTED, "--shard", "1/2").exit_code == 0
    assert len(asker.asked) == len(set(asker.asked)) == len(rows(next(archive.glob("*.jsonl"))))


def test_detections_of_a_table_have_the_shards_of_their_recordings(
    archive: Path, asker: FakePipeline
) -> None:
    names = [f"calls/site{number % 3}/{number}.wav" for number in range(10)]
    header = "Start (s),End (s),Scientific name,Common name,Confidence,File"
    lines = [f"0,1,Tyto alba,Barn Owl,0.5,{name}" for name in names]
    Path("table.csv").write_text("\n".join([header, *lines]) + "\n")
    asked: dict[str, int] = {}
    for number in (1, 2):
        listed = ("infer", "--from", "table.csv", "-a", "calls", "-q", "Is it {label}?")
        result = naturelm(*listed, "--shard", f"{number}/2")
        assert result.exit_code == 0, result.stderr
        for name, _ in texts(f"inference_output.shard-{number}-of-2.jsonl"):
            asked[str(Path(name).resolve().relative_to(archive))] = number
    assert asked == {one: shard_of(one.removeprefix("calls/"), 2) for one in names}


def test_an_empty_shard_asks_nothing(archive: Path, asker: FakePipeline) -> None:
    (archive / "one.txt").write_text("calls/wolf.WAV\n")
    held = [
        naturelm("infer", "--manifest", "one.txt", "-q", "q", "--shard", f"{number}/3")
        for number in (1, 2, 3)
    ]
    assert [one.exit_code for one in held] == [0, 0, 0]
    assert sum("holds none of the 1 recordings" in one.stderr for one in held) == 2
    assert asker.loaded == 1


@pytest.mark.parametrize("shard", ["0/4", "5/4", "a/b"])
@pytest.mark.parametrize("command", [LISTED, ("survey", "who-calls", "calls"), ("embed", "calls")])
def test_shards_that_are_none(
    command: tuple[str, ...], shard: str, archive: Path, asker: FakePipeline
) -> None:
    result = naturelm(*command, "--shard", shard)
    assert result.exit_code == 2
    assert f"--shard is '{shard}', and it must be i/n" in result.stderr
    assert not asker.loaded


@pytest.mark.parametrize(
    ("name", "said"),
    [("gone.csv", "there is no such manifest"), ("list.docx", "must end in .csv, .parquet, .txt")],
)
def test_manifests_that_are_none(name: str, said: str, archive: Path, asker: FakePipeline) -> None:
    result = naturelm("infer", "--manifest", name, "--query", "q")
    assert (result.exit_code, asker.loaded) == (2, 0)
    assert said in result.stderr


def test_a_manifest_names_what_cannot_be_read(archive: Path) -> None:
    (archive / "calls" / "empty.wav").touch()
    result = naturelm("manifest", "calls", "-o", "list.csv")
    assert result.exit_code == 3
    assert "calls/empty.wav: the file is empty" in result.stderr
    assert "13 recordings, 1 min 23 s of sound" in result.stderr
    assert "12 measured before, 1 error" in result.stderr


# The array job of deploy/slurm, under a stand-in for Slurm: stopped, lost, queued again

SLURM = ROOT / "deploy" / "slurm"
QUESTIONS = (
    "infer",
    "--audio-path",
    "calls",
    "-q",
    "Who?",
    "-q",
    "What?",
    "--output-path",
    "x.jsonl",
)


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
    done = run(folder, 2, *QUESTIONS, STOP=f"2 0.8 {signal}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = ["task 1: exit code 0", "task 2: exit code 0", "task 2: stopped, and started again"]
    assert sorted(done.stdout.splitlines()) == lines
    assert naturelm("merge-runs", ".", "-a", "calls", "-o", "all.jsonl").exit_code == 3
    naturelm(*QUESTIONS[:-1], "one.jsonl")
    assert rows("all.jsonl") == rows("one.jsonl")


def test_a_task_that_fails_is_not_queued_again(folder: Path) -> None:
    done = run(folder, 1, "infer", "--audio-path", "gone")
    assert done.returncode == 1
    assert done.stdout == "task 1: exit code 2\n"
    assert "nothing to ask" in next(folder.glob("naturelm-*_1.log")).read_text()

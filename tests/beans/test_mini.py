"""`beans make-mini`: the same benchmark for the same clips and seed, and `beans` reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import beans, call, rows

from NatureLM.config.schema import TableSource
from NatureLM.data.sample import open_samples, read_window

RATE = 8000
PITCH = {"Cow": 300, "Dog": 700, "Wren": 1500}
SIZES = ["--classification", "7", "--detection", "12", "--captioning", "4"]


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for each class, and a table that says more of the same clips."""
    rows = ["wav,kind,says,split,recording"]
    for label, pitch in PITCH.items():
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(5):
            time = np.arange(RATE * (1 + number % 2)) / RATE
            name = f"clips/{label}/{number}.wav"
            soundfile.write(tmp_path / name, 0.3 * np.sin(2 * np.pi * pitch * time), RATE)
            split = "test" if number else "train"
            rows.append(f"{name},{label},{label} number {number},{split},{label}{number // 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TABLE = ["table.csv", "--columns", "path=wav", "--columns", "label=kind"]


def make(*args: str, to: str = "mini", ends: int = 0) -> str:
    return call("make-mini", *args, "--output-path", to, ends=ends, by=beans)


def rows_of(folder: str) -> list[dict[str, Any]]:
    return rows(Path(folder, "metadata.jsonl"))


def strongest(wav: Any) -> set[str]:
    """The labels whose pitch is heard."""
    power = np.abs(np.fft.rfft(wav)) ** 2
    at = np.fft.rfftfreq(len(wav), 1 / 16000)
    bands = {label: power[abs(at - pitch) < 20].sum() for label, pitch in PITCH.items()}
    return {label for label, band in bands.items() if band > 0.02 * power.sum()}


def test_the_three_subsets(clips: Path) -> None:
    make(*TABLE, *SIZES, "--columns", "caption=says", "--window-seconds", "4")
    rows = rows_of("mini")
    sizes = {"mini-classification": 7, "mini-detection": 12, "mini-captioning": 4}
    assert Counter(row["dataset_name"] for row in rows) == sizes
    assert {row["dataset_name"] for row in rows} == {f"mini-{row['task']}" for row in rows}
    samples = open_samples(TableSource(path="mini")).samples
    assert [(one.id, one.label, one.task) for one in samples] == [
        (row["id"], row["output"], row["task"]) for row in rows
    ]
    for sample in samples:
        heard = strongest(read_window(sample.clip, 16000, 10.0).samples)
        if sample.task == "captioning":
            assert heard == {sample.label.split()[0]}
        else:
            assert heard == set(sample.label.split(", ")) - {"None"}
        assert "<Audio><AudioHere></Audio>" in sample.instruction
    labels = [one.label for one in samples]
    assert Counter(labels[:7]).most_common()[-1][1] >= 2  # labels take turns
    assert {label.count(",") for label in labels[7:19]} == {0, 1, 2}
    assert "None" in labels[7:19]
    assert len({one.cluster for one in samples if one.task == "classification"}) > 3
    assert all("Cow, Dog, Wren." in row["instruction_text"] for row in rows[7:19])


def test_letters_stand_for_four_labels_and_none_for_the_others(clips: Path) -> None:
    for place, label in enumerate(("Ant", "Bat", "Elk", "Fox"), start=2):
        Path("clips", label).mkdir()
        for number in range(3):
            tone = np.sin(np.arange(4000) * place / 10)
            soundfile.write(f"clips/{label}/{number}.wav", tone, RATE)
    make("clips", *SIZES, "--in-context", "20")
    rows = [row for row in rows_of("mini") if row["dataset_name"] == "mini-in-context"]
    called = {json.loads(row["metadata"])["clips"][0].split("/")[0]: row["output"] for row in rows}
    assert called == dict(zip(sorted(called), [*"ABCD", "None", "None", "None"], strict=True))
    assert {row["task"] for row in rows} == {"classification"}
    more = ("--in-context", "20", "--classes", "4")
    refused = make("clips", *SIZES, *more, to="other", ends=2)
    assert "--in-context needs clips of at least 5 labels" in refused


def test_it_depends_on_the_seed_alone(clips: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        make("clips", *SIZES, "--seed", seed, to=name)
    files = {
        name: [(path.name, path.read_bytes()) for path in sorted(Path(name).rglob("*.*"))]
        for name in "abc"
    }
    assert len(files["a"]) == 1 + 7 + 12 + 4
    assert files["a"] == files["b"] != files["c"]
    assert rows_of("a")[-1]["output"].startswith("The sound of ")


def test_rows_labels_and_what_cannot_be_read(clips: Path) -> None:
    Path("clips/Dog/1.wav").write_bytes(b"no sound")
    soundfile.write("clips/Dog/2.wav", np.zeros(RATE), RATE)
    told = make(*TABLE, "--where", "split=test", "--classes", "2", "--classification", "50")
    for text in ("2 clips could not be used.", "clips/Dog/1.wav", "2 labels: Cow, Dog\n"):
        assert text in told
    rows = rows_of("mini")
    assert sum(row["task"] == "classification" for row in rows) == 4 + 2
    sources = [name for row in rows for name in json.loads(row["metadata"])["clips"]]
    assert not [name for name in sources if "Dog/1" in name or "Dog/2" in name or "/0" in name]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nothing.csv"], "nothing.csv: there is no such table or folder"),
        (["table.csv", "--columns", "label=kind"], "neither an id nor a path names this sample"),
        (["table.csv", "--columns", "path=wav"], "row 2: no label"),
        (["table.csv", "--columns", "wav"], "--columns wav: write two names with = between"),
        ([*TABLE, "--columns", "sound=wav"], "columns maps sound; known are"),
        ([*TABLE, "--where", "split=no"], "no row is left by `where`"),
        ([*TABLE, "--where", "kind=Cow"], "needs clips of at least two labels"),
        ([*TABLE, "--classes", "1"], "needs clips of at least two labels"),
        ([*TABLE, "--detection", "-1"], "--detection is -1, and it must be at least 0"),
        ([*TABLE, "--window-seconds", "0"], "--window-seconds is 0, and it must be 0.1 to 600"),
        ([*TABLE, "--caption", " "], "--caption is empty"),
        ([*TABLE, "--classification", "0", "--detection", "0", "--captioning", "0"],
         "there is nothing to make a benchmark of: all sizes are 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(args: list[str], words: str, clips: Path) -> None:
    assert words in make(*args, ends=2)
    assert not Path("mini/metadata.jsonl").exists()


def test_a_benchmark_is_not_replaced_unasked(clips: Path) -> None:
    make("clips", *SIZES)
    assert "holds a benchmark already" in make("clips", *SIZES, ends=2)
    make("clips", *SIZES, "--overwrite")
    Path("clips/Cow").rename("clips/Cow, big")
    refused = make("clips", *SIZES, to="other", ends=2)
    assert "'Cow, big' cannot stand in a list of labels" in refused


@pytest.mark.slow
@pytest.mark.shared
def test_make_mini_ends_in_a_report(shared_dir: Path, tmp_path: Path) -> None:
    """`make mini` on real recordings: every task at every α, scored and drawn."""
    sizes = "--where split=test --classification 12 --detection 8 --captioning 4"
    table = shared_dir / "data" / "animals" / "metadata.csv"
    command = ["make", "-s", "mini", f"DATA={table}", f"OUT={tmp_path}", f"ARGS={sizes}"]
    command += [f"BIN={sysconfig.get_path('scripts')}", "CORE=", "TOOLS="]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stdout.splitlines() if "mini-captioning" in line]
    assert sum("beans-zero" in line for line in shown) == 3, "once, with a line for each α"
    records = json.loads((tmp_path / "scores" / "metrics.json").read_text(encoding="utf-8"))
    tasks = ("classification", "detection", "captioning")
    assert {(one["dataset"], one["lora_scale"]) for one in records} == {
        (f"mini-{task}", alpha) for task in tasks for alpha in (0.0, 0.5, 1.0)
    }
    assert "<svg" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")

"""Commands about files: `embed` and `search`, `cache`, `export`."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import naturelm
from typer.testing import Result

from NatureLM.audio.windows import iter_windows
from NatureLM.models import NatureLM
from NatureLM.results.rows import Prediction, RunSettings
from NatureLM.results.store import WindowStore
from NatureLM.search.build import Embedder


def call(command: str, *args: str | Path) -> Result:
    return naturelm(command, *args, "--device", "cpu")


def test_an_index_is_made_and_searched(nano_calls: Path, nano_folder: Path, nano: NatureLM) -> None:
    model = nano_folder / "checkpoint"
    cut = ("--window-length-seconds", "4", "--hop-length-seconds", "2")
    result = call("embed", "calls", "--model", model, "-o", "calls.npz", *cut)
    assert result.exit_code == 3, result.stderr  # the empty recording
    assert "calls/empty.wav" in result.stderr
    assert "calls.npz: 8 windows, 8 of them new, 1 errors" in result.stderr
    with np.load("calls.npz") as arrays:
        files, vectors, starts = arrays["files"][arrays["file"]], arrays["vectors"], arrays["start"]
    windows = list(iter_windows("calls/trill_16k.wav", window_seconds=4, hop_seconds=2))
    of_trill = files == "calls/trill_16k.wav"
    assert starts[of_trill].tolist() == [window.start for window in windows]
    assert vectors[of_trill] == pytest.approx(Embedder(nano).vectors(windows), abs=1e-5)

    result = call("search", "calls/trill_16k.wav", "--index", "calls.npz", "--json",
                  "--start", "2", "--end", "6", "--top-k", "3")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["rank"] for row in found] == [1, 2, 3]
    assert found[0] == {
        "rank": 1,
        "similarity": pytest.approx(1.0, abs=1e-5),
        "audio_path": "calls/trill_16k.wav",
        "start": 2.0,
        "end": 6.0,
    }
    assert found[0]["similarity"] >= found[1]["similarity"] >= found[2]["similarity"]

    result = call("search", "calls/trill_16k.wav", "--index", "calls.npz", "--others-only")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rank", "similarity", "file", "start", "end"]
    assert all("chirps_16k.wav" in line for line in lines[1:])
    assert len(lines) == 1 + sum(~of_trill)

    shutil.copytree(model, nano_calls / "other" / "checkpoint")
    shutil.copytree(nano_folder / "llama", nano_calls / "other" / "llama")
    _change_the_encoder(nano_calls / "other" / "checkpoint")
    for args in (["--model", "other/checkpoint"], ["--dtype", "bfloat16"]):
        result = call("search", "calls/trill_16k.wav", "--index", "calls.npz", *args)
        assert result.exit_code == 2
        assert "was made with another model" in result.stderr
        assert "Traceback" not in result.stderr


def _change_the_encoder(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    name = next(name for name in tensors if name.startswith("beats.") and name.endswith("bias"))
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, checkpoint / "model.safetensors")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["embed", "calls", "-o", "x.csv"], ".npz or .parquet"),
        (["embed", "nowhere"], "nowhere: there is no such file or folder"),
        (["embed", "calls", "--hop-length-seconds", "0"], "hop length is 0"),
        (["embed", "calls", "--channel", "left"], "left"),
        (["search", "calls/trill_16k.wav", "-i", "x.npz"], "there is no such index"),
        (["search", "calls/trill_16k.wav", "-i", "x.npz", "--top-k", "0"], "--top-k is 0"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    args: list[str], says: str, nano_calls: Path
) -> None:
    result = call(*args, "--model", "no-such-model")
    assert result.exit_code == 2
    assert says in result.stderr
    assert "no-such-model" not in result.stderr


# cache


def test_without_a_folder_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NATURELM_CACHE", raising=False)
    result = naturelm("cache")
    assert result.exit_code == 0
    assert "NATURELM_CACHE is not set" in result.stdout


def test_an_unknown_action_is_refused(tmp_path: Path) -> None:
    result = naturelm("cache", "empty", "--cache-dir", str(tmp_path))
    assert result.exit_code == 2
    assert "it must be info or clear" in result.stderr


@pytest.mark.parametrize("is_option", [False, True])
def test_sound_is_encoded_once_for_several_commands(
    tmp_path: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch, is_option: bool
) -> None:
    from NatureLM.models import NatureLM

    encoded: list[int] = []
    encode = NatureLM.encode_audio

    def counting(model: NatureLM, wav_BS: Any, *args: Any) -> Any:
        encoded.append(len(wav_BS))
        return encode(model, wav_BS, *args)

    monkeypatch.setattr(NatureLM, "encode_audio", counting)
    cache_dir = ("--cache-dir", str(tmp_path / "cache")) if is_option else ()
    if is_option:
        monkeypatch.delenv("NATURELM_CACHE", raising=False)
    else:
        monkeypatch.setenv("NATURELM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def infer(alpha: str, name: str) -> str:
        result = naturelm(
            *("infer", "--model", str(nano_folder / "checkpoint"), "--device", "cpu"),
            *("--audio-path", str(nano_folder / "audio"), "-q", "What is it?"),
            *("--options", "generate.max_new_tokens=3", "--merging-alpha", alpha),
            *("--output-path", name, "--max-memory", "1GB", *cache_dir),
        )
        assert result.exit_code == 0, result.stderr
        return (tmp_path / name).read_text(encoding="utf-8")

    first = infer("1.0", "a.jsonl")
    windows = sum(encoded)
    assert windows > 0
    infer("0.5", "b.jsonl")
    assert infer("1.0", "c.jsonl") == first
    assert sum(encoded) == windows, "a window was encoded again"
    assert f"{windows} clips" in naturelm("cache", "info", *cache_dir).stdout
    assert f"Cleared {tmp_path / 'cache'}" in naturelm("cache", "clear", *cache_dir).stdout
    assert "0 clips, 0 bytes" in naturelm("cache", *cache_dir).stdout


# export


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers about a recording of 12 s, one of 5 s and one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(12 * 8000), 8000)
    soundfile.write("b.wav", np.zeros(5 * 8000), 8000)
    settings = {"model": "m", "merging_alpha": 1.0, "queries": ["q"], "channel": 2}
    with WindowStore("answers.jsonl") as store:
        store.begin(RunSettings({**settings, "time_expansion": 0.25}))
        store.add_answer(Prediction("a.wav", 0.0, 10.0, "q", "=Wolf", 1.0))
        store.add_answer(Prediction("a.wav", 10.0, 12.0, "q", "Owl", 1.0))
        store.add_answer(Prediction("b.wav", 0.0, 5.0, "q", "Dog", 1.0))
        store.add_error("c.wav", ValueError("no sound"), 1.0)
    return Path("answers.jsonl")


def test_csv_is_written_beside_the_answers(answers: Path) -> None:
    result = naturelm("export", str(answers))
    assert result.exit_code == 0, result.output
    assert "4 rows in answers.csv" in result.output
    with open("answers.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["'=Wolf", "Owl", "Dog", ""]
    assert rows[3]["error"] == "no sound"


def test_raven_table_has_exact_times_channel_and_band(answers: Path) -> None:
    result = naturelm("export", str(answers), "--format", "raven", "--output-path", "tables/r.txt")
    assert result.exit_code == 0, result.output
    with open("tables/r.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(row["Begin Time (s)"], row["End Time (s)"]) for row in rows] == [
        ("0.000000", "10.000000"),
        ("10.000000", "12.000000"),
        ("12.000000", "17.000000"),
    ]
    assert {(row["Channel"], row["High Freq (Hz)"]) for row in rows} == {("2", "2000.0")}


def test_recording_that_is_gone_is_noted(answers: Path) -> None:
    Path("a.wav").unlink()
    result = naturelm("export", str(answers), "--format", "raven")
    assert result.exit_code == 0, result.output
    assert "a.wav" in result.output
    assert "12 s, where the last answer ends" in result.output
    assert Path("answers.selections.txt").read_text().splitlines()[3].split("\t")[3] == "12.000000"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("answers.jsonl", "--format", "xls"), "csv, raven"),
        (("nothing.jsonl",), "nothing.jsonl"),
        (("answers.jsonl", "--output-path", "answers.jsonl"), "would be replaced"),
        (("answers.jsonl", "--output-path", "a.wav/x.csv"), "cannot be written"),
        (("a.wav",), "a.wav: there is no answer"),
    ],
)
def test_what_cannot_be_is_told(answers: Path, arguments: tuple[str, ...], words: str) -> None:
    before = answers.read_bytes()
    result = naturelm("export", *arguments)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.split())
    assert answers.read_bytes() == before

"""`naturelm embed` and `naturelm search` with a real (small, random) model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from NatureLM.audio import iter_windows
from NatureLM.cli.main import naturelm_app
from NatureLM.models import NatureLM
from NatureLM.search.build import Embedder


@pytest.fixture
def folder(tmp_path: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: two recordings and one that is empty."""
    (tmp_path / "calls").mkdir()
    for name in ("chirps_16k.wav", "trill_16k.wav"):
        shutil.copy(nano_folder / "audio" / name, tmp_path / "calls" / name)
    (tmp_path / "calls" / "empty.wav").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(verb: str, *args: str | Path) -> Any:
    return CliRunner().invoke(naturelm_app, [verb, *map(str, args), "--device", "cpu"])


def test_an_index_is_made_and_searched(folder: Path, nano_folder: Path, nano: NatureLM) -> None:
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

    shutil.copytree(model, folder / "other" / "checkpoint")
    shutil.copytree(nano_folder / "llama", folder / "other" / "llama")
    _change_the_encoder(folder / "other" / "checkpoint")
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
    args: list[str], says: str, folder: Path
) -> None:
    result = call(*args, "--model", "no-such-model")
    assert result.exit_code == 2
    assert says in result.stderr
    assert "no-such-model" not in result.stderr

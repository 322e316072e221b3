"""Files that an earlier version wrote are read, and unfinished ones are finished, as promised.

`fixtures/written_before/README.md` says what each is. The tests use commands and the documented
Python API only, so that they hold however the package is arranged; but for the place where the
embedded model lies, since the files are about the answers of the one of then.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from NatureLM.models import registry

ROOT = Path(__file__).resolve().parents[1]
BEFORE = ROOT / "tests" / "fixtures" / "written_before"
NANO = ROOT / "tests" / "fixtures" / "goldens" / "nano"
CHANGED = 1_735_689_600  # when the recordings were last changed: 2025-01-01T00:00:00Z
QUERY = "What is the common name for the focal species in the audio?"
SHORT = ("--options", "generate.num_beams=1", "--options", "generate.max_new_tokens=12")
TWO_SECONDS = ("--window-length-seconds", "2", "--hop-length-seconds", "2")
FIVE_TOKENS = ("--options", "generate.num_beams=1", "--options", "generate.max_new_tokens=5")
NAMES = ("cat.flac", "cow.flac", "dog.WAV", "heath_at_dusk.ogg", "rain.flac")
CAT, COW, DOG, HEATH, RAIN = (f"assets/synthetic_{name}" for name in NAMES)
Run = Callable[..., int]
UNSURE = ("confidence", "alternatives", "similarity", "loss", "gradient_norm")


@pytest.fixture(scope="module")
def models_of_then(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded model lies, as it was: since then its adapter has learnt more."""
    now, then = registry._DATA / registry.EMBEDDED, tmp_path_factory.mktemp("models")
    folder = shutil.copytree(now, then / registry.EMBEDDED)
    whole = bytearray((folder / "model.safetensors").read_bytes())
    data = 8 + int.from_bytes(whole[:8], "little")
    places = json.loads(whole[8:data])
    with safe_open(BEFORE / "lora.safetensors", "numpy") as lora:
        for name in lora.keys():  # noqa: SIM118 - a file, and no mapping
            start, end = places[name]["data_offsets"]
            whole[data + start : data + end] = lora.get_tensor(name).tobytes()
    (folder / "model.safetensors").write_bytes(whole)
    shutil.copy(BEFORE / "calibration_of_lora.json", folder / "calibration.json")
    return then


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, models_of_then: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the files were written, which is the current one."""
    monkeypatch.setattr(registry, "_DATA", models_of_then)
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    (tmp_path / "assets").mkdir()
    for name in NAMES:
        shutil.copy(ROOT / "assets" / f"synthetic_{name}", tmp_path / "assets")
    whole = (tmp_path / COW).read_bytes()
    (tmp_path / "broken.flac").write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path / "broken.flac", *(tmp_path / "assets").iterdir()):
        os.utime(path, (CHANGED, CHANGED))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def naturelm(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command `naturelm`; gives its exit code."""
    return _command("naturelm", monkeypatch)


@pytest.fixture
def beans(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command `beans`; gives its exit code."""
    return _command("beans", monkeypatch)


def _command(name: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    from NatureLM.cli import main

    def run(*words: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            getattr(main, name)()
        return int(end.value.code or 0)

    return run


def lines(path: str | Path) -> list[bytes]:
    """The whole lines of a file."""
    return [line for line in Path(path).read_bytes().splitlines(True) if line.endswith(b"\n")]


def rows(path: str | Path, *left_out: str) -> list[dict[str, Any]]:
    """The rows of a file, sorted by what they are about, without some keys and what came later."""
    left_out += ("audio_digest",)
    found = []
    for row in map(json.loads, lines(path)):
        if "alternatives" in row:
            row["alternatives"] = dict(row["alternatives"])
        found.append({key: value for key, value in row.items() if key not in left_out})
    return sorted(found, key=lambda row: json.dumps({**row, **dict.fromkeys(UNSURE)}))


def close(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose probabilities may differ by the rounding of another processor."""
    return [
        {
            key: pytest.approx(value, abs=1e-4) if key in UNSURE else value
            for key, value in one.items()
        }
        for one in found
    ]


def test_answers_with_an_error_and_a_torn_line_are_gone_on_with(naturelm: Run) -> None:
    before = lines("answers.jsonl")
    assert b'"error"' in before[0]
    assert not Path("answers.jsonl").read_bytes().endswith(b"\n")
    recordings = ["broken.flac", CAT, HEATH, COW, DOG, RAIN]
    assert naturelm("infer", *recordings, "-q", QUERY, *SHORT, "--output-path", "answers.jsonl",
                    "--batch-size", "1") == 3  # fmt: skip
    kept = before[1:]  # the recording with the error is tried again
    assert lines("answers.jsonl")[: len(kept)] == kept
    # The old code left out the beginning of what is cut off within its first window.
    now = [
        row for row in rows("answers.jsonl") if row["audio_path"] != "broken.flac" or "error" in row
    ]
    assert len(now) == len(rows("answers.jsonl")) - 1 > len(before)
    assert now == close(rows("expected/answers.jsonl"))
    record = json.loads(Path("answers.jsonl.run.json").read_text())
    assert record.pop("folder") == os.getcwd()
    assert record == json.loads(Path("expected/answers.jsonl.run.json").read_text())


def test_scores_of_a_species_list_are_gone_on_with(naturelm: Run) -> None:
    before = lines("species.jsonl")
    assert naturelm("infer", CAT, COW, DOG, HEATH, RAIN, "--species-list", "Cat,Cow,Dog,Barn Owl",
                    *SHORT, "--output-path", "species.jsonl", "--batch-size", "1") == 0  # fmt: skip
    now = lines("species.jsonl")
    assert now[: len(before)] == before
    assert rows("species.jsonl") == close(rows("expected/species.jsonl"))


def test_other_settings_are_named(naturelm: Run, capfd: pytest.CaptureFixture[str]) -> None:
    before = Path("answers.jsonl").read_bytes()
    assert naturelm("infer", CAT, "-q", QUERY, *SHORT, "--output-path", "answers.jsonl",
                    "--merging-alpha", "0.5") == 2  # fmt: skip
    assert "merging_alpha: 1.0 there, 0.5 now" in capfd.readouterr().err
    assert Path("answers.jsonl").read_bytes() == before


def test_answers_are_exported(naturelm: Run) -> None:
    for kind, name in (("csv", "answers.csv"), ("raven", "answers.selections.txt")):
        assert naturelm("export", "expected/answers.jsonl", "--format", kind,
                        "--output-path", name) == 0  # fmt: skip
    assert Path("answers.csv").read_bytes() == Path("expected", "answers.csv").read_bytes()
    now, before = (selections(Path(folder, name)) for folder in (".", "expected"))
    before = [row for row in before if row["Answer"] != "None"]
    for number, row in enumerate(before, start=1):  # other columns, and detections alone
        row |= {"Selection": str(number), "Annotation": row.pop("Answer")}
        row["Begin File"] = Path(row["Begin File"]).name
    assert [{key: row[key] for key in before[0]} for row in now] == before


def selections(path: Path) -> list[dict[str, str]]:
    """The rows of a selection table."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_an_experiment_is_gone_on_with(naturelm: Run) -> None:
    before = lines("experiment/answers.jsonl")
    assert any(b'"error"' in line for line in before)
    assert naturelm("infer", "--cfg-path", "experiment.yml", "--output-path", "experiment") == 3
    now = lines("experiment/answers.jsonl")
    kept = [line for line in before if b'"error"' not in line]
    assert now[: len(kept)] == kept
    assert sorted(now) == sorted(lines("expected/experiment.jsonl"))


def test_a_benchmark_is_gone_on_with_and_scored(beans: Run) -> None:
    pytest.importorskip("rapidfuzz")
    before = lines("benchmark.jsonl")
    done = beans("--data-path", "samples.jsonl", *SHORT, "--output-path", "benchmark.jsonl")
    assert done == 0
    now = lines("benchmark.jsonl")
    assert now[: len(before)] == before
    assert sorted(now) == sorted(lines("expected/benchmark.jsonl"))
    metrics = "benchmark_metrics.jsonl"
    assert rows(metrics) == rows(Path("expected", metrics))


def test_a_calibration_is_used() -> None:
    from NatureLM.infer import Pipeline

    expected = json.loads(Path("expected/calibrated.json").read_text())
    labels = ["Cat", "Cow", "Dog", "Barn Owl", "Rain"]
    found = []
    for calibration in ("calibration.json", None):
        pipeline = Pipeline(calibration=calibration)
        for one in pipeline.windows([CAT, COW], QUERY, mode="score", labels=labels, top_k=5):
            found.append(dict(((one.text, one.confidence), *one.alternatives)))
    assert found == [pytest.approx(shares, abs=1e-4) for shares in expected]
    assert found[0] != pytest.approx(found[2], abs=1e-3)


@pytest.mark.parametrize("name", ["calls.npz", "calls.parquet"])
def test_an_index_is_searched_and_added_to(
    name: str, naturelm: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    expected = [json.loads(line) for line in lines("expected/search.jsonl")]
    assert search(naturelm, name, capfd) == close(expected)
    before = vectors(name)
    assert naturelm("embed", CAT, COW, DOG, "-o", name, *TWO_SECONDS) == 0
    now = vectors(name)
    assert [now[key] for key in before] == list(before.values())
    assert len(now) > len(before)
    found = search(naturelm, name, capfd)
    assert found[0]["audio_path"] == DOG
    assert naturelm("embed", CAT, "-o", name, "--window-length-seconds", "3") == 2
    assert "window_seconds" in capfd.readouterr().err


def search(naturelm: Run, name: str, capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Windows that sound like a dog."""
    capfd.readouterr()
    assert naturelm("search", DOG, "-i", name, "--json", "--top-k", "4") == 0
    return [json.loads(line) for line in capfd.readouterr().out.splitlines()]


def vectors(name: str | Path) -> dict[tuple[str, float], bytes]:
    """(recording, start) → the bytes of the vector, of an index in either format."""
    import numpy as np

    if str(name).endswith(".npz"):
        with np.load(name) as arrays:
            files = [str(arrays["files"][number]) for number in arrays["file"]]
            places = zip(files, arrays["start"].tolist(), strict=True)
            return dict(zip(places, (row.tobytes() for row in arrays["vectors"]), strict=True))
    from pyarrow import parquet

    found = parquet.read_table(name).to_pylist()
    return {(row["file"], row["start"]): np.float32(row["vector"]).tobytes() for row in found}


def test_an_index_that_was_being_made_is_finished(naturelm: Run) -> None:
    import numpy as np

    parts = Path("unfinished.npz.parts")
    stored = (parts / "vectors.f32").read_bytes()
    counted = [json.loads(line) for line in lines(parts / "rows.jsonl")]
    windows = sum(len(row.get("starts", ())) for row in counted)
    assert naturelm("embed", CAT, COW, DOG, HEATH, "-o", "unfinished.npz", "--batch-size", "1",
                    *TWO_SECONDS) == 0  # fmt: skip
    assert not parts.exists()
    now, expected = vectors("unfinished.npz"), vectors("expected/unfinished.npz")
    assert list(now) == list(expected)
    kept = b"".join(now.values())
    width = len(next(iter(now.values())))
    assert kept[: windows * width] == stored[: windows * width]
    assert np.frombuffer(kept, "<f4") == pytest.approx(
        np.frombuffer(b"".join(expected.values()), "<f4"), abs=1e-4
    )


def test_embeddings_on_disk_are_taken(naturelm: Run) -> None:
    before = {path: path.read_bytes() for path in Path("cache").rglob("*.safetensors")}
    assert before
    nano("checkpoint", "llama")
    assert naturelm("infer", CAT, "--model", "nano/checkpoint", "-q", "What is it?", *FIVE_TOKENS,
                    "--cache-dir", "cache") == 0  # fmt: skip
    now = {path: path.read_bytes() for path in Path("cache").rglob("*.safetensors")}
    assert now == before


def test_a_merged_model_answers(naturelm: Run) -> None:
    assert naturelm("infer", CAT, COW, "--model", "merged", "-q", "What is it?", *FIVE_TOKENS,
                    "--window-length-seconds", "1", "--hop-length-seconds", "2",
                    "--output-path", "merged.jsonl") == 0  # fmt: skip
    assert rows("merged.jsonl") == close(rows("expected/merged.jsonl"))


def test_a_combined_adapter_answers(naturelm: Run) -> None:
    nano("checkpoint", "llama")
    assert naturelm("infer", CAT, COW, "--model", "nano/checkpoint", "--adapter", "adapter", "-q",
                    "What is it?", *FIVE_TOKENS, "--output-path", "adapter.jsonl") == 0  # fmt: skip
    assert rows("adapter.jsonl") == close(rows("expected/adapter.jsonl"))


def nano(*names: str) -> None:
    """Put the small reference checkpoint into the current folder."""
    for name in names:
        shutil.copytree(NANO / name, Path("nano", name))


def test_a_training_is_gone_on_with(naturelm: Run) -> None:
    pytest.importorskip("accelerate")
    import torch
    from safetensors.torch import load_file

    log = lines("trained/log.jsonl")
    before = [line for line in log if json.loads(line)["step"] <= 4]
    state = Path("trained/checkpoints/step_00000004/state.json").read_bytes()
    with one_thread():
        assert naturelm("train", "--cfg-path", "train.yml", "--resume") == 0
        whole = ("--options", "run.output_dir=whole")
        assert naturelm("train", "--cfg-path", "train.yml", *whole) == 0
    assert Path("trained/checkpoints/step_00000004/state.json").read_bytes() == state
    assert lines("trained/log.jsonl")[: len(before)] == before
    logs = [rows(f"{run}/log.jsonl", "samples_per_second") for run in ("trained", "whole")]
    assert logs[0] == close(logs[1])
    weights = "checkpoints/step_00000006/weights.safetensors"
    resumed, fresh = (load_file(Path(run, weights)) for run in ("trained", "whole"))
    then = load_file("expected/weights.safetensors")
    assert resumed.keys() == fresh.keys() == then.keys()
    for name, tensor in then.items():
        torch.testing.assert_close(resumed[name], fresh[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-4)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums always come in one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""`naturelm infer` with a real (small, random) model: rows equal what the pipeline answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from NatureLM.cli.main import naturelm_app
from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import WindowResult

QUERY = "What is the common name for the focal species in the audio?"


@pytest.fixture
def folder(tmp_path: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: a recording and one that is cut off."""
    (tmp_path / "calls").mkdir()
    for name in ("chirps_16k.wav", "trill_16k.wav"):
        shutil.copy(nano_folder / "audio" / name, tmp_path / "calls" / name)
    (tmp_path / "calls" / "empty.wav").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def infer(model: Path | str, *args: str) -> Any:
    return CliRunner().invoke(
        naturelm_app,
        [
            *("infer", "--model", str(model), "--audio-path", "calls", "--device", "cpu"),
            *("--query", QUERY, "--options", "generate.max_new_tokens=6", *args),
        ],
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "inference_output.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_rows_equal_the_pipeline(folder: Path, nano_folder: Path, nano: Any) -> None:
    args = ("--window-length-seconds", "5", "--hop-length-seconds", "4", "--merging-alpha", "0.5")
    result = infer(nano_folder / "checkpoint", *args)
    assert result.exit_code == 3, result.stderr  # the empty recording
    assert "calls/empty.wav" in result.stderr
    expected = [
        one
        for one in Pipeline(nano).windows(
            ["calls/chirps_16k.wav", "calls/trill_16k.wav"],
            QUERY,
            window_length_seconds=5,
            hop_length_seconds=4,
            alpha=0.5,
            max_new_tokens=6,
        )
        if isinstance(one, WindowResult)
    ]
    written = [row for row in rows(folder) if "text" in row]
    assert [(row["audio_path"], row["start"], row["end"], row["text"]) for row in written] == [
        (one.audio_path, one.start, one.end, one.text) for one in expected
    ]
    assert len(written) == 6
    # Again with another batch size: nothing is left to do but the bad recording.
    before = rows(folder)
    assert infer(nano_folder / "checkpoint", *args, "--batch-size", "1").exit_code == 3
    assert sorted(map(str, rows(folder))) == sorted(map(str, before))


def without_confidence(line: str) -> str:
    row = {key: value for key, value in json.loads(line).items() if key != "confidence"}
    return json.dumps(row, sort_keys=True)


def place(line: str) -> tuple[Any, ...]:
    row = json.loads(line)
    return row["audio_path"], row.get("start"), row.get("query")


def test_a_stopped_run_and_another_batch_size_give_the_same_rows(
    folder: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nano_folder / "checkpoint"
    args = ("--window-length-seconds", "4", "--hop-length-seconds", "2", "-q", "Second question?")
    assert infer(model, *args, "--output-path", "whole.jsonl").exit_code == 3
    whole = (folder / "whole.jsonl").read_text(encoding="utf-8").splitlines()

    unanswered = Pipeline.unanswered

    def stop_soon(self: Pipeline, *given: Any, **options: Any) -> Any:
        for count, result in enumerate(unanswered(self, *given, **options)):
            if count == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(Pipeline, "unanswered", stop_soon)
    for size in ("3", "2", "4"):
        assert infer(model, *args, "--batch-size", size).exit_code == 130
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert infer(model, *args, "--batch-size", "5").exit_code == 3
    parts = (folder / "inference_output.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(map(without_confidence, parts)) == sorted(map(without_confidence, whole))
    # Sums over the rows of a batch are rounded in float32; the answers above are the same ones.
    sure, as_sure = ({place(line): json.loads(line).get("confidence") for line in lines}
                     for lines in (whole, parts))  # fmt: skip
    assert as_sure == {key: value and pytest.approx(value, abs=1e-5) for key, value in sure.items()}


def test_template_and_base_of_the_configuration(folder: Path, nano_folder: Path) -> None:
    checkpoint = folder / "checkpoint"
    shutil.copytree(nano_folder / "checkpoint", checkpoint)
    base = nano_folder / "llama"
    assert infer(checkpoint).exit_code == 1  # its base is not beside it
    result = infer(
        checkpoint, "--options", f"model.llama_path={base}", "--options", "model.prompt_template={}"
    )
    assert result.exit_code == 3, result.stderr
    record = json.loads((folder / "inference_output.jsonl.run.json").read_text())
    assert record["settings"]["prompt_template"] == "{}"
    result = infer(checkpoint, "--options", f"model.llama_path={base}")
    assert result.exit_code == 2
    assert "prompt_template" in result.stderr


def test_windows_longer_than_the_model_hears(folder: Path, nano_folder: Path) -> None:
    model = nano_folder / "checkpoint"
    assert infer(model).exit_code == 3
    before = rows(folder)
    result = infer(model, "--window-length-seconds", "11", "--overwrite")
    assert result.exit_code == 2
    assert "--window-length-seconds is 11" in result.stderr
    assert rows(folder) == before


def test_a_model_that_is_not_there(folder: Path) -> None:
    result = infer("no-such-model")
    assert result.exit_code in (1, 2)
    assert "no-such-model" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "inference_output.jsonl").exists()

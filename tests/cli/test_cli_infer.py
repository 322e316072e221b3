"""`naturelm infer` with a model that answers at once: what is shown, written, refused, resumed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from fakes import ASK, FakePipeline, calls_in, rows, write_wav

from NatureLM.cli.main import naturelm_app


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    fake = FakePipeline()
    monkeypatch.setattr("NatureLM.cli.infer.load_pipeline", fake.load)
    return fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: a folder with recordings of 25 s and 3 s."""
    monkeypatch.chdir(calls_in(tmp_path))
    return tmp_path


def infer(*args: str) -> Any:
    return CliRunner().invoke(naturelm_app, ["infer", *args])


def test_answers_are_shown_and_written(folder: Path, asker: FakePipeline) -> None:
    result = infer(*ASK)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "calls/cuckoo.wav",
        "  0.00s - 10.00s       cuckoo 0",
        "  10.00s - 20.00s      cuckoo 10",
        "  20.00s - 25.00s      cuckoo 20",
        "calls/wolf.WAV",
        "  0.00s - 3.00s        wolf 0",
    ]
    assert "2 recordings, 4 windows, 4 answers, 0 errors" in result.stderr
    assert "x real time" in result.stderr
    assert "Answers: inference_output.jsonl" in result.stderr
    assert "[1/2] calls/cuckoo.wav: 3 answers" in result.stderr
    assert "[2/2] calls/wolf.WAV: 1 answer," in result.stderr
    written = rows(folder / "inference_output.jsonl")
    assert [(row["audio_path"], row["start"], row["end"], row["text"]) for row in written] == [
        ("calls/cuckoo.wav", 0.0, 10.0, "cuckoo 0"),
        ("calls/cuckoo.wav", 10.0, 20.0, "cuckoo 10"),
        ("calls/cuckoo.wav", 20.0, 25.0, "cuckoo 20"),
        ("calls/wolf.WAV", 0.0, 3.0, "wolf 0"),
    ]
    assert {row["query"] for row in written} == {"What is it?"}
    assert {row["model"] for row in written} == {"naturelm-tiny"}
    assert {row["merging_alpha"] for row in written} == {1.0}


def test_the_command_of_the_readme(folder: Path, asker: FakePipeline) -> None:
    config = Path(__file__).resolve().parents[2] / "configs" / "inference.yml"
    (folder / "assets").symlink_to("calls")
    result = infer(
        "--cfg-path",
        str(config),
        "--audio-path",
        "assets",
        "--query",
        "Caption the audio",
        "--window-length-seconds",
        "10.0",
        "--hop-length-seconds",
        "10.0",
    )
    assert result.exit_code == 0, result.stderr
    assert len(rows(folder / "inference_output.jsonl")) == 4


@pytest.mark.parametrize(
    "args",
    [
        ("--audio", "calls/wolf.WAV", "--query", "q", "--output_path", "x.jsonl"),
        ("-a", "calls/wolf.WAV", "-q", "q", "--output-path", "x.jsonl"),
        ("calls/wolf.WAV", "-q", "q", "--output-path", "x.jsonl", "--quiet"),
        ("--audio_path", "calls/wolf.WAV", "-q", "q", "--output-path=x.jsonl", "--batch_size", "2"),
        ("calls/wolf.WAV", "-q", "q", "--output_path", "x.jsonl", "--window_length_seconds", "5"),
    ],
)
def test_other_spellings(folder: Path, asker: FakePipeline, args: tuple[str, ...]) -> None:
    result = infer(*args)
    assert result.exit_code == 0, result.stderr
    assert [row["text"] for row in rows(folder / "x.jsonl")] == ["wolf 0"]
    assert ("--quiet" in args) == (result.stdout == "")


def test_several_recordings_and_questions(folder: Path, asker: FakePipeline) -> None:
    result = infer(
        "-a", "calls/wolf.WAV", "-a", "calls/cuckoo.wav", "-q", "What?", "-q", "Who?", "-q", "What?"
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:2] == ["[1] What?", "[2] Who?"]
    assert "  0.00s - 3.00s        [2] wolf 0" in lines
    assert "2 recordings, 4 windows, 8 answers, 0 errors" in result.stderr
    assert len(rows(folder / "inference_output.jsonl")) == 8
    assert sorted(asker.asked) == sorted(set(asker.asked))


def test_options_reach_request_and_rows(folder: Path, asker: FakePipeline) -> None:
    result = infer(
        *ASK,
        *("--merging-alpha", "0.4", "--model", "some/model", "--device", "cuda:1"),
        *("--adapter", "some/adapter"),
        *("--dtype", "bfloat16", "--batch-size", "3", "--channel", "2", "--time-expansion", "10"),
        *("--window-length-seconds", "5", "--hop-length-seconds", "2.5"),
        *("--options", "generate.num_beams=1", "--options", "generate.max_new_tokens=7"),
    )
    assert result.exit_code == 0
    ((request, config, asked),) = asker.given
    assert (asked.merging_alpha, request.model) == (0.4, "some/model")
    assert request.adapter == "some/adapter"
    assert (request.device, request.dtype, request.batch_size) == ("cuda:1", "bfloat16", 3)
    assert (asked.channel, asked.time_expansion) == (2, 10.0)
    assert (asked.window_length_seconds, asked.hop_length_seconds) == (5.0, 2.5)
    assert config.generate.num_beams == 1
    assert {row["merging_alpha"] for row in rows(folder / "inference_output.jsonl")} == {0.4}
    record = json.loads((folder / "inference_output.jsonl.run.json").read_text())
    assert record["settings"] == {
        "model": "some/model",
        "adapter": "some/adapter",
        "merging_alpha": 0.4,
        "queries": ["What is it?"],
        "window_length_seconds": 5.0,
        "hop_length_seconds": 2.5,
        "channel": 2,
        "time_expansion": 10.0,
        "generate": config.generate.model_dump(exclude={"merging_alpha"}),
        "weights": "fake",
        "dtype": "float32",
        "prompt_template": "{}",
    }


def test_alpha_and_checkpoint_of_the_configuration(folder: Path, asker: FakePipeline) -> None:
    (folder / "c.yml").write_text("generate: {merging_alpha: 0.5}\nmodel: {ckpt: my/folder}\n")
    assert infer(*ASK, "--cfg-path", "c.yml").exit_code == 0
    assert {
        (row["merging_alpha"], row["model"]) for row in rows(folder / "inference_output.jsonl")
    } == {(0.5, "my/folder")}


def test_a_bad_recording_is_reported_and_the_rest_goes_on(
    folder: Path, asker: FakePipeline
) -> None:
    (folder / "calls" / "empty.wav").touch()
    (folder / "calls" / "notes.mp3").write_text("not audio")
    result = infer(*ASK)
    assert result.exit_code == 3
    assert "Error: calls/empty.wav: " in result.stderr
    assert "Error: calls/notes.mp3: " in result.stderr
    assert "4 recordings, 4 windows, 4 answers, 2 errors" in result.stderr
    written = rows(folder / "inference_output.jsonl")
    assert [row["text"] for row in written if "text" in row] == [
        "cuckoo 0",
        "cuckoo 10",
        "cuckoo 20",
        "wolf 0",
    ]
    errors = [row for row in written if "error" in row]
    assert [row["audio_path"] for row in errors] == ["calls/empty.wav", "calls/notes.mp3"]
    assert all(row["error"].startswith(row["audio_path"]) for row in errors)
    assert all(row["error_type"] for row in errors)
    # Again: still bad, asked no more than that, and the errors stand once.
    asker.asked.clear()
    assert infer(*ASK).exit_code == 3
    assert asker.asked == []
    assert len(rows(folder / "inference_output.jsonl")) == 6
    # Mended: all is well.
    write_wav(folder / "calls" / "empty.wav", 1)
    (folder / "calls" / "notes.mp3").unlink()
    write_wav(folder / "calls" / "notes.mp3", 1)
    result = infer(*ASK)
    assert result.exit_code == 0
    assert "calls/empty.wav: has changed since it failed" not in result.stderr  # had no answers
    assert "2 recordings that had failed are tried again" in result.stderr
    assert not any("error" in row for row in rows(folder / "inference_output.jsonl"))
    assert len(rows(folder / "inference_output.jsonl")) == 6


WRONG = [
    ((), "nothing to listen to"),
    (("--query", "q"), "nothing to listen to"),
    (("--audio-path", "calls"), "nothing to ask"),
    (("--audio-path", "calls", "--query", " "), "--query is empty"),
    (("--audio-path", "absent.wav", "--query", "q"), "absent.wav"),
    (("--audio-path", "calls", "--audio-path", "absent", "--query", "q"), "absent"),
    (("--audio-path", "none", "--query", "q"), "none"),
    ((*ASK, "--window-length-seconds", "0"), "--window-length-seconds is 0"),
    ((*ASK, "--hop-length-seconds", "-1"), "--hop-length-seconds is -1"),
    ((*ASK, "--hop-length-seconds", "nan"), "--hop-length-seconds is nan"),
    ((*ASK, "--time-expansion", "inf"), "--time-expansion is inf"),
    ((*ASK, "--merging-alpha", "nan"), "--merging-alpha is nan"),
    ((*ASK, "--merging-alpha", "half"), "--merging-alpha"),
    ((*ASK, "--device", "tpu"), "one of auto, cpu, cuda, mps"),
    ((*ASK, "--dtype", "int8"), "one of auto, float32, bfloat16, float16"),
    ((*ASK, "--channel", "left"), "mean or a number from 1"),
    ((*ASK, "--channel", "0"), "mean or a number from 1"),
    ((*ASK, "--batch-size", "0"), "--batch-size is 0, and it must be at least 1"),
    ((*ASK, "--max-memory", "much"), "--max-memory is 'much'; give a size such as 4GB"),
    ((*ASK, "--cfg-path", "absent.yml"), "absent.yml: there is no such configuration file"),
    ((*ASK, "--options", "generate.num_beam=1"), "did you mean generate.num_beams"),
    ((*ASK, "--options", "generate.num_beams=0"), "a whole number, at least 1"),
    ((*ASK, "--output-path", "calls"), "is a folder"),
    ((*ASK, "--output-path", "calls/wolf.WAV"), "is no result file"),
    ((*ASK, "--output-path", "calls/wolf.WAV", "--overwrite"), "is no result file"),
    ((*ASK, "--output-path", "calls/wolf.WAV/x.jsonl"), "cannot be written"),
    ((*ASK, "--no-such-option"), "No such option"),
]


@pytest.mark.parametrize(("args", "words"), WRONG)
def test_wrong_usage_ends_with_2_before_any_work(
    folder: Path, asker: FakePipeline, args: tuple[str, ...], words: str
) -> None:
    (folder / "none").mkdir()
    before = sorted(str(path) for path in folder.rglob("*"))
    result = infer(*args)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert asker.loaded == 0
    assert sorted(str(path) for path in folder.rglob("*")) == before


def test_keys_without_effect_give_one_note(folder: Path, asker: FakePipeline) -> None:
    (folder / "c.yml").write_text("run: {world_size: 4, use_distributed: true}")
    result = infer(*ASK, "--cfg-path", "c.yml")
    assert result.exit_code == 0
    notes = [line for line in result.stderr.splitlines() if line.startswith("Note: c.yml")]
    assert len(notes) == 1
    assert "run.use_distributed, run.world_size" in notes[0]


def test_a_gap_between_windows_gives_a_note(folder: Path, asker: FakePipeline) -> None:
    result = infer(*ASK, "--window-length-seconds", "5")
    assert "--hop-length-seconds 10 is longer than a window of 5 s" in result.stderr


def test_the_same_command_asks_nothing_twice(folder: Path, asker: FakePipeline) -> None:
    infer(*ASK)
    before = (folder / "inference_output.jsonl").read_bytes()
    asker.asked.clear()
    result = infer(*ASK, "--batch-size", "4", "--device", "cpu", "--quiet")
    assert result.exit_code == 0
    assert asker.asked == []
    assert "has 4 answers of this run" in result.stderr
    assert "0 answers (4 more from before)" in result.stderr
    assert (folder / "inference_output.jsonl").read_bytes() == before
    # A new recording is all that is asked.
    write_wav(folder / "calls" / "new.wav", 2)
    assert infer(*ASK).exit_code == 0
    assert [name for name, _, _ in asker.asked] == ["new.wav"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--merging-alpha", "0.4"), "merging_alpha: 1.0 there, 0.4 now"),
        (("--model", "other"), 'model: "naturelm-tiny" there, "other" now'),
        (("--query", "Who?"), 'queries: ["What is it?"] there, ["What is it?", "Who?"] now'),
        (("--hop-length-seconds", "5"), "hop_length_seconds: 10.0 there, 5.0 now"),
        (("--options", "generate.num_beams=1"), "generate.num_beams: 2 there, 1 now"),
        (("--channel", "1"), 'channel: "mean" there, 1 now'),
        (("--time-expansion", "10"), "time_expansion: 1.0 there, 10.0 now"),
    ],
)
def test_other_settings_are_refused_before_the_model_is_loaded(
    folder: Path, asker: FakePipeline, args: tuple[str, ...], words: str
) -> None:
    infer(*ASK)
    before = (folder / "inference_output.jsonl").read_bytes()
    asker.loaded = 0
    result = infer(*ASK, *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--overwrite" in result.stderr
    assert asker.loaded == 0
    assert (folder / "inference_output.jsonl").read_bytes() == before
    assert infer(*ASK, *args, "--overwrite").exit_code == 0


def test_other_weights_are_refused(folder: Path, asker: FakePipeline) -> None:
    infer(*ASK)
    asker.weights = "trained further"
    result = infer(*ASK)
    assert result.exit_code == 2
    assert 'weights: "fake" there, "trained further" now' in result.stderr


def test_ctrl_c_keeps_what_is_done(folder: Path, asker: FakePipeline) -> None:
    asker.stop_after = 2
    result = infer(*ASK)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == (
        "Stopped. 2 answers are in inference_output.jsonl; the same command goes on from there."
    )
    assert len(rows(folder / "inference_output.jsonl")) == 2
    asker.stop_after = None
    result = infer(*ASK)
    assert result.exit_code == 0
    assert [row["text"] for row in rows(folder / "inference_output.jsonl")] == [
        "cuckoo 0",
        "cuckoo 10",
        "cuckoo 20",
        "wolf 0",
    ]
    assert len(asker.asked) == 4


def test_stopped_before_the_first_answer(folder: Path, asker: FakePipeline) -> None:
    asker.stop_after = 0
    result = infer(*ASK)
    assert result.exit_code == 130
    assert "nothing was written" in result.stderr
    assert not (folder / "inference_output.jsonl").exists()


def test_answers_cannot_play_with_the_terminal(folder: Path, asker: FakePipeline) -> None:
    asker.text = lambda path, start, query: "a\nb\x1b[31m[bold]c"
    result = infer(*ASK)
    assert "\x1b" not in result.stdout
    assert "a b [31m[bold]c" in result.stdout
    assert rows(folder / "inference_output.jsonl")[0]["text"] == "a\nb\x1b[31m[bold]c"


def test_the_stack_trace_is_there_for_who_wants_it(
    folder: Path, asker: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATURELM_DEBUG", "1")
    result = infer("--query", "q")
    assert type(result.exception).__name__ == "UsageError"

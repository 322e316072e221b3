"""`naturelm infer`: what is shown, written, refused and resumed; signals; lists; real models."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import ASK, FakePipeline, naturelm, rows, start, write_wav
from conftest import ROOT
from typer.testing import Result

from NatureLM.inference.pipeline import Pipeline
from NatureLM.inference.windows import WindowResult
from NatureLM.results.rows import WindowRow, read_rows

infer = functools.partial(naturelm, "infer")
OUTPUT = "inference_output.jsonl"
TEXTS = ["cuckoo 0", "cuckoo 10", "cuckoo 20", "wolf 0"]


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
    written = rows(OUTPUT)
    assert [(row["audio_path"], row["start"], row["end"], row["text"]) for row in written] == [
        *(("calls/cuckoo.wav", s, min(s + 10.0, 25.0), f"cuckoo {s:g}") for s in (0.0, 10.0, 20.0)),
        ("calls/wolf.WAV", 0.0, 3.0, "wolf 0"),
    ]
    assert {(row["query"], row["model"], row["merging_alpha"]) for row in written} == {
        ("What is it?", "naturelm-tiny", 1.0)
    }


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
    recordings = ("-a", "calls/wolf.WAV", "-a", "calls/cuckoo.wav")
    result = infer(*recordings, "-q", "What?", "-q", "Who?", "-q", "What?")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:2] == ["[1] What?", "[2] Who?"]
    assert "  0.00s - 3.00s        [2] wolf 0" in lines
    assert "2 recordings, 4 windows, 8 answers, 0 errors" in result.stderr
    assert len(rows(OUTPUT)) == 8
    assert sorted(asker.asked) == sorted(set(asker.asked))


def test_options_reach_request_and_rows(folder: Path, asker: FakePipeline) -> None:
    result = infer(
        *ASK,
        *("--merging-alpha", "0.4", "--model", "some/model", "--device", "cuda:1"),
        *("--adapter", "some/adapter", "--quantize", "int4"),
        *("--dtype", "bfloat16", "--batch-size", "3", "--channel", "2", "--time-expansion", "10"),
        *("--window-length-seconds", "5", "--hop-length-seconds", "2.5"),
        *("--options", "generate.num_beams=1", "--options", "generate.max_new_tokens=7"),
    )
    assert result.exit_code == 0
    ((request, config, asked),) = asker.given
    assert (asked.merging_alpha, request.model) == (0.4, "some/model")
    assert (request.device, request.dtype, request.batch_size) == ("cuda:1", "bfloat16", 3)
    assert request.quantize == "int4"
    assert (asked.channel, asked.time_expansion) == (2, 10.0)
    assert (asked.window_length_seconds, asked.hop_length_seconds) == (5.0, 2.5)
    assert config.generate.num_beams == 1
    assert {row["merging_alpha"] for row in rows(OUTPUT)} == {0.4}
    record = json.loads((folder / f"{OUTPUT}.run.json").read_text())
    assert record["settings"] == {
        **{"model": "some/model", "adapter": "some/adapter", "merging_alpha": 0.4},
        **{"queries": ["What is it?"], "window_length_seconds": 5.0, "hop_length_seconds": 2.5},
        **{"channel": 2, "time_expansion": 10.0},
        "generate": config.generate.model_dump(exclude={"merging_alpha"}),
        **{"weights": "fake", "dtype": "float32", "prompt_template": "{}"},
    }


def test_alpha_and_checkpoint_of_the_configuration(folder: Path, asker: FakePipeline) -> None:
    (folder / "c.yml").write_text("generate: {merging_alpha: 0.5}\nmodel: {ckpt: my/folder}\n")
    assert infer(*ASK, "--cfg-path", "c.yml").exit_code == 0
    assert {(row["merging_alpha"], row["model"]) for row in rows(OUTPUT)} == {(0.5, "my/folder")}


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
    written = rows(OUTPUT)
    assert [row["text"] for row in written if "text" in row] == TEXTS
    errors = [row for row in written if "error" in row]
    assert [row["audio_path"] for row in errors] == ["calls/empty.wav", "calls/notes.mp3"]
    assert all(row["error"].startswith(row["audio_path"]) for row in errors)
    assert all(row["error_type"] for row in errors)
    # Again: still bad, asked no more than that, and the errors stand once.
    asker.asked.clear()
    assert infer(*ASK).exit_code == 3
    assert asker.asked == []
    assert len(rows(OUTPUT)) == 6
    # Mended: all is well.
    for name in ("empty.wav", "notes.mp3"):
        write_wav(folder / "calls" / name, 1)
    result = infer(*ASK)
    assert result.exit_code == 0
    assert "calls/empty.wav: has changed since it failed" not in result.stderr  # had no answers
    assert "2 recordings that had failed are tried again" in result.stderr
    assert ["text" in row for row in rows(OUTPUT)] == 6 * [True]


SPECIES = ("--species-list", "American Toad,Barn Owl,Dog")
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
    ((*ASK, "--quantize", "int3"), "--quantize is 'int3', and it must be one of int8, int4"),
    ((*ASK, "--channel", "left"), "mean or a number from 1"),
    ((*ASK, "--channel", "0"), "mean or a number from 1"),
    ((*ASK, "--batch-size", "0"), "--batch-size is 0, and it must be at least 1"),
    ((*ASK, "--batch-size", "1000000"), "--batch-size is 1,000,000, and it must be at least 1 and"),
    ((*ASK, "--top-k", "1000000000"), "--top-k is 1,000,000,000, and it must be at least 1 and at"),
    ((*ASK, "--hop-length-seconds", "1e-9"), "seconds is 1e-09, and it must be at least 0.01"),
    ((*ASK, "--window-length-seconds", "1e9"), "it must be at least 0 and at most 3,600"),
    ((*ASK, "--options", "generate.num_beams=100000"), "an integer, at least 1 and at most 100"),
    ((*ASK, "--max-memory", "much"), "--max-memory is 'much'; give a size such as 4GB"),
    ((*ASK, "--cfg-path", "absent.yml"), "absent.yml: there is no such configuration file"),
    ((*ASK, "--options", "generate.num_beam=1"), "did you mean generate.num_beams"),
    ((*ASK, "--options", "generate.num_beams=0"), "an integer, at least 1"),
    ((*ASK, "--output-path", "calls"), "is a folder"),
    ((*ASK, "--output-path", "calls/wolf.WAV"), "is no result file"),
    ((*ASK, "--output-path", "calls/wolf.WAV", "--overwrite"), "is no result file"),
    ((*ASK, "--output-path", "calls/wolf.WAV/x.jsonl"), "cannot be written"),
    ((*ASK, "--no-such-option"), "No such option"),
    ((*ASK, "--mode", "score"), "needs species to choose from: give --species-list"),
    ((*ASK, "--species-list", "absent.txt"), "absent.txt does not exist"),
    ((*ASK, *SPECIES, "--mode", "guess"), "--mode is 'guess'"),
    ((*ASK, *SPECIES, "--top-k", "0"), "--top-k is 0"),
    ((*ASK, *SPECIES, "--min-confidence", "1.5"), "--min-confidence is 1.5"),
    ((*ASK, *SPECIES, "--several"), "--several is for --mode constrained"),
    ((*ASK, *SPECIES, "--species-names", "latin"), "--species-names is 'latin'"),
    ((*ASK, "--min-confidence", "0.5"), "--min-confidence is for --mode score"),
    ((*ASK, *SPECIES, "--mode", "generate"), "write {species_list} into --query"),
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


def test_keys_without_effect_and_a_gap_between_windows_give_notes(
    folder: Path, asker: FakePipeline
) -> None:
    (folder / "c.yml").write_text("run: {world_size: 4, use_distributed: true}")
    result = infer(*ASK, "--cfg-path", "c.yml", "--window-length-seconds", "5")
    assert result.exit_code == 0
    (note,) = (line for line in result.stderr.splitlines() if line.startswith("Note: c.yml"))
    assert "run.use_distributed, run.world_size" in note
    assert "--hop-length-seconds 10 is longer than a window of 5 s" in result.stderr


def test_the_same_command_asks_nothing_twice(folder: Path, asker: FakePipeline) -> None:
    infer(*ASK)
    before = (folder / OUTPUT).read_bytes()
    asker.asked.clear()
    result = infer(*ASK, "--batch-size", "4", "--device", "cpu", "--quiet")
    assert result.exit_code == 0
    assert asker.asked == []
    assert "has 4 answers of this run" in result.stderr
    assert "All was answered before: 4 answers" in result.stderr
    assert (folder / OUTPUT).read_bytes() == before
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
    before = (folder / OUTPUT).read_bytes()
    asker.loaded = 0
    result = infer(*ASK, *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--overwrite" in result.stderr
    assert asker.loaded == 0
    assert (folder / OUTPUT).read_bytes() == before
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
    assert len(rows(OUTPUT)) == 2
    asker.stop_after = None
    result = infer(*ASK)
    assert result.exit_code == 0
    assert [row["text"] for row in rows(OUTPUT)] == TEXTS
    assert len(asker.asked) == 4


def test_stopped_before_the_first_answer(folder: Path, asker: FakePipeline) -> None:
    asker.stop_after = 0
    result = infer(*ASK)
    assert (result.exit_code, "nothing was written" in result.stderr) == (130, True)
    assert not (folder / OUTPUT).exists()


def test_answers_cannot_play_with_the_terminal(folder: Path, asker: FakePipeline) -> None:
    asker.text = lambda path, start, query: "a\nb\x1b[31m[bold]c"
    result = infer(*ASK)
    assert "\x1b" not in result.stdout
    assert "a b [31m[bold]c" in result.stdout
    assert rows(OUTPUT)[0]["text"] == "a\nb\x1b[31m[bold]c"


def test_the_stack_trace_is_there_for_who_wants_it(
    folder: Path, asker: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATURELM_DEBUG", "1")
    result = infer("--query", "q")
    assert type(result.exception).__name__ == "UsageError"


# Processes of their own: signals, two at once, terminals


def wait_for_rows(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("no rows came")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)]
)
def test_signals_leave_whole_lines_and_the_run_goes_on(
    folder: Path, asker: FakePipeline, name: str, code: int
) -> None:
    """SIGHUP is that of a terminal that was closed."""
    write_wav(folder / "calls" / "long.wav", 300)
    output = folder / OUTPUT
    process = start(folder, "infer", *ASK, seconds=0.3)
    wait_for_rows(output, 1, process)
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    done = rows(output)
    assert 1 <= len(done) < 34
    if code > 0:
        assert f"Stopped. {len(done)} answers are in inference_output.jsonl" in errors
    again = infer(*ASK)
    assert again.exit_code == 0, again.stderr
    final = rows(output)
    assert final[: len(done)] == done
    assert len({(row["audio_path"], row["start"]) for row in final}) == len(final) == 34


def test_two_runs_on_one_output(folder: Path, asker: FakePipeline) -> None:
    write_wav(folder / "calls" / "long.wav", 300)
    first = start(folder, "infer", *ASK, seconds=0.3)
    wait_for_rows(folder / OUTPUT, 1, first)
    first.send_signal(signal.SIGSTOP)  # it keeps the file, however slow the machine is
    try:
        second = infer(*ASK)
        assert second.exit_code == 2
        assert "another run is writing this file now" in second.stderr
    finally:
        first.kill()
        first.communicate(timeout=30)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")
def test_on_a_terminal_there_is_a_bar(folder: Path) -> None:
    import pty

    write_wav(folder / "calls" / "long.wav", 100)
    (folder / "calls" / "empty.wav").touch()
    ours, theirs = pty.openpty()
    process = start(
        folder,
        *("infer", *ASK),
        seconds=0.1,
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        env={"TERM": "xterm-256color", "COLUMNS": "100"},
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


# A real (small, random) model: rows equal what the pipeline answers


QUERY = "What is the common name for the focal species in the audio?"


def ask(model: Path | str, *args: str) -> Result:
    return infer(
        *("--model", model, "--audio-path", "calls", "--device", "cpu"),
        *("--query", QUERY, "--options", "generate.max_new_tokens=6", *args),
    )


def test_rows_equal_the_pipeline(nano_calls: Path, nano_folder: Path, nano: Any) -> None:
    args = ("--window-length-seconds", "5", "--hop-length-seconds", "4", "--merging-alpha", "0.5")
    result = ask(nano_folder / "checkpoint", *args)
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
    written = [row for row in rows(OUTPUT) if "text" in row]
    assert [(row["audio_path"], row["start"], row["end"], row["text"]) for row in written] == [
        (one.audio_path, one.start, one.end, one.text) for one in expected
    ]
    assert len(written) == 6
    # Again with another batch size: nothing is left to do but the bad recording.
    before = rows(OUTPUT)
    assert ask(nano_folder / "checkpoint", *args, "--batch-size", "1").exit_code == 3
    assert sorted(map(str, rows(OUTPUT))) == sorted(map(str, before))


def without_confidence(line: str) -> str:
    row = {key: value for key, value in json.loads(line).items() if key != "confidence"}
    return json.dumps(row, sort_keys=True)


def place(line: str) -> tuple[Any, ...]:
    row = json.loads(line)
    return row["audio_path"], row.get("start"), row.get("query")


def test_a_stopped_run_and_another_batch_size_give_the_same_rows(
    nano_calls: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nano_folder / "checkpoint"
    args = ("--window-length-seconds", "4", "--hop-length-seconds", "2", "-q", "Second question?")
    assert ask(model, *args, "--output-path", "whole.jsonl").exit_code == 3
    whole = (nano_calls / "whole.jsonl").read_text(encoding="utf-8").splitlines()

    unanswered = Pipeline.unanswered

    def stop_soon(self: Pipeline, *given: Any, **options: Any) -> Any:
        for count, result in enumerate(unanswered(self, *given, **options)):
            if count == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(Pipeline, "unanswered", stop_soon)
    for size in ("3", "2", "4"):
        assert ask(model, *args, "--batch-size", size).exit_code == 130
    monkeypatch.undo()
    monkeypatch.chdir(nano_calls)
    assert ask(model, *args, "--batch-size", "5").exit_code == 3
    parts = (nano_calls / OUTPUT).read_text(encoding="utf-8").splitlines()
    assert sorted(map(without_confidence, parts)) == sorted(map(without_confidence, whole))
    # Sums over the rows of a batch are rounded in float32; the answers above are the same ones.
    sure, as_sure = ({place(line): json.loads(line).get("confidence") for line in lines}
                     for lines in (whole, parts))  # fmt: skip
    assert as_sure == {key: value and pytest.approx(value, abs=1e-5) for key, value in sure.items()}


def test_template_and_base_of_the_configuration(nano_calls: Path, nano_folder: Path) -> None:
    checkpoint = nano_calls / "checkpoint"
    shutil.copytree(nano_folder / "checkpoint", checkpoint)
    base = nano_folder / "llama"
    assert ask(checkpoint).exit_code == 1  # its base is not beside it
    result = ask(
        checkpoint, "--options", f"model.llama_path={base}", "--options", "model.prompt_template={}"
    )
    assert result.exit_code == 3, result.stderr
    record = json.loads((nano_calls / "inference_output.jsonl.run.json").read_text())
    assert record["settings"]["prompt_template"] == "{}"
    result = ask(checkpoint, "--options", f"model.llama_path={base}")
    assert result.exit_code == 2
    assert "prompt_template" in result.stderr


def test_windows_longer_than_the_model_takes(nano_calls: Path, nano_folder: Path) -> None:
    model = nano_folder / "checkpoint"
    assert ask(model).exit_code == 3
    before = rows(OUTPUT)
    result = ask(model, "--window-length-seconds", "11", "--overwrite")
    assert result.exit_code == 2
    assert "--window-length-seconds is 11" in result.stderr
    assert rows(OUTPUT) == before


def test_a_model_that_is_not_there(nano_calls: Path) -> None:
    result = ask("no-such-model")
    assert result.exit_code in (1, 2)
    assert "no-such-model" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (nano_calls / OUTPUT).exists()


# Species lists, with the embedded model


ASSETS = ROOT / "assets"
CLIPS = [ASSETS / "synthetic_barn_owl.flac", ASSETS / "synthetic_chainsaw.flac"]


def ask_about(output: Path, *args: Any) -> Result:
    return infer(*CLIPS, "--output-path", output, *args)


def answers(path: Path) -> list[WindowRow]:
    return [row for row in read_rows(path) if isinstance(row, WindowRow)]


def test_a_species_list_is_scored_and_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    done = ask_about(output, "--species-list", f"{SPECIES[1]},Comon Cuckoo", "--top-k", 2)
    assert done.exit_code == 0, done.output
    assert "did you mean 'Common Cuckoo'?" in done.stderr
    assert "asking: What is the common name" in done.stderr
    rows = answers(output)
    assert len(rows) == len(CLIPS)
    for row in rows:
        assert row.text in (*SPECIES[1].split(","), "Comon Cuckoo", "None")
        assert row.confidence is not None
        assert len(row.alternatives) == 1
        assert f"{row.text}  {row.confidence:.2f}" in done.stdout
    again = ask_about(output, "--species-list", f"{SPECIES[1]},Comon Cuckoo", "--top-k", 2)
    assert "has 2 answers of this run" in again.stderr
    other = ask_about(output, *SPECIES)
    assert other.exit_code == 2
    assert "choosing.labels" in other.stderr
    free = ask_about(output, "--query", rows[0].query)
    assert free.exit_code == 2
    assert "choosing: " in free.stderr
    assert "not set now" in free.stderr


def test_answers_are_bound_to_the_list(tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("scientific_name,common_name\nTyto alba,Barn Owl\nCanis lupus,Gray Wolf\n")
    output = tmp_path / "answers.jsonl"
    options = ("--mode", "constrained", "--several", "--species-names", "scientific")
    done = ask_about(output, "--species-list", names, *options)
    assert done.exit_code == 0, done.output
    assert "any, are present in the audio recording? Tyto alba, Canis lupus." in done.stderr
    for row in answers(output):
        parts = row.text.split(", ")
        assert set(parts) <= {"Tyto alba", "Canis lupus"} or parts == ["None"]


def test_a_free_answer_can_be_given_the_list(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    query = "Choose from {species_list}, please."
    options = ("--mode", "generate", "--options", "generate.max_new_tokens=4", "--query", query)
    done = ask_about(output, *SPECIES, *options)
    assert done.exit_code == 0, done.output
    assert {row.query for row in answers(output)} == {
        "Choose from American Toad, Barn Owl, Dog, please."
    }


def test_windows_without_sound(nano_calls: Path, nano_folder: Path) -> None:
    import numpy as np
    import soundfile

    wave, rate = soundfile.read("calls/trill_16k.wav")
    wave = wave[: 2 * rate]
    quiet, opposite = np.zeros((rate, 2)), np.stack([wave[:rate], -wave[:rate]], axis=1)
    soundfile.write("a.wav", np.concatenate([np.stack([wave] * 2, 1), quiet, opposite]), rate)
    soundfile.write("b.wav", quiet, rate)
    ask = ("a.wav", "b.wav", "-q", "What is it?", "--model", nano_folder / "checkpoint")
    cut = ("--window-length-seconds", 1, "--hop-length-seconds", 1)
    cut = (*cut, "--options", "generate.max_new_tokens=4")
    result = infer(*ask, *cut)
    assert result.exit_code == 0
    shown = result.stdout.splitlines()
    assert shown[3:] == [
        "  2.00s - 3.00s        silent, not asked",
        "  3.00s - 4.00s        cancelled, not asked",
        "b.wav",
        "  0.00s - 1.00s        silent, not asked",
    ]
    assert "2 silent windows not asked, 1 cancelled window not asked, 0 errors" in result.stderr
    assert "5 windows, 2 answers," in result.stderr
    assert "a.wav: the channels cancel each other from 3 s on" in result.stderr
    before = Path(OUTPUT).read_bytes()
    written = rows(OUTPUT)
    assert [row.get("note") for row in written] == [None, None, "silent", "cancelled", "silent"]
    assert [bool(row["text"]) for row in written[2:]] == [False] * 3
    assert "confidence" not in written[2]
    # It is resumed; whoever asks them all asks for something else.
    assert infer(*ask, *cut).exit_code == 0
    assert Path(OUTPUT).read_bytes() == before
    assert "ask_silence: not set there, true now" in infer(*ask, *cut, "--ask-silence").stderr
    assert infer(*ask, *cut, "--ask-silence", "--overwrite").exit_code == 0
    every = rows(OUTPUT)
    assert [row.get("note") for row in every] == [row.get("note") for row in written]
    assert all("confidence" in row for row in every)
    assert json.loads(Path(f"{OUTPUT}.run.json").read_text())["settings"]["ask_silence"] is True


def test_a_run_of_silence_alone(nano_calls: Path, nano_folder: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write("b.wav", np.zeros(16_000), 16_000)
    result = infer("b.wav", "-q", "What?", "--model", nano_folder / "checkpoint", "--quiet")
    assert result.exit_code == 0
    assert "1 window, 0 answers, 1 silent window not asked, 0 errors" in result.stderr
    assert [row["note"] for row in rows(OUTPUT)] == ["silent"]

"""`beans` on the benchmark: answers in one file, metrics in one beside it, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiment_runs import die, killed
from typer.testing import CliRunner, Result

from NatureLM.cli.main import beans_app
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.experiments.store import TrialStore

pytest.importorskip("rapidfuzz")
ANSWERS = "beans_zero_eval.jsonl"
METRICS = "beans_zero_eval_metrics.jsonl"
SAMPLES = [
    ("1", "esc50", "classification", "dog", "chirps_16k.wav"),
    ("2", "esc50", "classification", "cow", "trill_16k.wav"),
    ("3", "esc50", "classification", "hen", "gone.wav"),
    ("4", "dcase", "detection", "DOG, CAT", "howl_16k.wav"),
    ("5", "dcase", "detection", "None", "chirps_16k.wav"),
    ("6", "captioning", "captioning", "A cow lows.", "trill_16k.wav"),
]


def row(identity: str, dataset: str, task: str, label: str, file: str) -> dict[str, Any]:
    """A sample in BEANS-Zero's schema, as JSON lines have it."""
    names = {"id": identity, "dataset_name": dataset, "task": task, "output": label}
    question = f"<Audio><AudioHere></Audio> What is in {identity}?"
    return {**names, "file_name": file, "instruction_text": question, "metadata": "{}"}


@pytest.fixture
def data(tmp_path: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a small benchmark, in the current folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    for file in ("chirps_16k.wav", "trill_16k.wav", "howl_16k.wav"):
        shutil.copy(nano_folder / "audio" / file, folder)
    write(folder, *(row(*one) for one in SAMPLES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def write(folder: Path, *rows: dict[str, Any] | str) -> None:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def beans(*args: str, config: str = "inference.yml") -> Result:
    path = Path(__file__).resolve().parents[2] / "configs" / config
    return CliRunner().invoke(beans_app, ["--cfg-path", str(path), "--data-path", "data", *args])


def run(nano_folder: Path, *args: str) -> Result:
    return beans(
        *("--model", str(nano_folder / "checkpoint"), "--device", "cpu", *args),
        *("--options", "generate.max_new_tokens=4", "--options", "generate.num_beams=1"),
    )


def lines_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def test_answers_and_metrics_stand_in_two_files(data: Path, nano_folder: Path) -> None:
    done = run(nano_folder, "--output-path", ANSWERS, "--cache-dir", "cache")
    assert done.exit_code == 3, done.output  # a recording is missing
    assert {path.name for path in Path().iterdir()} == {
        *("data", "cache", ANSWERS, METRICS, f"{ANSWERS}.run.json"),
    }
    assert list(Path("cache").rglob("*.safetensors"))
    rows = {one["id"]: one for one in lines_of(ANSWERS)}
    assert rows.keys() == {identity for identity, *_ in SAMPLES}
    assert "gone.wav: there is no such file" in rows["3"]["error"]
    for identity, dataset, task, label, _ in SAMPLES:
        one = rows[identity]
        assert (one["dataset_name"], one["task"], one["label"]) == (dataset, task, label)
        assert (one["lora_scale"], one["query"]) == (1.0, 0)
        assert f"What is in {identity}?" in one["prompt"]

    metrics = {one["dataset"]: one for one in lines_of(METRICS)}
    assert {name: one["n"] for name, one in metrics.items()} == {
        "esc50": 2,
        "dcase": 2,
        "captioning": 1,
    }
    wanted = score([ANSWERS], [protocol("beans-zero")], on_error="skip").records()
    for record in wanted:
        assert metrics[record["dataset"]] == json.loads(json.dumps(record))
    assert {one["protocol"] for one in metrics.values()} == {"beans-zero"}
    assert metrics["esc50"]["accuracy"] is not None
    assert metrics["dcase"]["map"] is not None
    assert metrics["captioning"]["cider"] is not None
    assert (metrics["esc50"]["errors_in_group"], metrics["dcase"]["errors_in_group"]) == (1, 0)
    assert "counted in the metrics: 1 x no answer" in done.stderr

    # The recording comes back: only its question is asked, and the metrics are those of all.
    shutil.copy(data / "trill_16k.wav", data / "gone.wav")
    before = {name: one["prediction"] for name, one in rows.items() if name != "3"}
    again = run(nano_folder, "--output-path", ANSWERS)
    assert again.exit_code == 0, again.output
    assert "1 answers (5 more from before)" in again.stdout
    now = {one["id"]: one["prediction"] for one in lines_of(ANSWERS)}
    assert {name: now[name] for name in before} == before
    assert {one["dataset"]: one["n"] for one in lines_of(METRICS)}["esc50"] == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_killed_run_goes_on(data: Path, nano_folder: Path) -> None:
    assert run(nano_folder, "--output-path", "whole.jsonl").exit_code == 3

    def dies_soon() -> None:
        add, left = TrialStore.add, iter(range(2))

        def add_or_die(self: TrialStore, *given: Any) -> None:
            if next(left, None) is None:
                die()
            add(self, *given)

        TrialStore.add = add_or_die  # type: ignore[method-assign]

    assert killed(lambda: run(nano_folder, "--output-path", ANSWERS), dies_soon)
    assert 0 < len(lines_of(ANSWERS)) < len(SAMPLES)
    assert not Path(METRICS).exists()
    assert run(nano_folder, "--output-path", ANSWERS).exit_code == 3
    assert sorted(map(str, lines_of(ANSWERS))) == sorted(map(str, lines_of("whole.jsonl")))
    assert lines_of(METRICS) == lines_of("whole_metrics.jsonl")


def test_where_nothing_can_be_scored_it_says_why(data: Path, nano_folder: Path) -> None:
    write(data, {**row(*SAMPLES[0]), "dataset_name": "mine", "task": ""})
    Path(METRICS).write_text("{}\n")
    done = run(nano_folder, "--output-path", ANSWERS)
    assert done.exit_code == 0, done.output
    assert "No metrics: " in done.stderr
    assert "'mine' is no component of BEANS-Zero" in done.stderr
    assert len(lines_of(ANSWERS)) == 1
    assert not Path(METRICS).exists()


def test_a_part_of_the_benchmark_is_scored_like_all_of_it(data: Path, nano_folder: Path) -> None:
    (data.parent / "half.yml").write_text("generate: {merging_alpha: 0.5}\n")
    part = ("--options", "extended.limit=4", "--options", "extended.seed=1")
    done = run(nano_folder, "--output-path", ANSWERS, "--cfg-path", "half.yml", *part)
    assert done.exit_code in (0, 3), done.output
    assert len(lines_of(ANSWERS)) == 4
    assert {one["lora_scale"] for one in lines_of(METRICS)} == {0.5}
    asked = run(nano_folder, *part, "--options", 'extended.queries=["What?"]', "--dry-run")
    assert "scales       1 (1)\n" in asked.stdout, asked.output
    options = ("--options", 'extended.queries=["What?"]', "--output-path", "asked.jsonl")
    asked = run(nano_folder, *part, *options)
    assert "Score them: beans score asked.jsonl --output-path" in asked.stdout
    assert not Path("asked_metrics.jsonl").exists()


@pytest.mark.parametrize("alpha", ["nan", "inf"])
def test_alpha_is_a_number(alpha: str, data: Path) -> None:
    done = beans("--merging-alpha", alpha, "--dry-run")
    assert done.exit_code == 2, done.output
    assert f"--merging-alpha is {alpha}, and it must be a finite number" in done.stderr


def test_components_and_alpha_are_chosen(data: Path) -> None:
    shown = beans("--components", "dcase, esc50", "--merging-alpha", "0.3", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "(esc50, dcase)\n" in shown.stdout
    assert "samples      5\n" in shown.stdout
    assert "scales       1 (0.3)\n" in shown.stdout
    assert beans("--dry-run").stdout.count("scales       1 (1)\n") == 1
    limited = beans("--merging-alpha", "0.3", "--options", "extended.limit=2", "--dry-run")
    assert "samples      2\n" in limited.stdout, limited.output
    assert "scales       1 (0.3)\n" in limited.stdout


DOG = row(*SAMPLES[0])
BROKEN: list[tuple[str, list[dict[str, Any] | str], list[str], str]] = [
    ("unknown component", [DOG], ["--components", "esc5"],
     "data: has no sample of 'esc5'; did you mean 'esc50'?"),
    ("no component named", [DOG], ["--components", ","], "--components is empty"),
    ("no JSON", [DOG, "{"], [], "metadata.jsonl, line 2: not valid JSON"),
    ("a list", [DOG, "[1]"], [], "metadata.jsonl, row 2: expected an object with columns"),
    ("empty table", [""], [], "metadata.jsonl: no row is left"),
    ("no label", [{k: v for k, v in DOG.items() if k != "output"}], [], "row 1: no label"),
    ("label is null", [{**DOG, "output": None}], [], "row 1: no label"),
    ("no recording", [{k: v for k, v in DOG.items() if k != "file_name"}], [],
     "row 1: names no recording"),
    ("no id and no path", [{"output": "dog"}], [], "row 1: neither an id nor a path names"),
    ("duplicate id", [DOG, DOG], [], "row 2: a second sample with the id '1' in esc50"),
    ("no question", [{**DOG, "instruction_text": " "}], [],
     "sample '1' brings no question of its own"),
    ("times", [{**DOG, "start": 3, "end": 1}], [], "row 1: end 1 is not after start 3"),
    ("no number", [{**DOG, "start": "x"}], [], "row 1: start must be a number of 0 or more"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "args", "words"), [one[1:] for one in BROKEN], ids=[one[0] for one in BROKEN]
)
def test_broken_data_are_named(
    rows: list[dict[str, Any] | str], args: list[str], words: str, data: Path
) -> None:
    write(data, *rows)
    done = beans(*args, "--output-path", ANSWERS, "--dry-run")
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(ANSWERS).exists()


def test_half_a_shard_is_named(data: Path) -> None:
    (data / "test-00000.parquet").write_bytes(b"PAR1 and no end")
    done = beans("--dry-run")
    assert done.exit_code == 2
    assert "test-00000.parquet: is damaged or was not downloaded to its end: fetch it again" in (
        done.stderr
    )


def test_an_experiment_has_its_own_scales(data: Path) -> None:
    done = beans("--merging-alpha", "0.5", "--dry-run", config="cbi.yml")
    assert done.exit_code == 2
    assert "--merging-alpha: " in done.stderr
    assert "has a section `extended`" in done.stderr


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"prediction": None}, "null answer"),
        ({"prediction": 3}, "wrong value"),
        ({"label": None}, "wrong value"),
        ({"id": "0"}, "duplicate id"),
        ({"dataset_name": "esc5"}, "unknown dataset"),
        ({"prediction": None, "error": "no sound"}, "no answer"),
        ("{", "not JSON"),
        ("null", "not JSON"),
        ({"id": [1]}, "wrong value"),
    ],
)
def test_bad_answers_are_counted_and_never_right(
    change: dict[str, Any] | str, kind: str, tmp_path: Path
) -> None:
    """Nine answers are right; the tenth cannot be used, and does not make ten right ones."""
    names = ["dog", "cow", "hen"]
    rows: list[Any] = [
        {"prediction": names[i % 3], "label": names[i % 3], "id": str(i), "dataset_name": "esc50"}
        for i in range(9)
    ]
    rows.append(change if isinstance(change, str) else {**rows[0], "id": "9", **change})
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    scores = score([path], [protocol("beans-zero")], on_error="skip")
    (record,) = scores.records()
    assert (record["n"], record["errors"]) == (9, 1)
    assert scores.problem_kinds() == {kind: 1}
    assert scores.problems[0].line == 10

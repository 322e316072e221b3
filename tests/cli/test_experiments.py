"""Experiments and `beans`: plans, refusals, what is missing, answers and metrics, broken data."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import beans, naturelm, rows
from experiment_runs import die, killed
from typer.testing import Result

from NatureLM.config import json_schema
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.experiments.run import TrialProgress, TrialStore

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CONFIG = """
extended:
  lora_scales: [0.0, 0.57, 1.0]
  queries: ["What is it?", "One of: {species_list}{randomize}"]
  top_k_species: 2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a configuration, and a table of recordings that nobody has to hear."""
    (tmp_path / "exp.yml").write_text(CONFIG)
    lines = [f"{i}.wav,{['Wolf', 'Wren', 'Wolf'][i % 3]}" for i in range(6)]
    (tmp_path / "clips.csv").write_text("\n".join(["file,common_name", *lines]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


infer = functools.partial(naturelm, "infer", "--cfg-path", "exp.yml")
experiment = functools.partial(beans, "--cfg-path", "exp.yml")


def test_the_plan_is_shown(folder: Path) -> None:
    shown = infer("--data-path", "clips.csv", "--dry-run")
    assert shown.exit_code == 0, shown.output
    facts, *queries = shown.stdout.split("\n\nquery ")
    for line in (
        "data         clips.csv (clips)",
        "model        naturelm-tiny",
        "samples      6",
        "queries      2",
        "scales       3 (0, 0.57, 1)",
        "encodings    6",
        "generations  36",
        "results      runs/exp",
    ):
        assert f"{line}\n" in facts + "\n"
    assert queries[0].startswith("0, for sample 0.wav (Wolf), with clips/0.wav\n")
    assert "<Audio><AudioHere></Audio> What is it?<|eot_id|>" in queries[0]
    assert "One of: Wolf, Wren<|eot" in queries[1] or "One of: Wren, Wolf<|eot" in queries[1]
    assert not (folder / "runs").exists()


def test_beans_shows_the_same(folder: Path) -> None:
    args = ("--data-path", "clips.csv", "--dry-run")
    wanted = infer(*args).stdout
    assert experiment(*args).stdout == wanted
    named = beans("run", "--cfg_path", "exp.yml", *args)
    assert named.stdout == wanted
    assert "--cfg-path" in beans("run", "--help").stdout
    assert "Commands" in beans("--help").stdout


def test_the_data_may_stand_in_the_configuration(folder: Path) -> None:
    (folder / "exp.yml").write_text(
        CONFIG + "  data: {path: clips.csv, where: {common_name: Wren}}"
    )
    shown = infer("--dry-run", "--options", "extended.limit=1")
    assert "samples      1\n" in shown.stdout
    (folder / "other.csv").write_text("file,common_name\nx.wav,Wren\ny.wav,Owl\n")
    shown = infer("--dry-run", "--data-path", "other.csv")  # `where` stays
    assert "data         other.csv (other)\n" in shown.stdout
    assert "samples      1\n" in shown.stdout


@pytest.mark.parametrize("ask", [infer, experiment])
def test_options_about_the_data_go_with_the_data_path(ask: Any, folder: Path) -> None:
    """Though the configuration itself names no data; the messages tell people to write this."""
    (folder / "owls 🦉.csv").write_text("file,kind\na.wav,Owl\nb.wav,Wren\nc.wav,Wren\n")
    options = ["extended.data.columns.label=kind", "extended.data.where={kind: Wren}"]
    shown = ask(
        "--data-path", "owls 🦉.csv", "--dry-run",
        *(word for option in options for word in ("--options", option)),
    )  # fmt: skip
    assert shown.exit_code == 0, shown.stderr
    assert "samples      2\n" in shown.stdout


def test_an_example_that_is_not_there_is_noted(folder: Path) -> None:
    species = "extended.species=[{name: Wolff}, {name: Wren}]"
    shown = infer(
        "--data-path", "clips.csv", "--dry-run", "--options", species, "--options",
        "extended.top_k_species=null",
    )  # fmt: skip
    assert shown.exit_code == 0
    assert "Note: extended.species: no sample has the label 'Wolff'" in shown.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--audio-path", "."], "--audio-path: exp.yml has a section `extended`"),
        (
            ["--top-k", "5", "--min-confidence", "0.5", "--several"],
            "--several, --top-k, --min-confidence: exp.yml has a section `extended`",
        ),
        (["--species-names", "scientific"], "--species-names: exp.yml has a section `extended`"),
        (["--query", "What?", "--overwrite"], "--query, --overwrite: exp.yml has"),
        (["--merging-alpha", "0.5"], "--merging-alpha: exp.yml has"),
        (["--window-length-seconds", "5"], "--window-length-seconds: exp.yml has"),
        (["--workers", "0"], "--workers is 0, and it must be at least 1"),
        (["--device", "tpu"], "--device is 'tpu'"),
        (["--options", "extended.lora_scales=[a]"], "extended.lora_scales[0] (from --options)"),
        (["--options", "extended.samples=[9.wav]"], "'9.wav' is no id of a sample"),
        (["--options", "extended.data={path: a, columns: {label: x}}"],
         "row 2: no label (a column called one of x)"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(args: list[str], words: str, folder: Path) -> None:
    result = infer("--data-path", "clips.csv", *args, "--dry-run")
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_options_of_experiments_need_one(folder: Path) -> None:
    (folder / "exp.yml").write_text("generate: {num_beams: 1}")
    for option in (["--dry-run"], ["--data-path", "clips.csv"]):
        result = infer("--query", "What?", "--audio-path", ".", *option)
        assert result.exit_code == 2
        assert f"{option[0]} is for experiments, and exp.yml has no section" in result.stderr


def test_beans_asks_each_sample_its_own_question(folder: Path) -> None:
    (folder / "exp.yml").write_text("generate: {merging_alpha: 0.4}")
    (folder / "clips.csv").write_text("file,label,instruction_text\na.wav,Wolf,Who howls?\n")
    shown = experiment("--data-path", "clips.csv", "--dry-run")
    assert "scales       1 (0.4)" in shown.stdout
    assert "</Audio> Who howls?<|eot_id|>" in shown.stdout


HOW_TO_GET_DATA = "hf download --repo-type dataset EarthSpeciesProject/BEANS-Zero"
HOW_TO_GET_WEIGHTS = "Accept the Llama 3.1 license"


def test_what_is_wrong_with_the_output_shows_before_the_model_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("NatureLM.cli.options.load_model", load)
    (folder / "notes").mkdir()
    (folder / "notes" / "answers.jsonl").write_text("dear diary\n")
    for output, words in (
        ("notes", "this is no row of an experiment, so the file is left as it is"),
        ("clips.csv", "--output-path clips.csv: is a file, and a folder is needed there"),
    ):
        result = infer("--data-path", "clips.csv", "--output-path", output)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
    with TrialStore(folder / "busy.jsonl"):
        result = infer("--data-path", "clips.csv", "--output-path", "busy.jsonl")
    assert result.exit_code == 2
    assert "another run is writing this file now" in result.stderr


@pytest.mark.parametrize("verb", ["infer", "beans"])
@pytest.mark.parametrize("data", [[], ["--data-path", "nothing.csv"], ["--data-path", "x" * 5000]])
def test_what_is_missing_is_said_at_once(verb: str, data: list[str], folder: Path) -> None:
    """No system takes a path of 5000 characters."""
    config = str(CONFIGS / "inference_incontext.yml")
    ask = infer if verb == "infer" else experiment
    result = ask("--cfg-path", config, *data)
    assert result.exit_code == 2
    assert HOW_TO_GET_DATA in result.stderr
    assert HOW_TO_GET_WEIGHTS in result.stderr
    command = "naturelm infer" if verb == "infer" else "beans"
    assert f"{command} --cfg-path {config} --model naturelm-tiny --data-path TABLE" in result.stderr
    assert ("there is no such file or folder" in result.stderr) == bool(data)


def test_missing_weights(folder: Path) -> None:
    result = infer("--data-path", "clips.csv", "--model", "naturelm-audio")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: exp.yml cannot run yet:\n")
    assert HOW_TO_GET_WEIGHTS in result.stderr
    assert HOW_TO_GET_DATA not in result.stderr
    assert "--cfg-path exp.yml --model naturelm-tiny --data-path TABLE" in result.stderr


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What the engine is called with; no model is loaded and nothing runs."""
    calls: list[dict[str, Any]] = []
    errors = getattr(request, "param", 0)

    def run_experiment(model: Any, plan: Any, output: Path, **more: Any) -> Any:
        calls.append({"model": model, "plan": plan, "output": output, **more})
        tally = TrialProgress(total=4, before=1, errors=errors)
        for trial in itertools.islice(plan.trials(), 3 - errors):
            tally.count(trial, is_right=trial.alpha == 1.0)
        more["progress"](tally)
        return SimpleNamespace(progress=tally)

    monkeypatch.setattr("NatureLM.experiments.run.run_experiment", run_experiment)
    processor = SimpleNamespace(prompt_template="[{}]")
    model = SimpleNamespace(processor=processor, name_or_path="fake")
    monkeypatch.setattr("NatureLM.cli.options.load_model", lambda *_, **__: model)
    return calls


def test_the_engine_gets_the_plan(folder: Path, ran: list[dict[str, Any]]) -> None:
    result = infer("--data-path", "clips.csv", "--options", "extended.batch_tokens=99",
                   "--options", "generate.num_beams=1", "--workers", "3")  # fmt: skip
    assert result.exit_code == 0, result.output
    (call,) = ran
    assert len(call["plan"]) == 36
    assert next(call["plan"].trials()).prompt == "[<Audio><AudioHere></Audio> What is it?]"
    assert (call["batch_tokens"], call["workers"]) == (99, 3)
    assert call["generate"].num_beams == 1
    assert call["output"] == Path("runs/exp")
    (line,) = result.stderr.splitlines()
    assert line.startswith("4/4 answers, ")
    assert line.endswith("; right at α: 0 0.00, 0.57 0.00, 1 1.00")


@pytest.mark.parametrize("ran", [1], indirect=True)
def test_recordings_that_failed_show_in_the_exit_code(folder: Path, ran: list[Any]) -> None:
    result = infer("--data-path", "clips.csv")
    assert result.exit_code == 3
    assert "1 without an answer" in result.stderr


@pytest.mark.parametrize(
    ("option", "key", "path"),
    [(None, None, "runs/exp"), (None, "mine", "mine"), ("there", "mine", "there")],
)
def test_where_results_go(
    option: str | None, key: str | None, path: str, folder: Path, ran: list[dict[str, Any]]
) -> None:
    args = ["--options", f"extended.output_path={key}"] if key else []
    args += ["--output-path", option] if option else []
    assert infer("--data-path", "clips.csv", *args).exit_code == 0
    assert ran[0]["output"] == Path(path)


def test_the_schema(folder: Path) -> None:
    printed = naturelm("schema")
    assert json.loads(printed.stdout) == json_schema()
    written = naturelm("schema", "--output-path", "s.json")
    assert written.exit_code == 0
    assert json.loads((folder / "s.json").read_text(encoding="utf-8")) == json_schema()
    result = naturelm("schema", "--output-path", "s.json/s.json")
    assert result.exit_code == 2
    assert "s.json: cannot be made a folder" in result.stderr


# The benchmark: answers in one file, metrics in one beside it


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


def write(folder: Path, *samples: dict[str, Any] | str) -> None:
    lines = [one if isinstance(one, str) else json.dumps(one) for one in samples]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def benchmark(*args: str, config: str = "inference.yml") -> Result:
    return beans("--cfg-path", CONFIGS / config, "--data-path", "data", *args)


def run(nano_folder: Path, *args: str) -> Result:
    return benchmark(
        *("--model", str(nano_folder / "checkpoint"), "--device", "cpu", *args),
        *("--options", "generate.max_new_tokens=4", "--options", "generate.num_beams=1"),
    )


def test_answers_and_metrics_stand_in_two_files(data: Path, nano_folder: Path) -> None:
    done = run(nano_folder, "--output-path", ANSWERS, "--cache-dir", "cache")
    assert done.exit_code == 3, done.output  # a recording is missing
    assert {path.name for path in Path().iterdir()} == {
        *("data", "cache", ANSWERS, METRICS, f"{ANSWERS}.run.json"),
    }
    assert list(Path("cache").rglob("*.safetensors"))
    answers = {one["id"]: one for one in rows(ANSWERS)}
    assert answers.keys() == {identity for identity, *_ in SAMPLES}
    assert "gone.wav: there is no such file" in answers["3"]["error"]
    for identity, dataset, task, label, _ in SAMPLES:
        one = answers[identity]
        assert (one["dataset_name"], one["task"], one["label"]) == (dataset, task, label)
        assert (one["lora_scale"], one["query"]) == (1.0, 0)
        assert f"What is in {identity}?" in one["prompt"]

    metrics = {one["dataset"]: one for one in rows(METRICS)}
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
    before = {name: one["prediction"] for name, one in answers.items() if name != "3"}
    again = run(nano_folder, "--output-path", ANSWERS)
    assert again.exit_code == 0, again.output
    assert "1 answers (5 more from before)" in again.stdout
    now = {one["id"]: one["prediction"] for one in rows(ANSWERS)}
    assert {name: now[name] for name in before} == before
    assert {one["dataset"]: one["n"] for one in rows(METRICS)}["esc50"] == 3


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
    assert 0 < len(rows(ANSWERS)) < len(SAMPLES)
    assert not Path(METRICS).exists()
    assert run(nano_folder, "--output-path", ANSWERS).exit_code == 3
    assert sorted(map(str, rows(ANSWERS))) == sorted(map(str, rows("whole.jsonl")))
    assert rows(METRICS) == rows("whole_metrics.jsonl")


def test_where_nothing_can_be_scored_it_says_why(data: Path, nano_folder: Path) -> None:
    write(data, {**row(*SAMPLES[0]), "dataset_name": "mine", "task": ""})
    Path(METRICS).write_text("{}\n")
    done = run(nano_folder, "--output-path", ANSWERS)
    assert done.exit_code == 0, done.output
    assert "No metrics: " in done.stderr
    assert "'mine' is no component of BEANS-Zero" in done.stderr
    assert len(rows(ANSWERS)) == 1
    assert not Path(METRICS).exists()


def test_a_part_of_the_benchmark_is_scored_like_all_of_it(data: Path, nano_folder: Path) -> None:
    (data.parent / "half.yml").write_text("generate: {merging_alpha: 0.5}\n")
    part = ("--options", "extended.limit=4", "--options", "extended.seed=1")
    done = run(nano_folder, "--output-path", ANSWERS, "--cfg-path", "half.yml", *part)
    assert done.exit_code in (0, 3), done.output
    assert len(rows(ANSWERS)) == 4
    assert {one["lora_scale"] for one in rows(METRICS)} == {0.5}
    asked = run(nano_folder, *part, "--options", 'extended.queries=["What?"]', "--dry-run")
    assert "scales       1 (1)\n" in asked.stdout, asked.output
    options = ("--options", 'extended.queries=["What?"]', "--output-path", "asked.jsonl")
    asked = run(nano_folder, *part, *options)
    assert "Score them: beans score asked.jsonl --output-path" in asked.stdout
    assert not Path("asked_metrics.jsonl").exists()


def test_components_and_alpha_are_chosen(data: Path) -> None:
    shown = benchmark("--components", "dcase, esc50", "--merging-alpha", "0.3", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "(esc50, dcase)\n" in shown.stdout
    assert "samples      5\n" in shown.stdout
    assert "scales       1 (0.3)\n" in shown.stdout
    assert benchmark("--dry-run").stdout.count("scales       1 (1)\n") == 1
    limited = benchmark("--merging-alpha", "0.3", "--options", "extended.limit=2", "--dry-run")
    assert "samples      2\n" in limited.stdout, limited.output
    assert "scales       1 (0.3)\n" in limited.stdout


DOG = row(*SAMPLES[0])
BROKEN: list[tuple[list[dict[str, Any] | str], list[str], str]] = [
    ([DOG], ["--components", "esc5"], "data: has no sample of 'esc5'; did you mean 'esc50'?"),
    ([DOG], ["--components", ","], "--components is empty"),
    ([DOG, "{"], [], "metadata.jsonl, line 2: not valid JSON"),
    ([DOG, "[1]"], [], "metadata.jsonl, row 2: expected an object with columns"),
    ([""], [], "metadata.jsonl: no row is left"),
    ([{**DOG, "output": None}], [], "row 1: no label"),
    ([DOG, DOG], [], "row 2: a second sample with the id '1' in esc50"),
]


@pytest.mark.parametrize(("samples", "args", "words"), BROKEN)
def test_broken_data_are_named(
    samples: list[dict[str, Any] | str], args: list[str], words: str, data: Path
) -> None:
    write(data, *samples)
    done = benchmark(*args, "--output-path", ANSWERS, "--dry-run")
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(ANSWERS).exists()


@pytest.mark.parametrize(
    ("config", "alpha", "words"),
    [
        ("inference.yml", "nan", "--merging-alpha is nan, and it must be a finite number"),
        ("inference.yml", "inf", "--merging-alpha is inf, and it must be a finite number"),
        ("cbi.yml", "0.5", "cbi.yml has a section `extended`"),
    ],
)
def test_alpha_is_a_number_and_not_that_of_an_experiment(
    config: str, alpha: str, words: str, data: Path
) -> None:
    done = benchmark("--merging-alpha", alpha, "--dry-run", config=config)
    assert done.exit_code == 2, done.output
    assert "--merging-alpha" in done.stderr
    assert words in done.stderr

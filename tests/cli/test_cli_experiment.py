"""`naturelm infer` and `beans` with a section `extended`: plans, refusals, what is missing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from NatureLM.cli.main import beans_app, naturelm_app
from NatureLM.config import json_schema
from NatureLM.experiments.run import TrialProgress
from NatureLM.experiments.store import TrialStore

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
    rows = [f"{i}.wav,{['Wolf', 'Wren', 'Wolf'][i % 3]}" for i in range(6)]
    (tmp_path / "clips.csv").write_text("\n".join(["file,common_name", *rows]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def infer(*args: str) -> Result:
    return CliRunner().invoke(naturelm_app, ["infer", "--cfg-path", "exp.yml", *args])


def beans(*args: str) -> Result:
    return CliRunner().invoke(beans_app, ["--cfg-path", "exp.yml", *args])


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
    assert beans(*args).stdout == wanted
    named = CliRunner().invoke(beans_app, ["run", "--cfg_path", "exp.yml", *args])
    assert named.stdout == wanted
    assert "--cfg-path" in CliRunner().invoke(beans_app, ["run", "--help"]).stdout
    assert "Commands" in CliRunner().invoke(beans_app, ["--help"]).stdout


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


@pytest.mark.parametrize("ask", [infer, beans])
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
    shown = beans("--data-path", "clips.csv", "--dry-run")
    assert "scales       1 (0.4)" in shown.stdout
    assert "</Audio> Who howls?<|eot_id|>" in shown.stdout


HOW_TO_GET_DATA = "hf download --repo-type dataset EarthSpeciesProject/BEANS-Zero"
HOW_TO_GET_WEIGHTS = "Accept the Llama 3.1 license"


def test_a_path_that_no_system_takes(folder: Path) -> None:
    result = infer("--data-path", "x" * 5000)
    assert result.exit_code == 2
    assert "there is no such file or folder" in result.stderr


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
        ("clips.csv", "clips.csv/answers.jsonl: results cannot be written there"),
    ):
        result = infer("--data-path", "clips.csv", "--output-path", output)
        assert result.exit_code == 2, result.output
        assert words in result.stderr
    with TrialStore(folder / "busy.jsonl"):
        result = infer("--data-path", "clips.csv", "--output-path", "busy.jsonl")
    assert result.exit_code == 2
    assert "another run is writing this file now" in result.stderr


@pytest.mark.parametrize("verb", ["infer", "beans"])
@pytest.mark.parametrize("data", [[], ["--data-path", "nothing.csv"]])
def test_what_is_missing_is_said_at_once(verb: str, data: list[str], folder: Path) -> None:
    config = str(CONFIGS / "inference_incontext.yml")
    app = naturelm_app if verb == "infer" else beans_app
    words = ["infer"] if verb == "infer" else []
    result = CliRunner().invoke(app, [*words, "--cfg-path", config, *data])
    assert result.exit_code == 2
    assert HOW_TO_GET_DATA in result.stderr
    assert HOW_TO_GET_WEIGHTS in result.stderr
    command = "naturelm infer" if verb == "infer" else "beans"
    assert f"{command} --cfg-path {config} --model naturelm-tiny --data-path TABLE" in result.stderr
    assert ("nothing.csv: there is no such file" in result.stderr) == bool(data)


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
def test_recordings_that_failed_show_in_the_exit_code(
    folder: Path, ran: list[dict[str, Any]]
) -> None:
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
    args = ["--data-path", "clips.csv"]
    args += ["--options", f"extended.output_path={key}"] if key else []
    args += ["--output-path", option] if option else []
    assert infer(*args).exit_code == 0
    assert ran[0]["output"] == Path(path)


def test_the_schema(folder: Path) -> None:
    printed = CliRunner().invoke(naturelm_app, ["schema"])
    assert json.loads(printed.stdout) == json_schema()
    written = CliRunner().invoke(naturelm_app, ["schema", "--output-path", "s.json"])
    assert written.exit_code == 0
    assert json.loads((folder / "s.json").read_text(encoding="utf-8")) == json_schema()
    result = CliRunner().invoke(naturelm_app, ["schema", "--output-path", "no/s.json"])
    assert result.exit_code == 2
    assert "no/s.json: cannot be written" in result.stderr

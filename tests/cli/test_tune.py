"""`naturelm tune-alpha` and `calibrate`: small reference model and the embedded one."""

from __future__ import annotations

import csv
import functools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

from NatureLM.inference.calibration import read_calibration

pytest.importorskip("rapidfuzz")

from commands import call, naturelm, rows

from NatureLM.cli.tune import TuneRequest
from NatureLM.config import load_config
from NatureLM.models import NatureLM

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--options", "generate.num_beams=1", "--options", "generate.max_new_tokens=4"]
ASSETS = ROOT / "assets"
QUICK = [*SHORT, "--resamples", "50", "--coarse", "0.5", "--fine", "0.25"]


tune = functools.partial(call, "tune-alpha")


@pytest.fixture
def table(tmp_path: Path, nano_waveforms: dict[str, Any]) -> Path:
    """Three short recordings, two of which are of one family, in a table with names of its own."""
    rows = []
    for number, (name, wav) in enumerate(nano_waveforms.items()):
        soundfile.write(tmp_path / f"{name}.wav", wav[:16000].numpy(), 16000)
        split = "valid" if number < 3 else "train"
        rows.append([f"{name}.wav", ["Owl", "Wolf"][number % 2], f"f{number // 2}", split])
    rows.append(["missing.wav", "Owl", "f9", "train"])
    path = tmp_path / "clips.csv"
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([["sound", "kind", "family", "split"], *rows])
    return path


COLUMNS = ("--column", "path=sound", "--column", "label=kind")
OURS = ("--data", "TABLE", *COLUMNS, "-q", "?")


def test_every_clip_is_encoded_once_and_answers_are_those_of_one_alpha(
    table: Path,
    tmp_path: Path,
    nano_folder: Path,
    nano: NatureLM,
    nano_waveforms: dict[str, Any],
    encoded: list[int],
) -> None:
    out = tmp_path / "tuned"
    printed = tune(
        "--model", nano_folder / "checkpoint", "--data", table, *COLUMNS,
        "--where", "split=valid", "--query", "What is it?", "--output-path", out, *QUICK,
        "--batch-size", 5, "--max-memory", "1GB", "--cache-dir", tmp_path / "cache",
    )  # fmt: skip
    assert encoded == [3]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3
    assert "highest" in printed
    assert "Use α = " in printed
    answers = rows(out / "answers.jsonl")
    about = json.loads((out / "tune.json").read_text())
    alphas = [one["alpha"] for one in about["trials"]]
    assert {0.0, 0.5, 1.0} < set(alphas)
    assert len(answers) == 3 * len(alphas)
    assert {row["cluster"] for row in answers} == {"f0", "f1"}
    prompt = nano.processor.render("What is it?")  # type: ignore[union-attr]
    for row in answers:
        wav = nano_waveforms[row["id"].removesuffix(".wav")][:16000]
        (text,) = nano.generate(
            [prompt], [[wav]], alpha=row["lora_scale"], num_beams=1, max_new_tokens=4
        )
        assert (row["prompt"], row["prediction"]) == (prompt, text)
    assert load_config(out / "alpha.yml").generate.merging_alpha == about["alpha"]
    assert (out / "tune.csv").read_text().count("\n") == len(alphas) + 1
    pytest.importorskip("matplotlib")
    assert (out / "tune.svg").is_file()
    assert (out / "tune.png").is_file()


def test_a_recording_that_is_not_there_is_named_and_left_out(
    table: Path, tmp_path: Path, nano_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    model = ["--model", nano_folder / "checkpoint", "--query", "What?", *QUICK]
    out = tmp_path / "tuned"
    said = tune("--data", table, *COLUMNS, *model, "--output-path", out)
    assert "missing.wav" in said
    assert "There will be no figure: figures need matplotlib" in said
    assert not (out / "tune.svg").exists()
    said = tune("--data", table, *COLUMNS, *model, "--where", "family=f9", ends=1)
    assert "there is nothing to answer" in said
    assert "missing.wav" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--query", "What?"], "name recordings with known answers (--data)"),
        (["--data", "no.csv", "--query", "What?"], "no.csv"),
        (["--data", "TABLE", "--query", "What?"], "--options extended.data.columns.label=COLUMN"),
        (["--data", "TABLE", "--where", "split"], "--where split: write it as split=valid"),
        (["--data", "TABLE", "--column", "x=y"], "columns maps x; known are path"),
        (["--data", "TABLE", "--query", "{species}?"], "{species} is no flag of a query"),
        (["--data", "TABLE", *COLUMNS], "no question"),
        ([*OURS, "--metric", "cider"], "--metric cider"),
        ([*OURS, "--towards", "left"], "--towards left"),
        ([*OURS, "--max-memory", "much"], "--max-memory is"),
        ([*OURS, "--from", "2"], "give low < high"),
        ([*OURS, "--protocol", "x"], "no protocol 'x'"),
        ([*OURS, "--output-path", "TABLE"], "clips.csv: is a file, and a folder is needed there"),
    ],
)
def test_wrong_requests_are_refused_before_a_model_is_loaded(
    table: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(NatureLM, "from_pretrained", load)
    assert message in tune(*(table if word == "TABLE" else word for word in words), ends=2)


def test_options_become_values_of_the_configuration(tmp_path: Path) -> None:
    """Any character arrives; a seed that is not given leaves the one that stands there."""
    path = tmp_path / "c.yml"
    path.write_text("extended: {seed: 7}")

    def read(data: str, query: str, seed: int) -> Any:
        column, where = ["label=名"], ["kind=\U0001f989"]
        request = TuneRequest(
            cfg_path=path, data=data, query=query, column=column, where=where, seed=seed
        )
        return request.load_config().extended

    found = read('a "b".csv', "Which \U0001f989?", 0)
    assert (found.data.path, found.queries) == ('a "b".csv', ["Which \U0001f989?"])
    assert (found.data.columns, found.data.where) == ({"label": "名"}, {"kind": "\U0001f989"})
    assert found.seed == 7
    assert read("a", "?", 3).seed == 3


def test_the_embedded_model(tmp_path: Path) -> None:
    printed = tune(
        "--data", ROOT / "assets" / "samples.csv", "--column", "label=labels",
        "--query", "What is the common name for the focal species in the audio?",
        "--where", "groups=bird", "--protocol", "beans-zero", "--towards", "adapted",
        "--output-path", tmp_path, *QUICK, "--options", "generate.max_new_tokens=12",
    )  # fmt: skip
    about = json.loads((tmp_path / "tune.json").read_text())
    assert about["best_value"] > about["baselines"]["random"]
    assert about["towards"] == "adapted"
    assert f"Use α = {about['alpha']:g}" in printed


# calibrate


TABLE = """path,label,split
synthetic_barn_owl.flac,Barn Owl,valid
synthetic_dog.WAV,Dog,valid
synthetic_american_toad.flac,American Toad,valid
synthetic_rooster.flac,Rooster,test
synthetic_cat.flac,Cat,test
"""


def test_a_calibration_is_fitted_measured_and_drawn(tmp_path: Path) -> None:
    for line in TABLE.splitlines()[1:]:
        name = line.split(",")[0]
        (tmp_path / name).symlink_to(ASSETS / name)
    table = tmp_path / "clips.csv"
    table.write_text(TABLE)
    output, figure = tmp_path / "made" / "calibration.json", tmp_path / "diagram.svg"
    labels = "Barn Owl,Dog,American Toad,Rooster,Cat,Cow"
    options = ("--where", "split=valid", "--test-where", "split=test", "--species-list", labels)
    printed = call("calibrate", table, *options, "--output-path", output, "--figure", figure)
    made = read_calibration(output)
    assert (made.samples, made.labels, made.normalize) == (3, 7, "sum")
    assert "measured on 2, others than it was fitted to" in " ".join(printed.split())
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    assert json.loads(output.read_text())["weights"] == made.weights


def test_a_table_without_a_label_of_the_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.flac").symlink_to(ASSETS / "synthetic_barn_owl.flac")
    table = tmp_path / "clips.csv"
    table.write_text("path,label\na.flac,Barn Owl\n")
    done = naturelm(
        "calibrate", table, "--species-list", "Dog,Cat", "--output", tmp_path / "c.json"
    )
    assert done.exit_code == 1
    assert "no recording has a label that is in the list" in done.stderr
    figure = naturelm("calibrate", table, "--output", "c.json", "--figure", "x.png")
    assert "must end in .svg" in figure.stderr
    silent = naturelm("calibrate", table, "--query", " ")
    assert "--query is empty" in silent.stderr
    bad = naturelm("calibrate", table, "--output", "c.json", "--where", "split")
    assert "write it as split=valid" in bad.stderr


@pytest.mark.parametrize("named", ["naturelm-tiny", "folder"])
def test_the_files_of_the_package_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    folder = tmp_path / "naturelm-tiny"  # in place of the package's own
    folder.mkdir()
    (folder / "config.json").touch()
    (folder / "calibration.json").write_text("as it was")
    monkeypatch.setattr("NatureLM.models.registry._DATA", tmp_path)
    given = () if named == "naturelm-tiny" else ("--model", folder)
    done = naturelm("calibrate", "clips.csv", *given)
    assert done.exit_code == 2
    assert "belongs to the installed package" in done.stderr
    assert "with --output-path" in done.stderr
    assert (folder / "calibration.json").read_text() == "as it was"

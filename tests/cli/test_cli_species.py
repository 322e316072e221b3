"""`naturelm infer --species-list` and `naturelm calibrate` on the embedded model, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from typer.testing import CliRunner

from NatureLM.cli.main import naturelm_app
from NatureLM.inference.calibration import read_calibration
from NatureLM.results.rows import WindowRow, read_rows

ASSETS = ROOT / "assets"
CLIPS = [ASSETS / "synthetic_barn_owl.flac", ASSETS / "synthetic_chainsaw.flac"]
SPECIES = "American Toad,Barn Owl,Dog"


def run(*args: Any) -> Any:
    return CliRunner().invoke(naturelm_app, [str(arg) for arg in args])


def infer(output: Path, *args: Any) -> Any:
    return run("infer", *CLIPS, "--output-path", output, *args)


def answers(path: Path) -> list[WindowRow]:
    return [row for row in read_rows(path) if isinstance(row, WindowRow)]


def test_a_species_list_is_scored_and_gone_on_with(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    done = infer(output, "--species-list", f"{SPECIES},Comon Cuckoo", "--top-k", 2)
    assert done.exit_code == 0, done.output
    assert "did you mean 'Common Cuckoo'?" in done.stderr
    assert "asking: What is the common name" in done.stderr
    rows = answers(output)
    assert len(rows) == len(CLIPS)
    for row in rows:
        assert row.text in (*SPECIES.split(","), "Comon Cuckoo", "None")
        assert row.confidence is not None
        assert len(row.alternatives) == 1
        assert f"{row.text}  {row.confidence:.2f}" in done.stdout
    again = infer(output, "--species-list", f"{SPECIES},Comon Cuckoo", "--top-k", 2)
    assert "has 2 answers of this run" in again.stderr
    other = infer(output, "--species-list", SPECIES)
    assert other.exit_code == 2
    assert "choosing.labels" in other.stderr
    free = infer(output, "--query", rows[0].query)
    assert free.exit_code == 2
    assert "choosing: " in free.stderr
    assert "not set now" in free.stderr


def test_answers_are_bound_to_the_list(tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("scientific_name,common_name\nTyto alba,Barn Owl\nCanis lupus,Gray Wolf\n")
    output = tmp_path / "answers.jsonl"
    options = ("--mode", "constrained", "--several", "--species-names", "scientific")
    done = infer(output, "--species-list", names, *options)
    assert done.exit_code == 0, done.output
    assert "any, are present in the audio recording? Tyto alba, Canis lupus." in done.stderr
    for row in answers(output):
        parts = row.text.split(", ")
        assert set(parts) <= {"Tyto alba", "Canis lupus"} or parts == ["None"]


def test_a_free_answer_can_be_given_the_list(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    query = "Choose from {species_list}, please."
    options = ("--mode", "generate", "--options", "generate.max_new_tokens=4", "--query", query)
    done = infer(output, "--species-list", SPECIES, *options)
    assert done.exit_code == 0, done.output
    assert {row.query for row in answers(output)} == {
        "Choose from American Toad, Barn Owl, Dog, please."
    }


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--mode", "score"], "needs species to choose from: give --species-list"),
        (["--species-list", "absent.txt"], "absent.txt does not exist"),
        (["--species-list", SPECIES, "--mode", "guess"], "--mode is 'guess'"),
        (["--species-list", SPECIES, "--top-k", "0"], "--top-k is 0"),
        (["--species-list", SPECIES, "--min-confidence", "1.5"], "--min-confidence is 1.5"),
        (["--species-list", SPECIES, "--several"], "--several is for --mode constrained"),
        (["--species-list", SPECIES, "--species-names", "latin"], "--species-names is 'latin'"),
        (["--min-confidence", "0.5", "--query", "What?"], "--min-confidence is for --mode score"),
        (
            ["--species-list", SPECIES, "--mode", "generate", "--query", "What is it?"],
            "write {species_list} into --query",
        ),
    ],
)
def test_wrong_use_is_refused_before_any_work(tmp_path: Path, args: list[str], says: str) -> None:
    output = tmp_path / "answers.jsonl"
    done = infer(output, *args)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())
    assert not output.exists()


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
    done = run("calibrate", table, *options, "--output-path", output, "--figure", figure)
    assert done.exit_code == 0, done.output
    made = read_calibration(output)
    assert (made.samples, made.labels, made.normalize) == (3, 7, "sum")
    assert "measured on 2, others than it was fitted to" in " ".join(done.stdout.split())
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    assert json.loads(output.read_text())["weights"] == made.weights


def test_a_table_without_a_label_of_the_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.flac").symlink_to(CLIPS[0])
    table = tmp_path / "clips.csv"
    table.write_text("path,label\na.flac,Barn Owl\n")
    done = run("calibrate", table, "--species-list", "Dog,Cat", "--output", tmp_path / "c.json")
    assert done.exit_code == 1
    assert "no recording has a label that is in the list" in done.stderr
    figure = run("calibrate", table, "--figure", "x.png")
    assert "must end in .svg" in figure.stderr
    silent = run("calibrate", table, "--query", " ")
    assert "--query is empty" in silent.stderr
    bad = run("calibrate", table, "--where", "split")
    assert "write it as split=valid" in bad.stderr

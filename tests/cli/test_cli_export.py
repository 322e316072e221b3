"""`naturelm export`: tables of what `naturelm infer` wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from NatureLM.cli.main import naturelm_app
from NatureLM.results.rows import Prediction
from NatureLM.results.settings import RunSettings
from NatureLM.results.store import WindowStore


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers about a recording of 12 s, one of 5 s and one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(12 * 8000), 8000)
    soundfile.write("b.wav", np.zeros(5 * 8000), 8000)
    settings = {"model": "m", "merging_alpha": 1.0, "queries": ["q"], "channel": 2}
    with WindowStore("answers.jsonl") as store:
        store.begin(RunSettings({**settings, "time_expansion": 0.25}))
        store.add_answer(Prediction("a.wav", 0.0, 10.0, "q", "=Wolf", 1.0))
        store.add_answer(Prediction("a.wav", 10.0, 12.0, "q", "Owl", 1.0))
        store.add_answer(Prediction("b.wav", 0.0, 5.0, "q", "Dog", 1.0))
        store.add_error("c.wav", ValueError("no sound"), 1.0)
    return Path("answers.jsonl")


def export(*arguments: str) -> Result:
    return CliRunner().invoke(naturelm_app, ["export", *arguments])


def test_csv_is_written_beside_the_answers(answers: Path) -> None:
    result = export(str(answers))
    assert result.exit_code == 0, result.output
    assert "4 rows in answers.csv" in result.output
    with open("answers.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["'=Wolf", "Owl", "Dog", ""]
    assert rows[3]["error"] == "no sound"


def test_raven_table_has_exact_times_channel_and_band(answers: Path) -> None:
    result = export(str(answers), "--format", "raven", "--output-path", "tables/r.txt")
    assert result.exit_code == 0, result.output
    with open("tables/r.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(row["Begin Time (s)"], row["End Time (s)"]) for row in rows] == [
        ("0.000000", "10.000000"),
        ("10.000000", "12.000000"),
        ("12.000000", "17.000000"),
    ]
    assert {(row["Channel"], row["High Freq (Hz)"]) for row in rows} == {("2", "2000.0")}


def test_recording_that_is_gone_is_noted(answers: Path) -> None:
    Path("a.wav").unlink()
    result = export(str(answers), "--format", "raven")
    assert result.exit_code == 0, result.output
    assert "a.wav" in result.output
    assert "12 s, where the last answer ends" in result.output
    assert Path("answers.selections.txt").read_text().splitlines()[3].split("\t")[3] == "12.000000"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("answers.jsonl", "--format", "xls"), "csv, raven"),
        (("nothing.jsonl",), "nothing.jsonl"),
        (("answers.jsonl", "--output-path", "answers.jsonl"), "would be replaced"),
        (("answers.jsonl", "--output-path", "a.wav/x.csv"), "cannot be written"),
        (("a.wav",), "a.wav: there is no answer"),
    ],
)
def test_what_cannot_be_is_told(answers: Path, arguments: tuple[str, ...], words: str) -> None:
    before = answers.read_bytes()
    result = export(*arguments)
    assert result.exit_code in (1, 2)
    assert words in " ".join(result.output.split())
    assert answers.read_bytes() == before

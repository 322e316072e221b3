"""Runs and scored folders on the page say what `beans score` says, and lead nowhere else."""

from __future__ import annotations

import json
import random
from html import unescape
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("rapidfuzz")
pytest.importorskip("matplotlib")

from NatureLM.app.experiments import (
    ANSWER_HEADERS,
    Experiment,
    _class_tables,
    answer_rows,
    charts_html,
    facts_html,
    find_audio,
    find_experiments,
    open_experiment,
    table_value,
)
from NatureLM.errors import UsageError
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score, write_scores

NAMES = ("Barn Owl", "Common Loon", "Mallard")
ALPHAS = (0.0, 0.5, 1.0)
MARKUP = "<img src=x onerror=alert(1)>"


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made_up(**changes: Any) -> list[dict[str, Any]]:
    """30 samples at three α; the larger α, the more are right."""
    dice = random.Random(1)
    rows = []
    for alpha in ALPHAS:
        for number in range(30):
            label = NAMES[number % 3]
            rows.append(
                {
                    "prediction": label if dice.random() < 0.3 + 0.6 * alpha else NAMES[0],
                    "label": label,
                    "id": f"s{number}",
                    "dataset_name": "owls",
                    "task": "classification",
                    "query": 0,
                    "lora_scale": alpha,
                    "prompt": "What is it?",
                    **changes,
                }
            )
    return rows


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    path = write_run(folder / "owls" / "run", made_up())
    write_scores(score([str(path)], [protocol("beans-zero")]), folder / "owls" / "scores", {})
    write_run(folder / "jobs" / "secret", made_up())
    write_run(folder / "owls" / "run" / "reference_layout", made_up())
    (folder / "other").mkdir()
    (folder / "other" / "notes.jsonl").write_text('{"a": 1}\n')
    (folder / "other" / "binary.jsonl").write_bytes(bytes(range(256)))
    return folder


def opened(runs: Path, name: str) -> Experiment:
    return open_experiment(name, find_experiments(runs)[name])


def test_list_holds_runs_and_scores_and_nothing_else(runs: Path) -> None:
    owls = runs / "owls"
    assert find_experiments(runs) == {
        "owls/run": (owls / "run" / "answers.jsonl",),
        "owls/scores": (owls / "scores" / "metrics.json",),
    }
    assert find_experiments(runs / "not there") == {}


def test_links_out_of_the_folder_are_not_followed(runs: Path, tmp_path: Path) -> None:
    below = tmp_path / "runs"
    below.mkdir()
    (below / "link").symlink_to(runs / "owls", target_is_directory=True)
    (below / "answers.jsonl").symlink_to(runs / "owls" / "run" / "answers.jsonl")
    assert find_experiments(below) == {}


@pytest.mark.parametrize("name", ["owls/run", "owls/scores"])
def test_curves_are_the_values_of_the_scores(runs: Path, name: str) -> None:
    experiment = opened(runs, name)
    expected = {
        record["lora_scale"]: record
        for record in json.loads((runs / "owls" / "scores" / "metrics.json").read_text())
    }
    chart = next(one for one in experiment.charts if one.measure == "accuracy")
    (curve,) = chart.curves
    assert [point.alpha for point in curve.points] == list(ALPHAS)
    for point in curve.points:
        record = expected[point.alpha]
        assert point.value == record["accuracy"]
        assert [point.low, point.high] == record["intervals"]["accuracy"]
    html = charts_html(experiment)
    assert html.count("<svg") == len(experiment.charts)
    numbers = unescape(html.split(f'data-chart="{chart.key}" data-curves="')[1].split('"')[0])
    assert [one["value"] for one in json.loads(numbers)[0]["points"]] == [
        point.value for point in curve.points
    ]


def test_single_answers_are_filtered(runs: Path) -> None:
    experiment = opened(runs, "owls/run")
    assert len(experiment.answers) == 90
    everything = answer_rows(experiment, "all", "", False)
    assert everything["headers"] == list(ANSWER_HEADERS)
    assert len(everything["data"]) == 90
    at_zero = answer_rows(experiment, "0", "loon", False)["data"]
    assert at_zero
    assert all(row[1] == "0" and "Loon" in f"{row[3]} {row[4]}" for row in at_zero)
    wrong = answer_rows(experiment, "all", "", True)["data"]
    assert all(row[2] == "no" and row[3] != row[4] for row in wrong)
    assert len(wrong) == sum(row[3] != row[4] for row in experiment.answers)


def test_classes_are_a_table_of_numbers(runs: Path) -> None:
    for name in ("owls/run", "owls/scores"):
        (table,) = opened(runs, name).classes.values()
        value = table_value(table)
        assert len(value["data"]) >= len(NAMES)
        assert {len(row) for row in value["data"]} == {len(value["headers"])}
        assert {cell for row in value["data"] for cell in row} >= set(NAMES)


def test_run_that_has_grown_is_read_again(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", made_up()[:30])
    assert len(opened(tmp_path, "run").answers) == 30
    path.write_text("".join(json.dumps(row) + "\n" for row in made_up()))
    assert len(opened(tmp_path, "run").answers) == 90


def test_damaged_scores_are_told(tmp_path: Path) -> None:
    for number, text in enumerate(("", "[]", "{}", "[1]", '[{"dataset": "x"}]')):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "metrics.json").write_text(text)
        with pytest.raises(UsageError, match=r"metrics\.json"):
            opened(tmp_path, str(number))


def test_markup_in_answers_is_text(tmp_path: Path) -> None:
    rows = [
        {**row, "dataset_name": MARKUP, "prediction": MARKUP, "prompt": MARKUP} for row in made_up()
    ]
    write_run(tmp_path / MARKUP.replace("/", ""), rows)
    (name,) = find_experiments(tmp_path)
    experiment = opened(tmp_path, name)
    for html in (facts_html(experiment), charts_html(experiment)):
        assert "<img" not in html


def test_audio_is_found_beside_the_run_and_nowhere_else(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run, data = root / "mini" / "run", root / "mini" / "data"
    run.mkdir(parents=True)
    data.mkdir()
    secret = tmp_path / "secret.wav"
    secret.write_bytes(b"x")
    (data / "a.wav").write_bytes(b"x")
    (data / "notes.txt").write_bytes(b"x")
    rows = {"a": "a.wav", "up": "../../../secret.wav", "all": str(secret), "txt": "notes.txt"}
    (data / "metadata.jsonl").write_text(
        "".join(json.dumps({"id": name, "file_name": file}) + "\n" for name, file in rows.items())
        + json.dumps({"id": "gone", "file_name": "gone.wav"})
    )
    assert find_audio("a", run, root) == data / "a.wav"
    for sample in ("up", "all", "txt", "gone", "never"):
        assert find_audio(sample, run, root) is None
    (data / "metadata.jsonl").write_text("no JSON\n")
    assert find_audio("a", run, root) is None


def test_classes_of_a_table_that_was_edited_are_shown(tmp_path: Path) -> None:
    """With cells that begin like formulas, lines that are short, and lines that are long."""
    path = tmp_path / "per_class.csv"
    path.write_text("label,dataset,f1\n'=Owl,cbi,0.5\nWren\nJay,cbi,1,more\n\n", encoding="utf-8")
    tables = _class_tables(path)
    assert {name: table.rows for name, table in tables.items()} == {
        "cbi": (("=Owl", 0.5), ("Jay", 1)),
        "": (("Wren", ""),),
    }
    assert tables["cbi"].columns == ("label", "f1")

"""--min-confidence is a number, or a file with a threshold for each species."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from NatureLM.errors import UsageError
from NatureLM.inference.windows import AskOptions
from NatureLM.results.thresholds import (
    ALL_SPECIES,
    MinConfidence,
    Scale,
    Threshold,
    least,
    read_min_confidence,
    read_thresholds,
    write_thresholds,
)

SCALE = Scale(question="What?", weights="w", merging_alpha=1.0, mode="score", temperature=1.0)
OWL = Threshold(species="Barn Owl", probability=0.95, threshold=0.8, low=0.7, high=0.9, scale=SCALE)
RUN = {"weights": "w", "merging_alpha": 1.0, "choosing": {"mode": "score"}, "calibration": None}


def written(folder: Path, *thresholds: Threshold) -> Path:
    path = folder / "thresholds.csv"
    write_thresholds(path, thresholds)
    return path


def test_a_file_says_the_same_when_it_is_read(tmp_path: Path) -> None:
    none = Threshold(species="=Wren", probability=0.95, threshold=None, clips=2, right=2, why="few")
    path = written(tmp_path, OWL, none)
    assert read_thresholds(path) == [OWL, none]


def test_each_species_has_its_own_threshold(tmp_path: Path) -> None:
    lines = (OWL, replace(OWL, probability=0.99, threshold=0.97))
    path = written(tmp_path, *lines, replace(OWL, species=ALL_SPECIES, threshold=0.1))
    found = read_min_confidence(str(path))
    assert found.of("Barn Owl") == found.of("Barn Owl", "What?") == 0.8
    assert read_min_confidence(f"{tmp_path}:0.99").of("Barn Owl") == 0.97
    assert found.of("Wren") == math.inf
    assert found.of("None") == 0
    assert json.loads(json.dumps(found.plain())) == {
        "probability": 0.95,
        "thresholds": [["Barn Owl", "What?", 0.8]],
    }


def test_a_table_of_two_columns_will_do(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("species;threshold\nOwl;0,5\n*;0,75\n")
    found = read_min_confidence(path)
    assert (found.of("Owl"), found.of("Wren"), found.of("Owl", "Which?")) == (0.5, 0.75, 0.5)


def test_questions_may_have_thresholds_of_their_own(tmp_path: Path) -> None:
    other = replace(OWL, threshold=0.3, scale=replace(SCALE, question="Which?"))
    found = read_min_confidence(written(tmp_path, OWL, other))
    assert (found.of("Barn Owl", "What?"), found.of("Barn Owl", "Which?")) == (0.8, 0.3)
    assert found.of("Barn Owl", "Who?") == math.inf


@pytest.mark.parametrize("given", ["1.5", "-1", "nan", "none.csv", "none.csv:0.9"])
def test_what_is_neither_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="--min-confidence is"):
        read_min_confidence(given)


def test_a_number_is_itself() -> None:
    found = read_min_confidence("0.25")
    assert (found.of("x"), found.plain(), least(0.5, "x"), least(found, "x")) == (
        *(0.25, 0.25, 0.5, 0.25),
    )


def test_files_that_say_nothing_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, OWL)
    with pytest.raises(UsageError, match=r"has no thresholds for 0\.5; there are 0\.95"):
        read_min_confidence(f"{path}:0.5")
    written(tmp_path, replace(OWL, threshold=None))
    with pytest.raises(UsageError, match="no species has a threshold"):
        read_min_confidence(path)
    path.write_text("species,thresholds\n")
    with pytest.raises(UsageError, match="did you mean 'thresholds'"):
        read_min_confidence(path)
    path.write_text("species,threshold\nOwl,0.5\nOwl,0.6\n")
    with pytest.raises(UsageError, match="line 3: there is a line for 'Owl' already"):
        read_min_confidence(path)


@pytest.mark.parametrize(
    ("change", "said"), [({"weights": "v"}, "other weights"), ({"merging_alpha": 0.5}, "α = 1")]
)
def test_thresholds_of_another_model_are_refused(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    found = read_min_confidence(written(tmp_path, OWL))
    with pytest.raises(UsageError, match=said):
        found.check({**RUN, **change}, ["What?"])


def test_each_column_has_an_alpha_of_its_own(tmp_path: Path) -> None:
    other = replace(OWL, scale=replace(SCALE, question="Which?", merging_alpha=0.5))
    found = read_min_confidence(written(tmp_path, OWL, other))
    columns = {"What?": {"mode": "score"}, "Which?": {"mode": "score", "merging_alpha": 0.5}}
    assert found.check({"weights": "w", "merging_alpha": 1.0, "columns": columns}, columns) == []


@pytest.mark.parametrize(
    ("change", "questions", "said"),
    [
        ({"choosing": {"mode": "constrained"}}, ["What?"], "in another mode"),
        ({"calibration": {"temperature": 2.0}}, ["What?"], "with another calibration"),
        ({}, ["Which?"], "another question"),
    ],
)
def test_what_else_differs_is_said(
    change: dict[str, object], questions: list[str], said: str, tmp_path: Path
) -> None:
    found = read_min_confidence(written(tmp_path, OWL))
    assert found.check(RUN, ["What?"]) == []
    (note,) = found.check({**RUN, **change}, questions)
    assert said in note


def test_settings_of_a_run_hold_the_thresholds(tmp_path: Path) -> None:
    found = read_min_confidence(written(tmp_path, OWL))
    asked = AskOptions(("What?",), mode="score", labels=("Barn Owl",), min_confidence=found)
    from NatureLM.config.schema import GenerateConfig

    values = asked.settings(model="m", adapter=None, generate=GenerateConfig())
    assert values["choosing"]["min_confidence"] == found.plain()
    with pytest.raises(UsageError, match="is for mode score"):
        AskOptions(("What?",), min_confidence=found)
    assert AskOptions(("What?",), min_confidence=MinConfidence()).mode == "generate"

"""A result file is read as detections, in the order of its recordings, in constant memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from result_files import error, result_file

from NatureLM.errors import UsageError
from NatureLM.results.detections import ResultFile, by_recording
from NatureLM.results.rows import SurveyRow, WindowRow, from_line, to_line

ROOT = Path(__file__).resolve().parents[2]
DOG = str(ROOT / "assets" / "synthetic_dog.WAV")
WINDOW = WindowRow("b.wav", 0.0, 10.0, "What?", "Dog", 1.0, 0.9, model="m", run="r")
SURVEY = SurveyRow(
    audio_path="b.wav",
    start=10.0,
    end=20.0,
    answers={"bird": True, "species": "Hyla cinerea", "n": 2, "pitch": None},
    confidences={"bird": 0.8},
    said={"pitch": "high"},
    merging_alpha=1.0,
    model="m",
    run="r",
    context={
        "site": "Pond",
        "local_time": "2024-05-10T05:30:10",
        "utc_time": "2024-05-10T03:30:10Z",
    },
)


@pytest.mark.parametrize("row", [SURVEY, replace(WINDOW, windows=3, mean_confidence=0.5)])
def test_rows_say_the_same_when_they_are_read(row: Any) -> None:
    assert from_line(to_line(row), "file", 1) == row


def test_answers_that_name_nothing_are_counted(tmp_path: Path) -> None:
    rows = [
        replace(WINDOW, audio_path="b.wav"),
        replace(WINDOW, start=10.0, text="None"),
        error("c.wav", "gone"),
        replace(WINDOW, audio_path="a.wav", text="", note="silent", confidence=None),
        replace(WINDOW, audio_path="a.wav", start=10.0, text="Cat"),
        replace(WINDOW, start=20.0, text="Owl"),
    ]
    file = result_file(tmp_path, *rows)
    assert [(Path(one.audio_path).name, one.label) for one in file] == [
        ("a.wav", "Cat"), ("b.wav", "Dog"), ("b.wav", "Owl"),
    ]  # fmt: skip
    assert file.left_out == {"None": 1, "silent": 1}
    assert [one.name for one in file.recordings] == ["a.wav", "b.wav", "c.wav"]
    assert [one.seconds for one in file.recordings] == [10.0, 10.0, 0.0]
    assert file.recordings[2].error == "gone"
    alone = file.of(file.recordings[1])
    assert [one.label for one in alone] == ["Dog", "Owl"]
    assert [len(group) for _, group in by_recording(file)] == [1, 2]


def test_columns_of_a_questionnaire_are_detections(tmp_path: Path) -> None:
    columns = {"bird": {"type": "yes_no"}, "species": {"type": "choice"}, "n": {"type": "count"}}
    asked = {"scientific_names": {"Green Treefrog": "Hyla cinerea"}}
    found = result_file(tmp_path, SURVEY, settings={"columns": columns}, asked=asked)
    path, (first, second) = found.path, found
    assert (first.question, first.label, first.confidence) == ("bird", "bird", 0.8)
    assert (second.common_name, second.scientific_name) == ("Green Treefrog", "Hyla cinerea")
    assert second.values == {"bird": True, "n": 2, "pitch": None}
    assert found.recordings[0].context["utc_time"] == "2024-05-10T03:30:00Z"
    assert [one.label for one in ResultFile(path, columns=["species"])] == ["Hyla cinerea"]
    with pytest.raises(UsageError, match="did you mean 'species'"):
        ResultFile(path, columns=["specis"])


def test_the_recording_itself_gives_its_length(tmp_path: Path) -> None:
    file = result_file(tmp_path, replace(WINDOW, audio_path=DOG))
    assert file.recordings[0].seconds != 10.0


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no answer"):
        result_file(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        ResultFile(tmp_path / "none.jsonl")

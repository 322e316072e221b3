"""A result file is read as detections, in the order of its recordings, in constant memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from result_files import error, result_file

from NatureLM.errors import UsageError
from NatureLM.results.detections import Detection, ResultFile, by_recording, recordings_of
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


# The recordings that tables of other machines name

FILES = ("p1/A_0530.WAV", "p1/B_0530.wav", "p2/A_0530.WAV", "p2/only.flac", "p3/Größe.wav", "x.txt")


@pytest.fixture
def card(tmp_path: Path) -> Path:
    folder = tmp_path / "card"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"RIFF")
    return folder


def named(*names: str) -> list[Detection]:
    return [Detection(audio_path=name, start=0, end=1, label="Wren") for name in names]


def paths(found: Iterable[Detection], card: Path) -> list[str]:
    return [os.path.relpath(one.audio_path, card) for one in found]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("D:\\card\\p1\\A_0530.WAV", "p1/A_0530.WAV"),
        ("/data/2024/p2/A_0530.WAV", "p2/A_0530.WAV"),
        ("p2/a_0530.wav", "p2/A_0530.WAV"),
        ("B_0530.wav", "p1/B_0530.wav"),
        ("/elsewhere/p2/B_0530.wav", "p1/B_0530.wav"),
        ("only.wav", "p2/only.flac"),
        ("only", "p2/only.flac"),
        ("only.BirdNET.results", "p2/only.flac"),
        ("b_0530.Table.1.selections", "p1/B_0530.wav"),
        ("Gro\u0308\u00dfe.wav", "p3/Größe.wav"),
        ("../../../p2/only.flac", "p2/only.flac"),
    ],
)
def test_a_recording_is_found_by_the_end_of_its_path(card: Path, name: str, file: str) -> None:
    found = recordings_of(named(name), card.parent / "tables" / "t.csv", [card])
    assert paths(found, card) == [file]


@pytest.mark.parametrize("name", ["A_0530.WAV", "/data/p9/A_0530.WAV", "a_0530", "a_0530.Table.1"])
def test_what_two_recorders_call_the_same_is_refused(card: Path, name: str) -> None:
    with pytest.raises(
        UsageError, match=r"t\.csv: .* may be each of 2 recordings .*p1/A_0530\.WAV"
    ):
        list(recordings_of(named(name), card.parent / "t.csv", [card]))
    found = recordings_of(named(name), card.parent / "t.csv", [card / "p2"])
    assert paths(found, card) == ["p2/A_0530.WAV"]


def test_the_missing_are_counted_and_named(card: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["p1/A_0530.WAV", "gone.wav", "gone.wav", "x.txt", "", "../", "a\0b", "n" * 300]
    with caplog.at_level(logging.WARNING):
        found = list(recordings_of(named(*names), card.parent / "t.csv", [card]))
    assert paths(found, card) == ["p1/A_0530.WAV"]
    assert (
        "t.csv: recordings that it names and that are not there: 6 (gone.wav, x.txt, "
        in caplog.text
    )
    assert "their rows are left out: 7" in caplog.text


def test_a_table_of_which_none_is_there_is_refused(card: Path) -> None:
    with pytest.raises(UsageError, match=r"none of the recordings .*\(gone\.wav\).*--audio-path"):
        list(recordings_of(named("gone.wav", "gone.wav"), card.parent / "t.csv", [card]))
    assert list(recordings_of([], card / "t.csv", [card])) == []


def test_without_folders_they_are_beside_the_table_or_where_it_says(card: Path) -> None:
    away = card.parent / "away.wav"
    away.write_bytes(b"RIFF")
    names = [str(away), "D:\\p1\\B_0530.wav", "/d/A_0530.WAV", "only", "../p2/only.flac"]
    found = list(recordings_of(named(*names[:2]), card / "t.csv"))
    assert paths(found, card) == ["../away.wav", "p1/B_0530.wav"]
    found = list(recordings_of(named(*names[2:]), card / "p2" / "t.csv"))
    assert [Path(one.audio_path).resolve() for one in found] == [
        *(card / "p2" / "A_0530.WAV", card / "p2" / "only.flac", card / "p2" / "only.flac"),
    ]


def test_nothing_outside_of_the_folders_is_taken(card: Path) -> None:
    secret = card.parent / "secret.wav"
    secret.write_bytes(b"RIFF")
    for name in (str(secret), "../secret.wav", "p1/../../secret.wav", "..\\secret.wav"):
        with pytest.raises(UsageError, match="none of the recordings"):
            list(recordings_of(named(name), card / "t.csv", [card]))


def test_points_of_a_label_track_are_not_asked_about(
    card: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from NatureLM.cli.runs import _claims

    track = card / "p1" / "B_0530.txt"
    track.write_text("1\t1\tclick\n2\t3\tWren\n")
    with caplog.at_level(logging.WARNING):
        claims = _claims(track, [card])
    assert {path.name: [one.label for one in found] for path, found in claims.items()} == {
        "B_0530.wav": ["Wren"]
    }
    assert "labels that mark a point, which is not asked about: 1" in caplog.text

"""Rows as tables: CSV, Parquet, JSON lines and what they share with a selection table."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_files import error, result_file, survey, window

from NatureLM.errors import UsageError
from NatureLM.formats import FORMATS, file_names, read, recognised, wide, write
from NatureLM.results.detections import HeardRecording, ResultFile
from NatureLM.results.rows import ErrorRow, Row, RunSettings, from_line, to_line, write_record
from NatureLM.results.tables import with_formula, without_formula, write_csv, write_rows

ROOT = Path(__file__).resolve().parents[2]
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def csv_of(*rows: Row) -> list[dict[str, str]]:
    with TemporaryDirectory() as folder:
        target = Path(folder, "t.csv")
        write_rows(target, *wide.csv_lines(wide.columns_of(rows), rows))
        with open(target, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


def test_csv_holds_answers_and_errors() -> None:
    first, second = csv_of(window(start=10, end=16.64, merging_alpha=-0.4), error("b.wav"))
    assert first == dict.fromkeys((*wide.BEFORE, *wide.ANSWER, *wide.AFTER), "") | {
        "recording": "a.wav",
        "start": "10",
        "end": "16.64",
        "query": "What?",
        "text": "Wolf",
        "merging_alpha": "-0.4",  # a number, which is no formula
        "model": "m",
    }
    assert second["error"] == "the file is empty"
    assert second["start"] == second["text"] == ""


@given(text=TEXT, query=TEXT, name=TEXT)
def test_no_cell_of_a_csv_is_a_formula(text: str, query: str, name: str) -> None:
    (row,) = csv_of(window(path=name, text=text, query=query))
    for column, value in (("text", text), ("query", query), ("recording", name)):
        assert not row[column].lstrip().startswith(("=", "+", "-", "@"))
        assert not row[column].startswith(("\t", "\r"))
        assert row[column] in (value, f"'{value}")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", " =", "\n=", "\uff1d"])
def test_formulas_are_escaped(start: str) -> None:
    assert without_formula(f"{start}1+1") == f"'{start}1+1"


def test_other_texts_stay_as_they_are() -> None:
    for text in ("", "Barn Owl", "a=b", "3-4", "'tis"):
        assert without_formula(text) == text


@given(rows=st.lists(st.tuples(TEXT, TEXT), max_size=3))
def test_tables_for_people_are_read_as_they_were_written(rows: list[tuple[str, str]]) -> None:
    """Whatever breaks a line is quoted, and no cell is a formula."""
    with TemporaryDirectory() as folder:
        path = write_csv(Path(folder, "t.csv"), ["one", "two"], rows)
        assert path.read_bytes().startswith(b"one,two\n")
        with open(path, encoding="utf-8", newline="") as file:
            (_, *cells) = csv.reader(file)
    assert [tuple(map(with_formula, line)) for line in cells] == rows
    assert not [one for line in cells for one in line if one.lstrip().startswith(tuple("=+-@"))]


def test_notes_are_kept_by_every_export(tmp_path: Path) -> None:
    silent = window(start=10, end=20, text="", note="silent")
    sound = replace(window(), note="")
    assert "note" not in json.loads(to_line(sound))
    assert json.loads(to_line(silent))["note"] == "silent"
    assert from_line(to_line(silent), "x", 1) == silent
    assert (silent.shown, sound.shown) == ("silent, not asked", "Wolf")
    assert replace(silent, text="Dog").shown == "Dog"
    assert "note" not in csv_of(sound)[0]
    assert [(one["text"], one["note"]) for one in csv_of(sound, silent, error("b.wav"))] == [
        ("Wolf", ""),
        ("", "silent"),
        ("", ""),
    ]


# Result files as tables


SURVEY = (
    survey(
        0,
        {"bird": True, "species": 'Rüppell\'s, "Fox"\t学', "calls": 3, "pitch": 1.5, "said": "=x"},
        confidences={"bird": 0.75, "species": 0.5},
        context={"site": "North", "latitude": -12.25, "sun": {"hours_after_sunset": 0.5}},
        claim={"label": "Wren", "confidence": 0.25, "source": "BirdNET", "agrees": False},
    ),
    survey(
        5,
        {"bird": False, "species": None, "calls": None},
        confidences={"bird": 0.5},
        said={"calls": "a few"},
    ),
    survey(10, {}, note="silent"),
    ErrorRow("/card/b.wav", "no sound", "AudioError", 0.4, model="m", run="r"),
)
TYPES = {
    "columns": {
        "bird": {"type": "yes_no"},
        "species": {"type": "choice"},
        "calls": {"type": "count"},
        "pitch": {"type": "number"},
        "said": {"type": "text"},
        "never": {"type": "text"},
    }
}
SURVEY_COLUMNS = [
    *("recording", "start", "end", "bird", "bird_confidence", "species", "species_confidence"),
    *("calls", "calls_said", "pitch", "said", "never", "merging_alpha", "model", "error", "note"),
    *("site", "latitude", "sun_hours_after_sunset"),
    *("claim_label", "claim_confidence", "claim_source", "claim_agrees"),
]


def test_a_survey_is_a_column_a_question(tmp_path: Path) -> None:
    answers = result_file(tmp_path, *SURVEY, settings=TYPES)
    written = write("csv", answers, tmp_path / "t.csv")
    assert (written.lines, written.files, written.unread) == (4, 1, 0)
    with open(tmp_path / "t.csv", encoding="utf-8-sig", newline="") as file:
        first, second, third, failed = csv.DictReader(file)
    assert list(first) == SURVEY_COLUMNS
    assert (first["bird"], first["bird_confidence"], first["calls"]) == ("yes", "0.750000", "3")
    assert (first["said"], first["latitude"], first["claim_agrees"]) == ("'=x", "-12.25", "no")
    assert (second["bird"], second["calls"], second["calls_said"]) == ("no", "", "a few")
    assert (third["note"], third["bird"]) == ("silent", "")
    assert (failed["recording"], failed["error"], failed["start"]) == (
        "/card/b.wav",
        "no sound",
        "",
    )


def test_a_survey_that_names_nothing_says_so(tmp_path: Path) -> None:
    columns = {"calls": {"type": "count"}, "heard": {"type": "text"}}
    row = survey(0.0, {"calls": 2, "heard": "Wren"})
    answers = result_file(tmp_path, row, settings={"columns": columns})
    written = write("birdnet", answers, tmp_path / "t.csv")
    assert (written.lines, written.says) == (0, [
        "No answer is a detection: the questionnaire has no column of type choice or yes_no; "
        "--column takes one of type text: 'heard'"
    ])  # fmt: skip
    (heard,) = ResultFile(answers.path, columns=["heard"])
    assert (heard.label, heard.values) == ("Wren", {"calls": 2})
    with pytest.raises(UsageError, match=r"'calls' is of type count, which .*: 'heard'"):
        ResultFile(answers.path, columns=["calls"])


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_events_of_a_survey_are_answers_to_its_questions(name: str, tmp_path: Path) -> None:
    event = window("/card/a.wav", query="species", text="Owl", windows=2, mean_confidence=0.5)
    columns = {"bird": {"type": "yes_no"}, "species": {"type": "choice"}}
    answers = result_file(tmp_path, event, settings={"columns": columns, "events": {"gap": 0}})
    target = tmp_path / f"events{FORMATS[name].suffix}"
    write(name, answers, target)
    (found,) = read(target)
    assert (found.question, found.label, found.windows) == ("species", "Owl", 2)


def test_parquet_has_types(tmp_path: Path) -> None:
    import pandas
    import pyarrow.parquet as pq

    answers = result_file(tmp_path, *SURVEY, settings=TYPES)
    assert write("parquet", answers, tmp_path / "t.parquet").lines == 4
    types = {one.name: str(one.type) for one in pq.read_schema(tmp_path / "t.parquet")}
    assert list(types) == SURVEY_COLUMNS
    assert (types["bird"], types["calls"], types["pitch"]) == ("bool", "int64", "double")
    assert (types["species"], types["never"], types["claim_agrees"]) == ("string", "string", "bool")
    frame = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(frame["bird"][:2]) == [True, False]
    assert frame["species"][0] == SURVEY[0].answers["species"]  # type: ignore[union-attr]
    assert frame["calls_said"][1] == "a few"
    assert frame["error"][3] == "no sound"


@pytest.mark.parametrize("name", ["csv", "parquet", "jsonl"])
def test_a_survey_is_read_again(name: str, tmp_path: Path) -> None:
    answers = result_file(tmp_path, *SURVEY, settings=TYPES)
    target = tmp_path / f"t{FORMATS[name].suffix}"
    write(name, answers, target)
    write_record(target, RunSettings(TYPES))  # of JSON lines: the types of columns are there
    assert recognised(target) == name
    bird, fox = read(target)
    assert (bird.label, bird.question, bird.confidence, bird.start) == ("bird", "bird", 0.75, 0)
    assert (fox.label, fox.confidence, fox.end) == (SURVEY[0].answers["species"], 0.5, 5.0)  # type: ignore[union-attr]
    assert fox.audio_path == "/card/a.wav"
    assert fox.claim == SURVEY[0].claim  # type: ignore[union-attr]


def test_no_column_hides_another(tmp_path: Path) -> None:
    row = survey(0, {"start": "now", "note": "x"}, context={"model": "SM4", "site": "N"})
    write("csv", result_file(tmp_path, row), tmp_path / "t.csv")
    header = (tmp_path / "t.csv").read_text(encoding="utf-8-sig").splitlines()[0].split(",")
    assert header[3:5] == ["answer_start", "answer_note"]
    assert header[-2:] == ["context_model", "site"]
    assert [one.label for one in read(tmp_path / "t.csv")] == ["now", "x"]


def test_values_of_several_types_are_text(tmp_path: Path) -> None:
    import pandas

    rows = [
        survey(0, {"a": 1, "b": ["x", "y"], "c": {"k": [1]}, "d": 1 << 70, "e": 1}),
        survey(5, {"a": "many", "b": [], "c": None, "d": 2, "e": 0.5}),
    ]
    write("parquet", result_file(tmp_path, *rows), tmp_path / "t.parquet")
    frame = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(frame["a"]) == ["1", "many"]
    assert [list(one) for one in frame["b"]] == [["x", "y"], []]
    assert frame["c"][0] == '{"k": [1]}'
    assert list(frame["d"]) == [str(1 << 70), "2"]
    assert list(frame["e"]) == [1.0, 0.5]


def test_a_file_a_recording(tmp_path: Path) -> None:
    rows = [
        window("/card/1/a.wav"),
        window("/card/2/a.wav", text="Owl"),
        window("/card/2/b.wav", text="None"),
        error("/card/2/b.flac"),
    ]
    written = write("csv", result_file(tmp_path, *rows), tmp_path / "t", per_recording=True)
    assert (written.files, written.lines) == (4, 4)
    found = {str(one.relative_to(tmp_path / "t")) for one in (tmp_path / "t").rglob("*.csv")}
    assert found == {"1/a.csv", "2/a.csv", "2/b.wav.csv", "2/b.flac.csv"}
    (owl,) = read(tmp_path / "t" / "2" / "a.csv")
    assert owl.label == "Owl"
    assert not list(read(tmp_path / "t" / "2" / "b.wav.csv"))


def test_names_of_files_differ() -> None:
    paths = ["/x/A.wav", "/x/a.WAV", "/x/a.b.wav"]
    names = file_names([HeardRecording(path, path, 1.0) for path in paths], ".txt")
    assert [str(one) for one in names] == ["A.wav.txt", "a.WAV.txt", "a.b.txt"]


def test_a_format_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'ravn' is no format; did you mean 'raven'\?"):
        read(tmp_path / "t.csv", "ravn")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_on_its_page(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    assert f"\n## {name}\n" in page
    assert f"| `{name}` | " in page

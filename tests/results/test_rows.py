"""A row is one line of JSON that says the same when it is read; tables hold what rows say."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.results.rows import (
    SCHEMA_VERSION,
    ErrorRow,
    OutputError,
    Row,
    WindowRow,
    from_line,
    read_rows,
    to_line,
)
from NatureLM.results.store import padded
from NatureLM.results.tables import (
    CSV_COLUMNS,
    RAVEN_COLUMNS,
    RavenRecording,
    without_formula,
    write_csv,
    write_jsonl,
    write_raven,
)

WINDOW = WindowRow(
    audio_path="a.wav",
    start=0.0,
    end=10.0,
    query="What is it?",
    text="Rüppell's Fox\nor a dog",
    merging_alpha=0.4,
    model="naturelm-tiny",
    run="0123456789abcdef",
    audio_bytes=10,
    audio_modified="2025-01-02T03:04:05.000006Z",
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(
    texts=st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT), start=st.floats(0, 1e6), alpha=st.floats(-3, 3)
)
def test_what_is_written_is_read(texts: tuple[str, str, str], start: float, alpha: float) -> None:
    path, query, text = texts
    row = WindowRow(path, start, start + 1, query, text, alpha, model="m", run="r")
    line = to_line(row)
    assert line.endswith(b"\n")
    # Whatever a reader takes for the end of a line, it finds one line.
    assert len(line.decode().splitlines()) == 1
    again = from_line(line, "x", 1)
    assert json.loads(json.dumps(asdict(again))) == json.loads(json.dumps(asdict(row)))


@given(lengths=st.lists(st.integers(2, 900), max_size=60))
def test_no_line_crosses_a_page(lengths: list[int]) -> None:
    """Lines no longer than expected lie within one page each, and say the same."""
    offset = 0
    for length in lengths:
        line = padded(b"x" * (length - 1) + b"\n", offset, 900)
        assert line.rstrip() == b"x" * (length - 1)
        assert line.endswith(b"\n")
        assert offset // 4096 == (offset + length - 1) // 4096
        offset += len(line)


def test_the_keys_of_schema_version_1() -> None:
    """Readers rely on these: a change is a new version, or an added key."""
    assert SCHEMA_VERSION == 1
    assert json.loads(to_line(WINDOW)) == {
        "audio_path": "a.wav",
        "start": 0.0,
        "end": 10.0,
        "query": "What is it?",
        "text": "Rüppell's Fox\nor a dog",
        "merging_alpha": 0.4,
        "model": "naturelm-tiny",
        "run": "0123456789abcdef",
        "audio_bytes": 10,
        "audio_modified": "2025-01-02T03:04:05.000006Z",
        "schema_version": 1,
    }
    assert "Rüppell" in to_line(WINDOW).decode()
    error = ErrorRow("a.wav", "a.wav: is empty", "EmptyAudio", 1.0, "m", "r")
    assert from_line(to_line(error), "x", 1) == error


def test_keys_that_are_not_known_are_left_alone() -> None:
    data = {**json.loads(to_line(WINDOW)), "mood": 0.5}
    assert from_line(json.dumps(data).encode(), "x", 1) == WINDOW


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"start": "0"}, "start is '0'"),
        ({"start": True}, "start is True"),
        ({"text": None}, "text is None"),
        ({"audio_bytes": 1.5}, "audio_bytes is 1.5"),
        ({"text": ...}, "the row lacks text"),
        ({"confidence": "high"}, "confidence is 'high'"),
        ({"alternatives": "Dog"}, "alternatives is 'Dog'"),
        ({"alternatives": [["Dog"]]}, r"alternatives has \['Dog'\]"),
        ({"alternatives": [["Dog", True]]}, "a label and its probability"),
    ],
)
def test_rows_that_are_none(change: dict[str, object], problem: str) -> None:
    data = {**json.loads(to_line(WINDOW)), **change}
    line = json.dumps({key: value for key, value in data.items() if value is not ...}).encode()
    with pytest.raises(OutputError, match=f"x, line 7: .*{problem}"):
        from_line(line, "x", 7)


@pytest.mark.parametrize("line", [b"{", b"[]", b"3", b"\xff", b'{"audio_path": "a"}'])
def test_lines_that_are_no_row(line: bytes) -> None:
    with pytest.raises(OutputError, match="x, line 1"):
        from_line(line, "x", 1)


def test_read_rows_leaves_a_torn_end_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(to_line(WINDOW) + to_line(WINDOW)[:20])
    assert list(read_rows(path)) == [WINDOW]


def test_confidence_and_alternatives_are_kept_where_they_are_known() -> None:
    assert "confidence" not in json.loads(to_line(WINDOW))
    assert "alternatives" not in json.loads(to_line(WINDOW))
    sure = replace(WINDOW, confidence=0.0, alternatives=(("Dog", 0.25), ("Cat", 0.125)))
    assert from_line(to_line(sure), "x", 1) == sure
    assert from_line(to_line(WINDOW), "x", 1) == WINDOW


def window(path: str = "a.wav", start: float = 0.0, end: float = 10.0, **changes: Any) -> WindowRow:
    values = {"query": "What?", "text": "Wolf", "merging_alpha": 0.4, "model": "m", "run": "r"}
    return WindowRow(audio_path=path, start=start, end=end, **{**values, **changes})


def error(path: str, text: str = "the file is empty") -> ErrorRow:
    return ErrorRow(path, text, "EmptyAudio", 0.4, "m", "r")


def csv_of(*rows: Row, **options: Any) -> list[dict[str, str]]:
    file = io.StringIO(newline="")
    write_csv(rows, file, **options)
    return list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))


def raven_of(*rows: Row, recordings: list[RavenRecording], **options: Any) -> list[dict[str, str]]:
    file = io.StringIO(newline="")
    write_raven(rows, file, recordings, **options)
    lines = file.getvalue().split("\n")
    assert lines.pop() == ""
    assert lines[0].split("\t") == list(RAVEN_COLUMNS)
    cells = [line.split("\t") for line in lines[1:]]
    assert {len(one) for one in cells} <= {len(RAVEN_COLUMNS)}
    return [dict(zip(RAVEN_COLUMNS, one, strict=True)) for one in cells]


def test_csv_holds_answers_and_errors() -> None:
    first, second = csv_of(window(start=10, end=16.64, merging_alpha=-0.4), error("b.wav"))
    assert first == dict.fromkeys(CSV_COLUMNS, "") | {
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


def test_jsonl_is_that_of_infer_under_the_names_of_the_user() -> None:
    file = io.StringIO()
    write_jsonl(
        [window("/secret/0001-a.wav"), error("/secret/2.wav")], file, {"/secret/2.wav": "b"}
    )
    first, second = map(json.loads, file.getvalue().splitlines())
    assert first["audio_path"] == "0001-a.wav"
    assert second["audio_path"] == "b"
    assert first["text"] == "Wolf"


def test_raven_times_of_several_files_go_on_from_file_to_file() -> None:
    files = [RavenRecording("a.wav", 25.5, 44_100), RavenRecording("b.wav", 30.0, 8_000)]
    rows = raven_of(
        window("a.wav", 0, 10), window("a.wav", 20, 25.5), window("b.wav", 10, 20), recordings=files
    )
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert [(row["Begin Time (s)"], row["End Time (s)"]) for row in rows] == [
        ("0.000000", "10.000000"),
        ("20.000000", "25.500000"),
        ("35.500000", "45.500000"),
    ]
    assert [(row["Begin File"], row["File Offset (s)"]) for row in rows] == [
        ("a.wav", "0.000000"),
        ("a.wav", "20.000000"),
        ("b.wav", "10.000000"),
    ]
    assert [row["High Freq (Hz)"] for row in rows] == ["8000.0", "8000.0", "4000.0"]
    assert {(row["View"], row["Channel"], row["Low Freq (Hz)"]) for row in rows} == {
        ("Spectrogram 1", "1", "0.0")
    }


@given(
    lengths=st.lists(st.integers(1, 4_000_000), min_size=1, max_size=30),
    rate=st.sampled_from([8_000, 22_050, 44_100, 96_000]),
)
def test_raven_times_do_not_drift(lengths: list[int], rate: int) -> None:
    """The last of many files begins at the sum of the lengths, to the microsecond."""
    files = [RavenRecording(str(n), frames / rate, rate) for n, frames in enumerate(lengths)]
    (row,) = raven_of(window(files[-1].path, 0.25, 0.5), recordings=files)
    begin = sum(lengths[:-1]) / rate + 0.25
    assert float(row["Begin Time (s)"]) == pytest.approx(begin, abs=1e-6)
    assert float(row["End Time (s)"]) - float(row["Begin Time (s)"]) == pytest.approx(
        0.25, abs=2e-6
    )


@given(text=TEXT, query=TEXT)
def test_no_answer_breaks_a_selection_table(text: str, query: str) -> None:
    files = [RavenRecording("a.wav", 10.0, 16_000)]
    rows = raven_of(window(text=text, query=query), window(start=1), recordings=files)
    assert len(rows) == 2
    assert rows[1]["Answer"] == "Wolf"


def test_raven_names_the_channel_and_leaves_errors_out() -> None:
    files = [RavenRecording("a.wav", 10.0, 16_000)]
    (row,) = raven_of(
        error("b.wav"), window(), recordings=files, channel=2, names={"a.wav": "Field 7.wav"}
    )
    assert (row["Channel"], row["Begin File"], row["Selection"]) == ("2", "Field 7.wav", "1")


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
    file = io.StringIO(newline="")
    write_raven([sound, silent], file, [RavenRecording("a.wav", 20, 8000)])
    first, second = csv.DictReader(io.StringIO(file.getvalue()), delimiter="\t")
    assert (first["Answer"], first["Note"]) == ("Wolf", "")
    assert (second["Answer"], second["Note"]) == ("", "silent")
    assert second["Begin Time (s)"] == "10.000000"

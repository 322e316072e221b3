"""A row is one line of JSON that says the same when it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.results.rows import (
    SCHEMA_VERSION,
    ErrorRow,
    OutputError,
    WindowRow,
    from_line,
    read_rows,
    to_line,
)
from NatureLM.results.store import padded

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
    error = ErrorRow("a.wav", "a.wav: is empty", "EmptyAudio", 1.0, model="m", run="r")
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

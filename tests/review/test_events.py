"""Neighbouring windows with one answer become one event, and nothing gets lost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import naturelm
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import (
    ErrorRow,
    OutputError,
    Row,
    RunSettings,
    SurveyRow,
    WindowRow,
    read_record,
    read_rows,
    to_line,
    write_record,
)
from NatureLM.results.thresholds import MinConfidence, read_min_confidence
from NatureLM.review.events import EventOptions, joined, surest, write_events

MADE = {"model": "m", "merging_alpha": 1.0, "weights": "w", "queries": ["What?"]}
OWL = WindowRow("b.wav", 0.0, 10.0, "What?", "Owl", 1.0, 0.9, model="m", run="r")
SILENT = replace(OWL, text="", note="silent", confidence=None)
HEARD = Detection(audio_path="a.wav", start=0.0, end=1.0, label="Owl", question="What?")


def at(start: float, text: str = "Owl", sure: float | None = 0.9, **more: Any) -> WindowRow:
    return replace(OWL, start=start, end=start + 10, text=text, confidence=sure, **more)


def answers(folder: Path, rows: Sequence[Row], **settings: Any) -> Path:
    path = folder / "answers.jsonl"
    path.write_bytes(b"".join(map(to_line, rows)))
    write_record(path, RunSettings({**MADE, **settings}, folder=str(folder)))
    return path


def made(folder: Path, rows: Sequence[Row], **options: Any) -> list[Row]:
    source = ResultFile(answers(folder, rows))
    write_events(source, folder / "events.jsonl", EventOptions(**options))
    return list(read_rows(folder / "events.jsonl"))


def brief(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return [
        (row.start, row.end, row.text, row.windows) for row in rows if isinstance(row, WindowRow)
    ]


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[Detection], float]:
    """Windows of a recording with answers, some overlapping, some apart, and a gap."""
    hop = draw(st.sampled_from([Fraction(1, 2), Fraction(1, 3), Fraction(1), Fraction(3, 2)]))
    labels = draw(st.lists(st.sampled_from(["Owl", "Wren", ""]), min_size=1, max_size=30))
    shares = draw(st.lists(st.integers(0, 10**6), min_size=len(labels), max_size=len(labels)))
    found = [
        replace(
            HEARD,
            start=round(float(hop * number), 6),
            end=round(float(hop * number + 1), 6),
            label=label,
            confidence=share / 10**6,
        )
        for number, (label, share) in enumerate(zip(labels, shares, strict=True))
        if label
    ]
    return found, draw(st.sampled_from([0.0, 0.5, 2.0]))


def covered(spans: Sequence[Detection], gap: float = 0.0) -> set[int]:
    """Thousandths of a second that spans cover; gaps up to `gap` between them, too."""
    inside: set[int] = set()
    edge = None
    for one in sorted(spans, key=lambda one: one.start):
        start, end = round(one.start * 1000), round(one.end * 1000)
        if edge is not None and start - edge <= gap * 1000 + 1:
            start = min(start, edge)
        inside |= set(range(start, end))
        edge = end if edge is None else max(edge, end)
    return inside


@given(windows(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_events_cover_their_windows_in_any_order(
    drawn: tuple[list[Detection], float], order: random.Random
) -> None:
    heard, gap = drawn
    found = joined(heard, gap)
    assert sum(one.windows or 0 for one in found) == len(heard)
    for label in {one.label for one in heard}:
        ours = [one for one in heard if one.label == label]
        events = [one for one in found if one.label == label]
        assert covered(events) == covered(ours, gap)
        assert max(one.confidence or 0 for one in events) == max(o.confidence or 0 for o in ours)
        assert all(later.start - one.end > gap for one, later in pairwise(events))
    shuffled = heard.copy()
    order.shuffle(shuffled)
    again = joined(shuffled, gap)
    assert [replace(o, claim={}) for o in again] == [replace(o, claim={}) for o in found]
    assert joined(found, gap) == found or any(o.windows != 1 for o in found)


def test_an_event_says_what_its_windows_said(tmp_path: Path) -> None:
    context = {"site": "Pond", "local_time": "2024-05-10T05:30:10"}
    rows = [
        at(10, sure=0.5),
        at(0, sure=0.9, context=context),
        at(20, "Wren", 0.4),
        at(30, sure=None),
    ]
    first, second, third = made(tmp_path, rows)
    assert isinstance(first, WindowRow)
    assert brief([first]) == [(0.0, 20.0, "Owl", 2)]
    assert (first.confidence, first.mean_confidence, first.context) == (0.9, 0.7, context)
    assert first.query == "What?"
    assert brief([second, third]) == [(20.0, 30.0, "Wren", 1), (30.0, 40.0, "Owl", 1)]
    record = read_record(tmp_path / "events.jsonl")
    assert record is not None
    assert record.run == first.run
    assert record.values["events"]["gap"] == 0.0
    assert record.values["weights"] == "w"


def test_a_gap_is_bridged_and_short_events_go(tmp_path: Path) -> None:
    rows = [at(0), at(15), at(40, "Wren"), at(70)]
    assert brief(made(tmp_path, rows))[:2] == [(0.0, 10.0, "Owl", 1), (15.0, 25.0, "Owl", 1)]
    assert brief(made(tmp_path, rows, gap=5.0, min_windows=2)) == [
        (0.0, 25.0, "Owl", 2),
        (40.0, 80.0, "None", 2),
    ]


def test_recordings_without_events_and_errors_stay(tmp_path: Path) -> None:
    lost = ErrorRow("d.wav", "gone", "UnreadableAudio", 1.0, model="m", run="r")
    rows = [
        at(0),
        at(10, "None", context={"site": "Wood"}),
        at(20, "None", context={"site": "Wood"}),
        replace(SILENT, audio_path="a.wav"),
        replace(at(0, "None"), audio_path="c.wav", context={"site": "Pond"}),
        lost,
        replace(lost, audio_path="b.wav", error="broken"),
    ]
    found = made(tmp_path, rows)
    assert [(Path(row.audio_path).name, getattr(row, "text", "error")) for row in found] == [
        ("a.wav", ""), ("b.wav", "Owl"), ("b.wav", "None"), ("b.wav", "error"),
        ("c.wav", "None"), ("d.wav", "error"),
    ]  # fmt: skip
    places = [row.context for row in found if isinstance(row, WindowRow)]
    assert places == [None, None, {"site": "Wood"}, {"site": "Pond"}]
    before = ResultFile(tmp_path / "answers.jsonl").recordings
    after = ResultFile(tmp_path / "events.jsonl").recordings
    assert before == after
    assert [one.label for one in ResultFile(tmp_path / "events.jsonl")] == ["Owl"]


def test_what_is_behind_an_event_of_overlapping_windows_has_its_time(tmp_path: Path) -> None:
    rows = [
        at(
            start,
            text,
            context={"site": "Wood", "local_time": f"2024-05-10T05:30:{start:02}+02:00"},
        )
        for start, text in ((0, "Owl"), (5, "Owl"), (10, "None"))
    ]
    rest = made(tmp_path, rows)[-1]
    assert isinstance(rest, WindowRow)
    assert (rest.start, rest.end, rest.text) == (15.0, 20.0, "None")
    assert rest.context == {"site": "Wood", "local_time": "2024-05-10T05:30:15+02:00"}


def test_events_of_events_are_the_same(tmp_path: Path) -> None:
    rows = [at(0, sure=0.8), at(10, sure=0.6), at(30, sure=0.7), at(40, "None")]
    first = made(tmp_path, rows)
    source = ResultFile(tmp_path / "events.jsonl")
    write_events(source, tmp_path / "again.jsonl", EventOptions())
    again = list(read_rows(tmp_path / "again.jsonl"))
    assert [replace(row, run="") for row in again] == [replace(row, run="") for row in first]
    write_events(source, tmp_path / "again.jsonl", EventOptions(gap=10))
    (one, _) = read_rows(tmp_path / "again.jsonl")
    assert isinstance(one, WindowRow)
    assert (one.windows, one.mean_confidence) == (3, 0.7)


def test_the_surest_answers_of_a_window_count() -> None:
    found = [
        replace(HEARD, label=label, confidence=share)
        for label, share in (("Wren", 0.2), ("Owl", 0.9), ("Dog", None), ("Cat", 0.9))
    ]
    assert [one.label for one in surest(found, 2)] == ["Cat", "Owl"]
    assert len(surest([*found, replace(HEARD, start=1.0)], 1)) == 2


def test_columns_of_a_survey_and_lists_of_labels(tmp_path: Path) -> None:
    row = SurveyRow(
        audio_path="b.wav",
        start=0.0,
        end=10.0,
        answers={"bird": True, "species": ["Owl", "Wren"]},
        confidences={"bird": 0.9, "species": 0.5},
        merging_alpha=1.0,
        model="m",
        run="r",
    )
    columns = {"bird": {"type": "yes_no"}, "species": {"type": "choice"}}
    path = answers(tmp_path, [row, replace(row, start=10.0, end=20.0)], columns=columns)
    write_events(ResultFile(path), tmp_path / "e.jsonl", EventOptions(max_per_window=2))
    found = [row for row in read_rows(tmp_path / "e.jsonl") if isinstance(row, WindowRow)]
    assert [(one.query, one.text, one.windows) for one in found] == [
        ("species", "Owl", 2),
        ("bird", "bird", 2),
    ]
    several = answers(tmp_path, [at(0, "Owl, Wren"), at(10)], choosing={"several": True})
    write_events(ResultFile(several), tmp_path / "f.jsonl", EventOptions())
    assert brief(list(read_rows(tmp_path / "f.jsonl")))[:2] == [
        (0.0, 10.0, "Wren", 1),
        (0.0, 20.0, "Owl", 2),
    ]


def test_thresholds_are_those_of_each_species(tmp_path: Path) -> None:
    thresholds = tmp_path / "thresholds.csv"
    thresholds.write_text("species,threshold\nOwl,0.8\nWren,0.3\n")
    rows = [at(0, sure=0.7), at(10, "Wren", 0.4), at(20, "Dog", 1.0), at(30, sure=None)]
    source = ResultFile(answers(tmp_path, rows))
    least = read_min_confidence(thresholds)
    counts = write_events(source, tmp_path / "e.jsonl", EventOptions(min_confidence=least))
    assert dict(counts.events) == {"Wren": 1}
    assert dict(counts.unknown) == {"Dog": 1}
    assert +counts.left_out == {"below the least confidence": 1, "without a confidence": 1}
    thresholds.write_text("species,threshold,weights\nOwl,0.8,v\n")
    least = read_min_confidence(thresholds)
    with pytest.raises(UsageError, match="other weights"):
        least.check(source.settings, source.questions)


def test_only_events_are_replaced(tmp_path: Path) -> None:
    path = answers(tmp_path, [at(0)])
    source, options = ResultFile(path), EventOptions(min_confidence=MinConfidence())
    with pytest.raises(OutputError, match="themselves"):
        write_events(source, path, options)
    other = tmp_path / "other.jsonl"
    other.write_bytes(path.read_bytes())
    with pytest.raises(OutputError, match="holds no events"):
        write_events(source, other, options)
    assert other.read_bytes() == path.read_bytes()
    target = tmp_path / "events.jsonl"
    write_events(source, target, options)
    (tmp_path / "events.jsonl.run.json").unlink()  # known by its rows as well
    write_events(source, target, options)
    assert brief(list(read_rows(target))) == [(0.0, 10.0, "Owl", 1)]


def test_the_command_says_what_became_of_the_answers(tmp_path: Path) -> None:
    lost = ErrorRow("d.wav", "gone", "UnreadableAudio", 1.0, model="m", run="r")
    path = answers(
        tmp_path,
        [at(0), at(10, "None"), replace(SILENT, start=20.0, end=30.0), lost],
        window_length_seconds=10.0,
        hop_length_seconds=20.0,
    )
    target = tmp_path / "events.jsonl"
    done = naturelm("events", path, "--output-path", target)
    assert done.exit_code == 3, done.output
    assert "Events: 1, of 1 answers. Recordings: 2, without events: 1, not read" in done.output
    assert "None: 1, silent: 1" in done.output
    assert "10 s lie between the windows" in done.output
    assert len(list(read_rows(target))) == 3

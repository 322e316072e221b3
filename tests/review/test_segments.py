"""The index of a folder of clips says the same when it is read again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.results.tables import with_formula, without_formula
from NatureLM.review.segments import Segment, index_path, read_segments, write_segments

OWL = Segment(
    clip="Barn Owl/0.873_night_10.0s_20.0s.wav",
    recording="/card/night.wav",
    start=10.0,
    end=20.0,
    clip_start=9.0,
    clip_end=21.0,
    label="Barn Owl",
    scientific_name="Tyto alba",
    confidence=0.873,
    question='=Which "owl", if any?',
    weights="abc",
    merging_alpha=1.0,
    time_expansion=10.0,
    site="Ö-Wald, 学",
)


def test_an_index_says_the_same_when_it_is_read(tmp_path: Path) -> None:
    other = Segment(
        clip="x/1.wav", recording="r", start=0.0, end=1.5, clip_start=0, clip_end=2, label="-x"
    )
    write_segments(tmp_path, [OWL, other])
    assert read_segments(tmp_path) == [OWL, other]


def test_an_index_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    index_path(tmp_path).write_text(
        "clip;recording;start;end;label;confidence;my notes\nOwl\\a.wav;r.wav;0;2,5;Owl;0,75;!\n",
        encoding="utf-16",
    )
    (one,) = read_segments(tmp_path)
    assert (one.clip, one.end, one.confidence, one.clip_end) == ("Owl/a.wav", 2.5, 0.75, 2.5)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("clip,recording\n", "lacks the columns start, end, label, confidence"),
        ("clip,recording,start,end,label,confidence\n../a,r,0,1,x,\n", "line 2: clip is"),
        ("clip,recording,start,end,label,confidence\na,r,0,1,x,2\n", "between 0 and 1"),
        ("clip,recording,start,end,label,confidence\na,r,zero,1,x,\n", "start is 'zero'"),
        ("clip,recording,start,end,label,confidence\na,r,0,1,x,\na,r,0,1,x,\n", "there twice"),
    ],
)
def test_an_index_that_is_none_is_refused(lines: str, said: str, tmp_path: Path) -> None:
    index_path(tmp_path).write_text(lines)
    with pytest.raises(UsageError, match=said):
        read_segments(tmp_path)


def test_a_folder_without_an_index_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="naturelm segments"):
        read_segments(tmp_path)


@given(st.text(alphabet="'=-a \t", max_size=5))
@settings(max_examples=50)
def test_cells_give_back_what_they_were_made_of(text: str) -> None:
    assert with_formula(without_formula(text)) == text

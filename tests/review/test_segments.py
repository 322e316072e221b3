"""The folder of clips: its index reads back the same, and every system takes its names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.results.tables import with_formula, without_formula
from NatureLM.review.folder import (
    Segment,
    clip_name,
    clip_paths,
    distinct_names,
    index_path,
    read_segments,
    recording_names,
    safe_name,
    write_segments,
)

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


GOLDEN = {
    "Barn Owl": "Barn Owl",
    "Tyto alba/furcata": "Tyto alba_furcata",
    "..": "unnamed",
    "": "unnamed",
    "a\tb\n c": "a b c",
    "CON": "_CON",
    "com1.wav": "_com1.wav",
    "COM²": "_COM²",
    "Aux ": "_Aux",
    "console": "console",
    "=SUM(1)": "_SUM(1)",
    "-rf": "_rf",
    'a<b>c:d"e|f?g*h\\i': "a_b_c_d_e_f_g_h_i",
    "Ö-Wald 学": "Ö-Wald 学",
    "o\u0308": "ö",
    "ends. ": "ends",
    "\u202egnp": "gnp",
}


@pytest.mark.parametrize("text", GOLDEN)
def test_a_text_as_a_name(text: str) -> None:
    assert safe_name(text) == GOLDEN[text]


def test_a_long_name_ends_in_what_tells_it_apart() -> None:
    one, other = safe_name("x" * 100), safe_name("x" * 101)
    assert re.fullmatch(r"x{81}-[0-9a-f]{8}", one)
    assert one != other


@given(st.lists(st.text(max_size=120), max_size=8))
@settings(max_examples=100, deadline=None)
def test_names_are_safe_and_differ_where_case_does_not_count(texts: list[str]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    found = distinct_names(texts)
    assert len({name.casefold() for name in found.values()}) == len(set(texts))
    for name in found.values():
        assert name.isprintable()
        assert 0 < len(name.encode()) <= 95
        assert not re.search(r'[<>:"/\\|?*]|^[-=+@.~ ]|[. ]$', name)
    assert distinct_names(reversed(texts)) == found


def test_recorders_with_the_same_names_of_files_are_told_apart() -> None:
    names = recording_names(
        ["/card/A/DATA/1.wav", "/card/B/DATA/1.wav", "/card/B/DATA/2.wav", "/card/B/DATA/2.flac"]
    )
    assert names == {
        "/card/A/DATA/1.wav": "A-DATA-1",
        "/card/B/DATA/1.wav": "B-DATA-1",
        "/card/B/DATA/2.flac": "DATA-2",
        "/card/B/DATA/2.wav": "DATA-2-2",
    }


def test_clips_are_named_as_people_look_for_them() -> None:
    assert clip_name(0.8731, "20240510_053000", 12.0, 22.5) == ("0.873_20240510_053000_12.0s_22.5s")
    assert clip_name(None, "x", 0.0, 1 / 3) == "unscored_x_0.0s_0.333s"


def test_no_two_clips_have_one_path() -> None:
    recordings = {"/a/1.wav": "1", "/b/1.WAV": "1"}
    paths = clip_paths(
        [
            ("Owl", 0.9, "/a/1.wav", 0.0, 10.0),
            ("OWL", 0.9, "/a/1.wav", 0.0, 10.0),
            ("Owl", 0.9001, "/b/1.WAV", 0.0, 10.0),
        ],
        recordings,
    )
    assert paths == [
        "Owl-2/0.900_1_0.0s_10.0s.wav",
        "OWL/0.900_1_0.0s_10.0s.wav",
        "Owl-2/0.900_1_0.0s_10.0s-2.wav",
    ]

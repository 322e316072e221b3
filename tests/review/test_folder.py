"""The folder of clips: its index reads back the same, and every system takes its names."""

from __future__ import annotations

import codecs
import errno
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import NatureLMError, UsageError
from NatureLM.progress import printable
from NatureLM.results.rows import OutputError
from NatureLM.results.tables import with_formula, without_formula
from NatureLM.review.folder import (
    ANSWERS,
    REVIEW_NAME,
    VERDICT_COLUMNS,
    Segment,
    VerdictStore,
    checked_reviewer,
    clip_name,
    clip_paths,
    distinct_names,
    index_path,
    read_segments,
    read_verdicts,
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


# Verdicts are on the disk before they count, whatever happens to the program that takes them

ROOT = Path(__file__).resolve().parents[2]
CLIP = "Owl/0.900_dawn_0s_3s.wav"

_lines = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_clips = _lines.filter(lambda text: printable(text) == text and text.strip() == text)
_names = st.text("ab'=+@ \u00f6\u5b66,;\"", min_size=1, max_size=6).filter(
    lambda name: name.strip()
)
_steps = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from(ANSWERS), st.booleans()),
    max_size=12,
)


def said(folder: Path) -> list[tuple[str, str, str]]:
    return [(one.clip, one.reviewer, one.verdict) for one in read_verdicts(folder)]


@settings(max_examples=60)
@given(
    st.lists(_clips, min_size=4, max_size=4, unique=True),
    st.lists(_names, min_size=2, max_size=2, unique_by=lambda name: " ".join(name.split())),
    _steps,
)
def test_the_last_verdict_of_a_clip_and_a_reviewer_counts(
    tmp_path_factory: pytest.TempPathFactory,
    clips: list[str],
    names: list[str],
    steps: list[tuple[int, int, str, bool]],
) -> None:
    """Whatever was said in whatever order, by whom, with how many starts anew between."""
    folder = tmp_path_factory.mktemp("review")
    expected: dict[tuple[str, str], str] = {}
    store = VerdictStore(folder)
    for clip, name, verdict, begins_anew in steps:
        if begins_anew:
            store.close()
            store = VerdictStore(folder)
        store.add(clips[clip], names[name], verdict)
        key = clips[clip], checked_reviewer(names[name])
        expected.pop(key, None)
        expected[key] = verdict
    kept = [(*key, verdict) for key, verdict in expected.items() if verdict]
    assert [(one.clip, one.reviewer, one.verdict) for one in store.verdicts()] == kept
    store.close()
    if steps:
        assert said(folder) == kept
        assert len((folder / REVIEW_NAME).read_bytes().splitlines()) == len(steps) + 1
    assert (folder / REVIEW_NAME).exists() == bool(steps)


_KILLED = """
import sys
from NatureLM.review.folder import VerdictStore
store = VerdictStore(sys.argv[1])
for number in range(10**9):
    store.add(f"{number}.wav", "Ann", "yes")
    print(number, flush=True)
"""


def test_a_killed_program_has_lost_no_verdict_that_it_took(tmp_path: Path) -> None:
    program = [sys.executable, "-c", _KILLED, str(tmp_path)]
    for _ in range(2):
        before = len(said(tmp_path)) if (tmp_path / REVIEW_NAME).exists() else 0
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                if int(line) >= before + 30:
                    running.kill()
                    break
            told = [int(line), *map(int, running.stdout)]
        with VerdictStore(tmp_path) as store:
            kept = {one.clip for one in store.verdicts()}
        assert kept >= {f"{number}.wav" for number in range(told[-1] + 1)}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_off_is_taken_out(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    with VerdictStore(tmp_path) as store:
        store.add("first.wav", "Ann", "no")
        store.add(CLIP, "Ann", "yes")
    path = tmp_path / REVIEW_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert said(tmp_path) == [("first.wav", "Ann", "no")]
    with VerdictStore(tmp_path) as store:
        assert "was cut off" in caplog.text
        store.add(CLIP, "Ann", "unsure")
    assert said(tmp_path) == [("first.wav", "Ann", "no"), (CLIP, "Ann", "unsure")]
    assert path.read_bytes().startswith(whole[: whole.rindex(b"Owl/")])


def test_a_header_that_was_cut_off_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / REVIEW_NAME).write_bytes(codecs.BOM_UTF8 + b"clip,revi")
    with VerdictStore(tmp_path) as store:
        store.add(CLIP, "Ann", "yes")
    assert said(tmp_path) == [(CLIP, "Ann", "yes")]


def test_several_reviewers_at_once_keep_all_that_they_say(tmp_path: Path) -> None:
    with VerdictStore(tmp_path) as store, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: store.add(f"{n // 4}.wav", f"R{n % 4}", "yes"), range(80)))
        assert len(store.verdicts()) == 80
    assert len(said(tmp_path)) == 80


def test_another_program_is_told_that_the_review_is_open(tmp_path: Path) -> None:
    with (
        VerdictStore(tmp_path),
        pytest.raises(OutputError, match="another program has this review open; several people"),
    ):
        VerdictStore(tmp_path)
    VerdictStore(tmp_path).close()
    assert list(tmp_path.iterdir()) == []  # who only looks leaves nothing behind


def test_a_full_disk_is_named_and_what_is_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VerdictStore(tmp_path) as store:
        store.add("first.wav", "Ann", "no")
        before = store.path.read_bytes()

        def full(fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(NatureLMError, match="verdicts cannot be written further: No space"):
                store.add(CLIP, "Ann", "yes")
        assert store.path.read_bytes() == before
        assert len(store.verdicts()) == 1
        store.add(CLIP, "Ann", "yes")
    assert len(said(tmp_path)) == 2


def test_no_spreadsheet_runs_a_cell(tmp_path: Path) -> None:
    with VerdictStore(tmp_path) as store:
        store.add("=1+1/a.wav", "@SUM(A1)", "yes")
    assert b"\n'=1+1/a.wav,'@SUM(A1),yes," in (tmp_path / REVIEW_NAME).read_bytes()
    assert said(tmp_path) == [("=1+1/a.wav", "@SUM(A1)", "yes")]


def test_a_table_that_a_spreadsheet_saved_is_read_and_not_mixed(tmp_path: Path) -> None:
    text = f"{';'.join(VERDICT_COLUMNS)};remark\r\n{CLIP};Ann;Yes;2024-05-10;loud\r\n"
    (tmp_path / REVIEW_NAME).write_bytes(text.encode("utf-16"))
    assert said(tmp_path) == [(CLIP, "Ann", "yes")]
    with pytest.raises(UsageError, match="begins with other columns than clip,reviewer,verdict,at"):
        VerdictStore(tmp_path)
    assert (tmp_path / REVIEW_NAME).read_bytes() == text.encode("utf-16")


@pytest.mark.parametrize(
    ("text", "said_of_it"),
    [
        (f"clip,reviewer,verdict,at\n{CLIP},Ann,maybe,x\n", "line 2: the verdict is 'maybe'"),
        ("clip,verdict\na,yes\n", "lacks the columns reviewer, at"),
    ],
)
def test_what_is_no_review_is_refused_by_name(tmp_path: Path, text: str, said_of_it: str) -> None:
    (tmp_path / REVIEW_NAME).write_text(text)
    with pytest.raises(UsageError, match=said_of_it):
        read_verdicts(tmp_path)


def test_a_folder_that_nobody_reviewed_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nobody has reviewed the clips yet: naturelm review"):
        read_verdicts(tmp_path)


@pytest.mark.parametrize("name", ["", "  ", "x" * 81, None, 7])
def test_a_reviewer_has_a_name(name: object) -> None:
    with pytest.raises(UsageError, match="the reviewer's name has"):
        checked_reviewer(name)
    assert checked_reviewer(" Ann\n  Lee ") == "Ann Lee"


@pytest.mark.parametrize(("clip", "verdict"), [(CLIP, "maybe"), ("two\nlines.wav", "yes")])
def test_what_cannot_be_kept_is_refused(tmp_path: Path, clip: str, verdict: str) -> None:
    with VerdictStore(tmp_path) as store, pytest.raises(UsageError):
        store.add(clip, "Ann", verdict)

"""Verdicts are on the disk before they count, whatever happens to the program that takes them."""

from __future__ import annotations

import codecs
import errno
import os
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
from NatureLM.review.folder import (
    ANSWERS,
    COLUMNS,
    REVIEW_NAME,
    VerdictStore,
    checked_reviewer,
    read_verdicts,
)

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
    text = f"{';'.join(COLUMNS)};remark\r\n{CLIP};Ann;Yes;2024-05-10;loud\r\n"
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

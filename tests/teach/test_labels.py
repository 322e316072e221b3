"""Labels of tables and of reviewed clips come into one table, and the last word holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from review_folders import make_clips

from NatureLM.errors import UsageError
from NatureLM.generation.labels import NOTHING
from NatureLM.review.folder import VerdictStore
from NatureLM.teach.examples import Labelled, merged, read_labelled, write_labels


def test_verdicts_are_labels(tmp_path: Path) -> None:
    clips = make_clips(tmp_path / "clips", 4)
    with VerdictStore(tmp_path / "clips") as store:
        for reviewer, said in (("Ann", "yes no unsure yes"), ("Bo", "yes no yes no")):
            for clip, verdict in zip(clips, said.split(), strict=True):
                store.add(clip.clip, reviewer, verdict)
    found, notes = read_labelled(tmp_path / "clips")
    assert notes == []
    said = [(one.label, one.is_not, one.who) for one in found]
    assert said == [
        ("Common Cuckoo", "", "Bo"),
        ("", "Eurasian Wren", "Bo"),
        ("Common Cuckoo", "", "Bo"),
    ]
    assert all(one.at for one in found)
    # The recordings are not here: the clips hold the sound, and their times count from its start.
    assert (found[0].start, found[0].end) == pytest.approx((0.1, 1.1))
    assert Path(found[0].source).is_file()
    assert found[0].group == "/card/0/dawn.wav"


def test_the_table_gives_back_what_was_written(tmp_path: Path) -> None:
    said = [
        Labelled(
            recording=str(tmp_path / "=a.wav"),
            source="",
            start=1.5,
            end=2.25,
            label="Owl",
            group="r1",
            who="=Ann",
            at="2026-01-02T03:04:05+00:00",
            table="support.csv",
        ),
        Labelled(recording=str(tmp_path / "b.wav"), source="", is_not="Owl"),
    ]
    path = write_labels(tmp_path / "labels.csv", said)
    assert read_labelled(path)[0] == said
    path.write_text(path.read_text("utf-8-sig").replace("1.5", "soon"), encoding="utf-8-sig")
    with pytest.raises(UsageError, match="line 2: start and end"):
        read_labelled(path)


def test_what_was_said_last_holds(tmp_path: Path) -> None:
    def said(label: str, is_not: str = "", at: float = 0.0) -> Labelled:
        recording = str(tmp_path / "a.wav")
        return Labelled(
            recording=recording, source=recording, start=at, end=at + 3, label=label, is_not=is_not
        )

    once = merged([[said("Owl"), said("Wren", at=3)], [said("Crow")]])
    assert [one.label for one in once] == ["Wren", "Crow"]
    kept = merged([[said("Owl")], [said("", is_not="Wren")]])
    assert [(one.label, one.is_not) for one in kept] == [("Owl", "Wren")]
    taken_back = merged([[said("Owl")], [said("", is_not="Owl")]])
    assert [(one.label, one.is_not) for one in taken_back] == [("", "Owl")]


def test_tables_of_other_programs(tmp_path: Path) -> None:
    from .conftest import tone

    tone(tmp_path / "dawn.wav", 800.0, 5.0)
    (tmp_path / "dawn.txt").write_text("0.5\t1.5\tOwl\n2\t3\tnone\n", encoding="utf-8")
    found, _ = read_labelled(tmp_path / "dawn.txt")
    assert [(one.label, one.start, one.end) for one in found] == [
        ("Owl", 0.5, 1.5),
        (NOTHING, 2.0, 3.0),
    ]
    assert {one.group for one in found} == {found[0].group}

"""The recordings that tables of other machines name are found here, or it is said which are not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from NatureLM.errors import UsageError
from NatureLM.results.detections import Detection, recordings_of

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

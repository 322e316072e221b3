"""Finding recordings in files and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from NatureLM.audio import AUDIO_SUFFIXES, find_recordings
from NatureLM.errors import UsageError


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder: Path, *paths: str | Path) -> list[str]:
    return [p.relative_to(folder).as_posix() for p in find_recordings(paths or [folder])]


def test_folders_are_searched_sorted_in_any_case(tmp_path: Path) -> None:
    make(tmp_path, "b.WAV", "a.wav", "c.Mp3", "d/z.flac", "d/e/y.OGG", "a/x.aif", "notes.txt")
    make(tmp_path, "._b.WAV", ".hidden/a.wav", "d/.DS_Store", "wav", "song.wav.txt")
    expected = ["a/x.aif", "a.wav", "b.WAV", "c.Mp3", "d/e/y.OGG", "d/z.flac"]
    assert found(tmp_path) == expected
    assert found(tmp_path) == [
        p.relative_to(tmp_path).as_posix() for p in sorted(find_recordings([tmp_path]))
    ]


def test_suffixes() -> None:
    asked = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus", ".w64"}
    assert asked <= AUDIO_SUFFIXES
    assert all(s == s.lower() and s.startswith(".") for s in AUDIO_SUFFIXES)


def test_order_is_that_of_the_arguments(tmp_path: Path) -> None:
    make(tmp_path, "a/2.wav", "a/1.wav", "b.wav")
    assert found(tmp_path, tmp_path / "b.wav", tmp_path / "a") == ["b.wav", "a/1.wav", "a/2.wav"]


def test_a_named_file_is_taken_as_named(tmp_path: Path) -> None:
    make(tmp_path, "recording.dat", "._x.wav", "none")
    names = ["recording.dat", "._x.wav", "none"]
    assert found(tmp_path, *(tmp_path / n for n in names)) == names
    assert find_recordings([str(tmp_path / "none")]) == [tmp_path / "none"]


def test_no_file_twice(tmp_path: Path) -> None:
    make(tmp_path, "a.wav", "b.wav")
    (tmp_path / "d").mkdir()
    again = tmp_path / "d" / ".." / "a.wav"
    assert found(tmp_path, tmp_path / "b.wav", tmp_path, again) == ["b.wav", "a.wav"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights on other systems")
def test_links(tmp_path: Path) -> None:
    make(tmp_path, "disk/a.wav")
    project = tmp_path / "project"
    project.mkdir()
    (project / "data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(project)  # a loop
    assert found(tmp_path, project) == ["project/data/a.wav"]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a.wav", "gone.wav"], r"gone\.wav: there is no such file or folder"),
        (["."], r"no audio in this folder.*\.aif, .*\.wav.*upper or"),
        ([], "No audio was named"),
    ],
)
def test_what_names_no_audio(tmp_path: Path, names: list[str], says: str) -> None:
    make(tmp_path, "notes.txt", ".hidden.wav", "sub/picture.jpg", *names[:-1])
    with pytest.raises(UsageError, match=says):
        find_recordings([tmp_path / name for name in names])


def test_one_path_alone(tmp_path: Path) -> None:
    make(tmp_path, "a.wav")
    assert find_recordings(str(tmp_path)) == [tmp_path / "a.wav"]


def test_folders_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "a.wav", "lost+found/b.wav")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert find_recordings([tmp_path]) == [tmp_path / "a.wav"]
    (told,) = caplog.messages
    assert "lost+found: this folder may not be read" in told
    with pytest.raises(UsageError, match="may not be read"):
        find_recordings([tmp_path / "lost+found"])

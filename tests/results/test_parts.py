"""Rows in Parquet parts are the rows of a result file, and are resumed and merged as these are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import naturelm

from NatureLM.audio import AudioError
from NatureLM.results.detections import ResultFile
from NatureLM.results.parts import PartsStore, is_parts, read_part
from NatureLM.results.rows import OutputError, Prediction, RunSettings
from NatureLM.results.store import Resumed, WindowStore, question_key

SETTINGS = RunSettings({"model": "m", "merging_alpha": 1.0, "queries": ["What?", "Who?"]})
NAMES = ("a.wav", "b.wav", "c.wav")


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode())
    return [tmp_path / name for name in NAMES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out.parts"


@pytest.fixture
def store(folder: Path, recordings: list[Path]) -> Iterator[PartsStore]:
    with PartsStore(folder) as store:
        store.begin(SETTINGS, recordings)
        yield store


def answer(store: WindowStore, path: Path, *starts: float, text: str = "Wolf") -> None:
    for start in starts:
        for query in SETTINGS.values["queries"]:
            store.add(Prediction(str(path), start, start + 10, query, text, 1.0))


def parts(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.glob("part-*")}


def resumed(folder: Path, recordings: list[Path]) -> tuple[Resumed, PartsStore]:
    with PartsStore(folder) as store:
        return store.begin(SETTINGS, recordings), store


def test_rows_and_tables_are_those_of_a_file(
    store: PartsStore, folder: Path, recordings: list[Path]
) -> None:
    with WindowStore(folder.with_name("plain.jsonl")) as plain:
        plain.begin(SETTINGS, recordings)
        for one in (store, plain):
            answer(one, recordings[0], 0.0, 10.0)
            one.add_error(recordings[1], AudioError(recordings[1], "the file is empty"), 1.0)
    store.end_part()
    answer(store, recordings[2], 0.0)
    store.end_part()
    read = ResultFile(folder)
    lines = plain.path.read_bytes().splitlines()
    stored = [line.rstrip() for part in sorted(folder.glob("*")) for line in read_part(part)[0]]
    assert stored[: len(lines)] == [line.rstrip() for line in lines]
    assert [row.audio_path for row in read.rows()][-1] == str(recordings[2])
    assert read.failed == 1
    assert len(list(read)) == 6
    assert naturelm("export", folder, "--format", "csv").exit_code == 0
    assert len(folder.with_name("out.csv").read_text().splitlines()) == 1 + 7


def test_a_part_that_is_written_twice_is_there_once(
    store: PartsStore, folder: Path, recordings: list[Path]
) -> None:
    answer(store, recordings[0], 0.0)
    store.end_part()
    before = parts(folder)
    answer(store, recordings[0], 0.0, text="Fox")  # answered: no row
    store.end_part()
    store._done.clear()  # as of a process that does not know of the part
    answer(store, recordings[0], 0.0)
    store.end_part()
    assert parts(folder) == before


def test_what_is_whole_is_known_and_the_rest_by_its_windows(
    store: PartsStore, folder: Path, recordings: list[Path]
) -> None:
    answer(store, recordings[0], 0.0, 10.0)
    store.ended(recordings[0], 2)
    answer(store, recordings[1], 10.0)  # the first window is somebody else's, and not there yet
    store.ended(recordings[1], 2)
    store.close()
    found, again = resumed(folder, recordings)
    assert found.answers == 6
    assert [again.is_whole(one) for one in recordings] == [True, False, False]
    assert again.answered(recordings[1]) == {
        (10_000_000, question_key(query, "")) for query in SETTINGS.values["queries"]
    }


def test_errors_are_tried_again_and_go_from_their_part(
    store: PartsStore, folder: Path, recordings: list[Path]
) -> None:
    answer(store, recordings[0], 0.0)
    store.ended(recordings[0], 1)
    store.add_error(recordings[1], AudioError(recordings[1], "the file is empty"), 1.0)
    store.close()
    found, again = resumed(folder, recordings)
    assert (found.answers, found.retried) == (2, 1)
    assert again.is_whole(recordings[0])
    assert ResultFile(folder).failed == 0


def test_other_settings_and_places_are_refused(
    store: PartsStore, folder: Path, recordings: list[Path]
) -> None:
    answer(store, recordings[0], 0.0)
    with pytest.raises(OutputError, match="another run is writing there now"):
        PartsStore(folder)
    store.close()
    with PartsStore(folder) as again, pytest.raises(OutputError, match="other settings"):
        again.check({**SETTINGS.values, "merging_alpha": 0.5})
    with pytest.raises(OutputError, match="is a file, and parts need a folder"):
        PartsStore(recordings[0])
    next(folder.glob("part-*")).write_bytes(b"torn")
    with pytest.raises(OutputError, match="cannot be read as a part"):
        PartsStore(folder)


def test_an_empty_folder_goes_again(tmp_path: Path, recordings: list[Path]) -> None:
    with PartsStore(tmp_path / "none.parts") as store:
        store.begin(SETTINGS, recordings)
    assert not list(tmp_path.glob("none*"))
    assert not is_parts(tmp_path)


def test_merged_parts_are_the_file_of_one_run(
    store: PartsStore, folder: Path, recordings: list[Path], tmp_path: Path
) -> None:
    with WindowStore(tmp_path / "plain.jsonl") as plain:
        plain.begin(SETTINGS, recordings)
        for one in recordings:
            answer(plain, one, 0.0, 10.0)
    for start, one in ((10.0, recordings[1]), (0.0, recordings[2]), (0.0, recordings[1])):
        answer(store, one, start)
        store.end_part()
    answer(store, recordings[0], 10.0, 0.0)
    answer(store, recordings[2], 10.0)
    store.close()
    out = tmp_path / "all.jsonl"
    merged = naturelm("merge-runs", folder, "-o", out, "-a", *recordings[:1])
    assert merged.exit_code in (0, 3)
    lines = [line.rstrip() for line in out.read_bytes().splitlines()]
    assert lines == [line.rstrip() for line in plain.path.read_bytes().splitlines()]

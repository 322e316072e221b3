"""A file is there whole or not at all."""

import threading
from pathlib import Path

import pytest

from NatureLM.util import atomic_write


@pytest.mark.parametrize("alone", [False, True])
def test_a_block_that_ends_well_takes_the_place_and_leaves_nothing_else(
    tmp_path: Path, alone: bool
) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with atomic_write(target, alone=alone) as unfinished:
        unfinished.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")

    def fail() -> None:
        with atomic_write(target) as unfinished:
            unfinished.write_text("half")
            raise stop

    with pytest.raises(stop):
        fail()
    assert target.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["table.csv"]


def test_what_a_killed_program_left_is_written_over(tmp_path: Path) -> None:
    target = tmp_path / "index.npz"
    with atomic_write(target, alone=True) as unfinished:
        name = unfinished.name
        unfinished.write_text("whole")
    (tmp_path / name).write_text("the rest of a killed program, which is longer")
    with atomic_write(target, alone=True) as unfinished:
        unfinished.write_text("again")
    assert target.read_text() == "again"
    assert [one.name for one in tmp_path.iterdir()] == ["index.npz"]


def test_several_may_write_one_file_at_once(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    meet = threading.Barrier(4)

    def write(text: str) -> None:
        with atomic_write(target) as unfinished:
            unfinished.write_text(text)
            meet.wait()

    threads = [threading.Thread(target=write, args=(str(n) * 1000,)) for n in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert target.read_text() in {str(n) * 1000 for n in range(4)}
    assert [one.name for one in tmp_path.iterdir()] == ["record.json"]

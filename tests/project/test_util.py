"""The small helpers: whole files, sizes, digests, durations, hints, prefetching."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from NatureLM.errors import UsageError
from NatureLM.util import (
    atomic_write,
    check_place,
    did_you_mean,
    digest,
    format_bytes,
    format_duration,
    parse_bytes,
    prefetch,
    write_data,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("1.5 MiB", 1_572_864), ("10", 10), ("2k", 2000), (7, 7)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "4 GB of it", "-1GB", "0", "1e3", 0])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="--max-memory is"):
        parse_bytes(text, "--max-memory")


@given(size=st.integers(1, 10**15))
def test_sizes_are_shown_as_they_are_read(size: int) -> None:
    assert abs(parse_bytes(format_bytes(size).replace("bytes", "b")) - size) <= 0.06 * size


def test_sizes_in_words() -> None:
    sizes = (5, 999, 2048, 999_960, 20_000_000, 4 * 10**9)
    shown = ["5 bytes", "999 bytes", "2 kB", "1 MB", "20 MB", "4 GB"]
    assert [format_bytes(size) for size in sizes] == shown


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


def test_a_link_stays_one_and_the_longest_name_has_room(tmp_path: Path) -> None:
    real, link = tmp_path / ("n" * 250 + ".json"), tmp_path / "link"
    link.symlink_to(real)
    for text in ("old", "new"):
        with atomic_write(link) as unfinished:
            unfinished.write_text(text)
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of Unix")
def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_data(pipe, b"all of it")
    reader.join(10)
    assert read == ["all of it"]
    assert pipe.is_fifo()


def tree(folder: Path) -> dict[str, bytes | None]:
    """All below a folder: contents of files, None for folders."""
    return {str(one): one.read_bytes() if one.is_file() else None for one in folder.rglob("*")}


@pytest.mark.parametrize(
    ("place", "folder", "said"),
    [
        ("there", False, "is a folder; give the name of a file"),
        ("there/file", True, "--out there/file: is a file, and a folder is needed there"),
        ("there/file/below/x.csv", False, "there/file is a file, and a folder is needed there"),
        ("x" * 300, False, "cannot be written (File name too long); give another place"),
        (f"new/{'x' * 300}/x.csv", False, "cannot be written (File name too long)"),
        ("/proc/nowhere/x.csv", False, "cannot be written (No such file or directory)"),
        ("a\0b", False, "cannot be written (embedded null byte)"),
        ("there/shut.csv", False, "is there and may not be written over; give another name"),
        ("new/x.csv", False, ""),
        ("new/deep/er", True, ""),
        ("there/file", False, ""),
        ("there", True, ""),
        ("dangling", False, ""),
        ("/dev/null", False, ""),
    ],
)
def test_a_place_is_tried_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, folder: bool, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("kept")
    (tmp_path / "there" / "shut.csv").write_text("kept")
    (tmp_path / "dangling").symlink_to("new/behind.csv")
    before, access = tree(tmp_path), os.access
    monkeypatch.setattr(  # whoever is root may do everything
        os, "access", lambda path, mode: "shut" not in str(path) and access(path, mode)
    )
    try:
        check_place(Path(place), "--out", folder=folder)
        message = ""
    except UsageError as error:
        message = str(error)
    assert said in message
    assert message.startswith(f"--out {place}: ") if said else not message
    assert tree(tmp_path) == before


def test_a_full_disk_shows_when_a_place_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full: Any = lambda **_: open("/dev/full", "wb", buffering=0)  # noqa: SIM115, E731
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UsageError, match="No space left on device"):
        check_place(tmp_path / "new" / "x.csv", "--out")
    assert list(tmp_path.iterdir()) == []


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


@given(st.text(), st.sampled_from(["sha256", "blake2b"]), st.integers(1, 32), st.data())
def test_a_digest_is_of_the_content_however_it_is_cut(
    text: str, algorithm: Literal["sha256", "blake2b"], size: int, data: st.DataObject
) -> None:
    whole = digest(text, algorithm, size=size)
    cut = data.draw(st.integers(0, len(text)))
    assert len(whole) == size
    assert digest([text[:cut], text[cut:].encode()], algorithm, size=size) == whole
    assert digest([text, "x"], algorithm, size=32) != digest(text, algorithm, size=32)


def test_digests_are_those_of_hashlib() -> None:
    """They stand in result files and caches, so they may not change."""
    assert digest("owl", size=8) == hashlib.sha256(b"owl").digest()[:8]
    assert digest("owl", "blake2b", size=16) == hashlib.blake2b(b"owl", digest_size=16).digest()
    assert digest(memoryview(b"owl")) == hashlib.sha256(b"owl").digest()
    samples = array("d", [0.5, -1])
    assert digest(samples) == hashlib.sha256(samples.tobytes()).digest(), "in one, not by number"


def test_a_near_name_is_hinted_at() -> None:
    assert did_you_mean("wolv", ["wolf", "dog"]) == "; did you mean 'wolf'?"
    assert did_you_mean("wolv", {"wolf": 1}, "{}") == "; did you mean wolf?"
    assert did_you_mean("xyz", ["wolf"]) == ""


def test_durations_in_words() -> None:
    shown = [format_duration(seconds) for seconds in (6.44, 59.94, 61, 3599, 3600, 7500)]
    assert shown == ["6.4 s", "59.9 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "2 h 5 min"]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=7),
    workers=st.integers(1, 4),
    chunk=st.integers(1, 4),
)
def test_prefetched_items_come_in_order(lengths: list[int], workers: int, chunk: int) -> None:
    streams = (iter([(n, item) for item in range(length)]) for n, length in enumerate(lengths))
    wanted = [(n, item) for n, length in enumerate(lengths) for item in range(length)]
    assert list(prefetch(streams, workers=workers, chunk=chunk)) == wanted


def test_streams_are_run_ahead_up_to_a_bound() -> None:
    made: list[tuple[int, int]] = []

    def stream(number: int) -> Iterator[tuple[int, int]]:
        for item in range(100):
            made.append((number, item))
            yield number, item

    taken = prefetch(map(stream, range(10)), workers=2, chunk=5)
    next(taken)
    deadline = time.monotonic() + 10
    while len(made) < 15 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 15  # the chunk that is taken from, the next one, and one of the next stream
    taken.close()


def test_an_error_is_raised_where_items_are_taken() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(prefetch([iter([0]), broken()]))


def test_threads_end_with_who_takes_the_items() -> None:
    before = threading.active_count()
    taken = prefetch((iter(range(1000)) for _ in range(5)), workers=3, chunk=2)
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    taken.close()
    assert threading.active_count() == before

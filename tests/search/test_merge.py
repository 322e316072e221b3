"""`naturelm merge-runs` of indexes: shards as one, what is there twice, what is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import call, write_wav
from vector_indexes import SETTINGS

from NatureLM.results.shards import shard_of
from NatureLM.search.build import make_index
from NatureLM.search.index import open_index
from tests.search.test_build import Pretender

NAMES = [f"calls/{number}.wav" for number in range(8)]
CUT = replace(SETTINGS, hop_seconds=10.0)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with eight recordings of one to four windows, and a list of them."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        write_wav(tmp_path / name, 5 + 5 * number)
    call("manifest", "calls", "-o", "list.csv")
    return tmp_path


def embed(shard: str, names: list[str], suffix: str = ".npz", **changes: object) -> Path:
    output = Path(f"x.shard-{shard.replace('/', '-of-')}{suffix}")
    settings = replace(CUT, **changes)  # type: ignore[arg-type]
    make_index(list(map(Path, names)), output, settings, Pretender())  # type: ignore[arg-type]
    return output


def part(number: int, of: int) -> list[str]:
    return [name for name in NAMES if shard_of(name.removeprefix("calls/"), of) == number]


def merge(*runs: object, output: str = "all.npz", more: tuple[str, ...] = (), ends: int = 0) -> str:
    return call("merge-runs", *runs, "--manifest", "list.csv", "-o", output, *more, ends=ends)


def content(path: Path | str) -> dict[tuple[str, float], list[float]]:
    return {
        (file, float(start)): vector.tolist()
        for shard in open_index(Path(path)).shards()
        for file, start, vector in zip(shard.files, shard.starts, shard.vectors, strict=True)
    }


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_shards_are_one_index(suffix: str, archive: Path) -> None:
    for number in (1, 2, 3):
        embed(f"{number}/3", part(number, 3), suffix)
    one = embed("1/1", NAMES, suffix).rename(f"one{suffix}")
    assert "8 recordings, 20 windows" in merge(".", output=f"all{suffix}")
    assert content(f"all{suffix}") == content(one)
    assert sorted(open_index(Path(f"all{suffix}")).settings.heard) == sorted(
        open_index(one).settings.heard
    )
    merge(".", output=f"all{suffix}")  # again
    added = make_index(list(map(Path, NAMES)), Path(f"all{suffix}"), CUT, Pretender())  # type: ignore[arg-type]
    assert (added.rows, added.new) == (20, 0)


def test_gaps_and_what_is_there_twice(archive: Path) -> None:
    cut = Path(NAMES[7]).read_bytes()
    Path(NAMES[7]).write_bytes(cut[: len(cut) // 2])
    first = embed("1/3", part(1, 3))
    embed("3/3", [*part(3, 3), *part(1, 3)[:1]])
    Path(NAMES[7]).write_bytes(cut)
    told = merge(".", ends=3)
    assert "Gap: shards that are not there: 1 (2/3 of x)" in told
    assert f"Gap: recordings without a row: {len(part(2, 3))} (" in told
    assert "rows that were there again and are written once: " in told
    merged = open_index(Path("all.npz"))
    assert sorted(merged.files()) == sorted(part(1, 3) + part(3, 3))
    assert len(merged) == len(content("all.npz"))
    merge(first, ends=2)  # it would lose recordings
    merge(first, more=("--overwrite",), ends=3)


def test_what_one_index_could_not_hear_another_may_have(archive: Path) -> None:
    whole = Path(NAMES[3]).read_bytes()
    Path(NAMES[3]).write_bytes(whole[: 3 * len(whole) // 4])
    embed("1/2", NAMES[:4])
    assert NAMES[3] in open_index(Path("x.shard-1-of-2.npz")).settings.unfinished
    merge(".", ends=3)
    Path(NAMES[3]).write_bytes(whole)
    embed("2/2", NAMES[3:])
    merge(".")
    assert content("all.npz") == content(embed("1/1", NAMES))


def test_recordings_of_one_name_in_two_folders(archive: Path) -> None:
    write_wav(archive / "a" / "call.wav", 5)
    write_wav(archive / "b" / "call.wav", 15)
    runs = []
    for folder in ("a", "b"):
        with pytest.MonkeyPatch.context() as there:
            there.chdir(archive / folder)
            runs.append(archive / folder / embed("1/1", ["call.wav"]))
    call("merge-runs", *runs, "-o", "all.npz")
    assert open_index(Path("all.npz")).files() == ["call.wav", str(archive / "b" / "call.wav")]


@pytest.mark.parametrize(
    ("runs", "output", "said"),
    [
        (("x.shard-1-of-2.npz", "y.npz"), "all.npz", "were made with other settings"),
        (("x.shard-1-of-2.npz",), "x.shard-1-of-2.npz", "is one of the indexes"),
        (("calls",), "all.npz", "has no indexes of shards (*.shard-1-of-4.npz)"),
        (("gone.npz",), "all.npz", "there is no such index"),
        (("x.shard-1-of-2.npz",), "all.jsonl", "is an index; name an --output-path"),
    ],
)
def test_what_cannot_be_merged(
    runs: tuple[str, ...], output: str, said: str, archive: Path
) -> None:
    embed("1/2", NAMES[:2])
    embed("2/2", NAMES[2:], window_seconds=5.0).rename("y.npz")
    result = call("merge-runs", *runs, "--output-path", output, ends=2)
    assert said in " ".join(result.split())
    assert not (archive / "all.npz").exists()
    assert np.load("x.shard-1-of-2.npz")["vectors"].shape == (2, 5)

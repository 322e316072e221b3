"""Both kinds of index give back what was written; the rows like a clip, exactly, in flat memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile
from commands import call, write_wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vector_indexes import SETTINGS, MakeIndex

from NatureLM.audio import AudioError
from NatureLM.audio.windows import iter_windows
from NatureLM.errors import UsageError
from NatureLM.results.shards import shard_of
from NatureLM.search.build import make_index
from NatureLM.search.index import (
    IndexSettings,
    nearest,
    open_index,
    query_windows,
    writer_of,
)
from tests.search.test_build import Pretender

KINDS = [".npz", ".parquet"]


@pytest.mark.parametrize("suffix", KINDS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 30),
    width=st.integers(1, 4),
    block=st.integers(1, 9),
    read=st.integers(1, 12),
)
def test_what_is_written_is_read(
    suffix: str, rows: int, width: int, block: int, read: int, make_index: MakeIndex
) -> None:
    vectors = np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)
    index = make_index(vectors, suffix, block)
    assert len(index) == rows
    assert index.settings.width == width
    files = [f"f{number // 4}.wav" for number in range(rows)]
    assert index.files() == list(dict.fromkeys(files))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("NatureLM.search.index.rows_of_a_block", lambda width: read)
        again = list(index.blocks())
    assert all(len(block.vectors) <= read for block in again)
    assert [file for one in again for file in one.files] == files
    assert [start for one in again for start in one.starts] == [5.0 * (n % 4) for n in range(rows)]
    assert all(np.array_equal(one.ends, one.starts + 10) for one in again)
    assert np.array_equal(
        np.concatenate([np.empty((0, width)), *(b.vectors for b in again)]), vectors
    )


def test_an_npz_is_plain_numpy(make_index: MakeIndex) -> None:
    vectors = np.arange(30, dtype=np.float32).reshape(6, 5)
    index = make_index(vectors)
    with np.load(index.path, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["vectors"], vectors)
        assert arrays["files"][arrays["file"]].tolist() == ["f0.wav"] * 4 + ["f1.wav"] * 2
        assert arrays["start"].tolist() == [0, 5, 10, 15, 0, 5]
        assert str(arrays["model"]) == "model@0123456789abcdef/encoder"


def test_a_parquet_is_a_plain_table(make_index: MakeIndex) -> None:
    import pyarrow.parquet as pq

    index = make_index(np.arange(30).reshape(6, 5), ".parquet")
    table = pq.read_table(index.path).to_pylist()
    assert table[5] == {
        "file": "f1.wav",
        "start": 5.0,
        "end": 15.0,
        "vector": [25.0, 26.0, 27.0, 28.0, 29.0],
        "model": "model@0123456789abcdef/encoder",
    }


@pytest.mark.parametrize("suffix", KINDS)
def test_other_files_are_named_and_refused(
    suffix: str, tmp_path: Path, make_index: MakeIndex
) -> None:
    whole = make_index(np.ones((40, 5)), suffix).path
    data = whole.read_bytes()
    for length in (0, 10, len(data) // 2, len(data) - 1):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(data[:length])
        with pytest.raises(UsageError, match=f"cut{suffix}"):
            open_index(cut)
    with pytest.raises(UsageError, match="no such index"):
        open_index(tmp_path / f"none{suffix}")


def test_files_of_others_are_refused(tmp_path: Path, make_index: MakeIndex) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    np.savez(tmp_path / "other.npz", vectors=np.ones((3, 5), np.float32))
    np.savez(tmp_path / "pickle.npz", vectors=np.array([{}], dtype=object))
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "other.parquet")
    np.savez_compressed(tmp_path / "small.npz", vectors=np.ones((3, 5), np.float32))
    for name, says in (
        ("other.npz", "it has no file, files"),
        ("pickle.npz", "cannot be mapped"),
        ("other.parquet", "is no index"),
        ("small.npz", "is compressed"),
    ):
        with pytest.raises(UsageError, match=says):
            open_index(tmp_path / name)
    for function in (open_index, writer_of):
        (tmp_path / "x.csv").touch()
        with pytest.raises(UsageError, match=r"\.npz or \.parquet"):
            function(tmp_path / "x.csv")


def test_a_newer_index_is_not_guessed_at() -> None:
    with pytest.raises(UsageError, match="newer version"):
        IndexSettings.from_json('{"schema_version": 99}', "x.npz")
    with pytest.raises(UsageError, match=r"x\.npz: its settings cannot be read"):
        IndexSettings.from_json("[]", "x.npz")


def test_large_arrays_get_large_headers(make_index: MakeIndex) -> None:
    """Members are written as files that may pass 4 GiB."""
    with ZipFile(make_index(np.ones((3, 5))).path) as archive:
        assert {member.extract_version for member in archive.infolist()} == {45}


WIDTH = 3


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_order_is_that_of_the_plain_way(
    suffix: str, data: st.DataObject, make_index: MakeIndex
) -> None:
    numbers = st.integers(-2, 2)  # few values, so that there are ties and vectors of no length
    vector = st.lists(numbers, min_size=WIDTH, max_size=WIDTH)
    rows = np.array(data.draw(st.lists(vector, min_size=1, max_size=30)), dtype=np.float64)
    queries = np.array(data.draw(st.lists(vector, min_size=1, max_size=3)), dtype=np.float64)
    top_k = data.draw(st.integers(1, 12))
    excluded = data.draw(st.sampled_from([None, "f0.wav", "f1.wav"]))
    block = data.draw(st.integers(1, 9))
    index = make_index(rows, suffix, data.draw(st.integers(1, 9)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("NatureLM.search.index.rows_of_a_block", lambda width: block)
        found = nearest(
            index,
            queries.astype(np.float32),
            top_k,
            is_wanted=lambda file: file != excluded,
        )

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        return 0.0 if lengths == 0 else round(float(a @ b / lengths), 6)

    naive = [
        (-max(cosine(row, query) for query in queries), number)
        for number, row in enumerate(rows)
        if f"f{number // 4}.wav" != excluded and row.any()
    ]
    wanted = sorted(naive)[:top_k]
    assert [round(match.similarity, 4) for match in found] == [
        pytest.approx(-similarity, abs=1e-4) for similarity, _ in wanted
    ]
    similar = {number: -similarity for similarity, number in naive}
    for match in found:
        number = int(match.file[1:-4]) * 4 + round(match.start / 5)
        assert similar[number] == pytest.approx(match.similarity, abs=1e-5)
    assert len({(match.file, match.start) for match in found}) == len(found)


def test_of_equal_rows_the_first_ones_are_taken(make_index: MakeIndex) -> None:
    index = make_index(np.ones((20, 4)))
    found = nearest(index, np.ones((1, 4), np.float32), 6)
    assert [(m.file, m.start) for m in found] == [
        *(("f0.wav", 5.0 * n) for n in range(4)),
        *(("f1.wav", 5.0 * n) for n in range(2)),
    ]


def test_numbers_that_are_none_are_like_nothing(make_index: MakeIndex) -> None:
    rows = np.array([[np.nan, 1], [np.inf, 1], [0, 0], [-1, -1], [1, 1]])
    found = nearest(make_index(rows), np.ones((1, 2), np.float32), 5)
    assert [round(match.similarity, 6) for match in found] == [1.0, 0.0, 0.0, -1.0]


def test_what_cannot_be_looked_for(make_index: MakeIndex, tmp_path: Path) -> None:
    index = make_index(np.ones((4, 5)))
    with pytest.raises(UsageError, match="--top-k is 0"):
        nearest(index, np.ones((1, 5), np.float32), 0)
    with pytest.raises(UsageError, match="have 5 numbers, those of the query 7"):
        nearest(index, np.ones((1, 7), np.float32))


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from NatureLM.search.index import nearest, open_index
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
query = np.ones((1, 256), np.float32)
for path in sys.argv[1:]:
    found = nearest(open_index(Path(path)), query, 20, is_wanted=lambda file: file != "f0.wav")
    print(peak(), found[0].file)
assert "torch" not in sys.modules
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_memory_is_flat(suffix: str, make_index: MakeIndex, tmp_path: Path) -> None:
    """100 thousand rows of 256 numbers, 102 MB, take as much as 10 thousand."""
    noise = np.random.default_rng(0)
    paths = []
    for rows in (10_000, 100_000):
        vectors = np.lib.stride_tricks.as_strided(  # the same numbers again and again
            noise.normal(size=(1, 256)).astype(np.float32), (rows, 256), (0, 4)
        )
        path = make_index(vectors, suffix, rows=4096).path
        paths.append(path.rename(tmp_path / f"{rows}{suffix}"))
    assert paths[1].stat().st_size > 100e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    small, large = (float(line.split()[0]) for line in done.stdout.splitlines())
    print(f"{suffix}: {small:.0f} MB, then {large:.0f} MB")
    assert large < small + 20


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).normal(size=(25 * 16000, 2)), 16000)
    return path


@pytest.mark.parametrize("channel", ["mean", "2"])
def test_a_part_is_the_window_at_its_place(clip: Path, channel: str) -> None:
    settings = replace(SETTINGS, channel=channel)
    (part,) = query_windows(clip, settings, start=5.0, end=15.0)
    window = list(iter_windows(clip, hop_seconds=5.0, channel=channel))[1]
    assert np.abs(part.samples - window.samples).max() < 1e-6
    whole = query_windows(clip, settings)
    assert [one.end - one.start for one in whole] == [10.0, 10.0, 5.0]


def test_slowed_sound_is_slowed(clip: Path) -> None:
    settings = replace(SETTINGS, time_expansion=2.0)
    (part,) = query_windows(clip, settings, start=0.0, end=5.0)
    window = next(iter_windows(clip, time_expansion=2.0))
    assert part.end == 10.0
    middle = slice(1000, -1000)  # at its ends, a resampler hears what is beside a part, or nothing
    assert np.abs(part.samples[middle] - window.samples[middle]).max() < 0.01


def test_what_makes_no_query(clip: Path) -> None:
    with pytest.raises(UsageError, match="--end is 3 and must be after --start, 4"):
        query_windows(clip, SETTINGS, start=4.0, end=3.0)
    with pytest.raises(UsageError, match=r"name a\s+part of it with --start and --end"):
        query_windows(clip, replace(SETTINGS, window_seconds=0.5))
    with pytest.raises(AudioError, match="starts at 40 s"):
        query_windows(clip, SETTINGS, start=40.0, end=41.0)


# Shards as one index: what is there twice, what is not there

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
        for block in open_index(Path(path)).blocks()
        for file, start, vector in zip(block.files, block.starts, block.vectors, strict=True)
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

"""Both kinds of index give back what was written, and say what is wrong with other files."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vector_indexes import MakeIndex

from NatureLM.errors import UsageError
from NatureLM.search.index import IndexSettings, open_index, writer_of

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
        patch.setattr("NatureLM.search.index.rows_of_a_shard", lambda width: read)
        again = list(index.shards())
    assert all(len(shard.vectors) <= read for shard in again)
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

"""Example clips: never the clip under test, never its recording, and clear words where too few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from NatureLM.config.base import TableSource
from NatureLM.data.clip import Clip
from NatureLM.data.sample import Sample, open_samples
from NatureLM.errors import UsageError
from NatureLM.experiments.plan import FewShotPool

MakeSample = Callable[..., Sample]


@given(
    clusters=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    n=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_never_the_clip_nor_its_recording(
    clusters: list[int], n: int, seed: int, make_sample: MakeSample
) -> None:
    pool = [make_sample(f"s{i}", cluster=f"c{c}") for i, c in enumerate(clusters)]
    support = FewShotPool(pool, n, seed, "pool")
    short = []
    for sample in pool:
        others = [one.clip for one in pool if one.cluster != sample.cluster]
        if len(others) < n:
            short.append(sample)
            with pytest.raises(UsageError, match=f"n_examples is {n}, and pool has only"):
                support.examples("Wolf", sample)
            continue
        found = support.examples("Wolf", sample)
        assert len(set(found)) == n
        assert set(found) <= set(others)
    if short:
        with pytest.raises(UsageError, match="n_examples"):
            support.check(["Wolf"], pool)
    else:
        support.check(["Wolf"], pool)


def test_different_recordings_come_first(make_sample: MakeSample) -> None:
    pool = [make_sample(f"s{i}", cluster=f"c{i // 5}") for i in range(15)]
    found = FewShotPool(pool, 3, 0, "pool").examples("Wolf", make_sample("tested"))
    assert {int(clip.key[3:]) // 5 for clip in found} == {0, 1, 2}


def test_prompts_share_their_examples(make_sample: MakeSample) -> None:
    """Which saves encodings: only samples of the same recordings see others."""
    pool = [make_sample(f"s{i}") for i in range(20)]
    support = FewShotPool(pool, 2, 0, "pool")
    usual = support.examples("Wolf", make_sample("tested"))
    others = [support.examples("Wolf", sample) for sample in pool]
    assert sum(one != usual for one in others) == 2


def test_the_seed_and_nothing_else_chooses(make_sample: MakeSample) -> None:
    pool = [make_sample(f"s{i}") for i in range(30)]
    tested = make_sample("tested")
    chosen = [FewShotPool(pool, 3, seed, "pool").examples("Wolf", tested) for seed in range(4)]
    assert len(set(chosen)) > 1
    assert chosen[0] == FewShotPool(pool[::-1], 3, 0, "pool").examples("Wolf", tested)


def test_the_same_file_under_another_name_is_the_same_sound(make_sample: MakeSample) -> None:
    tested = make_sample("tested")
    copy = Sample("x", "e", "Wolf", Clip("support:e/x", tested.clip.source), "another cluster")
    with pytest.raises(UsageError, match=r"only 0 clips of 'Wolf' beside those of the recording"):
        FewShotPool([copy], 1, 0, "pool").examples("Wolf", tested)


def test_the_same_file_by_another_path_is_the_same_sound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder of another table, by an absolute path, by a link."""
    monkeypatch.chdir(tmp_path)
    for folder in ("data", "examples"):
        Path(folder).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    tables = {
        "data/tested.csv": ["x.wav"],
        "examples/a.csv": ["../data/x.wav", f"{tmp_path}/data/x.wav", "../linked/x.wav"],
        "examples/b.csv": ["../data/y.wav"],
    }
    for name, paths in tables.items():
        Path(name).write_text("\n".join(["file,label", *(f"{path},Wolf" for path in paths)]))
    (tested,) = open_samples(TableSource(path="data/tested.csv")).samples
    same, other = (
        open_samples(TableSource(path=f"examples/{name}.csv"), key_prefix="support:").samples
        for name in "ab"
    )
    with pytest.raises(UsageError, match=r"only 0 clips of 'Wolf' beside those of the recording"):
        FewShotPool(same, 1, 0, "examples").examples("Wolf", tested)
    assert FewShotPool([*same, *other], 1, 0, "examples").examples("Wolf", tested) == (
        other[0].clip,
    )


def test_no_clip_of_a_species(make_sample: MakeSample) -> None:
    with pytest.raises(UsageError, match=r"no clip of 'Wren' \(its labels: Wolf\)"):
        FewShotPool([make_sample("a")], 1, 0, "pool").check(["Wolf", "Wren"], [make_sample("b")])

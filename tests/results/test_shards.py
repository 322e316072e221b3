"""Shards by the names of recordings, and manifests: written, read, resumed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from commands import write_wav
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from NatureLM.data.table import DataError
from NatureLM.errors import UsageError
from NatureLM.field.context import FieldClock
from NatureLM.results import manifest as manifests
from NatureLM.results.manifest import (
    Entry,
    Made,
    listed_in,
    make_manifest,
    read_manifest,
    write_manifest,
)
from NatureLM.results.rows import OutputError
from NatureLM.results.shards import Shard, ShardPicker, name_below, shard_of

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=()), min_size=1)


@given(NAMES, st.integers(1, 500))
def test_a_name_is_in_exactly_one_shard_however_it_is_composed(name: str, of: int) -> None:
    holding = [i for i in range(1, of + 1) if Shard(i, of).holds(name)]
    assert len(holding) == 1
    assert shard_of(unicodedata.normalize("NFD", name), of) == holding[0]


@given(st.lists(NAMES, unique=True), st.lists(NAMES, unique=True), st.integers(1, 9))
def test_what_is_added_moves_nothing(names: list[str], more: list[str], of: int) -> None:
    before = {name: shard_of(name, of) for name in names}
    after = {name: shard_of(name, of) for name in sorted({*names, *more})}
    assert before.items() <= after.items()


def test_shards_are_of_one_size_and_the_same_on_every_machine() -> None:
    counts = [0] * 8
    for number in range(8000):
        counts[shard_of(f"site/{number}.wav", 8) - 1] += 1
    assert all(850 < count < 1150 for count in counts)
    assert [shard_of(name, 7) for name in ("a.wav", "site 1/Ä.flac", "b.wav")] == [7, 3, 3]


def test_a_name_counts_from_the_folder_that_was_named(tmp_path: Path) -> None:
    folders = [str(tmp_path / "card"), str(tmp_path)]
    assert name_below(tmp_path / "card" / "a" / "x.wav", folders) == "a/x.wav"
    assert name_below(tmp_path / "cards" / "x.wav", folders) == "cards/x.wav"
    assert name_below(Path("/elsewhere/x.wav"), folders) == "x.wav"


@pytest.mark.parametrize("text", ["0/4", "5/4", "a/b", "1", "1/", "-1/4", "1/4/2", "", "1/100001"])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="must be i/n"):
        Shard.parse(text)


def test_each_shard_has_a_file_of_its_own() -> None:
    assert Shard.parse("3/16").file(Path("x/y.z.jsonl")) == Path("x/y.z.shard-3-of-16.jsonl")
    assert str(Shard(3, 16)) == "3/16"


# Manifests

TEXT = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\ufeff")
)
CELL = TEXT.map(lambda text: unicodedata.normalize("NFC", text).strip())
NUMBER = st.none() | st.floats(0, 1e6).map(lambda value: round(value, 6))
ENTRIES = st.lists(
    st.builds(
        Entry,
        path=CELL.filter(bool),
        size=st.none() | st.integers(0, 2**45),
        modified=CELL,
        seconds=NUMBER,
        sample_rate=NUMBER,
        channels=st.none() | st.integers(1, 99),
        local_time=CELL,
        utc_time=CELL,
        clock_source=CELL,
        site=CELL,
        header=CELL,
        error=CELL,
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(entries=ENTRIES)
def test_what_is_written_is_read(
    entries: list[Entry], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("made") / f"list{suffix}"
    assert write_manifest(entries, path) == len(entries)
    assert list(read_manifest(path)) == entries


@pytest.fixture
def card(tmp_path: Path) -> Path:
    write_wav(tmp_path / "card" / "site1" / "20240510_053000.wav", 25)
    write_wav(tmp_path / "card" / "=1+1.wav", 3)
    (tmp_path / "card" / "empty.wav").touch()
    return tmp_path / "card"


def made(card: Path, target: Path, **options: object) -> Made:
    found = sorted(card.rglob("*.wav"))
    return make_manifest(found, target, FieldClock(), workers=4, **options)  # type: ignore[arg-type]


def test_a_manifest_says_what_headers_and_names_say(card: Path) -> None:
    target = card.parent / "list.csv"
    assert (made(card, target).recordings, made(card, target).errors) == (3, 1)
    by_path = {one.path: one for one in read_manifest(target)}
    assert by_path["card/=1+1.wav"].seconds == 3
    night = by_path["card/site1/20240510_053000.wav"]
    assert (night.seconds, night.sample_rate, night.channels) == (25, 8000, 1)
    assert (night.local_time, night.clock_source) == ("2024-05-10T05:30:00", "name")
    assert by_path["card/empty.wav"].error.startswith("the file is empty")
    seconds = {path: entry.seconds for path, entry in listed_in(target)}
    assert sorted(seconds) == sorted(card.rglob("*.wav"))
    assert [seconds[card / one] for one in ("=1+1.wav", "empty.wav")] == [3, None]


def test_nothing_is_measured_twice(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = card.parent / "list.parquet"
    measured: list[str] = []
    probe = manifests.probe

    def stopping(path: Path) -> object:
        measured.append(path.name)
        if stops and len(measured) > 1:
            raise KeyboardInterrupt
        return probe(path)

    monkeypatch.setattr(manifests, "probe", stopping)
    monkeypatch.setattr(manifests, "_AT_A_TIME", 1)
    stops = True
    with pytest.raises(KeyboardInterrupt):
        made(card, target)
    assert [one.name for one in card.parent.glob("list*")] == ["list.parquet.parts.jsonl"]
    stops = False
    assert made(card, target).kept == 1
    assert measured.count(measured[0]) == 1
    assert [one.name for one in card.parent.glob("list*")] == ["list.parquet"]
    measured.clear()
    write_wav(card / "new.wav", 1)
    assert made(card, target).kept == 2
    assert sorted(measured) == ["empty.wav", "new.wav"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "a.wav\r\nsub/b.wav\n\n"),
        ("list.csv", "path\na.wav\nsub/b.wav\n"),
        ("list.csv", "Site;File;Duration (s)\nx;a.wav;1,5\ny;sub\\b.wav;\n"),
    ],
)
def test_lists_made_by_hand_are_read(name: str, content: str, tmp_path: Path) -> None:
    write_wav(tmp_path / "sub" / "b.wav", 1)
    (tmp_path / name).write_text(content)
    listed = [path for path, _ in listed_in(tmp_path / name)]
    assert listed == [tmp_path / "a.wav", tmp_path / "sub" / "b.wav"]


@pytest.mark.parametrize("name", ["list.csv", "list.txt", "list.parquet"])
def test_of_what_is_not_wanted_nothing_is_looked_at(name: str, tmp_path: Path) -> None:
    write_manifest((Entry(f"{number}.wav", size=number) for number in range(2000)), tmp_path / name)
    wanted = [tmp_path / f"{number}.wav" for number in (3, 1024, 1999)]
    found = dict(listed_in(tmp_path / name, wanted.__contains__))
    assert list(found) == wanted
    assert list(listed_in(tmp_path / name, lambda one: False)) == []


def test_of_shards_each_recording_counts_once(tmp_path: Path) -> None:
    names = [f"{number}.wav" for number in (*range(100), *range(50))]
    picker = ShardPicker(Shard(2, 3), [tmp_path])
    held = {name for name in names if picker.holds(tmp_path / name)}
    assert held == {name for name in names if shard_of(name, 3) == 2}
    assert (sum(picker.counts()), picker.counts()[1]) == (100, len(held))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("list.csv", "species\nx\n", "has no column path"),
        ("list.csv", "path,seconds\nx,long\n", "line 2: seconds is 'long'"),
        ("list.csv", "path,seconds\n,1\n", "line 2: has no path"),
        ("list.txt", "\n", "names no recording"),
        ("list.parquet", "x", "cannot be read as Parquet"),
    ],
)
def test_lists_that_are_none(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        list(read_manifest(tmp_path / name))


def test_tables_of_others_are_left_alone(card: Path) -> None:
    target = card.parent / "list.csv"
    target.write_text("path,mine\nx,1\n")
    with pytest.raises(OutputError, match="not made by `naturelm manifest`"):
        made(card, target)
    assert made(card, target, overwrite=True).recordings == 3

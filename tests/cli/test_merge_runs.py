"""`naturelm merge-runs`: shards as one run, what is there twice, what is not there, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from commands import FakePipeline, naturelm, rows, write_wav
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import Result

from NatureLM.results import places
from NatureLM.results.detections import ResultFile
from NatureLM.results.rows import Row, from_line

ASK = ("infer", "--manifest", "list.csv", "-q", "Who?", "-q", "What?")
SOME = ("site1/1.wav", "site0/0.wav", "site1/empty.wav", "cuckoo.wav")
SHARDS = ("1/3", "2/3", "3/3")
PATHS = st.text(st.characters(exclude_characters="\0"), min_size=1).map(
    lambda path: path.replace("/", os.sep)
)


@pytest.fixture
def archive(folder: Path) -> Path:
    """The current folder, with thirteen recordings in `calls`, of which one is empty."""
    for number in range(10):
        write_wav(folder / "calls" / f"site{number % 3}" / f"{number}.wav", 1 + 3 * number)
    (folder / "calls" / "site1" / "empty.wav").touch()
    assert naturelm("manifest", "calls", "-o", "list.csv").exit_code == 3
    return folder


def ask(shard: str, *more: str) -> Path:
    """The answers of a shard."""
    assert naturelm(*ASK, "--shard", shard, "--output-path", "x.jsonl", *more).exit_code in (0, 3)
    return Path(f"x.shard-{shard.replace('/', '-of-')}.jsonl")


def merge(*runs: object, more: tuple[str, ...] = ("--manifest", "list.csv")) -> Result:
    return naturelm("merge-runs", *runs, "--output-path", "all.jsonl", *more)


def test_shards_are_row_for_row_one_run(archive: Path, asker: FakePipeline) -> None:
    files = [ask(shard) for shard in SHARDS]
    assert naturelm(*ASK, "--output-path", "one.jsonl").exit_code == 3
    result = merge(*reversed(files))
    assert result.exit_code == 3  # one recording is empty
    assert "recordings that could not be read: 1 (calls/site1/empty.wav)" in result.stderr
    assert "13 recordings, " in result.stderr
    assert result.stderr.count("Gap:") == 1
    assert rows("all.jsonl") == rows("one.jsonl")
    records = [json.loads(Path(f"{name}.jsonl.run.json").read_text()) for name in ("all", "one")]
    assert records[0].pop("asked") == {"merged": 3}
    assert records[0] == records[1]


def test_without_a_list_recordings_come_in_the_order_of_paths(
    archive: Path, asker: FakePipeline
) -> None:
    for shard in SHARDS:
        ask(shard)
    naturelm(*ASK, "--output-path", "one.jsonl")
    assert merge(".", more=()).exit_code == 3
    assert rows("all.jsonl") == rows("one.jsonl")


def test_what_was_merged_is_a_result_file(archive: Path, asker: FakePipeline) -> None:
    (archive / "calls" / "site1" / "empty.wav").unlink()
    naturelm("manifest", "calls", "-o", "list.csv")
    files = [ask(shard) for shard in SHARDS]
    assert merge(*files).exit_code == 0
    before = Path("all.jsonl").read_bytes()
    assert merge(*files).exit_code == 0  # again: the same
    assert Path("all.jsonl").read_bytes() == before
    assert naturelm("export", "all.jsonl", "--format", "csv").exit_code == 0
    assert naturelm("events", "all.jsonl").exit_code == 0
    assert ResultFile("all.jsonl").failed == 0
    asked = len(asker.asked)
    assert naturelm(*ASK, "--output-path", "all.jsonl").exit_code == 0
    assert len(asker.asked) == asked
    again = merge(*files)
    assert again.exit_code == 2  # it may hold rows of its own now
    assert "was not merged of such runs" in again.stderr


def test_gaps_are_named_and_counted(archive: Path, asker: FakePipeline) -> None:
    first = ask("1/2")
    sizes = json.loads(Path(f"{first}.run.json").read_text())["asked"]["recordings_of_shards"]
    lines = first.read_bytes().splitlines(keepends=True)
    short, gone = (json.loads(lines[n])["audio_path"] for n in (0, -1))
    kept = [one for one in lines[1:] if json.loads(one)["audio_path"] != gone]
    first.write_bytes(b"".join(kept))
    result = merge(first)
    assert result.exit_code == 3
    said = result.stderr
    assert f"Gap: shards that are not there: 1 (2/2, of {sizes[1]} recordings)" in said
    assert f"1/2: rows of {sizes[0] - 1} of {sizes[0]} recordings" in said
    assert f"recordings without a row: {sizes[1] + 1} (" in said
    assert f"recordings with too few windows for their length: 1 ({short}: " in said


def test_what_is_there_twice_is_written_once(archive: Path, asker: FakePipeline) -> None:
    files = [ask(shard) for shard in SHARDS]
    naturelm(*ASK, "--output-path", "one.jsonl")
    other = rows("one.jsonl")
    other[0]["text"] = "another"
    Path("one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    result = merge(*files, "one.jsonl")
    answers = sum("error" not in row for row in other)
    assert f"written once: {answers}" in result.stderr
    assert "another answer; the run named first counts: 1 (" in result.stderr
    assert [row["audio_path"] for row in rows("all.jsonl")] == [one["audio_path"] for one in other]
    assert rows("all.jsonl")[0]["text"] != "another"


def test_what_one_run_could_not_read_another_may_have(archive: Path, asker: FakePipeline) -> None:
    files = [ask(shard) for shard in SHARDS]
    write_wav(archive / "calls" / "site1" / "empty.wav", 12)
    naturelm("infer", "calls/site1/empty.wav", *ASK[3:], "--output-path", "mended.jsonl")
    assert merge(*files, "mended.jsonl").exit_code == 0
    assert not [row for row in rows("all.jsonl") if "error" in row]


@pytest.mark.parametrize("seen", [20, 70])
def test_what_was_stopped_goes_on_where_it_was(
    seen: int, archive: Path, asker: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are looked at twice: once for where they are, once to be written."""
    files = [ask(shard) for shard in SHARDS]
    assert merge(*files).exit_code == 3
    whole = Path("all.jsonl").read_bytes()
    monkeypatch.setattr("NatureLM.results.places._KEPT_EVERY", 2)
    monkeypatch.setattr("NatureLM.results.shards._KEPT_EVERY", 0)
    read: list[str] = []

    def stopping(line: bytes, name: str, number: int) -> Row:
        read.append(name)
        if len(read) == stop:
            raise KeyboardInterrupt
        return from_line(line, name, number)

    stop = 0
    for module in ("places", "shards"):
        monkeypatch.setattr(f"NatureLM.results.{module}.from_line", stopping)
    Path("all.jsonl").unlink()
    assert merge(*files).exit_code == 3
    rows_read = len(read) - len(files)  # of each file the first row is looked at before
    assert Path("all.jsonl").read_bytes() == whole
    read.clear()
    stop = len(files) + seen
    assert merge(*files).exit_code == 130
    assert Path("all.jsonl").read_bytes() == whole  # as it was
    assert Path("all.jsonl.parts").is_dir()
    read.clear()
    stop = 0
    again = merge(*files)
    assert again.exit_code == 3
    assert "13 recordings, " in again.stderr
    assert "could not be read: 1 (" in again.stderr
    assert Path("all.jsonl").read_bytes() == whole
    assert len(read) <= len(files) + rows_read - seen + 8
    assert not list(archive.glob("*.parts"))


def test_files_that_have_grown_are_read_anew(archive: Path, asker: FakePipeline) -> None:
    first = ask("1/3")
    (archive / "all.jsonl.parts").mkdir()
    (archive / "all.jsonl.parts" / "places.sqlite").write_bytes(b"torn" * 100)
    (archive / "all.jsonl.parts" / "rows.jsonl").write_bytes(b"torn")
    assert merge(first).exit_code == 3
    assert merge(first, ask("2/3"), ask("3/3")).exit_code == 3
    assert len(ResultFile("all.jsonl").names) == 13


def test_lines_of_others_are_named_and_nothing_stays(archive: Path, asker: FakePipeline) -> None:
    first = ask("1/3")
    first.write_bytes(first.read_bytes() + b'{"mine": 1}\n')
    result = merge(first)
    assert result.exit_code == 2
    assert "this is no row of `naturelm infer`" in result.stderr
    assert not list(archive.glob("all*"))


@given(st.lists(PATHS, max_size=8))
def test_places_are_in_the_order_of_the_parts_of_paths(paths: list[str]) -> None:
    by_parts = sorted(paths, key=lambda path: path.split(os.sep))
    assert sorted(paths, key=places._bytes) == by_parts
    assert [places._text(places._bytes(path)) for path in paths] == paths


def test_runs_of_other_settings_are_refused(archive: Path, asker: FakePipeline) -> None:
    first = ask("1/3")
    second = ask("2/3", "--merging-alpha", "0.5")
    result = merge(first, second)
    assert result.exit_code == 2
    assert "was made with other settings than x.shard-1-of-3.jsonl" in result.stderr
    assert "merging_alpha: 1.0 there, 0.5 now" in result.stderr
    assert not Path("all.jsonl").exists()


@pytest.mark.parametrize(
    ("runs", "output", "said"),
    [
        (("gone.jsonl",), "all.jsonl", "no such file of answers"),
        (("calls",), "all.jsonl", "has no answers of shards"),
        (("one.jsonl",), "one.jsonl", "is one of the runs"),
        (("one.jsonl",), "list.csv", "was not merged of such runs"),
    ],
)
def test_what_cannot_be_merged(
    runs: tuple[str, ...], output: str, said: str, archive: Path, asker: FakePipeline
) -> None:
    naturelm(*ASK, "--output-path", "one.jsonl")
    before = Path("list.csv").read_bytes()
    result = naturelm("merge-runs", *runs, "--output-path", output)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert Path("list.csv").read_bytes() == before


def test_runs_from_other_folders(
    archive: Path, asker: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask("1/2").resolve()
    (archive / "other").mkdir()
    monkeypatch.chdir(archive / "other")
    here = ("infer", "--manifest", "../list.csv", *ASK[3:], "--shard", "2/2")
    naturelm(*here, "--output-path", "y.jsonl")
    monkeypatch.chdir(archive)
    result = merge(first, "other/y.shard-2-of-2.jsonl")
    assert "without a row" not in result.stderr
    merged = ResultFile("all.jsonl")
    assert {Path(one).resolve() for one in merged.names} == {
        one.resolve() for one in (archive / "calls").rglob("*.*")
    }


def test_surveys_are_merged(archive: Path, nano_folder: Path) -> None:
    (archive / "q.yml").write_text('columns: {bird: {question: "A bird?", type: yes_no}}\n')
    Path("list.txt").write_text("".join(f"calls/{one}\n" for one in ("wolf.WAV", *SOME)))
    model = ("--model", str(nano_folder / "checkpoint"), "--manifest", "list.txt", "--quiet")
    for output, more in (("s", ("--shard", "1/2")), ("s", ("--shard", "2/2")), ("one", ())):
        done = naturelm("survey", "q.yml", *model, "--output-path", output, *more)
        assert done.exit_code in (0, 3), done.stderr
    assert sorted(one.name for one in Path("s").glob("*.csv")) == [
        "survey.shard-1-of-2.csv",
        "survey.shard-2-of-2.csv",
    ]
    assert merge("s", more=("--manifest", "list.txt")).exit_code == 3
    merged, one = rows("all.jsonl"), rows("one/survey.jsonl")
    for both in zip(merged, one, strict=True):  # sums of other batches round otherwise
        confidences = [row.pop("confidences", {}) for row in both]
        assert confidences[0] == pytest.approx(confidences[1], abs=2e-6)
    assert merged == one

"""Tables of every kind become rows; what is wrong in one is named with file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from labelled_sound import file_clip

from NatureLM.config.schema import TableConfig
from NatureLM.data.dataset import DataError
from NatureLM.data.sample import load_examples
from NatureLM.training.batches import with_mixable_labels
from NatureLM.training.samples import merge_labels


def load(path: Path, **settings: Any):
    return load_examples(TableConfig(path=str(path), **settings))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_jsonl(tmp_path: Path):
    rows = [
        {"path": "a.wav", "start": 1, "end": 2.5, "prompt": ["P", "Q"], "answer": "Wren",
         "task": "name", "dataset": "d", "weight": 2},
        {"prompt": "Say yes.", "answer": "yes"},
    ]  # fmt: skip
    one, two = load(write(tmp_path / "t.jsonl", rows))
    assert one.clips == (file_clip(str(tmp_path / "a.wav"), 1.0, 2.5),)
    assert (one.prompts, one.answer, one.task, one.dataset, one.weight) == (
        ("P", "Q"), "Wren", "name", "d", 2.0,
    )  # fmt: skip
    assert two.clips == ()
    assert one.id != two.id


def test_annotations_of_the_reference(tmp_path: Path):
    rows = [
        {"path": "/far/a.wav", "text": "Wren", "prompt": "Which?", "task": "cmn"},
        {"files": ["/far/b.wav", "c.wav"], "text": "Owl", "prompt": "Which?", "task": "icl"},
    ]
    path = tmp_path / "ann.json"
    path.write_text(json.dumps({"annotation": rows}))
    one, two = load(path)
    assert one.answer == "Wren"
    assert one.clips == (file_clip("/far/a.wav"),)
    assert two.clips == (file_clip("/far/b.wav"), file_clip(str(tmp_path / "c.wav")))


def test_csv_with_own_column_names_and_a_filter(tmp_path: Path):
    path = tmp_path / "meta.csv"
    path.write_text(
        "file,common_name,split,offset\na.wav,Wren,train,3\nb.wav,Owl,test,\nc.wav,Owl,valid,\n"
    )
    rows = load(
        path,
        columns={"answer": "common_name"},
        where={"split": ["train", "valid"]},
        prompts=["Which species?"],
        task="name",
        audio_root=str(tmp_path / "audio"),
    )
    assert [row.answer for row in rows] == ["Wren", "Owl"]
    assert rows[0].clips == (file_clip(str(tmp_path / "audio" / "a.wav"), 3.0),)
    assert {row.prompts for row in rows} == {("Which species?",)}
    assert {row.task for row in rows} == {"name"}


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"path": ["a.wav"], "prompts": [["P", "Q"]], "answer": ["Wren"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    (row,) = load(tmp_path / "t.parquet")
    assert (row.prompts, row.answer) == (("P", "Q"), "Wren")


def test_folders_of_class_names(clips_folder: Path):
    rows = load(clips_folder)
    assert len(rows) == 12
    assert {row.answer for row in rows} == {"Cuckoo", "Rain", "Wolf"}
    assert all(Path(row.clips[0].source.name).is_file() for row in rows)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"path": "a.wav"}, r"row 2: no answer"),
        ({"answer": "x", "weight": "much"}, r"row 2: weight must be a number .* got 'much'"),
        ({"answer": "x", "weight": -1}, r"row 2: weight must be a number of 0 or more"),
        ({"path": "a", "answer": "x", "start": 3, "end": 2}, r"row 2: end 2 is not after start 3"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: dict[str, Any], message: str):
    path = write(tmp_path / "t.jsonl", [{"answer": "good"}, line])
    with pytest.raises(DataError, match=message):
        load(path)


def test_bad_tables_are_named(tmp_path: Path):
    (tmp_path / "broken.jsonl").write_text('{"answer": "x"}\n{"answer"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2: not valid JSON"):
        load(tmp_path / "broken.jsonl")
    with pytest.raises(DataError, match="there is no such table"):
        load(tmp_path / "gone.csv")
    (tmp_path / "t.txt").write_text("")
    with pytest.raises(DataError, match=r"tables end in \.jsonl"):
        load(tmp_path / "t.txt")
    good = write(tmp_path / "t.jsonl", [{"answer": "x", "split": "a"}])
    with pytest.raises(DataError, match="no row is left by `where`"):
        load(good, where={"split": "b"})
    with pytest.raises(DataError, match="asks for column 'fold'; there are answer, split"):
        load(good, where={"fold": "1"})
    with pytest.raises(DataError, match="columns maps reply; known are path"):
        load(good, columns={"reply": "answer"})


@pytest.mark.parametrize(("balance", "ratio"), [("rows", 4.0), ("answers", 1.0), ("sqrt", 2.0)])
def test_balance(tmp_path: Path, balance: str, ratio: float):
    rows = [{"answer": "common"}] * 4 + [{"answer": "rare"}]
    loaded = load(write(tmp_path / "t.jsonl", rows), balance=balance)
    common = sum(row.weight for row in loaded if row.answer == "common")
    rare = sum(row.weight for row in loaded if row.answer == "rare")
    assert common / rare == pytest.approx(ratio)


def test_labels():
    assert merge_labels(("Wolf", "Cuckoo", "Wolf")) == ("Cuckoo", "Wolf")
    assert merge_labels(("None", "Owl")) == ("Owl",)
    assert merge_labels(("None", "None")) == ("None",)


def test_tasks_whose_clips_may_be_mixed(tmp_path: Path):
    rows = [{"answer": "A, B ,", "task": "list"}, {"answer": "yes", "task": "is"}]
    loaded = with_mixable_labels(load(write(tmp_path / "t.jsonl", rows)), ["list"])
    assert [row.labels for row in loaded] == [("A", "B"), ()]

"""Tables and datasets of every kind become rows to train on; what is wrong is named."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from labelled_sound import file_clip

from NatureLM.audio import AudioError
from NatureLM.audio.windows import read_clip
from NatureLM.config.schema import TableConfig
from NatureLM.data.sample import FileSource, load_examples
from NatureLM.data.table import DataError
from NatureLM.training.data import with_mixable_labels
from NatureLM.training.samples import AudioCache, merge_labels

datasets = pytest.importorskip("datasets")


def load(path: Path | str, **settings: Any):
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


CLASSES = ["Cuckoo", "Rain", "Wolf"]
READ = AudioCache(16000, max_bytes=0).read


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory):
    """Datasets made from Parquet files are kept there."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def made(clips_folder: Path) -> Any:
    """Twelve rows with their sound as bytes, class labels, and a column of bare samples."""
    files = sorted(clips_folder.glob("*/*.wav"))
    columns = {
        "audio": [{"bytes": path.read_bytes(), "path": path.name} for path in files],
        "label": [CLASSES.index(path.parent.name) for path in files],
        "question": ["What is it?"] * len(files),
        "split_number": [number % 4 for number in range(len(files))],
        "samples": [soundfile.read(path, dtype="float32")[0] for path in files],
        "sampling_rate": [16000] * len(files),
    }
    features = datasets.Features(
        {
            "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "label": datasets.ClassLabel(names=CLASSES),
            "question": datasets.Value("string"),
            "split_number": datasets.Value("int64"),
            "samples": datasets.Sequence(datasets.Value("float32")),
            "sampling_rate": datasets.Value("int64"),
        }
    )
    rows = datasets.Dataset.from_dict(columns, features=features)
    return rows.cast_column("audio", datasets.Audio())


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows in all forms that a folder may have."""
    root = tmp_path_factory.mktemp("forms")
    made.save_to_disk(str(root / "one"))
    datasets.DatasetDict({"train": made, "test": made.select(range(3))}).save_to_disk(
        str(root / "splits")
    )
    (root / "parquet" / "data").mkdir(parents=True)
    made.to_parquet(str(root / "parquet" / "data" / "train-00000-of-00001.parquet"))
    return {
        "save_to_disk": root / "one",
        "splits": root / "splits",
        "arrow folder": _only_arrow(root / "one", root / "arrow"),
        "arrow file": root / "arrow" / "data.arrow",
        "parquet folder": root / "parquet",
        "parquet file": root / "parquet" / "data" / "train-00000-of-00001.parquet",
    }


def _only_arrow(source: Path, folder: Path) -> Path:
    folder.mkdir()
    (file,) = source.glob("*.arrow")
    (folder / "data.arrow").write_bytes(file.read_bytes())
    return folder


FORMS = ["save_to_disk", "splits", "arrow folder", "arrow file", "parquet folder", "parquet file"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(saved, clips_folder: Path, form: str):
    rows = load(saved[form], **({"split": "train"} if form == "splits" else {}))
    files = sorted(clips_folder.glob("*/*.wav"))
    assert [row.answer for row in rows] == [path.parent.name for path in files]
    assert {row.prompts for row in rows} == {("What is it?",)}
    assert len({row.id for row in rows}) == len({row.clips for row in rows}) == 12
    for row, file in zip(rows, files, strict=True):
        (clip,) = row.clips
        assert np.array_equal(READ(clip), read_clip(file))


def test_splits(saved):
    assert len(load(saved["splits"], split="test")) == 3
    with pytest.raises(DataError, match="no split is named; set `split` to one of train, test"):
        load(saved["splits"])
    with pytest.raises(DataError, match="there is no 'valid'; set `split` to one of train, test"):
        load(saved["splits"], split="valid")
    with pytest.raises(DataError, match="Unknown split"):
        load(saved["parquet folder"], split="valid")


def test_where_and_columns(saved):
    rows = load(
        saved["save_to_disk"],
        where={"split_number": "1"},
        columns={"audio": "samples", "answer": "question"},
        prompts=["Which?"],
    )
    assert len(rows) == 3
    assert {row.answer for row in rows} == {"What is it?"}
    others = load(saved["save_to_disk"], where={"split_number": "1"})
    for bare, encoded in zip(rows, others, strict=True):
        np.testing.assert_allclose(READ(bare.clips[0]), READ(encoded.clips[0]), atol=1e-4)
    with pytest.raises(DataError, match="asks for column 'fold'; there are label, question"):
        load(saved["save_to_disk"], where={"fold": "1"})
    with pytest.raises(DataError, match=r"columns\.audio is 'sound'; there are audio, label"):
        load(saved["save_to_disk"], columns={"audio": "sound"})


def test_stretches_and_paths(clips_folder: Path, tmp_path: Path):
    """A dataset may name files instead of holding them, and clips may be parts of them."""
    rows = {"audio": [{"bytes": None, "path": "Wolf/3.wav"}], "start": [0.1], "end": [0.4]}
    made = datasets.Dataset.from_dict({**rows, "answer": ["Wolf"]})
    made.save_to_disk(str(tmp_path / "paths"))
    (row,) = load(tmp_path / "paths", audio_root=str(clips_folder))
    whole = read_clip(clips_folder / "Wolf" / "3.wav")
    assert np.array_equal(READ(row.clips[0]), whole[1600:6400])
    no_audio = made.remove_columns("audio").add_column("path", ["Wolf/3.wav"])
    no_audio.save_to_disk(str(tmp_path / "files"))
    (row,) = load(tmp_path / "files", audio_root=str(clips_folder))
    assert isinstance(row.clips[0].source, FileSource)
    assert np.array_equal(READ(row.clips[0]), whole[1600:6400])


def test_a_broken_sound_is_named_by_its_row(tmp_path: Path):
    rows = {"audio": [{"bytes": b"no sound", "path": "x.wav"}], "answer": ["Wolf"]}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "bad"))
    (row,) = load(tmp_path / "bad")
    with pytest.raises(AudioError, match=r"bad, row 1: this is not an audio file"):
        READ(row.clips[0])


def test_what_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved):
    (tmp_path / "t.jsonl").write_text(json.dumps({"answer": "x"}) + "\n")
    with pytest.raises(DataError, match="split is for Hugging Face datasets, and this is none"):
        load(tmp_path / "t.jsonl", split="train")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read as a Hugging Face dataset"):
        load(tmp_path / "odd")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'naturelm-audio\[beans\]'"):
        load(saved["save_to_disk"])


def test_a_name_that_is_nowhere(tmp_path: Path):
    """Offline, in a process of its own, because the library reads the setting once."""
    code = (
        "from NatureLM.config.schema import TableConfig\n"
        "from NatureLM.data.sample import load_examples\n"
        "load_examples(TableConfig(path='nobody/no-such-birds'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "nobody/no-such-birds: there is no such table or folder, and as a dataset" in done.stderr


def test_the_sound_is_not_held_in_memory(tmp_path: Path):
    """Rows of 64 MB are found without reading them, and reading one keeps one."""
    psutil = pytest.importorskip("psutil")
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16000, np.float32), 16000, format="WAV")
    padded = buffer.getvalue() + bytes(16 << 20)
    rows = {"audio": [{"bytes": padded, "path": "x.wav"}] * 8, "answer": ["Rain"] * 8}
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "large"))
    del rows
    process = psutil.Process()

    def own_memory() -> int:
        """Without mapped files, which the system drops when it needs the room."""
        used = process.memory_info()
        return int(used.rss - used.shared)

    before = own_memory()
    examples = load(tmp_path / "large")
    assert own_memory() - before < 16 << 20
    for example in examples:
        READ(example.clips[0])
    assert own_memory() - before < 64 << 20


ELSEWHERE = [
    "http://127.0.0.1:9/x.parquet",
    "/etc/*.parquet",
    "../other/*",
    "~/x",
    "zip://x::a.zip",
]


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("form", ["list", "text", "data_dir"])
def test_a_dataset_whose_card_names_data_elsewhere_is_refused(
    place: str, form: str, made: Any, tmp_path: Path
):
    """The library would read that file of this machine, or fetch that address."""
    folder = tmp_path / "data"
    folder.mkdir()
    made.to_parquet(folder / "test.parquet")
    values = {"list": [{"split": "test", "path": [place]}], "text": place, "data_dir": place}
    key = "data_dir" if form == "data_dir" else "data_files"
    card = {"configs": [{"config_name": "default", key: values[form]}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    with pytest.raises(DataError, match=r"README\.md: names data at .* must lie in its folder"):
        load(folder)
    card = {"configs": [{"config_name": "default", "data_files": "*.parquet"}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    assert len(load(folder)) == 12


def test_a_saved_dataset_whose_files_are_elsewhere_is_refused(made: Any, tmp_path: Path):
    made.save_to_disk(tmp_path / "saved")
    state = tmp_path / "saved" / "state.json"
    values = json.loads(state.read_text())
    values["_data_files"] = [{"filename": "../other/data.arrow"}]
    state.write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"state\.json: names data at '\.\./other/data\.arrow'"):
        load(tmp_path / "saved")


def test_aliases_in_a_card_are_refused(made: Any, tmp_path: Path):
    """The library would expand these to 2^40 texts."""
    made.to_parquet(tmp_path / "test.parquet")
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    (tmp_path / "README.md").write_text("\n".join(["---", *lines, "configs: *a39", "---", ""]))
    with pytest.raises(DataError, match=r"README\.md: its YAML has aliases"):
        load(tmp_path)

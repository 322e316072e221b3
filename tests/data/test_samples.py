"""Samples from datasets on disk, files of them, and tables of one's own; sound read when asked."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from labelled_sound import audio_error

from NatureLM.audio import AudioError
from NatureLM.audio.windows import read_clip
from NatureLM.config.schema import TableSource
from NatureLM.data import dataset as arrow_module
from NatureLM.data.dataset import DataError, RowSource
from NatureLM.data.sample import Sample, SampleSet, open_samples, read_window

RATE = 8000


def opened(path: Path | str, datasets: list[str] | None = None, **more: Any) -> SampleSet:
    return open_samples(TableSource.model_validate({"path": str(path), **more}), datasets)


def pitch(sample: Sample) -> float:
    """The strongest frequency of a sample's sound, in Hz."""
    wav = read_window(sample.clip, 16000, 10.0).samples
    spectrum = np.abs(np.fft.rfft(wav, n=16000))
    return float(spectrum.argmax())


def check_beans(found: SampleSet) -> None:
    """Those of `unseen-family-cmn` in the made-up BEANS-Zero: tones of 290, 300, ... Hz."""
    assert found.datasets == ("unseen-family-cmn",)
    assert len(found.samples) == 21
    first, last = found.samples[0], found.samples[-1]
    assert (first.id, first.label) == ("unseen-family-cmn-009", "Spotted Elachura")
    assert (first.cluster, first.task) == ("r9", "classification")
    assert first.instruction == "<Audio><AudioHere></Audio> What is it?"
    assert last.label == "Beluga"
    assert abs(pitch(first) - 290) <= 2
    assert abs(pitch(last) - 490) <= 2


def test_a_saved_dataset(beans_zero: Path) -> None:
    check_beans(opened(beans_zero, ["unseen-family-cmn"]))
    check_beans(opened(beans_zero / "test", ["unseen-family-cmn"]))
    assert opened(beans_zero).datasets == ("cbi", "watkins", "unseen-family-cmn", "zf-indiv")


@pytest.fixture(scope="session")
def encoded_dataset(beans_zero: Path, wav_bytes: Callable[[float], bytes]) -> Any:
    """The same with sound as bytes of wav files, which the library would decode."""
    datasets = pytest.importorskip("datasets")
    plain = datasets.load_from_disk(str(beans_zero))["test"]
    columns = {name: plain[name][:] for name in plain.column_names if name != "audio"}
    columns["audio"] = [
        {"bytes": wav_bytes(200 + 10 * i), "path": f"{i}.wav"} for i in range(len(plain))
    ]
    made = datasets.Dataset.from_dict(columns)
    features = made.features.copy()
    features["audio"] = datasets.Audio()
    return made.cast(features)


def test_encoded_sound_is_never_decoded_by_the_library(
    encoded_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded by the library")

    encoded_dataset.save_to_disk(tmp_path / "d")
    monkeypatch.setattr(datasets.Audio, "decode_example", refuse)
    check_beans(opened(tmp_path / "d", ["unseen-family-cmn"]))


def test_arrow_files(beans_zero: Path, tmp_path: Path) -> None:
    (file,) = (beans_zero / "test").glob("*.arrow")
    check_beans(opened(file, ["unseen-family-cmn"]))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "part.arrow").write_bytes(file.read_bytes())
    check_beans(opened(tmp_path, ["unseen-family-cmn"]))


def test_parquet_files(encoded_dataset: Any, beans_zero: Path, tmp_path: Path) -> None:
    import datasets

    encoded_dataset.to_parquet(tmp_path / "a.parquet", batch_size=4)
    check_beans(opened(tmp_path / "a.parquet", ["unseen-family-cmn"]))
    plain = datasets.load_from_disk(str(beans_zero))["test"]
    (tmp_path / "parts").mkdir()
    for part in range(3):
        shard = plain.shard(3, part, contiguous=True)
        shard.to_parquet(tmp_path / "parts" / f"{part}.parquet", batch_size=3)
    check_beans(opened(tmp_path / "parts", ["unseen-family-cmn"]))


def test_parquet_elsewhere_reads_no_sound_for_labels(
    encoded_dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the Hub: a file system of another kind, of which only what is needed is read."""
    fsspec = pytest.importorskip("fsspec")
    path = tmp_path / "datasets" / "owner" / "name" / "data" / "a.parquet"
    path.parent.mkdir(parents=True)
    encoded_dataset.to_parquet(path, batch_size=4)
    local = fsspec.filesystem("local")

    class Hub:
        def glob(self, pattern: str) -> list[str]:
            return list(local.glob(f"{tmp_path}/{pattern}"))

        def open(self, *args: Any, **more: Any) -> Any:
            return local.open(*args, **more)

    monkeypatch.setattr("huggingface_hub.HfFileSystem", Hub)
    monkeypatch.setattr(
        arrow_module,
        "ParquetRows",
        lambda files, name, folder, *_: ParquetRows(files, name, folder, local),
    )
    found = opened("owner/name", ["unseen-family-cmn"])
    check_beans(found)
    with pytest.raises(DataError, match="no dataset of this name with Parquet files"):
        opened("owner/other")


ParquetRows = arrow_module.ParquetRows


def test_labels_are_read_without_the_sound(
    beans_zero: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("sound was read")

    monkeypatch.setattr(arrow_module.ArrowRows, "audio", refuse)
    assert len(opened(beans_zero).samples) == 34


def test_threads_hear_what_one_hears(encoded_dataset: Any, tmp_path: Path) -> None:
    encoded_dataset.to_parquet(tmp_path / "a.parquet", batch_size=2)
    samples = opened(tmp_path / "a.parquet").samples * 5
    alone = [pitch(sample) for sample in samples]
    start = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=start.wait) as threads:
        assert list(threads.map(pitch, samples)) == alone


def test_clips_are_cut_to_the_longest_of_the_component(beans_zero: Path) -> None:
    by_dataset = {sample.dataset_name: sample.clip for sample in opened(beans_zero).samples}
    assert by_dataset["watkins"].window == 3.0
    assert by_dataset["cbi"].window == 10.0
    assert len(read_window(by_dataset["cbi"], 16000, 0.1).samples) == 1600


def test_a_half_downloaded_file(encoded_dataset: Any, beans_zero: Path, tmp_path: Path) -> None:
    encoded_dataset.to_parquet(tmp_path / "a.parquet")
    for source, name in (
        (tmp_path / "a.parquet", "b.parquet"),
        (next((beans_zero / "test").glob("*.arrow")), "b.arrow"),
    ):
        data = source.read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=rf"{name}: is damaged or was not downloaded"):
            opened(tmp_path / name)


def test_bad_sound_is_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"id": ["x"], "output": ["Wolf"], "audio": [{"bytes": b"nothing", "path": "x.wav"}]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "d")
    (sample,) = opened(tmp_path / "d").samples
    with pytest.raises(AudioError, match=r"sample x of .*: this is not an audio file"):
        read_window(sample.clip, 16000, 10.0)


def test_sound_that_its_library_cannot_bring_is_an_error_of_that_sample(
    beans_zero: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libraries raise for damage or a lost network is of many kinds, and must end no run."""
    sample = opened(beans_zero, ["cbi"]).samples[1]

    def lost(self: Any, index: int) -> Any:
        raise ValueError(f"row {index}: the connection was reset\nand more")

    monkeypatch.setattr(arrow_module.ArrowRows, "audio", lost)
    with pytest.raises(AudioError, match=r"sample cbi-001 of .*: cannot be read \(row 1: the con"):
        read_window(sample.clip, 16000, 10.0)


# Tables of one's own


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """`clips/<i>.wav`: a second of 200 + 100 i Hz each."""
    (tmp_path / "clips").mkdir()
    for i in range(4):
        wav = 0.5 * np.sin(2 * np.pi * (200 + 100 * i) * np.arange(RATE) / RATE)
        soundfile.write(tmp_path / "clips" / f"{i}.wav", wav, RATE)
    return tmp_path


ROWS = [
    {"file": f"clips/{i}.wav", "common_name": ["Wolf", "Wren"][i % 2], "split": "test",
     "family": f"f{i // 2}"}
    for i in range(4)
]  # fmt: skip


def test_a_table_of_ones_own(clips: Path) -> None:
    lines = [",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]
    (clips / "metadata.csv").write_text("\n".join(lines))
    (clips / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for path in (clips / "metadata.csv", clips, clips / "rows.jsonl"):
        found = opened(path)
        name = "rows" if path.suffix == ".jsonl" else clips.name
        assert [one.id for one in found.samples] == [f"clips/{i}.wav" for i in range(4)]
        assert [one.label for one in found.samples] == ["Wolf", "Wren", "Wolf", "Wren"]
        assert [one.cluster for one in found.samples] == ["f0", "f0", "f1", "f1"]
        assert found.datasets == (name,)
        assert [pitch(one) for one in found.samples] == [200, 300, 400, 500]


def test_parquet_with_paths(clips: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), clips / "rows.parquet")
    assert [pitch(one) for one in opened(clips / "rows.parquet").samples] == [200, 300, 400, 500]


def test_a_folder_of_classes(clips: Path) -> None:
    for i, label in enumerate(["Gray_Wolf", "Wren"]):
        (clips / "by_class" / label).mkdir(parents=True)
        (clips / f"clips/{i}.wav").rename(clips / "by_class" / label / "x.wav")
    found = opened(clips / "by_class")
    assert [(one.label, pitch(one)) for one in found.samples] == [("Gray Wolf", 200), ("Wren", 300)]
    assert len({one.id for one in found.samples}) == 2


def test_columns_where_and_folder_of_the_recordings(clips: Path, tmp_path: Path) -> None:
    table = tmp_path / "elsewhere.csv"
    table.write_text(
        "sound,species,what,site,key\n"
        "clips/1.wav,Canis,Wolf,a,k1\nclips/2.wav,Troglodytes,Wren,b,k2\n"
    )
    columns = {"path": "sound", "label": "what", "cluster": "site", "id": "key"}
    (one,) = opened(table, columns=columns, where={"site": "b"}, audio_root=str(clips)).samples
    assert (one.id, one.label, one.cluster, pitch(one)) == ("k2", "Wren", "b", 400)


def test_parts_of_recordings(clips: Path) -> None:
    table = clips / "parts.csv"
    table.write_text("file,label,start,end\nclips/0.wav,a,0,0.5\nclips/0.wav,b,0.5,0.75\n")
    one, other = opened(table).samples
    assert (one.id, other.id) == ("clips/0.wav@0-0.5", "clips/0.wav@0.5-0.75")
    assert one.clip != other.clip
    assert one.cluster == other.cluster == "clips/0.wav"
    assert len(read_window(one.clip, 16000, 10.0).samples) == 8000
    assert len(read_window(other.clip, 16000, 10.0).samples) == 4000


@pytest.mark.parametrize(
    ("columns", "values", "mapped", "clusters"),
    [
        ("family", ["f1", "f1"], {}, ["f1", "f1"]),
        # Of animals, not of recordings: clips of one species would be no examples of each other.
        ("family", ["Canidae", "Canidae"], {}, ["clips/0.wav", "clips/1.wav"]),
        ("family,recording_id", ["Canidae,7", "Canidae,8"], {}, ["7", "8"]),
        ("family", ["Canidae", "Canidae"], {"cluster": "family"}, ["Canidae", "Canidae"]),
        ("recording_id", ["0", "0"], {}, ["0", "0"]),
    ],
)
def test_what_shares_a_recording(
    columns: str, values: list[str], mapped: dict[str, str], clusters: list[str], clips: Path
) -> None:
    lines = [f"clips/{i}.wav,Wolf,{value}" for i, value in enumerate(values)]
    (clips / "t.csv").write_text("\n".join([f"file,label,{columns}", *lines]))
    assert [one.cluster for one in opened(clips / "t.csv", columns=mapped).samples] == clusters


def test_a_recording_with_the_number_0_is_one(clips: Path) -> None:
    rows = [{"file": f"clips/{i}.wav", "label": "Wolf", "recording_id": 0} for i in range(2)]
    (clips / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [one.cluster for one in opened(clips / "t.jsonl").samples] == ["0", "0"]


def test_a_table_stands_in_for_the_dataset_that_is_named(clips: Path) -> None:
    (clips / "mine.csv").write_text("file,label\nclips/0.wav,Wolf\n")
    found = opened(clips / "mine.csv", ["cbi"])
    assert found.datasets == ("mine",)
    assert "names cbi, and" in found.notes[0]
    assert "does not say which dataset" in found.notes[0]
    assert opened(clips / "mine.csv").notes == ()


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ("file,labl\na.wav,Wolf\n", {}, r"row 2: no label .* common_name.*Columns: file, labl"),
        ("label\nWolf\n", {}, "row 2: neither an id nor a path"),
        ("id,label\n1,Wolf\n", {}, r"row 2: names no recording \(a column called one of path"),
        ("file,label\na.wav,Wolf\na.wav,Wren\n", {}, "row 3: a second sample with the id 'a.wav'"),
        ("file,label\na.wav,Wolf\n", {"where": {"split": "test"}}, "asks for column 'split'"),
        ("file,label\na.wav,Wolf\n", {"where": {"label": "Owl"}}, "no row is left by `where`"),
        ("file,label\na.wav,Wolf\n", {"columns": {"lable": "x"}}, "maps lable; known are path"),
        ("file,label,end\na.wav,Wolf,0\n", {}, "end 0 is not after start 0"),
    ],
)
def test_what_is_wrong_in_a_table_is_named(
    rows: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(rows)
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path / "t.csv", **settings)
    assert "t.csv" in str(error.value)


def test_a_dataset_that_is_not_there(beans_zero: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no sample of 'watkin'; did you mean 'watkins'\?"):
        opened(beans_zero, ["cbi", "watkin"])
    with pytest.raises(DataError, match="there is no such table or folder"):
        opened(tmp_path / "nothing.csv")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="tables end in"):
        opened(tmp_path / "a.txt")


@pytest.mark.shared
def test_real_tables(shared_dir: Path) -> None:
    animals = opened(shared_dir / "data" / "animals", where={"split": "test"})
    assert (len(animals.samples), animals.datasets) == (154, ("animals",))
    assert len({one.cluster for one in animals.samples}) < 154
    esc10 = opened(shared_dir / "data" / "esc10" / "metadata.csv", where={"fold": "4"})
    assert len(esc10.samples) == 80
    for sample in (*animals.samples[:3], *esc10.samples[:3]):
        wav = read_window(sample.clip, 16000, 10.0).samples
        assert 400 <= len(wav) <= 160000


# Sound in the cells of datasets is heard as it would be from a file

WAV = (0.5 * np.sin(np.arange(RATE) / 5)).astype(np.float32)


def stored(
    value: Any, array_rate: float | None = None, folder: Path | None = None, **part: float
) -> np.ndarray:
    """What is heard of the cell of a dataset."""
    rows: Any = SimpleNamespace(audio=[value].__getitem__, folder=folder)
    source = RowSource(rows, 0, "sample 1", array_rate)
    return source.read(**{"start": 0.0, "duration": None, "sample_rate": 16000, **part})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, WAV, RATE, subtype="FLOAT")
    return path


def encoded(kind: str) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, WAV, RATE, format=kind)
    return data.getvalue()


@pytest.mark.parametrize("part", [{}, {"start": 0.25, "duration": 0.5}, {"duration": 5.0}])
def test_every_form_is_one_sound(file: Path, part: dict[str, float]) -> None:
    wanted = read_clip(file, **part)
    data = file.read_bytes()
    forms: list[tuple[Any, dict[str, Any]]] = [
        (data, {}),
        (memoryview(data), {}),
        (str(file), {}),
        (file.name, {"folder": file.parent}),
        ({"bytes": data, "path": "elsewhere.wav"}, {}),
        ({"bytes": None, "path": str(file)}, {}),
        ({"array": WAV, "sampling_rate": RATE, "path": None}, {}),
        ({"array": WAV.tolist(), "sampling_rate": RATE}, {}),
        (WAV, {"array_rate": RATE}),
        (WAV.tolist(), {"array_rate": float(RATE)}),
        (np.stack([WAV, WAV]), {"array_rate": RATE}),
    ]
    for value, more in forms:
        heard = stored(value, **part, **more)
        assert heard.dtype == np.float32
        np.testing.assert_allclose(heard, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_encoded_bytes(kind: str) -> None:
    heard = stored({"bytes": encoded(kind), "path": f"x.{kind.lower()}"})
    assert abs(len(heard) - 16000) < 200


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (None, "EmptyAudio", "there is no sound in the data"),
        ({"bytes": None, "path": None}, "EmptyAudio", "there is no sound in the data"),
        (b"", "EmptyAudio", "0 bytes"),
        (b"no sound at all", "NotAudio", "not an audio file"),
        ([], "EmptyAudio", "holds no samples"),
        (WAV[:10], "TooShortAudio", "0.025 s"),
        (np.full(RATE, np.nan, np.float32), "NonFiniteAudio", "NaN"),
        ([1, 2, 3] * RATE, "NotAudio", "full scale"),
        ("not/there.wav", "UnreadableAudio", "no such file"),
        ({"array": WAV, "sampling_rate": 3}, "SampleRateError", "3 Hz"),
    ],
)
def test_errors_name_the_sample_or_the_file(value: Any, kind: str, reason: str) -> None:
    with pytest.raises(AudioError, match=reason) as error:
        stored(value, array_rate=RATE)
    assert error.value.kind == kind
    name = "not/there.wav" if isinstance(value, str) else "sample 1"
    assert str(error.value).startswith(f"{name}: ")
    assert "naturelm-" not in str(error.value)


def test_samples_need_a_rate() -> None:
    with audio_error("NotAudio", r"sample 1: .*sample rate"):
        stored(WAV)


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stored(encoded("WAV"))
    with pytest.raises(AudioError):
        stored(b"no sound at all")
    assert list(tmp_path.iterdir()) == []

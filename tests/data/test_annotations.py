"""Tables of Raven, Audacity, BirdNET and Kaleidoscope are data as they are: no option is needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from NatureLM.audio.files import recording_below, recordings_named_like
from NatureLM.cli.main import beans_app
from NatureLM.config.schema import ExperimentConfig, TableConfig, TableSource
from NatureLM.data.sample import SampleSet, load_examples, open_samples
from NatureLM.data.table import DataError
from NatureLM.experiments.plan import make_plan

RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\t"
SAID = {
    "raven.selections.txt": (
        f"{RAVEN}Begin Path\tFile Offset (s)\tBegin File\tCommon Name\tAnnotation\n"
        "1\tWaveform 1\t1\t1,5\t2,5\t0\t8000\tD:\\card\\p1\\a.wav\t1,5\ta.wav\tDog\tDog\n"
        "1\tSpectrogram 1\t1\t1,5\t2,5\t0\t8000\tD:\\card\\p1\\a.wav\t1,5\ta.wav\tDog\tDog\n"
        "2\tSpectrogram 1\t1\t5,0\t6,0\t0\t8000\tD:\\card\\p2\\b.wav\t2,0\tb.wav\tWren\tWren\n"
    ),
    "birdnet.csv": (
        "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
        "1.5,2.5,Canis lupus familiaris,Dog,0.9321,/data/card/p1/a.wav\n"
        "2.0,3.0,Troglodytes troglodytes,Wren,0.5012,/data/card/p2/b.wav\n"
    ),
    "rtable.csv": (
        "filepath,start,end,scientific_name,common_name,confidence,lat,lon,week,overlap\n"
        "/data/card/p1/a.wav,1.5,2.5,Canis lupus familiaris,Dog,0.93,-1,-1,-1,0.0\n"
        "/data/card/p2/b.wav,2,3,Troglodytes troglodytes,Wren,0.5,-1,-1,-1,0.0\n"
    ),
    "id.csv": (
        "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,DATE,TIME,HOUR,DATE-12,TIME-12,HOUR-12,"
        "AUTO ID*,PULSES,MATCH RATIO,MANUAL ID,Dur\n"
        "D:\\card,p1,a.wav,0,1.5,1,2024-05-10,21:30:00,21,2024-05-10,09:30:00,09,Cat,5,0.8,Dog,\n"
        "D:\\card,p2,b.wav,0,2,1,2024-05-10,21:30:00,21,2024-05-10,09:30:00,09,Wren,4,0.7,,\n"
        "D:\\card,p2,b.wav,0,0,1,2024-05-10,21:30:00,21,2024-05-10,09:30:00,09,,4,0.7,,\n"
    ),
    "kaleidoscope.csv": (
        "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,TOP1MATCH,TOP1DIST\n"
        "/data/card,p1,a.wav,1.5,1.0,Canis lupus familiaris,Dog,0.93\n"
        "/data/card,p2,b.wav,2.0,1.0,Troglodytes troglodytes,Wren,0.5\n"
    ),
    "ecosounds.csv": (
        "filename,start_offset_seconds,end_offset_seconds,low_frequency_hertz,"
        "high_frequency_hertz,score,Common name,Scientific name\n"
        "p1/a.wav,1.5,2.5,,,0.9,Dog,\np2/b.wav,2,3,,,0.5,Wren,Troglodytes troglodytes\n"
    ),
}


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """Recordings of two places, the second called as one of the first, and no table."""
    for name in ("p1/a.wav", "p2/b.wav", "p2/a.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * np.sin(np.arange(8 * 8000)), 8000)
    return tmp_path


def opened(path: Path) -> SampleSet:
    return open_samples(TableSource(path=str(path)))


@pytest.mark.parametrize("name", list(SAID))
def test_tables_of_other_programs_are_data(card: Path, name: str) -> None:
    table = card / name
    table.write_text(SAID[name])
    found = opened(table)
    assert [(one.label, one.clip.start, one.clip.end) for one in found.samples] == [
        ("Dog", 1.5, 2.5), ("Wren", 2.0, 3.0),
    ]  # fmt: skip
    assert [one.clip.source.name for one in found.samples] == [
        str(card / "p1" / "a.wav"), str(card / "p2" / "b.wav"),
    ]  # fmt: skip
    left_out = [f"{table}: rows without an identification, left out: 1"] if name == "id.csv" else []
    assert list(found.notes) == left_out
    examples = load_examples(TableConfig(path=str(table)))
    assert [(one.answer, one.clips[0].source) for one in examples] == [
        (one.label, one.clip.source) for one in found.samples
    ]


TRACKS = {
    "plain": ("a.txt", "1.500000\t2.500000\tDog\n2\t3\tWren\n"),
    "commas": ("a.txt", "1,5\t2,5\tDog\r\n2,0\t3,0\tWren\r\n"),
    "frequencies": ("a.txt", "1.5\t2.5\tDog\n\\\t500.0\t-1.0\n2\t3\tWren\n\\\t1000.0\t8000.0\n"),
    "birdnet": ("a.BirdNET.results.txt", "1.5\t2.5\tCanis lupus, Dog\t0.9321\n2\t3\tWren\t0.5\n"),
    "birdnet 2": ("a.BirdNET.results.txt", "1.5\t2.5\tCanis lupus_Dog\t1.0000\n2\t3\tWren\t0.5\n"),
    "points": ("A.TXT", "1\t1\tclick\n1.5\t2.5\tDog\n2\t3\t Wren \n3\t4\t\n"),
    "mac": ("a.WAV.txt", "\r1.5\t2.5\tDog\r2\t3\tWren\r"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", list(TRACKS))
def test_label_tracks_are_data_of_the_recording_that_they_are_called_like(
    card: Path, kind: str, encoding: str
) -> None:
    name, text = TRACKS[kind]
    table = card / "p1" / name
    table.write_bytes(text.encode(encoding))
    (card / "p1" / "a2.wav").write_bytes(b"")
    found = opened(table)
    assert [(one.label, one.clip.start, one.clip.end) for one in found.samples] == [
        ("Dog", 1.5, 2.5), ("Wren", 2.0, 3.0),
    ]  # fmt: skip
    assert {one.clip.source.name for one in found.samples} == {str(card / "p1" / "a.wav")}
    points = [f"{table}: labels that mark a point, left out: 1",
              f"{table}: labels that have no text, left out: 1"]  # fmt: skip
    assert list(found.notes) == (points if kind == "points" else [])


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("b.txt", "1\t2\tDog\n", "b.txt: is a label track, and in .* no recording called like it"),
        ("a.txt", "1\t2\tDog\n3 4 Cat\n", "a.txt, line 2: a label is start, end and its text"),
        ("a.txt", "\\\t1\t2\n", "no row is left"),
        ("a.txt", "1\t2\tDog\n\\\t5\n", "line 2: frequencies"),
        ("a.txt", "1\t2\tDog\n-4\t-3\tCat\n", "line|row 2: start must be a number of 0 or more"),
        ("a.txt", "1\t2\tDog\n4\t3\tCat\n", "end 3 is not after start 4"),
    ],
)
def test_label_tracks_that_cannot_be_read_are_refused(
    card: Path, name: str, text: str, says: str
) -> None:
    (card / "p1" / name).write_text(text)
    with pytest.raises(DataError, match=says):
        opened(card / "p1" / name)


def test_a_table_about_one_recording_is_called_like_it(card: Path) -> None:
    table = card / "p1" / "a.Table.1.selections.txt"
    table.write_text(f"{RAVEN}Species\n1\tSpectrogram 1\t1\t1.5\t2.5\t0\t8000\tDog\n")
    (sample,) = opened(table).samples
    assert (sample.clip.source.name, sample.label) == (str(card / "p1" / "a.wav"), "Dog")
    (card / "p1" / "a.mp3").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"names no recording, and several .*: a\.mp3, a\.wav; move"
    ):
        opened(table)


def test_a_window_may_have_several_species(card: Path) -> None:
    table = card / "birdnet.csv"
    rows = ["1,2,Dog", "1,2,Wren", "1,2,Dog", "3,4,Dog", "5,6,Wren"]
    lines = [f"{row},p1/a.wav" for row in rows]
    table.write_text("\n".join(["Start (s),End (s),Common name,File", *lines]) + "\n")
    found = opened(table)
    assert [one.id for one in found.samples] == [
        *("p1/a.wav@1-2", "p1/a.wav@1-2 Wren", "p1/a.wav@3-4", "p1/a.wav@5-6"),
    ]
    assert f"{table}: rows that repeat an earlier one: 1" in found.notes


def test_names_of_other_machines_end_below_the_folder(card: Path) -> None:
    assert recording_below(card, r"D:\x\p2\a.wav") == card / "p2" / "a.wav"
    assert recording_below(card / "p1", "/data/p2/a.wav") == card / "p1" / "a.wav"
    assert recording_below(card / "p1", "../p2/b.wav") is None
    assert recording_below(card / "p1", "../../a.wav") == card / "p1" / "a.wav"
    for name in ("", "..", "/", "a\0.wav", "p1", "x" * 300):
        assert recording_below(card, name) is None
    assert recordings_named_like(Path("aa.txt"), card / "p1") == []
    assert recordings_named_like(Path("a.txt"), card / "none") == []


@pytest.mark.parametrize("name", list(SAID))
def test_they_are_examples_that_prompts_show(card: Path, name: str) -> None:
    (card / name).write_text(SAID[name])
    soundfile.write(card / "test.wav", np.full(8000, 0.1), 8000)
    (card / "test.csv").write_text("file,label\ntest.wav,Dog\n")
    config = ExperimentConfig.model_validate(
        {
            "data": {"path": str(card / "test.csv")},
            "support": str(card / name),
            "species": [{"name": "Dog"}, {"name": "Wren"}],
            "queries": ["{audio_examples} What is it?"],
        }
    )
    (trial,) = make_plan(config, "{}").trials()
    assert [Path(one.source.name).name for one in trial.audios[1:]] == ["a.wav", "b.wav"]


def test_a_benchmark_is_made_of_selections(card: Path) -> None:
    more = "3\tSpectrogram 1\t1\t5,0\t6,0\t0\t8000\tp2/b.wav\t2,0\tb.wav\tDog\tDog\n"
    more += "4\tSpectrogram 1\t1\t5,0\t6,0\t0\t8000\tp2/b.wav\t4,0\tb.wav\tWren\tWren\n"
    table = card / "raven.selections.txt"
    table.write_text(SAID[table.name].replace("D:\\card\\", "") + more.replace("p2/", "p2\\"))
    sizes = ["--classification", "9", "--detection", "1", "--captioning", "0"]
    made = CliRunner().invoke(
        beans_app, ["make-mini", str(table), "--output-path", str(card / "mini"), *sizes]
    )
    assert made.exit_code == 0, made.output
    rows = [json.loads(line) for line in (card / "mini/metadata.jsonl").read_text().splitlines()]
    assert sorted(row["output"] for row in rows if row["task"] == "classification") == [
        "Dog", "Wren",
    ]  # fmt: skip
    assert "clips with several labels, which are left out: 1" in " ".join(made.output.split())


def test_a_million_columns_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a" + ",a" * 1_000_000 + "\n")
    with pytest.raises(DataError, match=r"has 1,000,001 columns, and a table has at most 100,000"):
        opened(table)

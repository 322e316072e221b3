"""Tables of Raven, Audacity, Kaleidoscope, BirdNET and Ecosounds, written and read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from result_files import error, result_file, window

from NatureLM.data.table import DataError
from NatureLM.formats import read, recognised, write
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import OutputError

GOLDEN = Path(__file__).resolve().parents[1] / "fixtures" / "formats"
FILES = {
    "raven": "answers.selections.txt",
    "kaleidoscope": "id.csv",
    "birdnet": "birdnet.csv",
    "ecosounds": "ecosounds.csv",
}
AT_POND = {
    "site": "Pond", "latitude": 47.5, "longitude": 8.25, "week": 18,
    "local_time": "2024-05-10T05:30:00+02:00", "utc_time": "2024-05-10T03:30:00Z",
}  # fmt: skip
AT_WEIR = {
    "site": "Weir", "latitude": 47.25, "longitude": 8.5, "week": 18,
    "local_time": "2024-05-10T06:00:02.500000+02:00", "utc_time": "2024-05-10T04:00:02.500000Z",
}  # fmt: skip
ROWS = [
    window(
        "/card/p1/A.wav", 0.0, 10.0, text="Wren", query="Which?", confidence=0.912345,
        alternatives=(("Barn Owl", 0.05), ("Dog", 0.01)), context=AT_POND,
    ),
    window("/card/p1/A.wav", 10.0, 20.0, text="None", query="Which?"),
    window("/card/p2/A.wav", 2.5, 12.25, text="Hyla cinerea", query="Which?", context=AT_WEIR),
    error("/card/p0/A.wav"),
]  # fmt: skip


def answers(folder: Path, *rows: Any) -> ResultFile:
    asked = {"scientific_names": {"Wren": "Troglodytes troglodytes"}}
    return result_file(folder, *rows, settings={"channel": 2}, asked=asked)


@pytest.mark.parametrize("name", list(FILES))
def test_tables_are_those_made_by_hand(tmp_path: Path, name: str) -> None:
    target = tmp_path / FILES[name]
    written = write(name, answers(tmp_path, *ROWS), target)
    assert target.read_text("utf-8").replace("\r\n", "\n") == (GOLDEN / FILES[name]).read_text()
    assert (written.lines, written.left_out) == (2, {"None": 1})
    assert recognised(GOLDEN / FILES[name]) == name


def test_labels_of_audacity_are_a_file_a_recording(tmp_path: Path) -> None:
    found = answers(tmp_path, *ROWS)
    written = write("audacity", found, tmp_path / "answers.txt")
    made = sorted(path for path in written.path.rglob("*") if path.is_file())
    assert [str(path.relative_to(tmp_path)) for path in made] == [
        "answers-audacity/p0/A.txt", "answers-audacity/p1/A.txt", "answers-audacity/p2/A.txt",
    ]  # fmt: skip
    assert [path.read_text() for path in made[:2]] == ["", (GOLDEN / "A.txt").read_text()]
    assert written.says == ["A table for Audacity names no recording: there is one for each"]
    assert (written.files, written.lines) == (3, 2)
    alone = write("audacity", found.of(found.recordings[1]), tmp_path / "one.txt")
    assert (alone.path, alone.says) == (tmp_path / "one.txt", [])
    assert recognised(GOLDEN / "A.txt") == "audacity"


@pytest.mark.parametrize("name", list(FILES))
def test_answers_of_several_lines_are_read_again(tmp_path: Path, name: str) -> None:
    row = window("/naturelm-none/A.wav", text="A wren,\nthen a dog\r\n")
    target = tmp_path / (FILES[name].replace("answers", "table"))
    write(name, answers(tmp_path, row), target)
    assert [one.label for one in read(target)] == ["A wren, then a dog"]


def test_names_that_ecosounds_cannot_tell_apart_are_said(tmp_path: Path) -> None:
    found = answers(tmp_path, *ROWS)
    (said,) = write("ecosounds", found, tmp_path / "t.csv").says
    assert "1 names are those of several recordings, such as A.wav" in said
    assert not write("ecosounds", found, tmp_path / "each", per_recording=True).says


# What programs and people make of tables

SELECTIONS = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
BIRDNET = "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
KALEIDOSCOPE = "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,AUTO ID*,MATCH RATIO,MANUAL ID\n"

VARIANTS = {
    "raven, both views": (
        "r.txt",
        f"{SELECTIONS}\tBegin Path\tFile Offset (s)\tSpecies\n"
        "1\tWaveform 1\t1\t61.5\t62.5\t500\t900\tC:\\x\\a.wav\t1.5\tDog\n"
        "1\tSpectrogram 1\t1\t61.5\t62.5\t500\t900\tC:\\x\\a.wav\t1.5\tDog\n",
        Detection(audio_path="C:\\x\\a.wav", start=1.5, end=2.5, label="Dog", common_name="Dog",
                  low_hz=500.0, high_hz=900.0, channel=1),
    ),
    "raven, of one sound": (
        "a.Table.1.selections.txt",
        f"{SELECTIONS}\n1\tSpectrogram 1\t2\t1.5\t2.5\t500.0\t900.0\n",
        Detection(audio_path="a.Table.1.selections", start=1.5, end=2.5, label="", low_hz=500.0,
                  high_hz=900.0, channel=2),
    ),
    "raven, decimal comma": (
        "r.txt",
        f"{SELECTIONS}\tBegin File\tAnnotation\n"
        "7\tSpectrogram 1\t1\t1,5\t2,5\t500,0\t900,0\ta.wav\tHyla cinerea\n",
        Detection(audio_path="a.wav", start=1.5, end=2.5, label="Hyla cinerea", low_hz=500.0,
                  scientific_name="Hyla cinerea", high_hz=900.0, channel=1),
    ),
    "raven of birdnet": (
        "a.BirdNET.selection.table.txt",
        f"{SELECTIONS}\tCommon Name\tSpecies Code\tConfidence\tBegin Path\tFile Offset (s)\n"
        "1\tSpectrogram 1\t1\t0\t3\t0\t15000\tnocall\tnocall\t1.0\t/d/b.wav\t0\n"
        "2\tSpectrogram 1\t1\t3.0\t6.0\t0\t15000\tDog\tdog1\t0.5012\t/d/a.wav\t3.0\n",
        Detection(audio_path="/d/a.wav", start=3.0, end=6.0, label="Dog", common_name="Dog",
                  confidence=0.5012, low_hz=0.0, high_hz=15000.0, channel=1,
                  values={"Species Code": "dog1"}),
    ),
    "birdnet": (
        "b.csv",
        f"{BIRDNET}3.0,6.0,Canis lupus,Wolf,0.9321,F:\\card\\a.wav\n",
        Detection(audio_path="F:\\card\\a.wav", start=3.0, end=6.0, label="Wolf",
                  common_name="Wolf", scientific_name="Canis lupus", confidence=0.9321),
    ),
    "birdnet in Europe": (
        "b.csv",
        BIRDNET.replace(",", ";") + "3,0;6,0;Canis lupus;Wolf;0,9321;a.wav\n",
        Detection(audio_path="a.wav", start=3.0, end=6.0, label="Wolf", common_name="Wolf",
                  scientific_name="Canis lupus", confidence=0.9321),
    ),
    "birdnet for R, with what an agency adds": (
        "r.csv",
        "recordingID,filepath,start,end,scientific_name,common_name,confidence,lat,verify,timezone\n"
        "7,a.wav,3,6,Canis lupus,Wolf,0.93,-1,y,GMT\n",
        Detection(audio_path="a.wav", start=3.0, end=6.0, label="Wolf", common_name="Wolf",
                  scientific_name="Canis lupus", confidence=0.93,
                  values={"recordingID": "7", "lat": "-1", "verify": "y", "timezone": "GMT"}),
    ),
    "kaleidoscope": (
        "id.csv",
        f"{KALEIDOSCOPE}D:\\bats\\,n1,a.wav,0,1.5,5,PIPPIP,0.83,\n",
        Detection(audio_path="D:\\bats\\n1\\a.wav", start=1.5, end=6.5, label="PIPPIP",
                  common_name="PIPPIP", confidence=0.83, channel=1),
    ),
    "kaleidoscope, a person's word": (
        "id.csv",
        f"{KALEIDOSCOPE}/bats,,a.wav,1,0,5,PIPPIP,0.83,Myotis daubentonii\n",
        Detection(audio_path="/bats/a.wav", start=0.0, end=5.0, label="Myotis daubentonii",
                  scientific_name="Myotis daubentonii", channel=2),
    ),
    "kaleidoscope, clusters": (
        "cluster.csv",
        "INDIR,FOLDER,IN FILE,CHANNEL,OFFSET,DURATION,TOP1MATCH*,TOP1DIST,MANUAL ID\n"
        "/bats,n1,a.wav,0,1,2,CONI,0.41,\n",
        Detection(audio_path="/bats/n1/a.wav", start=1.0, end=3.0, label="CONI", channel=1,
                  common_name="CONI"),
    ),
    "kaleidoscope of birdnet": (
        "k.csv",
        "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,TOP1MATCH,TOP1DIST\n"
        "/d,n1,a.wav,3.0,3.0,Canis lupus,Wolf,0.8123\n",
        Detection(audio_path="/d/n1/a.wav", start=3.0, end=6.0, label="Wolf", confidence=0.8123,
                  common_name="Wolf", scientific_name="Canis lupus"),
    ),
    "kaleidoscope of birdnet, earlier": (
        "k.csv",
        "INDIR,FOLDER,IN FILE,OFFSET,DURATION,scientific_name,common_name,confidence,lat\n"
        "/d,n1,a.wav,3.0,3.0,Canis lupus,Wolf,0.8123,-1\n",
        Detection(audio_path="/d/n1/a.wav", start=3.0, end=6.0, label="Wolf", confidence=0.8123,
                  common_name="Wolf", scientific_name="Canis lupus", values={"lat": "-1"}),
    ),
    "audacity": (
        "a.txt",
        "1.5\t1.5\tclick\n\\\t500.0\t-1.0\n",
        Detection(audio_path="a", start=1.5, end=1.5, label="click", common_name="click",
                  low_hz=500.0),
    ),
    "audacity of birdnet": (
        "a.BirdNET.results.txt",
        "3.0\t6.0\tCanis lupus, Wolf\t0.8123\n",
        Detection(audio_path="a.BirdNET.results", start=3.0, end=6.0, label="Wolf",
                  common_name="Wolf", scientific_name="Canis lupus", confidence=0.8123),
    ),
    "ecosounds, a score of its own": (
        "e.csv",
        "filename,start_offset_seconds,end_offset_seconds,low_frequency_hertz,"
        "high_frequency_hertz,score,Common name,Scientific name\na.wav,1,2,,4000,-12.5,Dog,\n",
        Detection(audio_path="a.wav", start=1.0, end=2.0, label="Dog", common_name="Dog",
                  high_hz=4000.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("case", list(VARIANTS))
def test_variants_are_recognised_and_read(
    tmp_path: Path, case: str, end: str, encoding: str
) -> None:
    name, text, expected = VARIANTS[case]
    (tmp_path / name).write_bytes(text.replace("\n", end).encode(encoding))
    assert list(read(tmp_path / name)) == [expected]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("b.csv", f"{BIRDNET}-3,6,,Wolf,0.9,a.wav\n", r"b\.csv, line 2: start .* 0 or more"),
        ("b.csv", f"{BIRDNET}3,nan,,Wolf,0.9,a.wav\n", r"b\.csv, line 2: end "),
        ("b.csv", f"{BIRDNET}6,3,,Wolf,0.9,a.wav\n", r"line 2: end 3 is not after start 6"),
        ("b.csv", f"{BIRDNET}3,6,,Wolf,0.9,\n", r"line 2: names no recording"),
        ("b.csv", f"{BIRDNET}3,6,,Wolf\n", r"line 2: has fewer fields"),
        ("k.csv", f"{KALEIDOSCOPE}/d,n,,0,1,2,X,,\n", r"line 2: names no recording"),
        ("k.csv", f"{KALEIDOSCOPE}/d,n,a.wav,0,1,0,X,,\n", r"line 2: end 1 is not after"),
        ("a.txt", "1\t2\tx\n5\t4\ty\n", r"a\.txt, line 2: a label from 5 to 4"),
        ("a.txt", "1\t2\tx\n-5\t4\ty\n", r"a\.txt, line 2: a label from -5 to 4"),
        ("a.txt", "1\t2\tx\nnan\tinf\ty\n", r"a\.txt, line 2: a label is start"),
        ("r.txt", f"{SELECTIONS}\tBegin File\n1\tS\t1\t1\t2\t0\t1\ta\n2\tS\t1\t1\t2\t0\t1\tb\n",
         "line 3: Begin Time .* counts over all of its files"),
        ("t.csv", "x,y\n1,2\n", r"t\.csv: is no table of csv, .*its columns are 'x', 'y'"),
        ("t.csv", "\n", "is empty, so there is no detection in it"),
        ("t.parquet", "PAR1 and no more", "cannot be read as Parquet"),
        ("t.jsonl", '{"a": 1}\n', "line 1: this is no row"),
        ("t.csv", "file,start_time,end_time,Owl\na.wav,0,3,often\n",
         "line 2: Owl is 'often': 0, 1 or a score"),
        ("t.csv", "file,start_time,end_time,Owl\na.wav,x,3,1\n", r"line 2: start \(start_time\) m"),
        ("t.csv", "label,onset_s,offset_s,notated_path,annot_path,sequence,annotation\n"
         "x,3,2,a,b,0,0\n", "line 2: end 2 is not after start 3"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((DataError, OutputError), match=says):
        list(read(tmp_path / name))
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read"):
        list(read(tmp_path / "absent.csv"))


def test_a_format_that_is_named_must_fit(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(f"{BIRDNET}3,6,,Wolf,0.9,a.wav\n")
    for name in ("audacity", "kaleidoscope"):
        with pytest.raises(DataError, match=r"is no (label|table of Kaleidoscope)"):
            list(read(tmp_path / "b.csv", name))


def test_names_that_lead_out_of_the_folder_stay_names(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text(f"{BIRDNET}3,6,,Wolf,0.9,../../none/x.wav\n")
    (one,) = read(tmp_path / "b.csv")
    assert one.audio_path == "../../none/x.wav"


def test_an_end_that_no_column_says_is_open(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_text("start,label,file\n3,Wolf,a.wav\n")
    (one,) = read(tmp_path / "b.csv", "birdnet")
    assert one.end == math.inf


def test_memory_of_a_large_table_is_flat(tmp_path: Path) -> None:
    """Detections come one by one; the text of the table is what is held."""
    table = tmp_path / "b.csv"
    table.write_text(BIRDNET + "3.0,6.0,Canis lupus,Wolf,0.9321,a.wav\n" * 2000)
    found = read(table)
    assert isinstance(found, Iterator)
    assert sum(1 for _ in found) == 2000

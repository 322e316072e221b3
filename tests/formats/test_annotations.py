"""Tables of other programs: made by hand, as these read them, and read again as written."""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from result_files import error, result_file, survey, window

from NatureLM.data.table import DataError
from NatureLM.errors import UsageError
from NatureLM.formats import FORMATS, annotated, read, recognised, write
from NatureLM.results.detections import Detection, ResultFile
from NatureLM.results.rows import OutputError, WindowRow
from NatureLM.results.tables import alternatives_of, alternatives_text

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


# Audacity, crowsetta, OpenSoundscape

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "formats"


def told(found: Detection) -> tuple[str, float, float, str, float | None]:
    return found.audio_path, found.start, found.end, found.label, found.confidence


def test_crowsetta_made_by_hand() -> None:
    path = FIXTURES / "crowsetta.csv"
    assert recognised(path) == "crowsetta"
    creeper, owl, strix = read(path)
    assert told(creeper) == ("/card/creek.wav", 0.5, 1.25, "Brown Creeper", None)
    assert told(owl)[1:4] == (3.0, 4.75, "Owl, long-eared")
    assert (strix.audio_path, strix.scientific_name) == ("/card/höhle.wav", "Rallina tricolor")


@pytest.mark.parametrize("name", ["opensoundscape", "opensoundscape_labels"])
def test_opensoundscape_made_by_hand(name: str) -> None:
    path = FIXTURES / f"{name}.csv"
    assert recognised(path) == "opensoundscape"
    shares = {"opensoundscape": (0.9375, 0.25), "opensoundscape_labels": (None, None)}[name]
    first, *between, last = read(path)
    assert told(first) == ("/card/creek.wav", 0.0, 3.0, "Brown Creeper", shares[0])
    assert told(last) == ("/card/creek.wav", 3.0, 6.0, "Rallina tricolor", shares[1])
    assert [one.label for one in between] == ([] if shares[0] else ["Rallina tricolor"])


def test_crowsetta_opens_what_is_written_for_it(tmp_path: Path) -> None:
    import crowsetta as theirs

    rows = [
        window("/card/a.wav", 10.0, 20.0, text="Wren, =winter"),
        window("/card/a.wav", 0.0, 10.0, text="学\tOwl"),
        window("/card/b.wav", 0.0, 10.0),
        window("/card/c.wav", 0.0, 10.0, text="None"),
    ]
    write("crowsetta", result_file(tmp_path, *rows), tmp_path / "t.csv")
    first, second = theirs.Transcriber("generic-seq").from_file(tmp_path / "t.csv").to_annot()
    assert (str(first.notated_path), str(second.notated_path)) == ("/card/a.wav", "/card/b.wav")
    assert list(first.seq.labels) == ["学 Owl", "Wren, =winter"]
    assert list(first.seq.onsets_s) == [0.0, 10.0]
    assert list(first.seq.offsets_s) == [10.0, 20.0]
    assert str(first.annot_path) == str(tmp_path / "answers.jsonl")
    with open(tmp_path / "t.csv", encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == annotated.CROWSETTA


def test_crowsetta_writes_what_is_read_here(tmp_path: Path) -> None:
    import crowsetta as theirs

    annotations = theirs.Transcriber("generic-seq").from_file(FIXTURES / "crowsetta.csv")
    annotations.to_file(tmp_path / "theirs.csv")
    assert list(read(tmp_path / "theirs.csv")) == list(read(FIXTURES / "crowsetta.csv"))


def test_windows_of_opensoundscape(tmp_path: Path) -> None:
    rows = [
        window("/b.wav", 10.0, 16.5, text="Owl", confidence=0.5, alternatives=(("Fox", 0.25),)),
        window("/b.wav", 0.0, 10.0, text="", note="silent"),
        window("/a.wav", 0.0, 10.0, text="None", confidence=0.75),
        window("/a.wav", 0.0, 10.0, query="And?", text="=Fox", confidence=1.0),
    ]
    written = write("opensoundscape", result_file(tmp_path, *rows), tmp_path / "t.csv")
    assert (written.lines, dict(written.left_out)) == (3, {})
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines() == [
        "file,start_time,end_time,'=Fox,Fox,Owl",
        "/a.wav,0,10,1.000000,0.000000,0.000000",
        "/b.wav,0,10,0.000000,0.000000,0.000000",
        "/b.wav,10,16.5,0.000000,0.250000,0.500000",
    ]


def test_a_survey_has_classes(tmp_path: Path) -> None:
    rows = [
        survey(0, {"bird": True, "species": "Owl", "calls": 3}),
        survey(5, {"bird": False, "species": None}),
    ]
    settings = {"columns": {"bird": {"type": "yes_no"}, "species": {"type": "choice"}}}
    answers = result_file(tmp_path, *rows, settings=settings)
    write("opensoundscape", answers, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8").splitlines() == [
        "file,start_time,end_time,Owl,bird",
        "/card/a.wav,0,5,1,1",
        "/card/a.wav,5,10,0,0",
    ]


def test_free_answers_are_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotated, "MOST_CLASSES", 1)
    rows = [window(text="A fox barks"), window(start=10, end=20, text="An owl calls")]
    with pytest.raises(UsageError, match=r"more than 1 different answers.*--column"):
        write("opensoundscape", result_file(tmp_path, *rows), tmp_path / "t.csv")
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("mark", [",", ";"])
def test_tables_as_spreadsheets_save_them(encoding: str, mark: str, tmp_path: Path) -> None:
    content = (FIXTURES / "crowsetta.csv").read_text(encoding="utf-8")
    if mark == ";":
        content = content.replace('"Owl, long-eared"', "Owl").replace(",", ";").replace(".5", ",5")
    path = tmp_path / "t.csv"
    path.write_bytes(content.replace("\n", "\r\n").encode(encoding))
    first, _, last = read(path)
    assert (first.start, last.audio_path) == (0.5, "/card/höhle.wav")


# Round trips

LETTERS = st.one_of(st.sampled_from("aö学 ,;'\"=+-@#%|"), st.characters(codec="utf-8"))
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)


def _as_said(text: str) -> str:
    """The text as a name of a file or a species could be."""
    text = unicodedata.normalize("NFC", text)
    text = " ".join("".join(c for c in text if c.isprintable() and c not in "/\\").split())
    return f"{text}a" if text.count('"') % 2 else text


PARTS = (
    st.text(LETTERS, min_size=1, max_size=12)
    .map(_as_said)
    .filter(lambda text: text.strip(" .") and text.casefold() not in ("none", "nocall"))
)
LABELS = PARTS.map(lambda text: f"{text[:1].upper()}{text[1:]}") | st.just("Rallina tricolor")
LABELS_OF = {  # Formats of rows keep every text, and a tag of Camtrap DP ends at a bar
    **dict.fromkeys(
        ("csv", "jsonl", "parquet"), ANY_TEXT.filter(lambda t: t.strip(" ") == t != "")
    ),
    "camtrap-dp": LABELS.map(lambda text: text.replace("|", "/")),
}
PLACES = st.integers(0, 10**8).map(lambda milli: milli / 1e3)
CONTEXT = {
    **{"site": "Creek", "latitude": -12.5, "longitude": 143.25, "recorder": "SM4-1"},
    **{"local_time": "2024-05-10T05:30:00+10:00", "utc_time": "2024-05-09T19:30:00Z"},
}
OTHERS = (("Wren, winter", 0.125), ("Owl", 0.25))


@st.composite
def answers_about(draw: st.DrawFn, labels: st.SearchStrategy[str]) -> list[WindowRow]:
    """Answers about up to three recordings; none of two is about one stretch."""
    paths = draw(st.lists(st.tuples(PARTS, PARTS), min_size=1, max_size=3, unique=True))
    has_shares = draw(st.booleans())
    made = []
    for folder, name in paths:
        for start in draw(st.lists(PLACES, min_size=1, max_size=3, unique=True)):
            row = window(
                *(f"/naturelm-none/{folder}/{name}.wav", start),
                *(round(start + draw(st.integers(1, 10**5)) / 1000, 3),),
                text=draw(labels.filter(lambda text: text != "None")),
                query=draw(PARTS),
                confidence=draw(st.integers(1, 10**6)) / 10**6 if has_shares else None,
                context=CONTEXT,
            )
            made.append(row)
    return made


def kept(one: Detection, name: str) -> Detection:
    """What a format keeps of a detection."""
    lost: dict[str, Any] = {}
    if name not in ("csv", "jsonl", "parquet", "raven", "camtrap-dp"):
        lost["question"] = ""
    if name in ("audacity", "crowsetta"):
        lost["confidence"] = None
    if name in ("audacity", "ecosounds"):
        lost["audio_path"] = Path(one.audio_path).name if name == "ecosounds" else ""
    if name in ("birdnet", "ecosounds"):
        lost["label"] = one.common_name or one.scientific_name
    if name == "camtrap-dp":
        lost = {"audio_path": Path(one.audio_path).name, "question": one.question.replace("|", "/")}
    if name == "opensoundscape" and one.label.casefold() in ("file", "start_time", "end_time"):
        lost["label"] = lost["common_name"] = f"{one.label}_"
    return replace(one, **lost)


def said_of(one: Detection) -> tuple[Any, ...]:
    names = (one.label, one.common_name, one.scientific_name, one.question)
    share = -1.0 if one.confidence is None else one.confidence
    return (one.audio_path, round(one.start, 5), round(one.end, 5), share, *names)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    rows = data.draw(answers_about(LABELS_OF.get(name, LABELS)))
    more = [window("/b.wav", text="None", context=CONTEXT), error("/c.wav")]
    found = result_file(folder, *rows, *more, settings={"channel": 2})
    target = folder / f"t{FORMATS[name].suffix}"
    written = write(name, found, target, per_recording=name == "audacity")
    tables = [target] if name != "audacity" else sorted(written.path.rglob("*.txt"))
    back = [one for table in tables for one in read(table, name)]
    if name == "audacity":
        assert {one.audio_path for one in back} <= {table.stem for table in tables}
        back = [replace(one, audio_path="") for one in back]
    else:
        assert recognised(target) == name
    if name == "camtrap-dp":
        back = [replace(one, audio_path=Path(one.audio_path).name) for one in back]
    if name == "opensoundscape" and {row.confidence for row in rows} == {1.0}:
        back = [replace(one, confidence=1.0) for one in back]  # scores that could be labels
    assert sorted(map(said_of, back)) == sorted(said_of(kept(one, name)) for one in found)


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
def test_rows_are_read_with_all_that_they_hold(tmp_path: Path, name: str) -> None:
    row = window("/a.wav", text="Wren", alternatives=OTHERS, windows=2, mean_confidence=0.5)
    target = tmp_path / f"t{FORMATS[name].suffix}"
    write(name, result_file(tmp_path, row), target)
    (found,) = read(target)
    assert (found.alternatives, found.windows, found.mean_confidence) == (OTHERS, 2, 0.5)


@given(st.lists(st.tuples(LABELS, st.integers(0, 999).map(lambda n: n / 1000)), max_size=4))
def test_alternatives_are_read_again(pairs: list[tuple[str, float]]) -> None:
    pairs = [(name, share) for name, share in pairs if not any(c.isdigit() for c in name)]
    assert list(alternatives_of(alternatives_text(pairs))) == pairs

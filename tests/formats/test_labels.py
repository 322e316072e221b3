"""Labels for crowsetta and OpenSoundscape: tables made by hand, crowsetta itself."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from result_files import result_file, survey, window

from NatureLM.errors import UsageError
from NatureLM.formats import annotated, read, recognised, write
from NatureLM.results.detections import Detection

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

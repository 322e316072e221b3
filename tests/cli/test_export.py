"""`naturelm export` and `infer --format`: tables beside the answers, and what is not in them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from result_files import error, result_file, survey, window

from NatureLM.formats import FORMATS, read
from NatureLM.results.rows import Prediction, RunSettings, to_line
from NatureLM.results.store import WindowStore
from tests.commands import naturelm, write_wav


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Answers to two questions about two recordings and one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    rows = [
        window("/card/a.wav", text="Wolf", confidence=0.5),
        window("/card/a.wav", text="None"),
        window("/card/a.wav", 10, 20, text="", note="silent"),
        window("/card/b.wav", query="How many?", text="Two"),
        error("/card/c.wav"),
    ]
    return result_file(tmp_path, *rows).path


@pytest.mark.parametrize("name", sorted({*FORMATS} - {"jsonl", "camtrap-dp", "audacity"}))
def test_a_table_is_written_beside_the_answers(answers: Path, name: str) -> None:
    result = naturelm("export", answers, "--format", name)
    assert result.exit_code == 0, result.output
    target = answers.with_name(f"answers{FORMATS[name].suffix}")
    assert f"{FORMATS[name].unit} in {target}" in result.stdout
    assert target.is_file()


def test_what_is_left_out_is_said(answers: Path) -> None:
    result = naturelm("export", answers, "--format", "crowsetta")
    assert result.stdout.startswith("2 annotations in ")
    said = " ".join(result.stderr.split())
    assert "Not in a table of detections: answered with None: 1, silent: 1" in said
    assert "recordings that could not be read, or not to their end: 1" in said
    assert not naturelm("export", answers, "--format", "csv").stderr


def test_some_questions(answers: Path) -> None:
    words = ("--format", "crowsetta", "--column", "How many?", "--output-path", "t.csv")
    result = naturelm("export", answers, *words)
    assert result.exit_code == 0, result.output
    assert [one.label for one in read(Path("t.csv"))] == ["Two"]
    result = naturelm("export", answers, "--column", "How mny?")
    assert result.exit_code == 2
    assert "no answers to 'How mny?'; did you mean 'How many?'" in result.stderr


def test_a_file_a_recording(answers: Path) -> None:
    result = naturelm("export", answers, "--format", "crowsetta", "--per-recording")
    assert result.exit_code == 0, result.output
    assert f"2 annotations in 3 files in {answers.with_name('answers-crowsetta')}" in result.stdout
    names = sorted(one.name for one in Path("answers-crowsetta").iterdir())
    assert names == ["a.crowsetta.csv", "b.crowsetta.csv", "c.crowsetta.csv"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--format", "jsonl"), "the answers themselves would be replaced"),
        (("--format", "xls"), "csv, jsonl"),
        (("--output-path", "f/x.csv"), "f is a file, and a folder is needed"),
        (("--format", "camtrap-dp"), "ask with --deployments TABLE"),
        (("--format", "camtrap-dp", "--output-path", "f"), "f: is a file, and a folder is needed"),
        (("--format", "csv", "--per-recording", "--output-path", "f"), "a folder is needed"),
    ],
)
def test_what_cannot_be_is_told(answers: Path, words: tuple[str, ...], problem: str) -> None:
    Path("f").touch()
    before = sorted(Path().iterdir())
    result = naturelm("export", answers, *words)
    assert result.exit_code == 2
    assert problem in " ".join(result.stderr.split())
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("name", ["nothing.jsonl", "f"])
def test_what_holds_no_answers_is_named(answers: Path, name: str) -> None:
    Path("f").touch()
    result = naturelm("export", name)
    assert result.exit_code in (1, 2)
    assert f"{name}: there is no" in " ".join(result.output.split())


def test_raven_table_has_exact_times_channel_and_band(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Channel and band are those that the recordings were heard with."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.zeros(12 * 8000), 8000)
    with WindowStore("o.jsonl") as store:
        settings = {"model": "m", "merging_alpha": 1.0, "queries": ["q"], "channel": 2}
        store.begin(RunSettings({**settings, "time_expansion": 0.25}))
        store.add(Prediction("a.wav", 0.0, 10.0, "q", "Wolf", 1.0))
        store.add(Prediction("a.wav", 10.0, 12.0, "q", "Owl", 1.0))
        store.add(Prediction("b.wav", 0.0, 5.0, "q", "Dog", 1.0))  # which is gone
    result = naturelm("export", "o.jsonl", "--format", "raven", "--output-path", "tables/r.txt")
    assert result.exit_code == 0, result.output
    with open("tables/r.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(row["Begin Time (s)"], row["End Time (s)"]) for row in rows] == [
        ("0.000000", "10.000000"),
        ("10.000000", "12.000000"),
        ("12.000000", "17.000000"),
    ]
    assert {(row["Channel"], row["High Freq (Hz)"]) for row in rows} == {("2", "2000.0")}


def test_recordings_without_answers_take_their_time_in_raven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begin times are those of the recordings opened as one sound, by the list that is written."""
    monkeypatch.chdir(tmp_path)
    clips = Path("clips")
    clips.mkdir()
    seconds = {"0500.wav": 3600.25, "0600.wav": 2.000125, "0700.wav": 4.0}
    for name, length in seconds.items():
        soundfile.write(clips / name, np.zeros(round(length * 8000)), 8000)
    (clips / "0650.wav").write_bytes(b"not sound")
    with WindowStore("o.jsonl") as store:  # in the order of a run that was resumed
        store.begin(RunSettings({"model": "m", "merging_alpha": 1.0, "queries": ["q"]}))
        store.add(Prediction("clips/0700.wav", 1.0, 3.0, "q", "Owl", 1.0))
        store.add_error("clips/0600.wav", ValueError("NaN"), 1.0)
        store.add_error("clips/0650.wav", ValueError("no sound"), 1.0)
        store.add(Prediction("clips/0500.wav", 3590.0, 3600.25, "q", "Wolf", 1.0))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir("sub")
    result = naturelm("export", "../o.jsonl", "--format", "raven")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "0600.wav: not all of it was read; its 2.0001" in text
    assert "0650.wav" in text
    assert "It is not counted" in text
    with open("../o.selections.txt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(row["Begin File"], row["Begin Time (s)"], row["File Offset (s)"]) for row in rows] == [
        ("0500.wav", "3590.000000", "3590.000000"),
        ("0700.wav", "3603.250125", "1.000000"),
    ]
    listed = Path("../o.files.txt").read_text().splitlines()
    assert listed == [str(tmp_path / clips / name) for name in seconds]
    assert f"by the list {Path('../o.files.txt')}" in text


def test_a_survey_is_exported(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    rows = [survey(0, {"bird": True, "calls": 3}), survey(5, {"bird": False})]
    path.write_bytes(b"".join(map(to_line, rows)))
    result = naturelm("export", path, "--format", "crowsetta", "--column", "bird")
    assert result.exit_code == 0, result.output
    assert [one.label for one in read(tmp_path / "s.crowsetta.csv")] == ["bird"]


def test_infer_writes_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "a.wav", 2)
    words = ("a.wav", "-q", "What?", "--output-path", "o.jsonl", "--device", "cpu")
    for wrong, problem in (("jsonl", "would be replaced"), ("cvs", "must be one of")):
        result = naturelm("infer", *words, "--format", wrong)
        assert (result.exit_code, Path("o.jsonl").exists()) == (2, False)
        assert problem in result.stderr
    result = naturelm("infer", *words, "--format", "csv", "--format", "opensoundscape")
    assert result.exit_code == 0, result.output
    assert "1 rows in o.csv" in result.stdout
    assert Path("o.csv").is_file()
    assert Path("o.opensoundscape.csv").is_file()

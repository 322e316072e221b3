"""`naturelm export` and `infer --format`: tables beside the answers, and what is not in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from result_files import error, result_file, survey, window

from NatureLM.formats import FORMATS, read
from NatureLM.results.rows import to_line
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

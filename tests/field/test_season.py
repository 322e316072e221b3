"""A made card from the survey to tables: every time in them is true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from NatureLM.cli.main import naturelm_app
from NatureLM.formats import FORMATS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A card of eight recordings that went through survey and events; two of them are broken."""
    folder = tmp_path_factory.mktemp("season")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.chdir(folder)
        import field_archive
        import field_season

        field_archive.make(folder, 8, day=False, broken=2)
        season = field_season.Pass(folder, show=lambda text: None)
        run("survey", "out/questions.yml", *field_season.folders(folder), "--quiet",
            "--deployments", "deployments.csv", "--output-path", "out/survey")  # fmt: skip
        run("events", "out/survey/survey.jsonl", "--output-path", "out/events.jsonl",
            "--column", "species", "--gap", 17.5)  # fmt: skip
        yield season


def run(*arguments: object) -> str:
    """A command; some recordings are broken, which its exit code says."""
    done = CliRunner().invoke(naturelm_app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code in (0, 3), done.output
    return done.output


def test_every_window_has_its_row_and_its_time(made: Any) -> None:
    import field_checks
    import field_season

    found = field_checks.Findings()
    answers = made.out / "survey" / "survey.jsonl"
    window, hop = field_season.WINDOW, field_season.HOP
    field_checks.check_answers(found, made.season, answers, window, hop)
    field_checks.check_events(found, made.season, made.out / "events.jsonl")
    assert found.times > 100
    assert found.wrong == []


@pytest.mark.parametrize("per_recording", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_table_has_the_times_of_the_answers(
    name: str, per_recording: bool, made: Any, tmp_path: Path
) -> None:
    import field_checks
    import field_tables

    if (FORMATS[name].is_one and per_recording) or (FORMATS[name].is_each and not per_recording):
        return
    answers = made.out / "survey" / "survey.jsonl"
    target = tmp_path / f"table{FORMATS[name].suffix}"
    each = ["--per-recording"] if per_recording else []
    run("export", answers, "--format", name, "--output-path", target, *each)
    found = field_checks.Findings()
    heard, spans = field_checks.detections(made.season, answers)
    expected = field_tables.Expected(made.season, answers, heard, spans)
    paths = field_tables.parts(target, FORMATS[name].suffix, per_recording=per_recording)
    field_tables.CHECKS[name](found, paths, expected)
    assert found.times > 0
    assert found.wrong == []

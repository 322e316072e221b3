"""The doors at the root lead to the commands, and every command that a page shows exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_pages import DOORS, ROOT, blocks, commands, page_name, pages, program_call
from typer.testing import CliRunner

from NatureLM.cli import main
from NatureLM.cli.main import single_command

VERBS = {"naturelm": main.NATURELM_COMMANDS, "beans": main.BEANS_COMMANDS}


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["infer.py", "--help"], "--audio-path"),
        (["-m", "NatureLM.infer", "--help"], "--audio-path"),
        (["beans_zero_inference.py", "--help"], "info"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_doors_open(command: list[str], shown: str) -> None:
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


@pytest.mark.parametrize("door", DOORS)
def test_doors_are_three_lines(door: str) -> None:
    lines = (ROOT / door).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines[1:] if line]) == 3


@pytest.mark.parametrize("page", pages(), ids=page_name)
def test_pages_show_commands_that_exist(page: Path) -> None:
    """Verbs, options and the kinds of their values, of blocks that do not run, too."""
    shown = [
        words for block in blocks(page) if block.language == "bash" for words in commands(block)
    ]
    for program, *rest in filter(None, map(program_call, shown)):
        if program == "beans" and rest and rest[0].startswith("-") and "--help" not in rest:
            rest = ["run", *rest]  # the default verb
        if not rest or rest[0].startswith("-"):
            assert set(rest) <= {"--help", "--version"}, rest
            continue
        verb, *arguments = rest
        assert verb in VERBS[program], f"{program} {verb}"
        if "--help" not in arguments:
            single_command(verb, VERBS[program][verb]).make_context(verb, arguments)


@pytest.mark.parametrize("app", [main.naturelm_app, main.beans_app])
def test_help_lists_all_verbs(app: object) -> None:
    printed = CliRunner().invoke(app, ["--help"]).output  # type: ignore[arg-type]
    verbs = main.NATURELM_COMMANDS if app is main.naturelm_app else main.BEANS_COMMANDS
    for verb in verbs:
        assert verb in printed

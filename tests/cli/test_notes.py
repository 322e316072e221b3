"""What the package logs is shown as notes by a command, and goes to any handler without one."""

from __future__ import annotations

import io
import logging

import pytest
import typer
from rich.console import Console
from rich.progress import Progress

from NatureLM.cli import progress
from NatureLM.cli.main import Command
from NatureLM.cli.progress import notes_shown

logger = logging.getLogger("NatureLM.some.module")


def command() -> None:
    """Logs all that may be logged."""
    logger.info("of no interest")
    logger.warning("%s: has changed", "a{}.wav")
    typer.echo("done")


def run(**options: str) -> None:
    made = Command(f"{__name__}:command", "A command.", **options)
    made.function()()


def test_a_command_shows_notes(
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run()
    assert capsys.readouterr() == ("done\n", "Note: a{}.wav: has changed\n")
    run(notes="{}")
    assert capsys.readouterr().err == "a{}.wav: has changed\n"
    assert caplog.messages == [], "each note is shown once"


def test_without_a_command_notes_go_to_the_handlers_that_there_are(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with notes_shown("Note: {}"):
        pass
    logger.warning("heard")
    assert caplog.messages == ["heard"]
    assert capsys.readouterr().err == ""


def test_notes_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    bar = Progress(console=Console(file=shown, force_terminal=True, width=20), transient=True)
    bar.add_task("working")
    with bar, notes_shown("Note: {}"):
        monkeypatch.setattr(progress, "_bar", bar)
        logger.warning("a note that is longer than the line of the terminal [1] \x1b[31mred\x1b[0m")
    text = shown.getvalue()
    assert "Note: a note that is longer than the line of the terminal [1] " in text
    assert text.index("Note: ") < text.rindex("working")

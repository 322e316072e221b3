"""What the package logs is shown as notes by a command, and goes to any handler without one."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable

import pytest
import typer

from NatureLM.cli.errors import notes_shown
from NatureLM.cli.main import Command
from NatureLM.progress import ProgressBar, say

logger = logging.getLogger("NatureLM.some.module")


def command() -> None:
    """Logs all that may be logged."""
    logger.info("of no interest")
    logger.warning("%s: has changed", "a{}.wav")
    typer.echo("done")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command as a program does."""
    monkeypatch.setattr("NatureLM.cli.models.models", command)
    return lambda **options: Command("models:models", "A command.", **options).function()()


def test_a_command_shows_notes(
    run: Callable[..., None],
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


class Terminal(io.StringIO):
    """A stream that is said to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_notes_stand_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    with ProgressBar("{task.completed} of {task.total}", "eta", total=3) as bar:
        with notes_shown("Note: {}"):
            logger.warning("a note that is longer than the line of the terminal [1] \x1b[31mred")
        bar.update(2)
        bar.advance()
    text = shown.getvalue()
    assert "Note: a note that is longer than the line of the terminal [1] " in text
    assert text.index("Note: ") < text.rindex("3 of 3")
    say("no bar any more")
    assert shown.getvalue().endswith("no bar any more\n")


def test_elsewhere_a_bar_shows_nothing_or_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    for stays in (False, True):
        with ProgressBar("{task.completed} of {task.total}", total=3, stays=stays) as bar:
            assert bar.is_shown is stays
            bar.update(3, total=4)
        assert capsys.readouterr().err == ("3 of 4\n" if stays else "")

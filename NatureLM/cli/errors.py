"""The one place where errors and notes become messages for people, and errors exit codes.

Exit codes: 0 all went well, 1 something failed, 2 wrong usage, 3 some recordings could not be used,
130 stopped with Ctrl-C, 143 stopped by the system.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from NatureLM.errors import NatureLMError
from NatureLM.progress import say

SOME_FAILED = 3
RESUMES = "the same command goes on from there."


class Terminated(KeyboardInterrupt):
    """The system asked the process to end (SIGTERM)."""


@contextmanager
def stop_message(message: str | Callable[[], str]) -> Iterator[None]:
    """Where the block is stopped from outside, say what is there and how to go on, and end."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(message if isinstance(message, str) else message(), err=True)
        raise typer.Exit(_stop_code(interrupt)) from None


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Turn errors of the project into a message on stderr and the end of the process.

    With NATURELM_DEBUG=1 in the environment they keep their stack trace.
    """
    try:
        with _terminable():
            yield
    except NatureLMError as error:
        if os.environ.get("NATURELM_DEBUG", "") not in ("", "0"):
            raise
        typer.echo(error_text(str(error)), err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as error:
        typer.echo("Stopped.", err=True)
        raise SystemExit(_stop_code(error)) from None


def _stop_code(interrupt: KeyboardInterrupt) -> int:
    return 143 if isinstance(interrupt, Terminated) else 130


def error_text(message: str) -> str:
    """The message after a red label; where the output is no terminal, the colour is left out."""
    return typer.style("Error: ", fg=typer.colors.RED, bold=True) + message


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated`, so that files are closed as with Ctrl-C."""

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, on_terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_output_robust() -> None:
    """Characters that the terminal cannot show are shown escaped, not as a crash."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _NoteHandler(logging.Handler):
    """Shows log records as lines on stderr; `form` is such a line, with {} for the message."""

    def __init__(self, form: str) -> None:
        super().__init__(logging.WARNING)
        self._form = form

    def emit(self, record: logging.LogRecord) -> None:
        say(self._form.format(record.getMessage()))


@contextmanager
def notes_shown(form: str) -> Iterator[None]:
    """Within the block, what the package logs for its user is shown on stderr, and nowhere else."""
    package, handler = logging.getLogger("NatureLM"), _NoteHandler(form)
    propagated = package.propagate
    package.addHandler(handler)
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.propagate = propagated

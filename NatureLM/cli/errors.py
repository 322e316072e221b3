"""The one place where errors and notes become messages for people, and errors exit codes.

Exit codes: 0 all went well, 1 something failed, 2 wrong usage, 3 some recordings could not be used,
130 stopped with Ctrl-C, 143 stopped by the system, 129 its terminal was closed, 141 all was done
but nobody read the output to its end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from NatureLM.errors import NatureLMError
from NatureLM.progress import notes_to, printable, say, show

SOME_FAILED = 3
_NOBODY_READ = 141  # what shells say of programs that a closed pipe ended
RESUMES = "the same command goes on from there."


class Terminated(KeyboardInterrupt):
    """The system asked the process to end (SIGTERM), or its terminal was closed (SIGHUP)."""


@contextmanager
def stop_message(message: str | Callable[[], str]) -> Iterator[None]:
    """Where the block is stopped from outside, say what is there and how to go on, and end."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        show(message if isinstance(message, str) else message(), err=True)
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
        typer.echo(error_text(error), err=True)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # of the system, about a file that nobody expected it of
        if error.errno is None or os.environ.get("NATURELM_DEBUG", "") not in ("", "0"):
            raise
        place = "" if error.filename is None else f"{printable(os.fsdecode(error.filename))}: "
        typer.echo(error_text(f"{place}{error.strerror}"), err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        typer.echo("Stopped.", err=True)
        raise SystemExit(_stop_code(error)) from None


def _stop_code(interrupt: KeyboardInterrupt) -> int:
    return 128 + (interrupt.args[0] if isinstance(interrupt, Terminated) else signal.SIGINT)


def error_text(error: BaseException | str) -> str:
    """The message after a red label; where the output is no terminal, the colour is left out.

    It is cleaned as `printable` does; names of files are one line each.
    """
    message = str(error)
    for name in (
        str(getattr(error, "path", "")),
        *(part for one in sys.argv for part in (one, one.partition("=")[2])),
    ):
        if name and not name.isprintable():
            message = message.replace(name, printable(name))
    shown = printable(message, lines=True)
    return typer.style("Error: ", fg=typer.colors.RED, bold=True) + shown


class Failures:
    """Shows what is wrong with recordings, one after the other, and counts them."""

    count = 0

    def __call__(self, error: BaseException) -> None:
        self.count += 1
        say(error_text(error), styled=True)

    @property
    def exit_code(self) -> int:
        """That of a command which did all else."""
        return SOME_FAILED if self.count else 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated`, so that files are closed as with Ctrl-C."""

    def on_terminate(signum: int, frame: FrameType | None) -> None:
        raise Terminated(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        numbers.append(signal.SIGHUP)  # `nohup` has it ignored
    before = {number: signal.signal(number, on_terminate) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Kept(io.RawIOBase):
    """The raw side of a standard stream; what nobody takes any more is dropped.

    lost: why it was not taken
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.lost: OSError | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        return int(self._raw.fileno())

    def write(self, data: Any) -> int:
        while self.lost is None:
            try:
                written = self._raw.write(data)
            except OSError as error:
                self.lost = error
                break
            if written is not None:
                return int(written)
            select.select((), (self._raw,), ())  # a full pipe that does not wait itself
        return len(data)


def run_program(main: Callable[[], Any]) -> None:
    """Run a program to its end and leave Python, whatever happens to stdout and stderr meanwhile.

    What is written there when nobody takes it any more is dropped, and the work goes on: its files
    are what it is for. At the end this is said, and the exit code says so. Characters that a
    terminal cannot show are shown escaped. A stream that was closed from the start is not missed.
    """
    _fill_closed_streams()
    kept = {name: _keep(name) for name in ("stdout", "stderr")}
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    problem = next((one.lost for one in kept.values() if one and one.lost), None)
    if problem is not None:
        is_pipe = problem.errno == errno.EPIPE
        why = "was closed" if is_pipe else f"took no more ({problem.strerror})"
        name = "stdout" if kept["stdout"] and kept["stdout"].lost else "stderr"
        message = f"{name} {why} before all was shown; files that were written are whole."
        typer.echo(f"Note: {message}" if is_pipe else error_text(message), err=True)
        code = code or (_NOBODY_READ if is_pipe else 1)
    sys.exit(code)


def _fill_closed_streams() -> None:
    """Let closed standard streams lead nowhere: else the next file that is opened is one of them,
    and what a library says on stderr goes into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _keep(name: str) -> _Kept | None:
    """Put a stream that cannot fail into the place of a standard stream."""
    stream = getattr(sys, name)
    if stream is not getattr(sys, f"__{name}__"):
        if hasattr(stream, "reconfigure"):  # somebody caught it
            stream.reconfigure(errors="backslashreplace")
        return None
    with contextlib.suppress(OSError):
        stream.flush()
    kept = _Kept(getattr(stream.buffer, "raw", stream.buffer))
    lines = stream.line_buffering or name == "stderr"
    wrapped = io.TextIOWrapper(
        io.BufferedWriter(kept), stream.encoding, "backslashreplace", None, lines
    )
    setattr(sys, name, wrapped)
    return kept


@contextmanager
def notes_shown(form: str) -> Iterator[None]:
    """Within the block, what the package logs for its user is shown on stderr, and nowhere else.

    form: of a line, with {} for the message
    """

    def take(record: logging.LogRecord) -> None:
        if isinstance(record.args, tuple):  # names of files, above all
            record.args = tuple(
                printable(one) if isinstance(one, str | Path | Exception) else one
                for one in record.args
            )
        say(form.format(record.getMessage()))

    with notes_to(take, alone=True):
        yield

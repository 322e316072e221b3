"""What a terminal gets from a command: errors and notes as messages, the progress of a run.

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
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from NatureLM.errors import NatureLMError
from NatureLM.progress import ProgressBar, notes_to, printable, say, show
from NatureLM.storage import AnyPath

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


# Progress of a run


class RunProgress:
    """What a run shows: answers on stdout; progress, errors and the summary on stderr.

    On a terminal a bar shows where the run is; elsewhere there is a line for each recording.

    legend: lines above the answers
    unit: what a row is
    failed: shows what is wrong with recordings that could not be read (to their end)
    """

    def __init__(
        self,
        recordings: int,
        *,
        shows_answers: bool,
        legend: Sequence[str] = (),
        unit: str = "answers",
    ) -> None:
        self._recordings, self._shows_answers, self._legend = recordings, shows_answers, legend
        self._unit = unit
        self._expected = self._windows = self._answers = self._rows = 0
        self.failed = Failures()
        self._silent: Counter[str] = Counter()  # windows by their note
        self._seconds = 0.0  # of sound that was answered about
        self._started = time.monotonic()
        self._last: tuple[str, float, float] | None = None  # recording, start and end
        self._in_recording = self._done_recordings = 0
        self._bar = ProgressBar()

    @contextmanager
    def working(self, expected: int) -> Iterator[None]:
        """Around the work itself; `expected` is an estimate of how many answers there will be."""
        self._started, self._expected = time.monotonic(), max(expected, 0)
        self._bar = ProgressBar(
            "bar",
            "{task.completed}/{task.total} {task.fields[unit]}, {task.fields[rate]},",
            "eta",
            "left",
            total=self._expected,
            rate="0.0 x real time",
            unit=self._unit,
        )
        with self._bar:
            for line in self._legend if self._shows_answers else ():
                self._print(printable(line))
            yield
            self._recording_done()

    def row(
        self,
        audio_path: str,
        start: float,
        end: float,
        text: str,
        *,
        note: str = "",
        asked: int = 1,
    ) -> None:
        """A row was written.

        text: the answer as it is shown
        note: of a window without sound
        asked: how many answers it holds
        """
        last = self._last
        if last is None or audio_path != last[0]:
            self._recording_done()
            last = None
            if self._shows_answers:
                self._print(printable(audio_path), bold=True)
        if last is None or start != last[1]:  # what two windows share is counted once
            self._windows += 1
            begin = start if last is None else max(last[2], start)
            self._seconds += max(0.0, end - begin)
            self._silent.update([] if asked else [note])
        self._rows += 1
        self._answers += asked
        self._in_recording += asked
        self._last = audio_path, start, end
        if self._shows_answers:
            self._print(f"  {f'{start:.2f}s - {end:.2f}s':<19}  {printable(text)}")
        total = max(self._expected, self._rows)
        self._bar.update(self._rows, total=total, rate=self._rate())

    def summary(self, answers: int, output: AnyPath) -> None:
        """The end of the run; `answers` is how many there are now."""
        from NatureLM.util import format_duration

        before = answers - self._rows
        if before and not self._rows and not self.failed.count:
            say(f"All was answered before: {_amount(before, self._unit.removesuffix('s'))}")
            say(f"Answers: {output}")
            return
        unit = "" if self._unit == "answers" else f" {self._unit}"
        more = f" ({before}{unit} more from before)" if before else ""
        parts = [
            _amount(self._recordings, "recording"),
            _amount(self._windows, "window"),
            _amount(self._answers, "answer") + more,
            *(f"{_amount(n, f'{note} window')} not asked" for note, n in self._silent.items()),
            _amount(self.failed.count, "error"),
        ]
        rate = f" in {format_duration(time.monotonic() - self._started)}, {self._rate()}"
        say(f"{', '.join(parts)}{rate if self._answers else ''}")
        say(f"Answers: {output}")

    def _rate(self) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-6)
        return f"{self._seconds / elapsed:.1f} x real time, {self._answers / elapsed:.1f} answers/s"

    def _recording_done(self) -> None:
        if self._last is not None:
            self._done_recordings += 1
            if not self._bar.is_shown:
                name = printable(self._last[0])
                answers = _amount(self._in_recording, "answer")
                place = f"[{self._done_recordings}/{self._recordings}]"
                say(f"{place} {name}: {answers}, {self._rate()}")
        self._in_recording = 0

    def _print(self, text: str, bold: bool = False) -> None:
        """A line on stdout; where that is the terminal, too, the bar has to make room for it."""
        if self._bar.is_shown and sys.stdout.isatty():
            say(typer.style(text, bold=bold), styled=True)
        else:
            typer.secho(text, bold=bold)


def _amount(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"

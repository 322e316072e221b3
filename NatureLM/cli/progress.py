"""What a run shows: answers on stdout; progress, notes, errors and the summary on stderr.

Where an experiment stands, on stderr: a line that renews itself, or lines in a log.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from NatureLM.cli.errors import error_text
from NatureLM.util import format_duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from NatureLM.cli.request import InferRequest
    from NatureLM.experiments.run import TrialProgress

_bar: Progress | None = None  # what is shown at the foot of the terminal at the moment


def say(text: str) -> None:
    """A line on stderr, above the bar where there is one."""
    if _bar is None:
        typer.echo(text, err=True)
        return
    from rich.text import Text

    _bar.console.print(Text.from_ansi(text), soft_wrap=True)


class NoteHandler(logging.Handler):
    """Shows log records as lines on stderr; `form` is such a line, with {} for the message."""

    def __init__(self, form: str) -> None:
        super().__init__(logging.WARNING)
        self._form = form

    def emit(self, record: logging.LogRecord) -> None:
        """Show the message of a record."""
        say(self._form.format(record.getMessage()))


@contextmanager
def notes_shown(form: str) -> Iterator[None]:
    """Within the block, what the package logs for its user is shown on stderr, and nowhere else."""
    package, handler = logging.getLogger("NatureLM"), NoteHandler(form)
    propagated = package.propagate
    package.addHandler(handler)
    package.propagate = False
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.propagate = propagated


@dataclass
class InferProgress:
    """Counts of a run.

    recordings, expected: how much there is to do; expected answers are an estimate from headers
    windows, answers, errors: what was done
    seconds: how much sound was heard
    """

    recordings: int
    expected: int = 0
    windows: int = 0
    answers: int = 0
    errors: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _last: tuple[str, float, float] = ("", 0.0, 0.0)

    def count(self, result: Any) -> None:
        """Count an answer. What two windows share is heard once."""
        path, start, until = self._last
        is_new = result.audio_path != path
        if is_new or result.start != start:
            self.windows += 1
            begin = result.start if is_new else max(until, result.start)
            self.seconds += max(0.0, result.end - begin)
            self._last = (result.audio_path, result.start, result.end)
        self.answers += 1

    def rate(self) -> str:
        """How fast the run is."""
        elapsed = max(time.monotonic() - self.started, 1e-6)
        return f"{self.seconds / elapsed:.1f} x real time, {self.answers / elapsed:.1f} answers/s"


class Reporter:
    """Plain lines, one for each recording: for logs and pipes."""

    def __init__(self, *, show_answers: bool) -> None:
        self._show_answers = show_answers
        self._recording: str | None = None
        self._in_recording = 0
        self._done_recordings = 0
        self._queries: tuple[str, ...] = ()
        self._chooses = False

    def loading(self, request: InferRequest) -> None:
        """The model is about to be loaded."""
        from NatureLM.cli.request import DEFAULT_MODEL

        hint = (
            " (the embedded model; --model naturelm-audio is the published one)"
            if request.model == DEFAULT_MODEL
            else ""
        )
        say(f"Model: {request.model}{hint}")

    @contextmanager
    def working(self, tally: InferProgress, request: InferRequest) -> Iterator[None]:
        """Around the work itself."""
        tally.started = time.monotonic()
        self._queries = request.queries
        self._chooses = request.choosing.mode != "generate"
        if self._show_answers and len(self._queries) > 1:
            for number, query in enumerate(self._queries, start=1):
                self._print(f"[{number}] {_one_line(query)}")
        yield
        self._recording_done(tally)

    def answer(self, result: Any, tally: InferProgress) -> None:
        """An answer was written."""
        if result.audio_path != self._recording:
            self._recording_done(tally)
            self._recording = result.audio_path
            if self._show_answers:
                self._print(_one_line(str(result.audio_path)), bold=True)
        self._in_recording += 1
        if self._show_answers:
            which = f"[{self._queries.index(result.query) + 1}] " if len(self._queries) > 1 else ""
            times = f"{result.start:.2f}s - {result.end:.2f}s"
            self._print(f"  {times:<19}  {which}{_one_line(result.text)}{self._how_sure(result)}")

    def _how_sure(self, result: Any) -> str:
        """The confidence, where it is in one of a list; that of free answers is in the file."""
        confidence = getattr(result, "confidence", None)
        return "" if confidence is None or not self._chooses else f"  {confidence:.2f}"

    def failed(self, audio_path: str | Path, error: BaseException) -> None:
        """A recording could not be heard (to its end)."""
        say(error_text(_one_line(str(error))))

    def summary(self, tally: InferProgress, answers: int, request: InferRequest) -> None:
        """The end of the run."""
        before = answers - tally.answers
        parts = [
            _count(tally.recordings, "recording"),
            _count(tally.windows, "window"),
            _count(tally.answers, "answer") + (f" ({before} more from before)" if before else ""),
            _count(tally.errors, "error"),
        ]
        rate = f" in {format_duration(time.monotonic() - tally.started)}, {tally.rate()}"
        say(f"{', '.join(parts)}{rate if tally.answers else ''}")
        say(f"Answers: {request.output_path}")

    def _recording_done(self, tally: InferProgress) -> None:
        if self._recording is not None:
            self._done_recordings += 1
            self._progress_line(tally)
        self._recording, self._in_recording = None, 0

    def _progress_line(self, tally: InferProgress) -> None:
        say(
            f"[{self._done_recordings}/{tally.recordings}] {_one_line(str(self._recording))}: "
            f"{_count(self._in_recording, 'answer')}, {tally.rate()}"
        )

    def _print(self, text: str, bold: bool = False) -> None:
        """A line for stdout."""
        typer.secho(text, bold=bold)


class BarReporter(Reporter):
    """A bar with rate and time left at the foot of the terminal."""

    def __init__(self, *, show_answers: bool) -> None:
        super().__init__(show_answers=show_answers)
        self._task: TaskID | None = None

    @contextmanager
    def working(self, tally: InferProgress, request: InferRequest) -> Iterator[None]:
        """The bar is there as long as the work lasts."""
        global _bar
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            BarColumn(),
            TextColumn("{task.completed}/{task.total} answers, {task.fields[rate]},"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=Console(stderr=True),
            redirect_stdout=False,
            transient=True,
        )
        _bar = bar
        self._task = bar.add_task("", total=max(tally.expected, 0), rate="0.0 x real time")
        try:
            with bar, super().working(tally, request):
                yield
        finally:
            bar.stop()  # also where Ctrl-C came while it was starting
            _bar = None

    def answer(self, result: Any, tally: InferProgress) -> None:
        """Show the answer above the bar and move the bar."""
        super().answer(result, tally)
        if _bar is not None and self._task is not None:
            _bar.update(
                self._task,
                completed=tally.answers,
                total=max(tally.expected, tally.answers),
                rate=tally.rate(),
            )

    def _progress_line(self, tally: InferProgress) -> None:
        """The bar shows it."""

    def _print(self, text: str, bold: bool = False) -> None:
        # Where both streams are the terminal, the bar has to make room for the line.
        if _bar is not None and sys.stdout.isatty():
            say(typer.style(text, bold=bold))
        else:
            super()._print(text, bold)


def make_reporter(*, show_answers: bool) -> Reporter:
    """A bar on a terminal, plain lines elsewhere."""
    kind = BarReporter if sys.stderr.isatty() else Reporter
    return kind(show_answers=show_answers)


def _one_line(text: str) -> str:
    """Text from a model or a file name without anything that would move the cursor."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


_SECONDS = {True: 0.2, False: 10.0}
"""Between two lines on a terminal, and in a log."""
_ENOUGH = 16


class ExperimentProgress:
    """Shows a tally: done and total, rate, time left, share of right answers at each α."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = 0.0
        self._is_line_open = False

    def __call__(self, tally: TrialProgress) -> None:
        """Show where the run stands, if the last time is long enough ago or it is done."""
        now = time.monotonic()
        is_done = tally.done >= tally.total
        if not is_done and now - self._shown < _SECONDS[self._is_terminal]:
            return
        self._shown = now
        if self._is_terminal:
            width = _columns()
            typer.echo(f"\r\x1b[K{progress_line(tally)[: width - 1]}", nl=False, err=True)
            self._is_line_open = True
        else:
            typer.echo(progress_line(tally), err=True)

    def close(self) -> None:
        """End the line, so that what follows stands on one of its own."""
        if self._is_line_open:
            typer.echo("", err=True)
            self._is_line_open = False


def progress_line(tally: TrialProgress) -> str:
    """`120/5082 answers, 31.0/s, 2 min left; right at α: 0 0.10, 1 0.62`."""
    parts = [f"{tally.done}/{tally.total} answers"]
    if tally.answers:
        parts.append(f"{tally.rate:.1f}/s")
    left = tally.seconds_left
    # The first answers wait for the model to warm up.
    if left and tally.answers + tally.errors >= _ENOUGH:
        parts.append(f"{duration(left)} left")
    if tally.errors:
        parts.append(f"{tally.errors} without an answer")
    right = ", ".join(f"{alpha:g} {share:.2f}" for alpha, share in tally.accuracy().items())
    return ", ".join(parts) + (f"; right at α: {right}" if right else "")


def duration(seconds: float) -> str:
    """A time in the unit that fits."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns

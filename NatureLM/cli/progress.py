"""What commands that ask about recordings show while they work."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from NatureLM.cli.errors import error_text
from NatureLM.progress import ProgressBar, printable, say
from NatureLM.storage import AnyPath


class RunProgress:
    """What a run shows: answers on stdout; progress, errors and the summary on stderr.

    On a terminal a bar shows where the run is; elsewhere there is a line for each recording.

    legend: lines above the answers
    unit: what a row is
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
        self._expected = self._windows = self._answers = self._rows = self.errors = 0
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

    def failed(self, error: BaseException) -> None:
        """A recording could not be read (to its end)."""
        self.errors += 1
        say(error_text(error), styled=True)

    def summary(self, answers: int, output: AnyPath) -> None:
        """The end of the run; `answers` is how many there are now."""
        from NatureLM.util import format_duration

        before = answers - self._rows
        if before and not self._rows and not self.errors:
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
            _amount(self.errors, "error"),
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

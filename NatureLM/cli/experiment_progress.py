"""Where an experiment stands, on stderr: a line that renews itself, or lines in a log."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from NatureLM.experiments.tally import Tally

_SECONDS = {True: 0.2, False: 10.0}
"""Between two lines on a terminal, and in a log."""
_ENOUGH = 16


class ExperimentProgress:
    """Shows a tally: done and total, rate, time left, share of right answers at each α."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._shown = 0.0
        self._is_line_open = False

    def __call__(self, tally: Tally) -> None:
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


def progress_line(tally: Tally) -> str:
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

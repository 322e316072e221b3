"""What a program shows on stderr while it works: lines, and a bar at the foot of the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

_shown: ProgressBar | None = None


def printable(text: object, *, lines: bool = False) -> str:
    """Text to show: a space for whatever moves a cursor, turns letters around or is half a letter.

    That is what files may be called, models answer and tables hold.

    lines: ends of lines stay, as in messages of several lines; in names they are none
    """
    if lines:
        return "\n".join(map(printable, str(text).split("\n")))
    return "".join(c if c.isprintable() else " " for c in str(text))


def show(text: str, *, err: bool = False) -> None:
    """Lines on stdout, or stderr, cleaned of what plays with a terminal."""
    import typer

    typer.echo(printable(text, lines=True), err=err)


def say(text: str, *, styled: bool = False) -> None:
    """A line on stderr, above the bar where one is shown.

    styled: it has colours, and was cleaned before it got them
    """
    text = text if styled else printable(text, lines=True)
    if _shown is None:
        import typer

        typer.echo(text, err=True)
    else:
        _shown.print(text)


@contextmanager
def notes_to(take: Callable[[logging.LogRecord], object], *, alone: bool = False) -> Iterator[None]:
    """Within the block, `take` gets what the package logs for its user.

    alone: nobody else gets it
    """
    package, handler = logging.getLogger("NatureLM"), logging.Handler(logging.WARNING)
    handler.emit = take  # type: ignore[method-assign, assignment]
    propagated = package.propagate
    package.addHandler(handler)
    package.propagate = propagated and not alone
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.propagate = propagated


class ProgressBar:
    """A bar at the foot of the terminal, as a context manager; elsewhere nothing is shown.

    columns: "bar", "eta" (time left), "time" (the same with hours), "size", "speed", or text in
        which `{task.completed}`, `{task.total}` and `{task.fields[NAME]}` stand for values
    total: how much there is to do; None where that is not known yet
    stays: the bar stays when the work is done; where there is no terminal its end alone is shown
    fields: values of the fields that the columns show
    """

    def __init__(
        self, *columns: str, total: float | None = None, stays: bool = False, **fields: Any
    ) -> None:
        self._columns, self._total, self._stays, self._fields = columns, total, stays, fields
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressBar:
        global _shown
        if not (self._stays or sys.stderr.isatty()):
            return self
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(
            *map(_column, self._columns),
            console=Console(stderr=True),
            redirect_stdout=False,
            transient=not self._stays,
        )
        self._task = self._progress.add_task("", total=self._total, **self._fields)
        _shown = self
        try:
            self._progress.start()
        except BaseException:  # Ctrl-C while it was starting
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        global _shown
        if self._progress is not None:
            self._progress.stop()
        _shown = self._progress = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar to be seen."""
        return self._progress is not None

    def update(self, completed: float, **changes: Any) -> None:
        """Move the bar to what is done; `changes` are a new total, or fields."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=completed, **changes)

    def advance(self, steps: float = 1) -> None:
        """So much more is done."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, steps)

    def print(self, text: str) -> None:
        """A line above the bar."""
        from rich.text import Text

        if self._progress is not None:
            self._progress.console.print(Text.from_ansi(text), soft_wrap=True)


def _column(name: str) -> ProgressColumn:
    from rich import progress

    if name == "eta":
        return progress.TimeRemainingColumn(compact=True)
    kinds: dict[str, type[ProgressColumn]] = {
        "bar": progress.BarColumn,
        "size": progress.DownloadColumn,
        "speed": progress.TransferSpeedColumn,
        "time": progress.TimeRemainingColumn,
    }
    return kinds[name]() if name in kinds else progress.TextColumn(name)

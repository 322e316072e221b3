"""What a run tells: console, `log.jsonl`, and trackers if they are asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from NatureLM.errors import UsageError
from NatureLM.training.evaluation import format_scores
from NatureLM.util import atomic_write

LOG_FILE = "log.jsonl"


class RunLog:
    """Progress of a run on this process; silent on all but the first.

    folder: where `log.jsonl` goes; on a resumed run, lines after `step` are removed first
    """

    def __init__(
        self,
        folder: Path,
        *,
        step: int,
        total: int,
        trackers: Sequence[str] = (),
        main: bool = True,
    ) -> None:
        self._main = main
        self._total = total
        self._first = step
        self._begun = time.monotonic()
        self._path = folder / LOG_FILE
        self._bar: Any = None
        self._trackers: list[_TensorBoard | _Trackio] = []
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            keep_until(self._path, step)
            self._trackers = [make_tracker(name, folder) for name in trackers]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the loop: a bar on a terminal."""
        if not self._main:
            yield
            return
        try:
            if not sys.stderr.isatty():
                yield
                return
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                TextColumn("step {task.completed}/{task.total}, {task.fields[note]}"),
                TimeRemainingColumn(compact=True),
            )
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                task = progress.add_task("", total=self._total, completed=self._first, note="")
                self._bar = (progress, task)
                yield
        finally:
            self._bar = None
            for tracker in self._trackers:
                tracker.close()

    def step(self, done: int) -> None:
        """One more update is done."""
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done)

    def train(self, done: int, numbers: Mapping[str, float]) -> None:
        """Numbers of training after `done` updates."""
        rate = (done - self._first) / max(time.monotonic() - self._begun, 1e-9)
        left = (self._total - done) / rate if rate > 0 else 0.0
        note = f"loss {numbers['loss']:.4f}, {numbers['samples_per_second']:.1f} samples/s"
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done, note=note)
        else:
            self.say(
                f"step {done}/{self._total}: {note}, rate {numbers['learning_rate']:.2e}, "
                f"{duration(left)} left"
            )
        self._write("train", done, numbers)

    def evaluation(self, done: int, scores: Mapping[str, float], name: str = "valid") -> None:
        """Scores on a table after `done` updates."""
        self.say(f"step {done}/{self._total}: {name} {format_scores(scores)}")
        self._write(name, done, scores)

    def say(self, text: str) -> None:
        """A line for people."""
        if not self._main:
            return
        if self._bar is not None:
            self._bar[0].console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _write(self, kind: str, done: int, numbers: Mapping[str, float]) -> None:
        if not self._main:
            return
        line = {"kind": kind, "step": done, **numbers}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for tracker in self._trackers:
            tracker.log({f"{kind}/{name}": value for name, value in numbers.items()}, done)


def keep_until(path: Path, step: int) -> None:
    """Leave only the log's whole lines up to `step`: what comes after is written again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step and step > 0:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path, alone=True) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def make_tracker(name: str, folder: Path) -> _TensorBoard | _Trackio:
    """A tracker by name. Raises `UsageError` if its package is not installed."""
    try:
        return _TensorBoard(folder) if name == "tensorboard" else _Trackio(folder)
    except ImportError:
        raise UsageError(f"run.trackers names {name}: pip install {name}") from None


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    def __init__(self, folder: Path) -> None:
        self._trackio: Any = import_module("trackio")
        self._trackio.init(project="naturelm", name=folder.name, resume="allow")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self) -> None:
        self._trackio.finish()

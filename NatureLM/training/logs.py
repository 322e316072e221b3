"""What a run tells: console, `log.jsonl`, and trackers if they are asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from NatureLM.progress import ProgressBar, say
from NatureLM.training.evaluation import score_lines
from NatureLM.util import atomic_write, library, writing


class Tracker(NamedTuple):
    """Where numbers are shown: takes them with their step, and is closed at the end."""

    log: Callable[[Mapping[str, float], int], None]
    close: Callable[[], None]


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
        self._path = folder / "log.jsonl"
        self._bar = ProgressBar(
            "bar",
            "step {task.completed}/{task.total}, {task.fields[note]}",
            "eta",
            total=total,
            note="",
        )
        self._trackers: list[Tracker] = []
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
            with self._bar:
                self.step(self._first)
                yield
        finally:
            for tracker in self._trackers:
                tracker.close()

    def settle(self, done: int, total: int) -> None:
        """The run will have so many steps, of which some are done."""
        if total != self._total:
            self._total = total
            self._bar.update(done, total=total)
            self.say(f"{total} steps fit into the time (run.max_seconds)")

    def step(self, done: int) -> None:
        """One more update is done."""
        self._bar.update(done)

    def train(self, done: int, numbers: Mapping[str, float]) -> None:
        """Numbers of training after `done` updates."""
        rate = (done - self._first) / max(time.monotonic() - self._begun, 1e-9)
        left = (self._total - done) / rate if rate > 0 else 0.0
        note = f"loss {numbers['loss']:.4f}, {numbers['samples_per_second']:.1f} samples/s"
        if self._bar.is_shown:
            self._bar.update(done, note=note)
        else:
            self.say(
                f"step {done}/{self._total}: {note}, rate {numbers['learning_rate']:.2e}, "
                f"{duration(left)} left"
            )
        self._write("train", done, numbers)

    def evaluation(self, done: int, scores: Mapping[str, float], name: str = "valid") -> None:
        """Scores on a table after `done` updates."""
        told = ", ".join(f"{score} {value}" for score, value in score_lines(scores))
        self.say(f"step {done}/{self._total}: {name} {told}")
        self._write(name, done, scores)

    def say(self, text: str) -> None:
        """A line for people."""
        if self._main:
            say(text)

    def _write(self, kind: str, done: int, numbers: Mapping[str, float]) -> None:
        if not self._main:
            return
        with (
            writing(self._path, ". The last checkpoint is whole; --resume goes on from there"),
            self._path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"kind": kind, "step": done, **numbers}) + "\n")
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


def make_tracker(name: str, folder: Path) -> Tracker:
    """A tracker by name. Raises `UsageError` if its package is not installed."""
    package = library(name, f"run.trackers names {name}: pip install {name}")
    if name == "trackio":
        package.init(project="naturelm", name=folder.name, resume="allow")
        return Tracker(lambda numbers, step: package.log(numbers, step=step), package.finish)
    tensorboard = library("torch.utils.tensorboard", "")
    writer: Any = tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def write(numbers: Mapping[str, float], step: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, step)

    return Tracker(write, writer.close)

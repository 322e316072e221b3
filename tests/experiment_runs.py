"""A small experiment on the small reference checkpoint, whole or killed on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from NatureLM.audio import AudioError
from NatureLM.config import GenerateConfig
from NatureLM.data.sample import Clip, Sample
from NatureLM.experiments.plan import Plan, Renderer
from NatureLM.experiments.run import ANSWERS, RunSummary, run_experiment
from NatureLM.models import NatureLM

QUERIES = ("What is it?", "Caption the audio.", "<Audio><AudioHere></Audio> What is the name?")
ALPHAS = (0.0, 0.57, 0.58)
GENERATE = GenerateConfig(max_new_tokens=4, num_beams=2)


@dataclass(frozen=True)
class Tone:
    """A sound of its own for each pitch; none for pitch 0."""

    pitch: float

    def read(
        self, *, start: float, duration: float | None, sample_rate: int
    ) -> NDArray[np.float32]:
        if not self.pitch:
            raise AudioError("silent.wav", "no sound is in it")
        time = np.arange(sample_rate // 2) / sample_rate
        return (0.5 * np.sin(2 * np.pi * self.pitch * time)).astype(np.float32)


def plan_of(samples: int = 4, *, broken: tuple[int, ...] = (), **changes: Any) -> Plan:
    """Samples with sounds; those named in `broken` cannot be read."""
    made = [
        Sample(
            id=f"s{number}",
            dataset_name="made-up",
            label=("Wolf", "Wren")[number % 2],
            clip=Clip(f"made-up/s{number}", Tone(0 if number in broken else 300 + 90 * number)),
            cluster=f"c{number // 2}",
            task="classification",
        )
        for number in range(samples)
    ]
    template = changes.pop("template", "Q: {} A:")
    settings = {"queries": QUERIES, "alphas": ALPHAS, **changes}
    return Plan(made, settings["queries"], settings["alphas"], Renderer(template))


def run(model: NatureLM, plan: Plan, folder: Path, **options: Any) -> RunSummary:
    """The experiment, with a few new tokens."""
    return run_experiment(model, plan, folder, **{"generate": GENERATE, **options})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run, by trial."""
    lines = (folder / ANSWERS).read_bytes().splitlines()
    return sorted(map(json.loads, lines), key=lambda row: str(row["cell"]))


def sorted_lines(folder: Path) -> list[bytes]:
    """The bytes of the rows, by trial."""
    lines = (folder / ANSWERS).read_bytes().splitlines(keepends=True)
    return sorted(lines, key=lambda line: str(json.loads(line)["cell"]))


def killed(work: Callable[[], Any], arm: Callable[[], None], after: float | None = None) -> bool:
    """Run `work` in a process of its own that is killed on the way; whether that was in time.

    arm: what the process does first, such as laying a trap that kills it
    after: seconds after which it is killed from outside
    """
    process = os.fork()
    if process == 0:  # nothing of the test runner may go on here
        try:
            torch.set_num_threads(1)
            arm()
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert not (os.WIFEXITED(status) and os.WEXITSTATUS(status)), "the run failed by itself"
    return os.WIFSIGNALED(status)


def die() -> None:
    """SIGKILL to this process: nothing is tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)

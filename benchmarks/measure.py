"""Clocks, fresh processes, and what the machine was: shared by the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Timed:
    """Seconds of the clock and of the processor (all threads), and what came out."""

    seconds: float
    processor: float
    out: Any = field(repr=False)


def timed(way: Callable[[], Any]) -> Timed:
    """Run it once."""
    clock, processor = time.perf_counter(), time.process_time()
    out = way()
    return Timed(time.perf_counter() - clock, time.process_time() - processor, out)


def quickest(way: Callable[[], Any], rounds: int = 3) -> float:
    """Processor seconds of the best of some rounds, after one that warms up."""
    way()
    return min(timed(way).processor for _ in range(rounds))


@dataclass
class EncoderClock:
    """What the audio encoder took within a stretch of work."""

    seconds: float = 0.0
    processor: float = 0.0
    windows: int = 0


@contextmanager
def encoder_clock(model: Any) -> Iterator[EncoderClock]:
    """Within the block the model's encoder is timed, whoever calls it."""
    clock, plain = EncoderClock(), model.encode_audio

    def encode_audio(wav_BS: torch.Tensor, *rest: Any) -> torch.Tensor:
        run = timed(lambda: plain(wav_BS, *rest))
        clock.seconds += run.seconds
        clock.processor += run.processor
        clock.windows += len(wav_BS)
        out: torch.Tensor = run.out
        return out

    model.encode_audio = encode_audio
    try:
        yield clock
    finally:
        del model.encode_audio


def fresh(command: Sequence[str], **environment: str) -> tuple[float, str]:
    """Run a command in a fresh process: seconds of the clock, standard output."""
    start = time.perf_counter()
    done = subprocess.run(
        list(command),
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start, done.stdout


def python(code: str, *arguments: object) -> Any:
    """Run a program in a fresh process; the JSON that it prints last."""
    printed = fresh([sys.executable, "-c", code, *map(str, arguments)])[1]
    return json.loads(printed.strip().splitlines()[-1])


def median_of(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }

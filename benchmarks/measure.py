"""Clocks, fresh processes, options, and what the machine was: shared by the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from NatureLM.util import write_json

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
NATURELM = (sys.executable, "-c", "from NatureLM.cli.main import naturelm; naturelm()")
"""The command `naturelm`, wherever it is installed."""
PEAK = """
import json, re, sys, time
def peak():  # bytes that this program held at most (Linux), without those of its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
"""
"""What programs for `python` begin with that tell their memory."""
_USUAL: dict[str, dict[str, Any]] = {
    "small": {"action": "store_true", "help": "a small model: tries the program"},
    "threads": {"type": int},
    "rounds": {"type": int, "default": 1},
    "json": {"type": Path, "help": "write the figures to this file"},
}


def options_for(doc: str | None, *usual: str, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the first line of a program, and options that several programs have."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    for name in (*usual, *defaults):
        parser.add_argument(f"--{name}", **_USUAL[name])
    parser.set_defaults(**defaults)
    return parser


def use_threads(count: int | None) -> None:
    """So many threads from here on; what torch takes by itself where it is none."""
    import torch

    if count:
        torch.set_num_threads(count)


def write_figures(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write what was measured, where that is asked for."""
    if path is not None:
        write_json(path, report)


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


def in_turn(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Timed]]:
    """Every way in every round, one after the other, so that a busy machine slows all of them."""
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            runs[name].append(timed(way))
    return runs


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


class Fresh(NamedTuple):
    """A process from its start to its end: seconds of the clock and of the processor, the most
    memory that it held, and the last line that it printed."""

    seconds: float
    processor: float
    megabytes: float
    printed: str


def fresh(command: Sequence[str], **environment: str) -> Fresh:
    """Run a command in a fresh process; SystemExit with what it said where it fails."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(list(command), cwd=ROOT, env=env, stdout=out, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        out.seek(0)
        said.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-4000:]}")
        printed = (out.read().strip().splitlines() or [""])[-1]
    # Linux counts memory in kilobytes.
    return Fresh(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, printed)


def python(code: str, *arguments: object, **environment: str) -> Any:
    """Run a program in a fresh process; the JSON that it prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(fresh(command, **environment).printed)


def status_bytes(name: str) -> int:
    """What the kernel says of this process's memory: VmHWM (at most), VmRSS or RssAnon (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(rf"{name}:\s+(\d+)", text)[0]) * 1024


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def median_of(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

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

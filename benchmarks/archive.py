"""What an archive costs: throughput and memory over its size, by one process, two shards and Ray.

    python benchmarks/archive.py [--recordings 10 100 1000 10000] [--day 86400] [--json FILE]
    python benchmarks/archive.py --smoke

Recordings of 1 to 3 s, made on the fly, of which nine in ten are silent, and one of 24 hours that
is silent but for ten seconds of each hour, are asked one question by the embedded model, four
tokens an answer: by one process; by two shards side by side, whose answers are joined; and, where
Ray is installed, by `--engine ray` with two workers. Each run is fresh commands, from a manifest.
Windows without sound are not asked, so that what is not the model weighs most.

Seconds are those of the clock, which others on the machine make longer, and of the processor, of
all processes of a command. What a further recording costs is the difference between two sizes,
without the start of the program. Ends with 1 where answers are missing or differ between the ways,
or a further recording costs 10 % more in the largest archive than in the one before. Linux.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
from measure import NATURELM, machine, options_for, write_figures

MOST_MORE = 0.10  # of the cost of a further recording
RATE = 8_000
QUESTION = "What makes the sound in the audio?"
ONE, TWO, RAY = "one process", "two shards", "Ray, two workers"
LAST_DIGIT = 2e-6  # of confidences
_EVERY = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True)
class Run:
    """What a way took for so many recordings.

    seconds, processor: of the clock, and of all processes and threads
    mb: the most memory of all its processes together
    bytes: of the answers
    load: of the machine when it began
    """

    way: str
    recordings: int
    answers: int
    seconds: float
    processor: float
    mb: float
    bytes: int
    load: float


# Recordings


def make_recordings(folder: Path, count: int) -> None:
    """Noise of 1 to 3 s, in one of ten, and silence; a thousand files a folder."""
    rng = np.random.default_rng(0)
    noise = (2000 * rng.standard_normal(4 * RATE)).astype(np.int16)
    for number in range(count):
        place = folder / f"card{number // 1000:02}"
        place.mkdir(parents=True, exist_ok=True)
        first, length = int(rng.integers(RATE)), int(rng.integers(RATE, 3 * RATE))
        samples = noise[first : first + length]
        soundfile.write(
            place / f"{number:05}.wav", samples if number % 10 == 0 else 0 * samples, RATE
        )


def make_day(path: Path, seconds: int) -> None:
    """Silence, and in each hour ten seconds of noise."""
    rng = np.random.default_rng(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for start in range(0, seconds, 3600):
            samples = np.zeros(RATE * min(3600, seconds - start), np.int16)
            loud = samples[: 10 * RATE]
            loud[:] = (2000 * rng.standard_normal(len(loud))).astype(np.int16)
            file.write(samples)


def make_manifests(folder: Path, sizes: Sequence[int], day: int) -> tuple[dict[int, Path], float]:
    """Manifests of the first recordings, by their number; 0 is the one of a day.

    Also seconds for each recording that the longest took to be listed.
    """
    from NatureLM.results.manifest import read_manifest, write_manifest

    make_recordings(folder / "short", max(sizes))
    if day:
        make_day(folder / "day" / "day.flac", day)
    seconds = {}
    for name in ("short", "day") if day else ("short",):
        begun = time.perf_counter()
        command = ("manifest", name, "--output-path", f"{name}.csv")
        subprocess.run([*NATURELM, *command], cwd=folder, check=True, capture_output=True)
        seconds[name] = time.perf_counter() - begun
    entries = list(read_manifest(folder / "short.csv"))
    for size in sizes:
        write_manifest(entries[:size], folder / f"{size}.csv")
    lists = {0: folder / "day.csv"} if day else {}
    lists |= {size: folder / f"{size}.csv" for size in sizes}
    return lists, seconds["short"] / max(sizes)


# Ways


def ask(manifest: Path, output: Path, *more: str) -> list[str]:
    """The command that asks about a list."""
    options = ("--quiet", "--options", "generate.max_new_tokens=4")
    words = ("infer", "--manifest", str(manifest), "--query", QUESTION, *options)
    return [*NATURELM, *words, "--output-path", str(output), *more]


def commands(way: str, manifest: Path, out: Path) -> list[list[list[str]]]:
    """Steps of a way, one after the other; the commands of a step run side by side."""
    joined = [*NATURELM, "merge-runs", "--manifest", str(manifest), "--output-path"]
    if way == ONE:
        return [[ask(manifest, out / "answers.jsonl")]]
    if way == TWO:
        shards = [ask(manifest, out / "x.jsonl", "--shard", f"{number}/2") for number in (1, 2)]
        return [shards, [[*joined, str(out / "answers.jsonl"), str(out)]]]
    asked = ask(manifest, out / "x.jsonl", "--engine", "ray", "--workers", "2")
    return [[asked], [[*joined, str(out / "answers.jsonl"), str(out / "x.parts")]]]


def run(way: str, size: int, manifest: Path, out: Path) -> tuple[Run, list[str]]:
    """Take a way; what it took, and its rows."""
    out.mkdir(parents=True)
    load, begun = os.getloadavg()[0], time.perf_counter()
    processor, peak = 0.0, 0.0
    for step in commands(way, manifest, out):
        seconds, memory = watched(step, out)
        processor, peak = processor + seconds, max(peak, memory)
    seconds = time.perf_counter() - begun
    rows = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    written = (out / "answers.jsonl").stat().st_size
    took = Run(way, size, len(rows), seconds, processor, peak / 1e6, written, load)
    return took, [row.rstrip() for row in rows]


def same(rows: Sequence[str], others: Sequence[str]) -> bool:
    """Whether rows say the same; sums of other batches round confidences otherwise."""
    return len(rows) == len(others) and all(
        one == other or _nearly(json.loads(one), json.loads(other))
        for one, other in zip(rows, others, strict=True)
    )


def _nearly(one: dict[str, Any], other: dict[str, Any]) -> bool:
    apart = abs(one.pop("confidence", 0.0) - other.pop("confidence", 0.0))
    return apart <= LAST_DIGIT and one == other


def watched(step: Sequence[Sequence[str]], folder: Path) -> tuple[float, float]:
    """Processor seconds and most bytes of commands and all their children.

    Raises SystemExit where one fails, with what it printed.
    """
    with open(folder / "log.txt", "ab") as log:
        started = [psutil.Popen(list(one), stdout=log, stderr=log) for one in step]
        peak, seconds = 0.0, dict[int, float]()
        while any(one.poll() is None for one in started):
            peak = max(peak, _look(started, seconds))
            time.sleep(_EVERY)
    for one in started:
        if one.returncode:
            printed = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"ended with {one.returncode}: {printed[-3000:]}")
    return sum(seconds.values()), peak


def _look(started: Sequence[psutil.Process], seconds: dict[int, float]) -> float:
    """Bytes that processes and their children have now; `seconds` is brought up to date."""
    total = 0.0
    for process in started:
        with suppress(psutil.Error):
            for one in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    used = one.cpu_times()
                    seconds[one.pid] = used.user + used.system
                    total += one.memory_info().rss
    return total


def ways(*, with_ray: bool) -> list[str]:
    """Those that there are here."""
    if with_ray and find_spec("ray") is None:
        print("Ray is not installed here, and is left out: pip install 'naturelm-audio[ray]'")
        with_ray = False
    return [ONE, TWO, *([RAY] if with_ray else [])]


# What came of it


def measure(
    sizes: Sequence[int], day: int, *, with_ray: bool, kept: Path | None = None
) -> dict[str, Any]:
    """All ways over all sizes.

    kept: file that gets the report after each run, as they take long
    """
    runs, problems, taken = list[Run](), list[str](), ways(with_ray=with_ray)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifests, listing = make_manifests(folder, sizes, day)
        for size, manifest in manifests.items():
            first: list[str] = []
            for way in taken:
                took, rows = run(way, size, manifest, folder / "out" / f"{size}-{way[:3]}")
                runs.append(took)
                first = first or rows
                print(f"{_name(size):>12s} {way:17s} {took.seconds:8.1f} s {took.mb:6.0f} MB")
                if not same(rows, first):
                    problems.append(f"{_name(size)}, {way}: other answers than {ONE}")
                if size and len(rows) != size:
                    problems.append(f"{_name(size)}, {way}: {len(rows)} answers")
                report = _report(runs, day, listing, problems)
                write_figures(kept, report)
    return report


def _report(
    runs: Sequence[Run], day: int, listing: float, problems: Sequence[str]
) -> dict[str, Any]:
    report = {
        **{"machine": machine(), "day": day, "listing": listing},
        "runs": [asdict(one) for one in runs],
    }
    more, found = growth(report), list(problems)
    if more is not None and more > MOST_MORE:
        found.append(f"a further recording costs {more:.0%} more in the largest archive")
    return {**report, "problems": found}


def further(report: Mapping[str, Any], way: str) -> list[tuple[int, float]]:
    """Processor seconds of a further recording, from each size to the next."""
    found = sorted((r for r in report["runs"] if r["way"] == way), key=lambda r: r["recordings"])
    short = [one for one in found if one["recordings"]]
    return [
        (
            two["recordings"],
            (two["processor"] - one["processor"]) / (two["recordings"] - one["recordings"]),
        )
        for one, two in pairwise(short)
    ]


def growth(report: Mapping[str, Any]) -> float | None:
    """By how much a further recording costs more in the largest archive than in the one before."""
    costs = [cost for size, cost in further(report, ONE) if size >= 1000]
    return costs[-1] / costs[-2] - 1 if len(costs) > 1 else None


def _name(size: int) -> str:
    return f"{size:,}" if size else "one of 24 h"


def markdown(report: Mapping[str, Any]) -> str:
    """The table of a report, and what a further recording costs."""
    costs = {way: dict(further(report, way)) for way in (ONE, TWO, RAY)}
    lines = [
        "| recordings | way | answers | seconds | a second | peak of memory "
        "| a further recording, processor | load before |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for one in sorted(report["runs"], key=lambda run: (not run["recordings"], run["recordings"])):
        cost = costs[one["way"]].get(one["recordings"])
        cells = (
            _name(one["recordings"]),
            one["way"],
            f"{one['answers']:,}",
            f"{one['seconds']:.1f}",
            f"{one['answers'] / one['seconds']:.1f}",
            f"{one['mb']:.0f} MB",
            "" if cost is None else f"{1000 * cost:.1f} ms",
            f"{one['load']:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write."""
    parser = options_for(__doc__, "json")
    parser.add_argument("--recordings", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument(
        "--day", type=int, default=86_400, help="seconds of the long recording; 0: none"
    )
    parser.add_argument("--smoke", action="store_true", help="a few recordings, to try the program")
    parser.add_argument("--without-ray", action="store_true")
    given = parser.parse_args()
    sizes, day = ([2, 4], 30) if given.smoke else (sorted(given.recordings), given.day)
    report = measure(sizes, day, with_ray=not given.without_ray, kept=given.json)
    print(markdown(report))
    for problem in report["problems"]:
        print(problem)
    raise SystemExit(1 if report["problems"] else 0)


if __name__ == "__main__":
    main()

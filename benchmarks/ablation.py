"""What each idea of the engine brings: the same work with one of them switched off at a time.

    python benchmarks/ablation.py [--small] [--threads 2] [--rounds N] [--json FILE]

The work is a sweep of clips, questions and α; for folding, the same with one α; for loading ahead,
the same with clips that each take as long to load as the model needs for them. Answers stay what
they are, which is checked. Times are those of the processor, but for loading ahead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from measure import in_turn, machine, median_of, options_for, use_threads, write_figures
from model import BenchmarkModel, build, waves
from work import Answers, Sweep

from NatureLM.generation import audio_cache as audio
from NatureLM.generation import prefill
from NatureLM.generation.engine import Engine, fold_if_single_alpha


@contextmanager
def encoding_again(model: BenchmarkModel, times: int) -> Iterator[None]:
    """Every clip is encoded as often as it is asked about."""
    plain = model.encode_audio

    def encode_audio(wav_BS: torch.Tensor) -> torch.Tensor:
        return [plain(wav_BS) for _ in range(times)][-1]

    with patch.object(model, "encode_audio", encode_audio):
        yield


def without_sharing() -> Any:
    """No prompts share the keys and values of what they begin with."""
    return patch.object(prefill, "_MIN_PREFIX", 1 << 30)


def without_loading_ahead() -> Any:
    """A clip is loaded when the model asks for it."""
    return patch.object(audio.AudioEncoder, "announce", lambda self, names: None)


class Ablation:
    """The work, and the ways to do it."""

    def __init__(self, model: BenchmarkModel, clips: int, queries: int, alphas: int) -> None:
        self.model = model
        self.sweep = Sweep(model, clips, queries, alphas)
        self.single = Sweep(model, clips, queries, 1)
        self.single.alphas = [0.4]
        self.asked = queries * alphas

    def ways(self) -> dict[str, dict[str, Callable[[], Answers]]]:
        """Groups of ways that do the same, by name; the first of each has everything on."""
        return {
            f"{self.sweep.title}": {
                "everything on": self.sweep.engine,
                "every clip encoded for each question and α": self._again,
                "shared beginnings run for each row": self._unshared,
                "rows one by one": partial(self.sweep.engine, batch_rows=1),
                "all three off": self._plain,
            },
            "one α": {
                "folded into the weights": partial(self._folded, True),
                "as adapter arithmetic": partial(self._folded, False),
            },
        }

    def _again(self) -> Answers:
        with encoding_again(self.model, self.asked):
            return self.sweep.engine()

    def _unshared(self) -> Answers:
        with without_sharing():
            return self.sweep.engine()

    def _plain(self) -> Answers:
        with encoding_again(self.model, self.asked), without_sharing():
            return self.sweep.engine(batch_rows=1)

    def _folded(self, fold: bool) -> Answers:
        with fold_if_single_alpha(self.model, self.single.alphas) if fold else nullcontext():
            return self.single.engine()


class SlowDisk:
    """Clips that take their time to load."""

    def __init__(self, model: BenchmarkModel, clips: int, seconds: float | None = None) -> None:
        self.model = model
        self.waves = waves(clips, seed=5)
        self.sweep = Sweep(model, clips, 1, 1)
        started = time.perf_counter()
        self.answer(wait=0.0)
        self.alone = time.perf_counter() - started
        self.wait = self.alone / clips if seconds is None else seconds

    def answer(self, wait: float | None = None) -> Answers:
        """One question about every clip; one thread loads, one row is decoded at a time."""
        pause = self.wait if wait is None else wait

        def load(key: str) -> torch.Tensor:
            time.sleep(pause)
            return self.waves[int(key)]

        engine = Engine(
            self.model,
            self.sweep.options,
            eos_ids=self.model.eos_ids,
            batch_rows=2,
            lookahead=4,
            workers=1,
        )
        return {answer.key: answer.text for answer in engine.run(self.sweep.requests(), load)}

    def answer_in_turn(self) -> Answers:
        """The same without loading ahead."""
        with without_loading_ahead():
            return self.answer()


def run_all(
    ways: dict[str, Callable[[], Answers]], rounds: int, clock: str
) -> list[dict[str, Any]]:
    """Every way, in turn; how much longer it takes than the first."""
    runs = in_turn(ways, rounds)
    first = next(iter(runs.values()))
    least = median_of([getattr(run, clock) for run in first])
    found = []
    for name, times in runs.items():
        seconds = median_of([getattr(run, clock) for run in times])
        plain = first[0].out
        equal = sum(times[0].out[key] == text for key, text in plain.items())
        found.append(
            {
                "way": name,
                "seconds": seconds,
                "longer": seconds / least,
                "equal": equal,
                "of": len(plain),
            }
        )
    return found


def measure(model: BenchmarkModel, small: bool, rounds: int) -> dict[str, Any]:
    """All groups."""
    ablation = Ablation(model, *((2, 2, 2) if small else (4, 3, 3)))
    groups = {name: run_all(ways, rounds, "processor") for name, ways in ablation.ways().items()}
    disk = SlowDisk(model, 6 if small else 8)
    title = f"{len(disk.waves)} clips, loading takes {disk.wait * len(disk.waves):.2g} s in all"
    groups[title] = run_all(
        {"loaded ahead": disk.answer, "loaded when asked for": disk.answer_in_turn},
        rounds,
        "seconds",
    )
    return {"groups": groups, "model_alone": disk.alone, "loading": disk.wait * len(disk.waves)}


def markdown(report: dict[str, Any]) -> str:
    """The table for the pages."""
    lines = ["| work | way | s | times as long | answers equal |", "|---|---|---|---|---|"]
    for title, group in report["groups"].items():
        for one in group:
            lines.append(
                f"| {title} | {one['way']} | {one['seconds']:.2f} | {one['longer']:.2f} | "
                f"{one['equal']} of {one['of']} |"
            )
            title = ""
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = options_for(__doc__, "small", "threads", "rounds", "json")
    options = parser.parse_args()
    use_threads(options.threads)
    model = build(options.small)
    Sweep(model, 1, 1, 1).engine()  # libraries fill their caches
    report = {
        "machine": machine(),
        "small": options.small,
        "rounds": options.rounds,
        **measure(model, options.small, options.rounds),
    }
    print(markdown(report))
    write_figures(options.json, report)


if __name__ == "__main__":
    main()

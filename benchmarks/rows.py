"""The rows of the engine's table: what each measures, and its target.

Times of a work are those of the clock, medians of the rounds, baseline and engine in turn. Where
the baseline did a part of the work, its time is given for the whole, in proportion. What it would
take with a perfect cache of encodings is arithmetic on the same run: the time outside the encoder,
and that of encoding every different clip once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import encoder
import loading
from measure import ASSETS, NATURELM, fresh, median_of
from model import BenchmarkModel
from work import FewShot, Folder, Labels, Sweep, Work

QUESTION = "What is the common name for the focal species in the audio?"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    at_most: whether the target is an upper limit
    unit: what stands behind target and measurement
    detail: the figures behind it
    """

    name: str
    title: str
    target: float
    measured: float
    at_most: bool = False
    unit: str = "x"
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool:
        return self.measured <= self.target if self.at_most else self.measured >= self.target


@dataclass(frozen=True)
class Settings:
    """What a run of the table is made with."""

    small: bool
    rounds: int
    whole: bool
    own_decoding: bool = True


def work_row(work: Work, rounds: int) -> Row:
    """Both ways of a work, in turn."""
    kept: dict[str, list[dict[str, float]]] = {"baseline": [], "engine": []}
    answers: dict[str, dict[Any, Any]] = {}
    for _ in range(rounds):
        for way, runs in kept.items():
            run, clock = work.run(way)
            share = work.share if way == "baseline" else 1.0
            runs.append(
                {
                    "seconds": run.seconds / share,
                    "processor": run.processor / share,
                    "encoder": clock.seconds / share,
                    "encoder_processor": clock.processor / share,
                    "encodings": clock.windows / share,
                }
            )
            answers[way] = run.out
    detail: dict[str, Any] = {
        way: {name: median_of([run[name] for run in runs]) for name in runs[0]}
        for way, runs in kept.items()
    }
    plain, engine = detail["baseline"], detail["engine"]
    once = plain["encoder"] * work.clips / plain["encodings"]
    cached = plain["seconds"] - plain["encoder"] + min(once, plain["encoder"])
    others = answers["engine"]
    detail |= {
        "clips": work.clips,
        "share": work.share,
        "cached_seconds": cached,
        "against_cached": cached / engine["seconds"],
        "against_processor": plain["processor"] / engine["processor"],
        "compared": len(answers["baseline"]),
        "equal": sum(work.agree(text, others[key]) for key, text in answers["baseline"].items()),
        "rounds": rounds,
    }
    measured = plain["seconds"] / engine["seconds"]
    return Row(work.name, work.title, work.target, measured, detail=detail)


def language_row(folder: Row) -> Row:
    """The part of a work that is not encoding."""
    rest = {
        way: {
            name: folder.detail[way][name] - folder.detail[way][part]
            for name, part in (("seconds", "encoder"), ("processor", "encoder_processor"))
        }
        for way in ("baseline", "engine")
    }
    plain, engine = rest["baseline"], rest["engine"]
    processor = plain["processor"] / engine["processor"]
    detail = {**rest, "against_processor": processor, "rounds": folder.detail["rounds"]}
    title = f"language model's part of: {folder.title}"
    return Row("language", title, 4.0, plain["seconds"] / engine["seconds"], detail=detail)


def works(
    model: BenchmarkModel, folder: Path, settings: Settings
) -> Iterator[tuple[str, Callable[[], Work]]]:
    """All works by name; a work makes its sounds when it is made."""
    small = settings.small

    def part(measured: int) -> int | None:
        return None if settings.whole else measured

    rest: dict[str, Any] = {"own_decoding": settings.own_decoding}
    recordings, seconds = (2, 20.0) if small else (20, 100.0)
    for name, target, queries, measured in (("windows-1", 2.5, 1, 20), ("windows-3", 5.0, 3, 10)):
        yield (
            name,
            partial(
                Folder,
                model,
                folder / name,
                name=name,
                target=target,
                recordings=recordings,
                seconds=seconds,
                queries=queries,
                beams=1,
                baseline_windows=part(2 if small else measured),
                **rest,
            ),
        )
    clips, queries, alphas, measured = (2, 2, 3, 1) if small else (8, 3, 11, 3)
    yield (
        "sweep",
        partial(Sweep, model, clips, queries, alphas, baseline_alphas=part(measured), **rest),
    )
    clips, labels, measured = (2, 20, 8) if small else (8, 264, 32)
    yield "labels", partial(Labels, model, clips, labels, part(measured), **rest)
    clips, shots, measured = (4, 2, 2) if small else (32, 5, 4)
    yield "few-shot", partial(FewShot, model, clips, shots, part(measured), **rest)


def folder_rows(model: BenchmarkModel, folder: Path, settings: Settings) -> list[Row]:
    """The first row of the table, and the language model's part of it."""
    work = Folder(
        model,
        folder / "folder",
        name="folder",
        target=2.0,
        recordings=1,
        seconds=40.0 if settings.small else 120.0,
        own_decoding=settings.own_decoding,
    )
    row = work_row(work, settings.rounds)
    return [row, language_row(row)]


def encoder_row(model: BenchmarkModel, settings: Settings) -> Row:
    """The encoder beside its matrix products."""
    found = encoder.compare(model, 2 if settings.small else 4, 3)
    title = "encoder, as a multiple of its matrix products alone"
    return Row("encoder", title, encoder.MOST_RATIO, found["ratio"], at_most=True, detail=found)


def load_rows(settings: Settings) -> list[Row]:
    """Loading a checkpoint, as stored and cast on the way; the worse of both counts."""
    gigabytes = 0.8 if settings.small else 2.1
    dtypes = ("float32",) if settings.small else ("float32", "bfloat16")
    with tempfile.TemporaryDirectory() as folder:
        found = loading.compare(Path(folder), gigabytes, dtypes, settings.rounds)
    times = {dtype: ways["plain"]["seconds"] / ways["ours"]["seconds"] for dtype, ways in found}
    peaks = {dtype: ways["ours"]["peak"] / ways["ours"]["weights"] for dtype, ways in found}
    more: dict[str, Any] = {"detail": {"ways": dict(found), "faster": times, "peaks": peaks}}
    size = f"{found[0][1]['ours']['weights'] / 1e9:.1f} GB in float32"
    return [
        Row("load", f"load {size}, against build-then-copy", 2.0, min(times.values()), **more),
        Row(
            "load-peak",
            "peak memory of it, as a multiple of the weights",
            1.15,
            max(peaks.values()),
            at_most=True,
            **more,
        ),
    ]


def start_rows(settings: Settings) -> list[Row]:
    """Fresh processes: the help, and an answer of the embedded model."""
    rounds = 1 if settings.small else max(3, settings.rounds)
    fresh([*NATURELM, "--help"])  # compiles modules, as the installation does
    helps = [fresh([*NATURELM, "--help"]).seconds for _ in range(rounds)]
    sound = sorted(ASSETS.glob("*.flac"))[0]
    with tempfile.TemporaryDirectory() as folder:
        ask = [*NATURELM, "infer", "--audio-path", str(sound), "--query", QUESTION, "--overwrite"]
        ask += ["--output-path", str(Path(folder) / "answers.jsonl")]
        firsts = [fresh(ask).seconds for _ in range(rounds)]
    return [
        Row(name, title, target, median_of(runs), True, "s", {"seconds": runs})
        for name, title, target, runs in (
            ("help", "`naturelm --help`", 0.5, helps),
            ("first-answer", "first answer of the embedded model, fresh process", 5.0, firsts),
        )
    ]

"""Our engine beside vLLM on one exported folder: a run and a sweep over α, answers compared.

python benchmarks/inside_vllm.py --vllm .venv-vllm/bin/python
python benchmarks/inside_vllm.py --model naturelm-tiny --clips 4  # a short try
python benchmarks/inside_vllm.py --json docs/explanation/performance/vllm.json  # for the page
python benchmarks/inside_vllm.py --markdown docs/explanation/performance/vllm.json

The model is random (see model.py), exported once, in float32 for both: with an adapter for each α,
and with α 1 folded in. Two processes hold it, ours in this environment and vLLM's in its own
(`make vllm` builds it), and are asked in turn; each round has clips of its own, so that nothing is
kept from the round before. Clips are waveforms in memory, and every answer has equally many tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import model
import torch
from measure import ROOT, machine, write_figures

ALPHAS = (0.4, 0.7, 1.0)
MARK = "RESULT "  # vLLM writes much else
Ask = Callable[[list[Any], Sequence[str], Sequence[float], int], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--vllm", type=Path, default=ROOT / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--compile", action="store_true", help="let vLLM compile, which takes it minutes"
    )
    parser.add_argument("--model", help="another than the random one")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    if options.markdown:
        print(table(json.loads(options.markdown.read_text(encoding="utf-8"))))
        return
    found = measure(options)
    print(table(found))
    write_figures(options.json, found)


def measure(options: Any) -> dict[str, Any]:
    """All works, in both programs."""
    from NatureLM.vllm.export import export_for_vllm

    rows: list[dict[str, Any]] = []
    before, kind = os.getloadavg()[0], "compiled" if options.compile else "vllm"
    with tempfile.TemporaryDirectory() as name:
        source, plain, folded = (Path(name, one) for one in ("source", "adapters", "folded"))
        if options.model is None:
            model.build().save_pretrained(source)
        named = {"path_or_id": options.model or source, "dtype": torch.float32}
        export_for_vllm(output=plain, alphas=ALPHAS, **named)
        export_for_vllm(output=folded, alphas=[1.0], fold=True, **named)
        for folder, works in ((plain, ("run", "sweep")), (folded, ("folded",))):
            with (
                Program(sys.executable, "ours", folder, options.threads) as ours,
                Program(options.vllm, kind, folder, options.threads) as theirs,
            ):
                for work_name in works:
                    rows.append(compare(work_name, (ours, theirs), options))
                    print(json.dumps(rows[-1]), file=sys.stderr)
    load = {"before": round(before, 1), "after": round(os.getloadavg()[0], 1)}
    facts = {"threads": options.threads, "compiled": options.compile, "load": load}
    return {"machine": machine(), **facts, "rows": rows}


def compare(name: str, programs: Sequence[Program], options: Any) -> dict[str, Any]:
    """One work in each program in turn; the first round only warms up."""
    times: dict[str, list[dict[str, Any]]] = {one.kind: [] for one in programs}
    equal = compared = 0
    for number in range(options.rounds + 1):
        order = programs if number % 2 else programs[::-1]
        clips = 1 if number == 0 else options.clips
        made = {one.kind: one.ask(name, number, clips, options.tokens) for one in order}
        if number:
            for kind, result in made.items():
                times[kind].append(result)
            pairs = list(zip(*(made[one.kind]["ids"] for one in programs), strict=True))
            equal += sum(a == b for a, b in pairs)
            compared += len(pairs)
    answers = len(made[programs[0].kind]["ids"])
    row: dict[str, Any] = {"work": name, "clips": options.clips, "answers": answers}
    row |= {"tokens": options.tokens, "rounds": options.rounds}
    for kind, results in times.items():
        row[kind] = {
            measured: round(statistics.median(one[measured] for one in results), 3)
            for measured in ("seconds", "processor")
        }
    return (
        row
        | {"start": {one.kind: one.start for one in programs}}
        | {
            "equal": equal,
            "compared": compared,
        }
    )


class Program:
    """A process that holds the model and answers what it is asked on its standard input."""

    def __init__(self, python: str | Path, kind: str, folder: Path, threads: int) -> None:
        self.kind, began = "ours" if kind == "ours" else "vllm", time.perf_counter()
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        self._process = subprocess.Popen(
            [str(python), __file__, "--worker", kind, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()
        self.start = round(time.perf_counter() - began, 1)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(60)

    def ask(self, work_name: str, number: int, clips: int, tokens: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        told = {"work": work_name, "number": number, "clips": clips, "tokens": tokens}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return answer
        raise RuntimeError(f"the program of {self.kind} ended with {self._process.wait()}")


# -- in the processes -------------------------------------------------------------------------


def work(kind: str, folder: str) -> None:
    """Hold the model, and time what the lines of the standard input ask for."""
    ask = ours(Path(folder)) if kind == "ours" else theirs(Path(folder), kind == "compiled")
    print(MARK + "{}", flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        number = 100 * told["number"] + {"run": 1, "sweep": 2, "folded": 3}[told["work"]]
        clips = model.waves(told["clips"], seed=number)
        queries = model.QUERIES[:1] if told["work"] != "sweep" else model.QUERIES[:2]
        alphas = ALPHAS if told["work"] == "sweep" else (1.0,)
        rows = [(one, q, alpha) for one in clips for q in queries for alpha in alphas]
        waves, questions, strengths = zip(*rows, strict=True)
        clock, processor = time.perf_counter(), time.process_time()
        ids = ask(list(waves), questions, strengths, told["tokens"])
        taken = {
            "seconds": time.perf_counter() - clock,
            "processor": time.process_time() - processor,
            "ids": ids,
        }
        print(MARK + json.dumps(taken), flush=True)


def ours(folder: Path) -> Ask:
    """Our engine; every α scales the adapter of α 1."""
    from NatureLM.generation.engine import Engine, GenerationOptions, Request
    from NatureLM.models import NatureLM

    adapter = folder / "adapters" / "alpha-1"
    held = NatureLM.from_pretrained(folder, adapter=adapter if adapter.is_dir() else None)

    def ask(
        waves: list[Any], queries: Sequence[str], alphas: Sequence[float], tokens: int
    ) -> list[list[int]]:
        told = GenerationOptions(num_beams=1, max_new_tokens=tokens, min_new_tokens=tokens)
        clips = {f"{id(one):x}": one for one in waves}
        requests = [
            Request(place, model.prompt(held, query), (f"{id(wave):x}",), alpha)
            for place, (wave, query, alpha) in enumerate(zip(waves, queries, alphas, strict=True))
        ]
        found = {one.key: one for one in Engine(held, told).run(requests, clips.__getitem__)}
        return [list(found[request.key].ids) for request in requests]

    return ask


def theirs(folder: Path, compiles: bool) -> Ask:
    """vLLM, with prefix caching."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from NatureLM.models.checkpoint.load import open_checkpoint
    from NatureLM.prompts import render

    has_adapters = (folder / "adapters").is_dir()
    lora = {"enable_lora": True, "max_lora_rank": 32, "max_loras": 1 + len(ALPHAS)}
    llm = LLM(
        str(folder),
        dtype="float32",
        max_model_len=512,
        block_size=32,
        enforce_eager=not compiles,
        limit_mm_per_prompt={"audio": 1},
        **(lora if has_adapters else {}),
    )
    reader = open_checkpoint(folder)
    bos, template = reader.tokenizer.bos_token, reader.config.prompt_template

    def ask(
        waves: list[Any], queries: Sequence[str], alphas: Sequence[float], tokens: int
    ) -> list[list[int]]:
        told = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens)
        prompts = [
            {"prompt": bos + render(template, query), "multi_modal_data": {"audio": wave.numpy()}}
            for wave, query in zip(waves, queries, strict=True)
        ]
        named = [
            LoRARequest(f"alpha-{one:g}", 1 + ALPHAS.index(one), f"{folder}/adapters/alpha-{one:g}")
            if has_adapters
            else None
            for one in alphas
        ]
        made = llm.generate(prompts, told, lora_request=named, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in made]

    return ask


def table(found: dict[str, Any]) -> str:
    """For the page."""
    names = {
        "run": "questions about clips, one α by an adapter",
        "sweep": "2 questions at 3 α",
        "folded": "questions about clips, α folded in",
    }
    lines = [
        "| work | answers | ours, s | vLLM, s | ours, processor s | vLLM, processor s | equal |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in found["rows"]:
        ours, theirs = row["ours"], row["vllm"]
        lines.append(
            f"| {names[row['work']]} | {row['answers']} | {ours['seconds']:.1f} "
            f"| {theirs['seconds']:.1f} | {ours['processor']:.1f} | {theirs['processor']:.1f} "
            f"| {row['equal']} of {row['compared']} |"
        )
    where, load = found["machine"], found["load"]
    lines += [
        "",
        f"({where['processor']}, {found['threads']} thread each, torch {where['torch']}; load "
        f"{load['before']} before, {load['after']} after)",
    ]
    return "\n".join(lines)


class _Raw(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it stands, and defaults."""


if __name__ == "__main__":
    main()

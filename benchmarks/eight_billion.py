"""The published sizes on a processor: memory, load, prompts and tokens in bfloat16, int8 and int4.

    python benchmarks/eight_billion.py make FOLDER
    python benchmarks/eight_billion.py measure FOLDER [--kind int8 ...] [--rounds 2] [--json FILE]

`make` writes a checkpoint of 16 GB with random weights in the sizes of the published model, a
tensor at a time. `measure` runs each way in a process of its own, in turn; the quantised folders
FOLDER-int8 and FOLDER-int4 (9 and 6 GB, minutes each) are made where they are not there, and go
in the end. With --add the runs join those of the file, for a disk that is too small for
all folders at once. On a machine that others use, too, read the seconds of the processor.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from full_size import LLAMA_8B
from measure import fresh, machine, options_for, status_bytes, timed, write_figures
from model import QUERIES, SMALL, config_of, prompt, tokenizer, waves

from NatureLM.generation.decoding import DecodingSession
from NatureLM.generation.engine import GenerationOptions
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.export import quantize_checkpoint
from NatureLM.models.checkpoint.load import build_on_meta
from NatureLM.models.checkpoint.tensors import (
    LazyTensor,
    TensorRef,
    of_language_model,
    tensor_refs,
    write_tensors,
)

KINDS = ("bfloat16", "int8", "int4")
POSITIONS = 64  # of a prompt, about those of a window and a question
STEPS = 8
TOKENS = 16
TINY = {**LLAMA_8B, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
TINY |= {"vocab_size": 1000, "num_attention_heads": 4, "num_key_value_heads": 2}


def make(folder: Path, small: bool = False) -> None:
    """A random checkpoint: the language model in bfloat16, all else in float32."""
    folder.mkdir(parents=True)
    config = config_of({**SMALL, "text_config": TINY} if small else {"text_config": LLAMA_8B})
    model = build_on_meta(NatureLM, config, tokenizer())
    torch.manual_seed(0)
    noise = torch.randn(2**16 if small else 2**24) * 0.02
    tensors = {ref.stored_name: random_tensor(ref, noise) for ref in tensor_refs(model)}
    write_tensors(tensors, folder, max_shard_size="5GB")
    model.save_settings(folder)


def random_tensor(ref: TensorRef, noise: torch.Tensor) -> LazyTensor:
    """Norms of 1, biases of 0, and for matrices noise that begins elsewhere each time."""
    dtype = torch.bfloat16 if of_language_model(ref.stored_name) else torch.float32
    dtype = torch.int64 if ref.is_buffer else dtype

    def filled() -> torch.Tensor:
        if ref.is_buffer:
            return torch.arange(ref.shape[-1])[None]
        if len(ref.shape) < 2:
            return torch.full(ref.shape, float(ref.stored_name.endswith("weight")), dtype=dtype)
        count = torch.Size(ref.shape).numel()
        source = noise.to(dtype).roll(int(torch.randint(len(noise), (1,))))
        return source.repeat(-(-count // len(source)))[:count].reshape(ref.shape)

    return LazyTensor(dtype, ref.shape, filled)


# -- one way, in a process of its own -------------------------------------------------------


def run(folder: Path, kind: str, threads: list[int]) -> dict[str, Any]:
    """Load, a prompt, some steps of one row, and an answer about a window of sound."""
    torch.set_num_threads(threads[0])
    how = {"dtype": torch.bfloat16} if kind == "bfloat16" else {}
    loaded = timed(lambda: NatureLM.from_pretrained(folder, **how))
    model = loaded.out
    found: dict[str, Any] = {
        "kind": kind,
        "load": figures(loaded),
        "load_gigabytes": memory(),
        "threads": {},
    }
    with torch.inference_mode():
        prefill(model)  # reads every weight from the disk
        for count in threads:
            torch.set_num_threads(count)
            found["threads"][str(count)] = one_row(model)
    found["gigabytes"] = memory()
    return found


def prefill(model: NatureLM) -> DecodingSession:
    """A prompt of one row, ready for its tokens."""
    weight = model.llama_embed_tokens.weight
    embeds = [torch.randn(POSITIONS, weight.shape[1], dtype=weight.dtype)]
    return DecodingSession(model.language_model, embeds, [1.0], new_tokens=STEPS + 1)


def one_row(model: NatureLM) -> dict[str, Any]:
    """Seconds of a prompt, of a step after it, and of a whole answer with its sound."""
    prompted = timed(lambda: prefill(model))
    session, token = prompted.out, torch.zeros(1, dtype=torch.long)
    session.step(token)
    steps = [figures(timed(lambda: session.step(token))) for _ in range(STEPS)]
    text, options = prompt(model, QUERIES[0]), GenerationOptions(max_new_tokens=TOKENS, num_beams=1)

    def answer() -> None:
        clips = [[clip] for clip in model.encode_audio(torch.stack(waves(1)))]
        model.generate_ids([text], clips, options=options, eos_ids=[])

    return {
        "prefill": figures(prompted),
        "step": {name: statistics.median(one[name] for one in steps) for name in steps[0]},
        "answer": figures(timed(answer)),
    }


def figures(run: Any) -> dict[str, float]:
    """Seconds of the clock and of the processor."""
    return {"seconds": run.seconds, "processor": run.processor}


def memory() -> dict[str, float]:
    """Gigabytes of this process: the most so far, now without what is mapped from files."""
    return {"peak": status_bytes("VmHWM") / 1e9, "own": status_bytes("RssAnon") / 1e9}


# -- all ways in turn -----------------------------------------------------------------------


def measure(folder: Path, kinds: list[str], rounds: int, threads: list[int]) -> dict[str, Any]:
    """Each way in each round; the machine's load before each run is kept."""
    runs, quantising = [], {}
    with quantised(folder, kinds) as folders:
        for kind in kinds:
            if kind != "bfloat16" and not folders[kind].exists():
                quantising[kind] = figures(
                    timed(lambda k=kind: quantize_checkpoint(folder, folders[k], k))
                )
        for number in range(rounds):
            for kind in kinds:
                load = machine()["load"]
                command = [sys.executable, __file__, "run", str(folders[kind]), "--kind", kind]
                found = json.loads(fresh([*command, *(f"--threads={n}" for n in threads)]).printed)
                runs.append({"round": number, "machine_load": load, **found})
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    return {"runs": runs, "quantising": quantising}


@contextmanager
def quantised(folder: Path, kinds: list[str]) -> Iterator[dict[str, Path]]:
    """Where the quantised folders are; those that were not there before go in the end."""
    folders = {kind: folder.with_name(f"{folder.name}-{kind}") for kind in kinds}
    folders["bfloat16"] = folder
    made = [path for path in folders.values() if not path.exists()]
    try:
        yield folders
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


def markdown(report: dict[str, Any]) -> str:
    """The table for the pages: medians of the rounds, of the clock and of the processor."""
    lines = [
        "| weights | threads | memory at most; without files, GB | load, s "
        f"| prompt of {POSITIONS}, s | tokens a second | times bfloat16 "
        f"| an answer of {TOKENS} tokens, s | load of the machine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    runs = report["runs"]
    kinds = dict.fromkeys(run["kind"] for run in runs)
    for count in runs[0]["threads"]:
        for kind in kinds:
            mine = [run for run in runs if run["kind"] == kind]
            plain = [run for run in runs if run["kind"] == "bfloat16"]
            lines.append(_line(kind, count, mine, plain))
    lines += ["", "Figures in pairs are those of the clock and, behind it, of the processor."]
    return "\n".join(lines)


def _line(kind: str, count: str, mine: list[Any], plain: list[Any]) -> str:
    def of(runs: list[Any], read: Callable[[Any], float]) -> float:
        return statistics.median(read(run) for run in runs)

    def both(read: Callable[[Any], dict[str, float]], show: Callable[[float], str]) -> str:
        clocks = ("seconds", "processor")
        return "; ".join(show(of(mine, lambda run, c=clock: read(run)[c])) for clock in clocks)

    def part(name: str) -> Callable[[Any], dict[str, float]]:
        return lambda run: dict(run["threads"][count][name])

    spent = of(mine, lambda run: part("step")(run)["processor"])
    times = of(plain, lambda run: part("step")(run)["processor"]) / spent if plain else None
    loads = [run["machine_load"] for run in mine if run.get("machine_load") is not None]
    cells = [
        f"{max(r['gigabytes']['peak'] for r in mine):.1f}; "
        f"{max(r['gigabytes']['own'] for r in mine):.1f}",
        both(lambda run: run["load"], "{:.1f}".format),
        both(part("prefill"), "{:.1f}".format),
        both(part("step"), lambda value: f"{1 / value:.2f}"),
        "" if times is None else f"{times:.1f}",
        both(part("answer"), "{:.1f}".format),
        f"{statistics.median(loads):.0f}" if loads else "",
    ]
    return f"| {kind} | {count} | {' | '.join(cells)} |"


def main() -> None:
    """Make the checkpoint, or measure and print the table."""
    parser = options_for(__doc__, "small", "json", rounds=2)
    parser.add_argument("action", choices=("make", "measure", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be given several times")
    parser.add_argument("--threads", type=int, action="append", help="may be given several times")
    parser.add_argument("--add", action="store_true", help="join the runs of the JSON file")
    options = parser.parse_args()
    kinds, threads = options.kind or list(KINDS), options.threads or [1, 2]
    if options.action == "make":
        make(options.folder, options.small)
        return
    if options.action == "run":
        print(json.dumps(run(options.folder, kinds[0], threads)))
        return
    report = {"machine": machine(), "small": options.small}
    found = measure(options.folder, kinds, options.rounds, threads)
    if options.add and options.json.is_file():
        before = json.loads(options.json.read_text(encoding="utf-8"))
        found = {
            "runs": before["runs"] + found["runs"],
            "quantising": {**before["quantising"], **found["quantising"]},
        }
    report |= found
    print(markdown(report))
    write_figures(options.json, report)


if __name__ == "__main__":
    main()

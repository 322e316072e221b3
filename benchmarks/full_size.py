"""The full architecture with random weights on a GPU: windows a second, and shares of the roofline.

    python benchmarks/full_size.py [--windows 64] [--loop-windows 8] [--json FILE]
    python benchmarks/full_size.py --smoke

BEATs, Q-Former and a language model of 8 B parameters in bfloat16, LoRA of rank 32. Measured are a
loop over single windows, the plain path in batches of 16, and the engine, all with 2 beams and 16
tokens; prefill as a share of the card's floating-point operations; a decoding step, taken plainly
and as a captured graph, as a share of its memory bandwidth; and 1 to 11 values of α. `--smoke` runs
a small model on the processor, to try the program; the static step is not captured there. The
bounds are those of an H200 in bfloat16; set others for another card.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from baseline import Baseline
from measure import machine, timed
from model import QUERIES, BenchmarkModel, build, prompt, waves
from transformers import LlamaConfig

import NatureLM.models as models
from NatureLM.generation.cuda_graphs import make_graph_runner
from NatureLM.generation.decoding import DecodingSession
from NatureLM.generation.engine import Engine, fold_if_single_alpha
from NatureLM.generation.requests import GenerationOptions, Request
from NatureLM.models import NatureLMConfig, NatureLMProcessor

LLAMA_8B = {
    "vocab_size": 128257,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
}
TOKENS = 16
WARM_STEPS = 8


def build_full(device: str) -> BenchmarkModel:
    """The architecture of the published model, random weights, bfloat16."""
    from transformers import AutoTokenizer

    folder = Path(models.__file__).parent / "data" / "naturelm-tiny"
    config = NatureLMConfig(text_config=LlamaConfig(**LLAMA_8B).to_dict())
    processor = NatureLMProcessor.from_config(config, AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return BenchmarkModel(config, processor).eval()
    finally:
        torch.set_default_dtype(before)


def seconds(model: BenchmarkModel, way: Callable[[], Any]) -> float:
    """Seconds of the clock until the device is done."""

    def finished() -> None:
        way()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return timed(finished).seconds


def engine_run(
    model: BenchmarkModel,
    windows: int,
    alphas: list[float],
    beams: int = 2,
    capture: bool | None = None,
) -> float:
    """Seconds of the engine for windows at some α."""
    clips = waves(windows)
    options = GenerationOptions(max_new_tokens=TOKENS, num_beams=beams)
    text = prompt(model, QUERIES[0])
    requests = [
        Request((clip, alpha), text, (str(clip),), alpha)
        for clip in range(windows)
        for alpha in alphas
    ]

    def run() -> None:
        engine = Engine(model, options, eos_ids=model.eos_ids, capture=capture)
        with fold_if_single_alpha(model, alphas):
            assert len(list(engine.run(requests, lambda key: clips[int(key)]))) == len(requests)

    return seconds(model, run)


def throughput(model: BenchmarkModel, windows: int, loop: int) -> dict[str, float]:
    """Windows a second of the three ways."""
    way = Baseline(model, GenerationOptions(max_new_tokens=TOKENS, num_beams=2))
    text = prompt(model, QUERIES[0])

    def plain(count: int, batch: int) -> float:
        clips = waves(count)

        def run() -> None:
            for first in range(0, count, batch):
                part = [[wave] for wave in clips[first : first + batch]]
                way.answer([text] * len(part), part)

        return count / seconds(model, run)

    plain(1, 1)
    engine_run(model, min(4, windows), [1.0])  # warm
    rates = {"loop": plain(loop, 1), "batch 16": plain(windows, 16)}
    rates["uncaptured"] = windows / engine_run(model, windows, [1.0], capture=False)
    rates["engine"] = windows / engine_run(model, windows, [1.0])
    return rates


def step_seconds(model: BenchmarkModel, session: DecodingSession, steps: int) -> float:
    """Seconds of a decoding step, after some in which a captured one is recorded."""
    tokens = torch.zeros(session.rows, dtype=torch.long, device=model.device)
    for _ in range(WARM_STEPS):
        session.step(tokens)
    return seconds(model, lambda: [session.step(tokens) for _ in range(steps)]) / steps


def shares(model: BenchmarkModel, rows: int, tflops: float, terabytes: float) -> dict[str, float]:
    """Prefill and a decoding step as shares of what the card can do."""
    named = model.language_model.named_parameters()
    weights = sum(p.numel() for name, p in named if ".lora_" not in name)
    weights -= model.llama_embed_tokens.weight.numel()
    length = 128
    width = model.llama_embed_tokens.weight.shape[1]
    like = model.llama_embed_tokens.weight
    embeds = list(torch.randn(rows, length, width, device=like.device, dtype=like.dtype))
    steps = 8
    room = WARM_STEPS + steps
    graphs = make_graph_runner(model.language_model)
    with torch.inference_mode(), fold_if_single_alpha(model, [1.0]):
        made = [DecodingSession(model.language_model, embeds[:1], [1.0], new_tokens=room)]
        prefill = seconds(
            model,
            lambda: made.append(
                DecodingSession(model.language_model, embeds, [1.0] * rows, new_tokens=room)
            ),
        )
        step = step_seconds(model, made.pop(), steps)
        session = DecodingSession(
            model.language_model, embeds, [1.0] * rows, new_tokens=room, graphs=graphs
        )
        captured = step_seconds(model, session, steps)
    size = model.llama_embed_tokens.weight.element_size()
    return {
        "rows": rows,
        "prefill_seconds": prefill,
        "prefill_share": 2 * weights * rows * length / prefill / (tflops * 1e12),
        "step_seconds": step,
        "step_share": weights * size / step / (terabytes * 1e12),
        "captured_step_seconds": captured,
        "captured_step_share": weights * size / captured / (terabytes * 1e12),
    }


def measure(model: BenchmarkModel, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    windows, loop = options.windows, options.loop_windows
    alphas = [step / 10 for step in range(11)]
    return {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu",
        "parameters": sum(p.numel() for p in model.parameters()),
        "windows_per_second": throughput(model, windows, loop),
        "roofline": [
            shares(model, rows, options.tflops, options.terabytes)
            for rows in ((2, 4) if options.smoke else (16, 64, 256))
        ],
        "alphas": {
            count: engine_run(model, max(1, windows // 8), alphas[:count])
            for count in ((1, 2) if options.smoke else (1, 2, 4, 8, 11))
        },
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a small model on the processor")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--loop-windows", type=int, default=8, help="windows of the batch-1 loop")
    parser.add_argument("--tflops", type=float, default=790.0, help="what the card can compute")
    parser.add_argument("--terabytes", type=float, default=4.8, help="a second, from its memory")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args()
    if options.smoke:
        options.windows, options.loop_windows = 2, 1
    elif not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --smoke tries the program without one")
    report = measure(build(small=True) if options.smoke else build_full("cuda"), options)
    rates = report["windows_per_second"]
    for name, rate in rates.items():
        print(f"{name:10s} {rate:8.2f} windows/s, the engine {rates['engine'] / rate:6.2f} times")
    for one in report["roofline"]:
        print(
            f"{one['rows']:4d} rows: prefill {one['prefill_share']:.1%} of the operations, "
            f"a step {one['step_share']:.1%} of the bandwidth, "
            f"captured {one['captured_step_share']:.1%}"
        )
    for count, taken in report["alphas"].items():
        print(f"{count:2d} α: {taken:.2f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

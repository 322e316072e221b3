"""A sweep over queries and α: the engine beside the way that the reference was seen to work.

    python benchmarks/sweep.py [--small] [--json FILE] [--clips 8] [--alphas 11] [--threads 2]

8 clips x 3 queries x 11 α, 2 beams, 16 new tokens, on a random model: BEATs in full size and a
language model of 12 layers, 768 wide (126 M parameters, vocabulary 32,006), LoRA of rank 32. The
ways, measured one after another in one process with the same weights, threads and precision:

reference   a loop over α, queries and batches of 4 clips, each batch encoded again
cached      the same loop with a perfect cache: each clip is encoded once
engine      `Engine`: each clip once, queries and α as rows of batches

All three decode with the package's own decoding, so what is compared is the batching. Answers are
compared word for word. Of `--rounds` the median counts. Where the machine is shared, the seconds of
the processor are the steadier figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig

import NatureLM.models
from NatureLM.generation.engine import Engine
from NatureLM.generation.options import GenerationOptions
from NatureLM.generation.requests import Request
from NatureLM.models import NatureLM as Model
from NatureLM.models import NatureLMConfig, NatureLMProcessor

QUERIES = (
    "What is the common name for the focal species in the audio?",
    "What is the scientific name for the focal species in the audio?",
    "Identify the focal species in the audio and provide its taxonomic name followed by a colon "
    "and its common name.",
)
BASELINE_BATCH = 4
TARGET = 6.0
LLAMA = {
    "vocab_size": 32006,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
SMALL_LLAMA = {**LLAMA, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2}
SMALL_BEATS = {
    "embed_dim": 64,
    "encoder_layers": 2,
    "encoder_embed_dim": 96,
    "encoder_ffn_embed_dim": 192,
    "encoder_attention_heads": 4,
}
SMALL_QFORMER = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 192}


def build(small: bool) -> Model:
    """A random model; the tokenizer is that of the embedded one."""
    folder = Path(NatureLM.models.__file__).parent / "data" / "naturelm-tiny"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes: dict[str, Any] = {"text_config": LlamaConfig(**(SMALL_LLAMA if small else LLAMA))}
    sizes["text_config"] = sizes["text_config"].to_dict()
    if small:
        sizes |= {"beats_cfg": SMALL_BEATS, "qformer_cfg": SMALL_QFORMER, "lora_rank": 8}
    config = NatureLMConfig(**sizes)
    torch.manual_seed(0)
    model = Model(config, NatureLMProcessor.from_config(config, tokenizer)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.02)  # so that α matters
            elif name.endswith("lm_head.weight"):
                parameter.mul_(10)  # so that answers are no matter of rounding
    return model


class Work:
    """The sweep: what is asked about which clips at which α."""

    def __init__(self, model: Model, clips: int, queries: int, alphas: int) -> None:
        assert model.processor is not None
        generator = torch.Generator().manual_seed(1)
        samples = round(model.config.window_seconds * model.config.sample_rate)
        self.model = model
        self.waves = [0.1 * torch.randn(samples, generator=generator) for _ in range(clips)]
        self.prompts = [model.processor.render(query) for query in QUERIES[:queries]]
        self.alphas = [step / max(1, alphas - 1) for step in range(alphas)]
        self.options = GenerationOptions(max_new_tokens=16, num_beams=2)
        self.encoded = 0

    @property
    def rows(self) -> int:
        """Answers of the whole sweep."""
        return len(self.waves) * len(self.prompts) * len(self.alphas)

    def reference(self) -> dict[Any, str]:
        """Every batch encodes its clips again."""
        self.encoded = self.rows
        return self._loop(self.waves)

    def cached(self) -> dict[Any, str]:
        """Clips are encoded once, in batches as large as the reference's."""
        self.encoded = len(self.waves)
        clips: list[torch.Tensor] = []
        with torch.inference_mode():
            for first in range(0, len(self.waves), BASELINE_BATCH):
                batch = torch.stack(self.waves[first : first + BASELINE_BATCH])
                clips += list(self.model.encode_audio(batch))
        return self._loop(clips)

    def engine(self) -> dict[Any, str]:
        """The engine, with its defaults."""
        engine = Engine(self.model, self.options, eos_ids=[])
        requests = [
            Request((clip, query, alpha), prompt, (str(clip),), alpha)
            for clip in range(len(self.waves))
            for query, prompt in enumerate(self.prompts)
            for alpha in self.alphas
        ]
        answers = engine.run(requests, lambda key: self.waves[int(key)])
        found = {answer.key: str(answer.text) for answer in answers}
        self.encoded = engine.encoded
        return found

    def _loop(self, clips: Sequence[torch.Tensor]) -> dict[Any, str]:
        found: dict[Any, str] = {}
        for alpha in self.alphas:
            for query, prompt in enumerate(self.prompts):
                for first in range(0, len(clips), BASELINE_BATCH):
                    batch = clips[first : first + BASELINE_BATCH]
                    ids = self.model.generate_ids(
                        [prompt] * len(batch),
                        [[clip] for clip in batch],
                        alpha=alpha,
                        options=self.options,
                        eos_ids=[],
                    )
                    for place, row in enumerate(ids):
                        text = self.model.tokenizer.decode(row, skip_special_tokens=True)
                        found[first + place, query, alpha] = text
        return found


def timed(way: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of the clock and of the processor, and what came out."""
    clock, processor = time.perf_counter(), time.process_time()
    out = way()
    return time.perf_counter() - clock, time.process_time() - processor, out


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """All ways in turn, so that what else the machine does meets them alike."""
    ways = {"reference": work.reference, "cached": work.cached, "engine": work.engine}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    answers: dict[str, dict[Any, str]] = {}
    encodings: dict[str, int] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            clock, processor, answers[name] = timed(way)
            seconds[name].append((clock, processor))
            encodings[name] = work.encoded
            print(f"  {name}: {clock:.1f} s", flush=True)
    plain = answers["reference"]
    return {
        name: {
            "seconds": statistics.median(clock for clock, _ in times),
            "processor_seconds": statistics.median(processor for _, processor in times),
            "encodings": encodings[name],
            "equal_answers": sum(answers[name][key] == text for key, text in plain.items()),
        }
        for name, times in seconds.items()
    }


def parts(work: Work) -> dict[str, float]:
    """Processor seconds of the parts: a clip, the prompts of a batch, one step of a batch."""
    model = work.model
    batch = torch.stack(work.waves[:BASELINE_BATCH])
    found: dict[str, float] = {}
    with torch.inference_mode():
        clips = model.encode_audio(batch)
        found["encode a clip"] = timed(lambda: model.encode_audio(batch))[1] / len(batch)
    for rows in (BASELINE_BATCH, 16 * BASELINE_BATCH):
        times = {}
        for tokens in (1, 6):
            options = GenerationOptions(max_new_tokens=tokens, num_beams=2)
            times[tokens] = timed(
                lambda options=options, rows=rows: model.generate_ids(
                    [work.prompts[row % len(work.prompts)] for row in range(rows)],
                    [[clips[row % len(clips)]] for row in range(rows)],
                    alpha=[work.alphas[row % len(work.alphas)] for row in range(rows)],
                    options=options,
                    eos_ids=[],
                )
            )[1]
        found[f"prompt, a row of {rows}"] = times[1] / rows
        found[f"step of 2 beams, a row of {rows}"] = (times[6] - times[1]) / 5 / rows
    return found


def show(report: dict[str, Any]) -> None:
    """Print the tables."""
    print(f"{report['rows']} answers, {report['parameters'] / 1e6:.0f} M parameters")
    for name, seconds in report["parts"].items():
        print(f"  {name:32s} {seconds * 1e3:9.1f} ms of the processor")
    print(
        f"{'way':10s} {'seconds':>8s} {'processor':>10s} {'encodings':>10s} {'against it':>11s} "
        f"{'(processor)':>11s} {'equal':>6s}"
    )
    engine = report["ways"]["engine"]
    for name, one in report["ways"].items():
        times = one["seconds"] / engine["seconds"]
        processor = one["processor_seconds"] / engine["processor_seconds"]
        print(
            f"{name:10s} {one['seconds']:8.1f} {one['processor_seconds']:10.1f} "
            f"{one['encodings']:10d} {times:9.1f} x {processor:9.1f} x {one['equal_answers']:6d}"
        )
    gain = report["ways"]["reference"]["seconds"] / engine["seconds"]
    print(f"The engine is {gain:.1f} times as fast as the reference's way (target: {TARGET:g}).")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model: tries the program")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--queries", type=int, default=3, choices=(1, 2, 3))
    parser.add_argument("--alphas", type=int, default=11)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = build(options.small)
    work = Work(model, options.clips, options.queries, options.alphas)
    report = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "small": options.small,
        "rows": work.rows,
        "parameters": sum(one.numel() for one in model.llama_model.parameters()),
        "parts": parts(work),
        "ways": measure(work, options.rounds),
    }
    show(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Precisions on a processor, bfloat16 and integers of 8 and 4 bits: time and what answers become.

    python benchmarks/precision.py [--small] [--clips 4] [--threads 1 --threads 2] [--json FILE]

Weights of integers are those of `--quantize`, with activations in bfloat16. Answers are compared
with those of float32, and so are the log-probabilities of the first token. Times are those of the
clock.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from measure import machine, options_for, timed, write_figures
from model import QUERIES, BenchmarkModel, build, prompt, waves

from NatureLM.config.schema import Quantization
from NatureLM.generation.engine import GenerationOptions
from NatureLM.models.quantized import quantize_layers


def integers(model: BenchmarkModel, kind: Quantization) -> BenchmarkModel:
    """A bfloat16 copy whose language model has weights of 8 or 4 bits."""
    changed = copy.deepcopy(model).bfloat16()
    quantize_layers(changed.language_model, kind)
    changed.config.quantized = kind
    return changed


def ask(model: BenchmarkModel, clips: int) -> dict[str, Any]:
    """Seconds of encoding, of the prompt and of the later tokens; ids; first log-probabilities."""
    wav_BS = torch.stack(waves(clips))
    texts = [prompt(model, QUERIES[0])] * clips
    with torch.inference_mode():
        model.encode_audio(wav_BS[:1])
        encode = timed(lambda: model.encode_audio(wav_BS))
        rows = [[clip] for clip in encode.out]

        def decode(tokens: int) -> Any:
            options = GenerationOptions(max_new_tokens=tokens, num_beams=1)
            return timed(lambda: model.generate_ids(texts, rows, options=options))

        first, all_tokens = decode(1), decode(16)
        embeds = model.input_embeddings(texts, rows)
        logits = model.language_model(inputs_embeds=torch.stack(embeds), logits_to_keep=1).logits
    return {
        "encode": encode.seconds,
        "prompt": first.seconds,
        "tokens": all_tokens.seconds - first.seconds,
        "ids": all_tokens.out,
        "logs": logits[:, -1].float().log_softmax(-1),
    }


def measure(model: BenchmarkModel, clips: int, threads: list[int]) -> list[dict[str, Any]]:
    """Every precision with every number of threads."""
    kinds = {
        "float32": model,
        "bfloat16": copy.deepcopy(model).bfloat16(),
        "bfloat16, int8": integers(model, "int8"),
        "bfloat16, int4": integers(model, "int4"),
    }
    torch.set_num_threads(threads[0])
    exact = ask(model, clips)
    found = []
    for count in threads:
        torch.set_num_threads(count)
        for kind, one in kinds.items():
            run = ask(one, clips)
            pairs = zip(run["ids"], exact["ids"], strict=True)
            best = exact["logs"].argmax(-1, keepdim=True)
            change = (run["logs"] - exact["logs"]).gather(1, best).abs().max()
            found.append(
                {
                    "kind": kind,
                    "threads": count,
                    **{part: run[part] for part in ("encode", "prompt", "tokens")},
                    "same_answers": sum(ids == plain for ids, plain in pairs),
                    "answers": clips,
                    "log_probability_change": float(change),
                }
            )
    return found


def markdown(report: dict[str, Any]) -> str:
    """The table for the pages."""
    lines = [
        "| weights | threads | encoding, s | prompts, s | 15 tokens, s | same answers "
        "| change of a log-probability |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one['kind']} | {one['threads']} | {one['encode']:.2f} | {one['prompt']:.2f} "
        f"| {one['tokens']:.2f} | {one['same_answers']} of {one['answers']} "
        f"| {one['log_probability_change']:.3f} |"
        for one in report["runs"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = options_for(__doc__, "small", "json")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--threads", type=int, action="append", help="may be given several times")
    options = parser.parse_args()
    runs = measure(build(options.small), options.clips, options.threads or [1, 2])
    report = {"machine": machine(), "small": options.small, "runs": runs}
    print(markdown(report))
    write_figures(options.json, report)


if __name__ == "__main__":
    main()

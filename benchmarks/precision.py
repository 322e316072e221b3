"""bfloat16 and int8 weights on the processor, and threads: time and what becomes of the answers.

    python benchmarks/precision.py [--small] [--clips 4] [--threads 1 --threads 2] [--json FILE]

int8 keeps a scale for every output of a linear layer and multiplies through torch's own weight-only
product, with activations in bfloat16. Answers are compared with those of float32, and so are the
log-probabilities of the first token. Times are those of the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from measure import machine, timed
from model import QUERIES, BenchmarkModel, build, prompt, waves
from torch import Tensor, nn

from NatureLM.generation.requests import GenerationOptions


class Int8Linear(nn.Module):
    """Weights in int8 with one scale for each output."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        weight = plain.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(1e-8) / 127
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(torch.bfloat16))
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.in_features)
        out: Tensor = torch._weight_int8pack_mm(flat.bfloat16(), self.weight, self.scale)
        out = out.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def int8(model: BenchmarkModel) -> BenchmarkModel:
    """A bfloat16 copy whose feed-forward layers (most of the weights) are in int8."""
    changed = copy.deepcopy(model).bfloat16()
    for module in list(changed.language_model.modules()):
        for name, child in list(module.named_children()):
            if name in ("gate_proj", "up_proj", "down_proj") and isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child))
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
        "bfloat16, int8 weights": int8(model),
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a small model: tries the program")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--threads", type=int, action="append", help="may be given several times")
    parser.add_argument("--json", type=Path, default=None, help="write the figures to this file")
    options = parser.parse_args()
    runs = measure(build(options.small), options.clips, options.threads or [1, 2])
    report = {"machine": machine(), "small": options.small, "runs": runs}
    print(markdown(report))
    if options.json is not None:
        text = json.dumps(report, indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

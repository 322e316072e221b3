"""Time and peak memory of loading a checkpoint, beside a plain build-then-copy.

    python benchmarks/loading.py [--gigabytes 2.1] [--dtype bfloat16] [--folder FOLDER]

Generates a random checkpoint in float32 of at least the asked size once, then loads it in fresh
processes: ours as stored, ours cast on the way, and the plain way (build with random weights, read
all tensors, copy them in). Memory is the peak resident size above what the imports take, also as a
share of the weights' bytes in the asked dtype.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import PEAK, options_for, python

_MEASURE = f"""{PEAK}
import torch
from NatureLM.models import NatureLM
folder, way, dtype = sys.argv[1:4]
before, start = peak(), time.perf_counter()
if way == "plain":
    from NatureLM.models import NatureLMConfig
    from safetensors.torch import load_file
    config = NatureLMConfig.from_dict(json.load(open(folder + "/config.json")))
    model = NatureLM(config)
    state = load_file(folder + "/model.safetensors")
    model.load_state_dict(state, strict=False)
    model = model.to(getattr(torch, dtype))
else:
    model = NatureLM.from_pretrained(folder, dtype=dtype)
seconds = time.perf_counter() - start
unique = dict((t.data_ptr(), t) for t in model.parameters()).values()
touched = [float(t.sum()) for t in unique]  # mapped weights count when they are used
weights = sum(t.numel() * t.element_size() for t in unique)
print(json.dumps(dict(seconds=seconds, weights=weights, peak=peak() - before)))
"""


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """A random model in our layout, float32, at least `gigabytes` large."""
    import torch
    from transformers import LlamaConfig

    from NatureLM.models import NatureLM, NatureLMConfig

    layers = max(1, round((gigabytes - 0.75) / 0.0515) + 1)
    text = LlamaConfig(
        vocab_size=32006,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = NatureLM(NatureLMConfig(text_config=text.to_dict()))
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder, max_shard_size="100GB")
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "<|eot_id|>": 1, "<|begin_of_text|>": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=words, merges=[])),
        pad_token="[PAD]",
        eos_token="<|eot_id|>",
        bos_token="<|begin_of_text|>",
    )
    tokenizer.save_pretrained(folder)


def compare(
    folder: Path, gigabytes: float, dtypes: Sequence[str], rounds: int
) -> list[tuple[str, dict[str, dict[str, float]]]]:
    """For each dtype, the median seconds, the highest peak and the weights' bytes of both ways."""
    if not (folder / "model.safetensors").is_file():
        make_checkpoint(folder, gigabytes)
    found = []
    for dtype in dtypes:
        ways = {}
        for way in ("ours", "plain"):
            runs = [python(_MEASURE, folder, way, dtype) for _ in range(rounds)]
            ways[way] = {
                "seconds": statistics.median(run["seconds"] for run in runs),
                "peak": max(run["peak"] for run in runs),
                "weights": runs[0]["weights"],
            }
        found.append((dtype, ways))
    return found


def main() -> None:
    """Run and print a table."""
    parser = options_for(__doc__, rounds=3)
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--folder", type=Path, default=None, help="keep the checkpoint here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found = compare(folder, options.gigabytes, ("float32", options.dtype), options.rounds)
        size = (folder / "model.safetensors").stat().st_size
        print(f"checkpoint: {size / 1e9:.2f} GB float32")
        print(
            f"{'way':28s} {'seconds':>8s} {'weights GB':>11s} {'peak GB':>8s} {'peak/weights':>13s}"
        )
        for dtype, ways in found:
            for way, one in ways.items():
                peak, weights = one["peak"], one["weights"]
                print(
                    f"{way + ', ' + dtype:28s} {one['seconds']:8.2f} {weights / 1e9:11.2f} "
                    f"{peak / 1e9:8.2f} {peak / weights:13.3f}"
                )


if __name__ == "__main__":
    main()

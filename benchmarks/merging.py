"""Exporting a merged model, folding one, and answering folded: time and peak memory.

    python benchmarks/merging.py [--gigabytes 2.1] [--folder FOLDER]

Generates a random float32 checkpoint of the asked size (see loading.py) with an adapter on q, k, v
and o, then measures in fresh processes. Memory is the peak resident size above what the imports
take.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from loading import make_checkpoint
from measure import PEAK, options_for, python

_EXPORT = f"""{PEAK}
from pathlib import Path
from NatureLM.merging.recipe import Recipe
from NatureLM.models.checkpoint.export import export_merged
source, out = sys.argv[1:3]
before, start = peak(), time.perf_counter()
export_merged(source, out, Recipe(alpha=0.4), max_shard_size="500MB")
print(json.dumps(dict(seconds=time.perf_counter() - start, peak=peak() - before,
                      weights=sum(f.stat().st_size for f in Path(out).glob("*.safetensors")))))
"""
_FOLD = """
import json, sys, time
import torch
from NatureLM.merging.lora import active_alpha
from NatureLM.models import NatureLM
model = NatureLM.from_pretrained(sys.argv[1])
language_model = model.language_model
ids = torch.randint(0, 30000, (4, 1))
def seconds(repeats=20):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.inference_mode(), active_alpha(0.4):
            language_model(input_ids=ids)
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]
seconds(3)
runtime = seconds()
start = time.perf_counter()
state = model.fold(0.4)
fold = time.perf_counter() - start
kept = state.kept_bytes
folded = seconds()
start = time.perf_counter()
model.unfold()
print(json.dumps({"runtime": runtime, "folded": folded, "fold": fold, "kept": kept,
                  "unfold": time.perf_counter() - start}))
"""


def main() -> None:
    """Run and print."""
    parser = options_for(__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.1)
    parser.add_argument("--folder", type=Path, default=None, help="keep the checkpoint here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "source"
        if not (folder / "model.safetensors").is_file():
            make_checkpoint(folder, options.gigabytes)
        export = python(_EXPORT, folder, Path(temporary) / "merged")
        print(
            f"export: {export['weights'] / 1e9:.2f} GB in shards of 0.5 GB, "
            f"{export['seconds']:.1f} s, peak {export['peak'] / 1e9:.3f} GB above the imports"
        )
        fold = python(_FOLD, folder)
        print(
            f"fold: {fold['fold']:.2f} s, unfold {fold['unfold'] * 1e3:.1f} ms, "
            f"{fold['kept'] / 1e9:.2f} GB of originals kept"
        )
        print(
            f"one decoding step of 4 rows: {fold['runtime'] * 1e3:.1f} ms with the adapter, "
            f"{fold['folded'] * 1e3:.1f} ms folded"
        )


if __name__ == "__main__":
    main()

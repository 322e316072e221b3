"""The audio encoder beside its matrix products alone: how much of its time is not arithmetic.

    python benchmarks/encoder.py [--small] [--windows 4] [--threads 2]

One run of the encoder is watched for its products (linear layers, both products of attention,
convolutions as products of their patches). Then the same products run alone, in the same order,
with the model's own weights and into memory that is there already. What is left between the two is
the filter bank, normalisations, activations, softmax, biases and copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from measure import in_turn, options_for, use_threads
from model import build, waves
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

MOST_RATIO = 1.5
_PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}  # the two factors


@dataclass(frozen=True)
class Product:
    """One product that runs alone, how often, and its floating-point operations in all."""

    kind: str
    run: Callable[[], Any]
    times: int
    flops: float


class Products(TorchDispatchMode):
    """Notes the matrix products of what runs within the block."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.found: list[Product] = []
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._pool: dict[Any, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _PRODUCTS:
            first, second = (args[place] for place in _PRODUCTS[name])
            self._add(name, first, second)
        elif "scaled_dot_product" in name:
            q, k, v = (x.flatten(0, -3) for x in args[:3])
            self._add("attention", q, k.transpose(1, 2))
            self._add("attention", self._held(q.new_empty(()), (*q.shape[:2], k.shape[1])), v)
        elif name in ("convolution", "mkldnn_convolution", "conv1d", "conv2d"):
            self._convolution(args[1], out, _groups(args, kwargs))
        return out

    def _add(self, kind: str, first: Tensor, second: Tensor, times: int = 1) -> None:
        a, b = self._operand(first), self._operand(second)
        product = torch.bmm if a.ndim == 3 else torch.mm
        into = self._held(a, (*a.shape[:-1], b.shape[-1]), "out")
        flops = 2.0 * a.numel() * b.shape[-1] * times
        self.found.append(Product(kind, lambda: product(a, b, out=into), times, flops))

    def _convolution(self, weight: Tensor, out: Tensor, groups: int) -> None:
        """As one product for each group: patches (places, taps) x filters (taps, channels)."""
        channels, taps = weight.shape[0] // groups, math.prod(weight.shape[1:])
        places = out.numel() // weight.shape[0]
        patches = self._held(weight, (places, taps))
        filters = self._held(weight, (taps, channels))
        self._add("convolution", patches, filters, groups)

    def _operand(self, tensor: Tensor) -> Tensor:
        """The model's own weight, or memory of the same layout for what was computed."""
        tensor = tensor.detach()
        if tensor.untyped_storage().data_ptr() in self._weights:
            return tensor
        key = (tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._pool:
            self._pool[key] = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
            ).normal_()
        return self._pool[key]

    def _held(self, like: Tensor, shape: tuple[int, ...], use: str = "in") -> Tensor:
        key = (shape, like.dtype, use)
        if key not in self._pool:
            self._pool[key] = torch.randn(shape, dtype=like.dtype, device=like.device)
        return self._pool[key]


def _groups(args: tuple[Any, ...], kwargs: Any) -> int:
    return int((kwargs or {}).get("groups", args[-1] if isinstance(args[-1], int) else 1))


def products_of(model: Any, wav_BS: Tensor) -> list[Product]:
    """The products of encoding a batch."""
    with torch.no_grad(), Products(model) as watched:
        model.encode_audio(wav_BS)
    return watched.found


def compare(model: Any, windows: int = 4, rounds: int = 3) -> dict[str, Any]:
    """Seconds a window: the encoder and its products alone, best of some rounds in turn."""
    batch = torch.stack(waves(windows))
    products = products_of(model, batch)
    flops = sum(one.flops for one in products) / windows

    def alone() -> None:
        for one in products:
            for _ in range(one.times):
                one.run()

    ways = {"encoder": lambda: model.encode_audio(batch), "products": alone}
    with torch.inference_mode():
        times = in_turn(ways, rounds + 1)
    best = {name: min(run.seconds for run in runs[1:]) / windows for name, runs in times.items()}
    used = {name: min(run.processor for run in runs[1:]) / windows for name, runs in times.items()}
    kinds = sorted({one.kind for one in products})
    return {
        "windows": windows,
        "gflop_a_window": flops / 1e9,
        "products": {
            kind: sum(one.flops for one in products if one.kind == kind) / windows / 1e9
            for kind in kinds
        },
        "encoder_seconds": best["encoder"],
        "product_seconds": best["products"],
        "encoder_processor": used["encoder"],
        "product_processor": used["products"],
        "gflops": flops / best["products"] / 1e9,
        "ratio": best["encoder"] / best["products"],
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures."""
    kinds = ", ".join(f"{kind} {gflop:.1f}" for kind, gflop in found["products"].items())
    print(f"A window takes {found['gflop_a_window']:.1f} GFLOP in matrix products ({kinds}).")
    print(
        f"encoder {found['encoder_seconds'] * 1e3:.1f} ms a window, its products alone "
        f"{found['product_seconds'] * 1e3:.1f} ms ({found['gflops']:.0f} GFLOP/s): "
        f"{found['ratio']:.2f} times (target: at most {MOST_RATIO:g})"
    )


def main() -> None:
    """Run and print."""
    parser = options_for(__doc__, "small", "threads", rounds=3)
    parser.add_argument("--windows", type=int, default=4, help="encoded at once")
    options = parser.parse_args()
    use_threads(options.threads)
    show(compare(build(options.small), options.windows, options.rounds))


if __name__ == "__main__":
    main()

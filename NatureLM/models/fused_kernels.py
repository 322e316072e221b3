"""Triton kernels for cards: rotary positions in place, and the gate of the feed-forward layer.

Each reads and writes its numbers once, and rounds once; as separate steps they are ten and two.
Nothing here depends on values, so a CUDA graph can record it.

Shapes: T tokens, H heads, K width of a head, F width of the feed-forward layer.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_BLOCK = 1024  # numbers that a program of the gate takes

tl: Any = None  # Triton's language, once it is imported


@lru_cache
def _compiled(kernel: Any) -> Any:
    global tl
    import triton  # type: ignore[import-not-found, unused-ignore]

    tl = triton.language
    return triton.jit(kernel)


@lru_cache(1)
def is_here() -> bool:
    """Whether the kernels can be compiled: Triton comes with torch for cards."""
    return find_spec("triton") is not None


def _rotate_kernel(x, cos, sin, heads, HEADS: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """One token: (x1, x2) of every head becomes (x1 cos - x2 sin, x2 cos + x1 sin)."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, HEADS)[:, None]
    d = tl.arange(0, HALF)[None, :]
    there = h < heads
    at = x + token * heads * 2 * HALF + h * 2 * HALF + d
    first = tl.load(at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=there, other=0.0).to(tl.float32)
    turn = token * 2 * HALF + d
    cos_1 = tl.load(cos + turn).to(tl.float32)
    sin_1 = tl.load(sin + turn).to(tl.float32)
    cos_2 = tl.load(cos + turn + HALF).to(tl.float32)
    sin_2 = tl.load(sin + turn + HALF).to(tl.float32)
    kind = x.dtype.element_ty
    tl.store(at, (first * cos_1 - second * sin_1).to(kind), mask=there)
    tl.store(at + HALF, (second * cos_2 + first * sin_2).to(kind), mask=there)


def _gate_kernel(gate, up, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """`gate` becomes silu(gate) * up."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    value = tl.load(gate + at, mask=there, other=0.0).to(tl.float32)
    other = tl.load(up + at, mask=there, other=0.0).to(tl.float32)
    out = value / (1.0 + tl.exp(-value)) * other
    tl.store(gate + at, out.to(gate.dtype.element_ty), mask=there)


def rotate(x_THK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> None:
    """Turn contiguous queries or keys by their positions, in place."""
    tokens, heads, width = x_THK.shape
    assert is_width(width)
    padded = 1 << (heads - 1).bit_length()
    _compiled(_rotate_kernel)[(tokens,)](x_THK, cos_TK, sin_TK, heads, padded, width // 2)


def is_width(width: int) -> bool:
    """Whether heads of this width can be turned: Triton counts in powers of two."""
    return width > 1 and not width & (width - 1)


def gated(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up, in the memory of the gate; both contiguous."""
    count = gate_TF.numel()
    _compiled(_gate_kernel)[(-(-count // _BLOCK),)](gate_TF, up_TF, count, _BLOCK)
    return gate_TF


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels take these: in half precision, on a card, and nothing is learned."""
    return all(
        one.is_cuda
        and one.dtype in (torch.bfloat16, torch.float16)
        and one.is_contiguous()
        and not (one.requires_grad and torch.is_grad_enabled())
        for one in tensors
    )

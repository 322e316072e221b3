"""Triton kernels for cards: few rows times weights of 8 or 4 bits, and 4 bits widened to a matrix.

They read each weight once, as it lies, and multiply in the precision of the activations with sums
in float32; scales come after the sums. Where outputs are few, the inputs are split over several
programs, whose sums are added in a fixed order, so that a call repeats bit for bit. Nothing here
depends on values, so a CUDA graph can record it.

Shapes: M rows, O outputs, I inputs, S parts of the inputs, N blocks of 64 outputs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

MOST_ROWS = 64  # with more, widening the weights for the card's own product is quicker
_PROGRAMS = 256  # at least so many keep a card's memory busy
_LEAST_INPUTS = 512  # of a program

tl: Any = None  # Triton's language, once it is imported


@lru_cache
def _compiled(kernel: Any) -> Any:
    global tl
    import triton  # type: ignore[import-not-found, unused-ignore]

    tl = triton.language
    return triton.jit(kernel)


# -- kernels --------------------------------------------------------------------------------


def _int8_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    scale,
    out,
    rows,
    outputs,
    inputs,
    STEPS: tl.constexpr,
    M: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
):
    """`out` (S, rows, outputs), each part of so many steps of I inputs."""
    o = tl.program_id(0) * O + tl.arange(0, O)
    m = tl.program_id(2) * M + tl.arange(0, M)
    start = tl.program_id(1) * STEPS * I
    sums = tl.zeros((M, O), dtype=tl.float32)
    for step in range(0, STEPS):
        i = start + step * I + tl.arange(0, I)
        at_x = x + m[:, None] * inputs + i[None, :]
        x_MI = tl.load(at_x, mask=(m < rows)[:, None] & (i < inputs)[None, :], other=0.0)
        at_w = weight + o[:, None].to(tl.int64) * inputs + i[None, :]
        w_OI = tl.load(at_w, mask=(o < outputs)[:, None] & (i < inputs)[None, :], other=0)
        sums = tl.dot(x_MI, tl.trans(w_OI.to(x_MI.dtype)), sums)
    scale_O = tl.load(scale + o, mask=o < outputs, other=0.0).to(tl.float32)
    at = out + (tl.program_id(1) * rows + m[:, None]).to(tl.int64) * outputs + o[None, :]
    y_MO = (sums * scale_O[None, :]).to(out.dtype.element_ty)
    tl.store(at, y_MO, mask=(m < rows)[:, None] & (o < outputs)[None, :])


def _int4_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    scales,
    out,
    rows,
    outputs,
    inputs,
    STEPS: tl.constexpr,
    M: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
):
    """`out` (S, rows, outputs) of one block, each part of so many groups of inputs."""
    block = tl.program_id(0)
    m = tl.program_id(2) * M + tl.arange(0, M)
    d = tl.arange(0, HALF)
    low_o = block * (2 * HALF) + d
    low = tl.zeros((M, HALF), dtype=tl.float32)
    high = tl.zeros((M, HALF), dtype=tl.float32)
    for step in range(0, STEPS):
        group = tl.program_id(1) * STEPS + step
        i = group * GROUP + tl.arange(0, GROUP)
        at_x = x + m[:, None] * inputs + i[None, :]
        x_MI = tl.load(at_x, mask=(m < rows)[:, None] & (i < inputs)[None, :], other=0.0)
        at_w = weight + (block.to(tl.int64) * inputs + i[:, None]) * HALF + d[None, :]
        bytes_ID = tl.load(at_w, mask=(i < inputs)[:, None], other=0)
        sum_M = tl.sum(x_MI.to(tl.float32), axis=1)
        # past the last group x is 0, and any scale will do
        at_s = scales + (tl.minimum(group, inputs // GROUP - 1) * outputs + low_o) * 2
        low_q = ((bytes_ID & 15).to(tl.int8) - 8).to(x_MI.dtype)
        high_q = ((bytes_ID >> 4).to(tl.int8) - 8).to(x_MI.dtype)
        low += tl.dot(x_MI, low_q) * tl.load(at_s).to(tl.float32)[None, :]
        low += sum_M[:, None] * tl.load(at_s + 1).to(tl.float32)[None, :]
        at_s += 2 * HALF
        high += tl.dot(x_MI, high_q) * tl.load(at_s).to(tl.float32)[None, :]
        high += sum_M[:, None] * tl.load(at_s + 1).to(tl.float32)[None, :]
    at = out + (tl.program_id(1) * rows + m[:, None]).to(tl.int64) * outputs + low_o[None, :]
    tl.store(at, low.to(out.dtype.element_ty), mask=(m < rows)[:, None])
    tl.store(at + HALF, high.to(out.dtype.element_ty), mask=(m < rows)[:, None])


def _int4_matrix_kernel(  # type: ignore[no-untyped-def]
    weight,
    scales,
    out,
    outputs,
    inputs,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
):
    """One group of inputs of one block of outputs of the matrix (outputs, inputs)."""
    block = tl.program_id(0)
    i = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    d = tl.arange(0, HALF)
    o = block * (2 * HALF) + d
    at_w = weight + (block.to(tl.int64) * inputs + i[:, None]) * HALF + d[None, :]
    bytes_ID = tl.load(at_w)
    at_s = scales + (tl.program_id(1) * outputs + o) * 2
    at = out + o[None, :].to(tl.int64) * inputs + i[:, None]
    low_q = ((bytes_ID & 15).to(tl.int8) - 8).to(tl.float32)
    scale, middle = tl.load(at_s).to(tl.float32), tl.load(at_s + 1).to(tl.float32)
    tl.store(at, (low_q * scale[None, :] + middle[None, :]).to(out.dtype.element_ty))
    at_s += 2 * HALF
    at += HALF * inputs
    high_q = ((bytes_ID >> 4).to(tl.int8) - 8).to(tl.float32)
    scale, middle = tl.load(at_s).to(tl.float32), tl.load(at_s + 1).to(tl.float32)
    tl.store(at, (high_q * scale[None, :] + middle[None, :]).to(out.dtype.element_ty))


# -- what calls them ------------------------------------------------------------------------


def takes(x_MI: Tensor) -> bool:
    """Whether `int8_rows` and `int4_rows` are for these rows."""
    return len(x_MI) <= MOST_ROWS and x_MI.dtype in (torch.bfloat16, torch.float16)


def int8_rows(x_MI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x · (weight · scale)ᵀ."""
    outputs, inputs = weight_OI.shape
    rows, m = _rows(x_MI)
    o, i = (16, 256) if m == 16 else (32, 128)
    programs = ceil_div(outputs, o)
    parts, steps = _parts(inputs, programs, i)
    out = _out(x_MI, parts, outputs)
    _compiled(_int8_kernel)[programs, parts, ceil_div(rows, m)](
        x_MI, weight_OI, scale_O, out, rows, outputs, inputs, steps, m, o, i, num_stages=4
    )
    return _sum(out, x_MI.dtype)


def int4_rows(x_MI: Tensor, weight_NIO: Tensor, scales_GO2: Tensor, group: int) -> Tensor:
    """The rows times the matrix that 4 bits stand for; see `quantized.Int4Linear`."""
    blocks, inputs, half = weight_NIO.shape
    rows, m = _rows(x_MI)
    parts, steps = _parts(inputs, blocks, group)
    out = _out(x_MI, parts, 2 * half * blocks)
    _compiled(_int4_kernel)[blocks, parts, ceil_div(rows, m)](
        x_MI,
        weight_NIO,
        scales_GO2,
        out,
        rows,
        2 * half * blocks,
        inputs,
        steps,
        m,
        group,
        half,
        num_warps=2 if m == 16 else 4,
        num_stages=5,
    )
    return _sum(out, x_MI.dtype)


def int4_matrix(weight_NIO: Tensor, scales_GO2: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """The matrix (O, I) that 4 bits stand for."""
    blocks, inputs, half = weight_NIO.shape
    outputs = 2 * half * blocks
    out_OI = torch.empty(outputs, inputs, dtype=dtype, device=weight_NIO.device)
    _compiled(_int4_matrix_kernel)[blocks, inputs // group](
        weight_NIO, scales_GO2, out_OI, outputs, inputs, group, half
    )
    return out_OI


def ceil_div(count: int, size: int) -> int:
    """How many of `size` hold `count`."""
    return -(-count // size)


def _rows(x_MI: Tensor) -> tuple[int, int]:
    """How many rows there are, and how many a program takes (a power of 2 from 16 on)."""
    rows = len(x_MI)
    return rows, min(MOST_ROWS, max(16, 1 << (rows - 1).bit_length()))


def _parts(inputs: int, programs: int, step: int) -> tuple[int, int]:
    """Into how many parts inputs are split, so that there are enough programs, and the steps of
    each."""
    parts = max(1, min(_PROGRAMS // programs, inputs // _LEAST_INPUTS))
    steps = ceil_div(ceil_div(inputs, parts), step)
    return ceil_div(inputs, steps * step), steps


def _out(x_MI: Tensor, parts: int, outputs: int) -> Tensor:
    """Memory for sums: in float32 where several are added up."""
    dtype = torch.float32 if parts > 1 else x_MI.dtype
    return torch.empty(parts, len(x_MI), outputs, dtype=dtype, device=x_MI.device)


def _sum(out_SMO: Tensor, dtype: torch.dtype) -> Tensor:
    return out_SMO.sum(0).to(dtype) if len(out_SMO) > 1 else out_SMO[0]

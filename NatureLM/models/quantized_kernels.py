"""Triton kernels for cards: rows times weights of 8 or 4 bits, and 4 bits widened to a matrix.

They read each weight once, as it lies, and multiply in the precision of the activations with sums
in float32. A single row takes plain arithmetic, which keeps more reads under way; for more, tensor
cores multiply. Where outputs are few, the inputs may be split over several programs, whose sums are
added in a fixed order, so that a call repeats bit for bit. Nothing here depends on values, so a
CUDA graph can record it.

Shapes: M rows, O outputs, I inputs of a program's tile, S parts of the inputs. 4 bits lie in
groups of 64 inputs: byte j of the 32 of a group holds input j and, in its upper half, input 32 + j.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

MOST_ROWS = 64  # with more, widening the weights for the card's own product is quicker
GROUP = 64  # inputs of 4 bits that share a scale and a middle

tl: Any = None  # Triton's language, once it is imported


@lru_cache
def _compiled(kernel: Any) -> Any:
    global tl
    import triton  # type: ignore[import-not-found, unused-ignore]

    tl = triton.language
    return triton.jit(kernel)


# -- kernels --------------------------------------------------------------------------------


def _int8_row_kernel(  # type: ignore[no-untyped-def]
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
    """`out` (S, 1, outputs), each part of so many steps of I inputs, without tensor cores."""
    o = tl.program_id(0) * O + tl.arange(0, O)
    sums = tl.zeros((O, I), dtype=tl.float32)
    for step in range(0, STEPS):
        i = (tl.program_id(1) * STEPS + step) * I + tl.arange(0, I)
        x_I = tl.load(x + i, mask=i < inputs, other=0.0).to(tl.float32)
        at_w = weight + o[:, None].to(tl.int64) * inputs + i[None, :]
        w_OI = tl.load(at_w, mask=(o < outputs)[:, None] & (i < inputs)[None, :], other=0)
        sums += w_OI.to(tl.float32) * x_I[None, :]
    scale_O = tl.load(scale + o, mask=o < outputs, other=0.0).to(tl.float32)
    y_O = (tl.sum(sums, axis=1) * scale_O).to(out.dtype.element_ty)
    tl.store(out + tl.program_id(1) * outputs + o, y_O, mask=o < outputs)


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
    """`out` (S, rows, outputs), each part of so many steps of I inputs, on tensor cores."""
    o = tl.program_id(0) * O + tl.arange(0, O)
    m = tl.program_id(2) * M + tl.arange(0, M)
    scale_O = tl.load(scale + o, mask=o < outputs, other=0.0).to(tl.float32)
    sums = tl.zeros((M, O), dtype=tl.float32)
    for step in range(0, STEPS):
        i = (tl.program_id(1) * STEPS + step) * I + tl.arange(0, I)
        at_x = x + m[:, None] * inputs + i[None, :]
        x_MI = tl.load(at_x, mask=(m < rows)[:, None] & (i < inputs)[None, :], other=0.0)
        at_w = weight + o[:, None].to(tl.int64) * inputs + i[None, :]
        w_OI = tl.load(at_w, mask=(o < outputs)[:, None] & (i < inputs)[None, :], other=0)
        sums = tl.dot(x_MI, tl.trans(w_OI.to(x_MI.dtype)), sums)
    y_MO = (sums * scale_O[None, :]).to(out.dtype.element_ty)
    at = out + (tl.program_id(1) * rows + m[:, None]).to(tl.int64) * outputs + o[None, :]
    tl.store(at, y_MO, mask=(m < rows)[:, None] & (o < outputs)[None, :])


def _int4_row_kernel(  # type: ignore[no-untyped-def]
    x,
    weight,
    scales,
    out,
    rows,
    outputs,
    inputs,
    STEPS: tl.constexpr,
    M: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
):
    """`out` (S, 1, outputs), each part of so many steps of I inputs, without tensor cores."""
    J: tl.constexpr = I // 2
    GROUPS: tl.constexpr = I // 64
    o = tl.program_id(0) * O + tl.arange(0, O)
    there = (o < outputs)[:, None]
    sums = tl.zeros((O, J), dtype=tl.float32)
    for step in range(0, STEPS):
        first = (tl.program_id(1) * STEPS + step) * I
        j = tl.arange(0, J)
        i = first + j // 32 * 64 + j % 32
        low_J = tl.load(x + i, mask=i < inputs, other=0.0).to(tl.float32)
        high_J = tl.load(x + i + 32, mask=i < inputs, other=0.0).to(tl.float32)
        at_w = weight + o[:, None].to(tl.int64) * (inputs // 2) + (first // 2 + j)[None, :]
        w_OJ = tl.load(at_w, mask=there & (i < inputs)[None, :], other=0)
        low_q = (w_OJ & 15).to(tl.int8).to(tl.float32)
        high_q = (w_OJ >> 4).to(tl.int8).to(tl.float32)
        g = first // 64 + tl.arange(0, GROUPS)
        at_s = scales + (o[:, None].to(tl.int64) * (inputs // 64) + g[None, :]) * 2
        known = there & (g * 64 < inputs)[None, :]
        scale = tl.load(at_s, mask=known, other=0.0).to(tl.float32)
        middle = tl.load(at_s + 1, mask=known, other=0.0).to(tl.float32) - 8 * scale
        # each run of 16 bytes lies in one group, so spreading these moves no number
        scale = tl.reshape(tl.broadcast_to(scale[:, :, None], (O, GROUPS, 32)), (O, J))
        middle = tl.reshape(tl.broadcast_to(middle[:, :, None], (O, GROUPS, 32)), (O, J))
        sums += (low_q * low_J[None, :] + high_q * high_J[None, :]) * scale
        sums += (low_J + high_J)[None, :] * middle
    y_O = tl.sum(sums, axis=1).to(out.dtype.element_ty)
    tl.store(out + tl.program_id(1) * outputs + o, y_O, mask=o < outputs)


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
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
):
    """The same on tensor cores: weights are widened in the tile."""
    GROUPS: tl.constexpr = I // 64
    o = tl.program_id(0) * O + tl.arange(0, O)
    m = tl.program_id(2) * M + tl.arange(0, M)
    j = tl.arange(0, I // 2)
    sums = tl.zeros((M, O), dtype=tl.float32)
    for step in range(0, STEPS):
        first = (tl.program_id(1) * STEPS + step) * I
        i = first + j // 32 * 64 + j % 32
        here = (m < rows)[:, None] & (i < inputs)[None, :]
        at_x = x + m[:, None] * inputs + i[None, :]
        low_MJ = tl.load(at_x, mask=here, other=0.0)
        high_MJ = tl.load(at_x + 32, mask=here, other=0.0)
        at_w = weight + o[:, None].to(tl.int64) * (inputs // 2) + (first // 2 + j)[None, :]
        there = (o < outputs)[:, None]
        w_OJ = tl.load(at_w, mask=there & (i < inputs)[None, :], other=0)
        g = first // 64 + tl.arange(0, GROUPS)
        at_s = scales + (o[:, None].to(tl.int64) * (inputs // 64) + g[None, :]) * 2
        known = there & (g * 64 < inputs)[None, :]
        scale = tl.load(at_s, mask=known, other=0.0).to(tl.float32)[:, :, None]
        middle = tl.load(at_s + 1, mask=known, other=0.0).to(tl.float32)[:, :, None] - 8 * scale
        low_q = tl.reshape((w_OJ & 15).to(tl.int8), (O, GROUPS, 32)).to(tl.float32)
        high_q = tl.reshape((w_OJ >> 4).to(tl.int8), (O, GROUPS, 32)).to(tl.float32)
        low_w = tl.reshape((low_q * scale + middle).to(low_MJ.dtype), (O, I // 2))
        high_w = tl.reshape((high_q * scale + middle).to(low_MJ.dtype), (O, I // 2))
        sums = tl.dot(low_MJ, tl.trans(low_w), sums)
        sums = tl.dot(high_MJ, tl.trans(high_w), sums)
    at = out + (tl.program_id(1) * rows + m[:, None]).to(tl.int64) * outputs + o[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=(m < rows)[:, None] & (o < outputs)[None, :])


def _sum_kernel(parts, out, count, S: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of S parts, in their order."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    sums = tl.load(parts + at, mask=at < count, other=0.0)
    for part in range(1, S):
        sums += tl.load(parts + part * count + at, mask=at < count, other=0.0)
    tl.store(out + at, sums.to(out.dtype.element_ty), mask=at < count)


def _int4_matrix_kernel(  # type: ignore[no-untyped-def]
    weight,
    scales,
    out,
    outputs,
    inputs,
    O: tl.constexpr,  # noqa: E741
):
    """One group of inputs of some outputs of the matrix (outputs, inputs)."""
    o = tl.program_id(0).to(tl.int64) * O + tl.arange(0, O)
    group = tl.program_id(1)
    j = tl.arange(0, 32)
    there = (o < outputs)[:, None]
    w_OJ = tl.load(weight + o[:, None] * (inputs // 2) + group * 32 + j[None, :], mask=there)
    at_s = scales + (o * (inputs // 64) + group) * 2
    scale = tl.load(at_s, mask=o < outputs).to(tl.float32)[:, None]
    middle = tl.load(at_s + 1, mask=o < outputs).to(tl.float32)[:, None] - 8 * scale
    at = out + o[:, None] * inputs + group * 64 + j[None, :]
    low = (w_OJ & 15).to(tl.int8).to(tl.float32) * scale + middle
    high = (w_OJ >> 4).to(tl.int8).to(tl.float32) * scale + middle
    tl.store(at, low.to(out.dtype.element_ty), mask=there)
    tl.store(at + 32, high.to(out.dtype.element_ty), mask=there)


# -- what calls them ------------------------------------------------------------------------


class Tile(NamedTuple):
    """Rows, outputs and inputs that a program takes at a time, its warps, and reads under way.

    split: programs that there should be, for which inputs are split
    """

    m: int
    o: int
    i: int
    warps: int
    stages: int
    split: int = 1


# By the most rows. Those of 8 bits were the quickest of 80 on an H200, for the layers of a model of
# 8 B: 91 and 107 µs for the seven products of a layer with 1 and 16 rows, in bfloat16 132 and 133.
INT8 = {
    1: Tile(1, 2, 2048, 4, 3),
    16: Tile(16, 32, 256, 4, 4),
    32: Tile(32, 32, 128, 4, 4, split=256),
    64: Tile(64, 32, 128, 4, 4, split=256),
}
INT4 = {
    1: Tile(1, 2, 2048, 4, 3),
    16: Tile(16, 32, 256, 4, 4),
    32: Tile(32, 32, 256, 4, 3),
    64: Tile(64, 32, 256, 4, 3),
}


def takes(x_MI: Tensor) -> bool:
    """Whether `int8_rows` and `int4_rows` are for these rows."""
    return len(x_MI) <= MOST_ROWS and x_MI.dtype in (torch.bfloat16, torch.float16)


def int8_rows(x_MI: Tensor, weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    """x · (weight · scale)ᵀ."""
    tile = _tile(INT8, len(x_MI))
    kernel = _int8_row_kernel if tile.m == 1 else _int8_kernel
    return multiply(kernel, tile, x_MI, weight_OI, scale_O, len(weight_OI))


def int4_rows(x_MI: Tensor, weight_OJ: Tensor, scales_OG2: Tensor) -> Tensor:
    """The rows times the matrix that 4 bits stand for; see `quantized.Int4Linear`."""
    tile = _tile(INT4, len(x_MI))
    kernel = _int4_row_kernel if tile.m == 1 else _int4_kernel
    return multiply(kernel, tile, x_MI, weight_OJ, scales_OG2, len(weight_OJ))


def multiply(
    kernel: Any, tile: Tile, x_MI: Tensor, weight: Tensor, scale: Tensor, outputs: int
) -> Tensor:
    """Rows (M, I) by such a kernel (M, O)."""
    rows, inputs = x_MI.shape
    programs = ceil_div(outputs, tile.o) * ceil_div(rows, tile.m)
    parts, steps = _parts(inputs, tile, programs)
    dtype = torch.float32 if parts > 1 else x_MI.dtype
    out_SMO = torch.empty(parts, rows, outputs, dtype=dtype, device=x_MI.device)
    grid = (ceil_div(outputs, tile.o), parts, ceil_div(rows, tile.m))
    _compiled(kernel)[grid](
        x_MI,
        weight,
        scale,
        out_SMO,
        rows,
        outputs,
        inputs,
        steps,
        tile.m,
        tile.o,
        tile.i,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out_SMO[0] if parts == 1 else _sum(out_SMO, x_MI.dtype)


def int4_matrix(weight_OJ: Tensor, scales_OG2: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix (O, I) that 4 bits stand for."""
    outputs, half = weight_OJ.shape
    out_OI = torch.empty(outputs, 2 * half, dtype=dtype, device=weight_OJ.device)
    _compiled(_int4_matrix_kernel)[ceil_div(outputs, 32), 2 * half // GROUP](
        weight_OJ, scales_OG2, out_OI, outputs, 2 * half, 32
    )
    return out_OI


def ceil_div(count: int, size: int) -> int:
    """How many of `size` hold `count`."""
    return -(-count // size)


def _tile(tiles: dict[int, Tile], rows: int) -> Tile:
    """The smallest that holds so many rows, or the largest."""
    return next((tile for most, tile in tiles.items() if rows <= most), tiles[max(tiles)])


def _parts(inputs: int, tile: Tile, programs: int) -> tuple[int, int]:
    """Into how many parts inputs are split, and the steps of each."""
    parts = max(1, min(tile.split // programs, inputs // tile.i // 4))
    steps = ceil_div(ceil_div(inputs, parts), tile.i)
    return ceil_div(inputs, steps * tile.i), steps


def _sum(out_SMO: Tensor, dtype: torch.dtype) -> Tensor:
    parts, rows, outputs = out_SMO.shape
    out_MO = torch.empty(rows, outputs, dtype=dtype, device=out_SMO.device)
    count = rows * outputs
    _compiled(_sum_kernel)[(ceil_div(count, 1024),)](out_SMO, out_MO, count, parts, 1024)
    return out_MO

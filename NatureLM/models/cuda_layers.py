"""Layers of a Llama that a card computes better in another form, and Triton kernels for these and
for weights of few bits.

Measured on an H200 with 8 B parameters in bfloat16: a decoding step of 32 rows spent 1.3 of its
8.5 ms on the product with a vocabulary of 128,257 (odd, so that no fast kernel takes it; 0.3 ms are
needed to read the weights), and 3 ms on small kernels, of which a norm has eight, rotary positions
ten and a gate two. No weight changes, nor its name. In float32, on processors and where something
is learned through them, the layers do what those of transformers do.

The kernels are rows times weights of 8 or 4 bits, 4 bits widened to a matrix, rotary positions in
place, and the gate of the feed-forward layer. Each reads its numbers once, as they lie, and
computes in float32. A single row times weights takes plain arithmetic, which keeps more reads under
way; for more, tensor cores multiply in the precision of the activations. Where outputs are few, the
inputs may be split over several programs, whose sums are added in a fixed order, so that a call
repeats bit for bit. Nothing here depends on values, so a CUDA graph can record it.

Shapes: V vocabulary, D width, R rows, L positions, H heads, K width of a head, T tokens, F width of
the feed-forward layer; of a program's tile M rows, O outputs, I inputs, S parts of the inputs. 4
bits lie in groups of 64 inputs: byte j of the 32 of a group holds input j and, in its upper half,
input 32 + j.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

_ALIGNED = 64  # outputs of a product in half precision that any kernel takes come in multiples
_HALF = (torch.bfloat16, torch.float16)
MOST_ROWS = 64  # with more, widening the weights for the card's own product is quicker
_GROUP = 64  # inputs of 4 bits that share a scale and a middle
_BLOCK = 1024  # numbers that a program of the gate, and of a sum, takes


# -- layers -----------------------------------------------------------------------------------


def use_cuda_layers(language_model: Any) -> None:
    """Swap the layers of a model that lies on a card; once or again."""
    swapped: dict[type, type] = {LlamaRMSNorm: FusedRMSNorm}
    if is_here():
        swapped |= {LlamaAttention: FusedAttention, LlamaMLP: FusedMLP}
    for module in language_model.modules():
        module.__class__ = swapped.get(type(module), type(module))
        if is_here() and (lie_for_cards := getattr(module, "lie_for_cards", None)):
            lie_for_cards()  # of `models.quantized`
    head = language_model.get_output_embeddings()
    if type(head) is nn.Linear and head.weight.dtype in _HALF:
        align_head(head)


class FusedRMSNorm(LlamaRMSNorm):
    """The norm as one kernel, which rounds once instead of twice."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The hidden states (..., D), normalised."""
        dtype = hidden_states.dtype
        if dtype not in _HALF or self.weight.dtype != dtype:
            return super().forward(hidden_states)
        weight: Tensor = self.weight
        return F.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)


class FusedAttention(LlamaAttention):
    """Attention whose rotary positions are one kernel for queries and one for keys."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        cache: Any = None,  # its name from transformers 5.24 on
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """What attention adds to the hidden states (R, L, D), and its weights if it has them."""
        cache = past_key_values if cache is None else cache
        if position_embeddings is None or self.training:
            return super().forward(
                hidden_states, position_embeddings, attention_mask, cache, **kwargs
            )
        rows, length, _ = hidden_states.shape
        shape = (rows, length, -1, self.head_dim)
        query_RLHK = self.q_proj(hidden_states).view(shape)
        key_RLHK = self.k_proj(hidden_states).view(shape)
        value_RHLK = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        query_RHLK, key_RHLK = rotated(query_RLHK, key_RLHK, *position_embeddings)
        if cache is not None:
            key_RHLK, value_RHLK = cache.update(key_RHLK, value_RHLK, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, modeling_llama.eager_attention_forward
        )
        heard, weights = attend(
            self,
            query_RHLK,
            key_RHLK,
            value_RHLK,
            attention_mask,
            dropout=0.0,
            scaling=self.scaling,
            **kwargs,
        )
        out: Tensor = self.o_proj(heard.reshape(rows, length, -1).contiguous())
        return out, weights


def rotated(
    query_RLHK: Tensor, key_RLHK: Tensor, cos_RLK: Tensor, sin_RLK: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries and keys (R, H, L, K) turned by their positions; those given may be overwritten."""
    rows, length, _, width = query_RLHK.shape
    turns = [one.expand(rows, length, width).contiguous() for one in (cos_RLK, sin_RLK)]
    query_RHLK, key_RHLK = query_RLHK.transpose(1, 2), key_RLHK.transpose(1, 2)
    if not (is_width(width) and fits(query_RLHK, key_RLHK, *turns)):
        both: tuple[Tensor, Tensor] = modeling_llama.apply_rotary_pos_emb(
            query_RHLK, key_RHLK, cos_RLK, sin_RLK
        )
        return both
    cos_TK, sin_TK = (one.view(-1, width) for one in turns)
    for one in (query_RLHK, key_RLHK):
        rotate(one.flatten(0, 1), cos_TK, sin_TK)
    return query_RHLK, key_RHLK


class FusedMLP(LlamaMLP):
    """The feed-forward layer with its gate as one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """What it adds to the hidden states (..., D)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.config.hidden_act == "silu" and fits(gate, up):
            hidden = gated(gate, up)
        else:
            hidden = self.act_fn(gate) * up
        out: Tensor = self.down_proj(hidden)
        return out


def align_head(head: nn.Linear) -> None:
    """Move the weight (V, D) to the front of memory for a few rows more, which are zero."""
    outputs, inputs = head.weight.shape
    extra = -outputs % _ALIGNED
    if not extra or head.bias is not None:
        return
    padded = head.weight.new_zeros(outputs + extra, inputs)
    padded[:outputs] = head.weight.detach()
    head.weight.data = padded[:outputs]
    head.__class__ = AlignedHead


class AlignedHead(nn.Linear):
    """A product with more rows than there are outputs, as long as they stand behind the weight.

    A weight that is moved, replaced or trained loses them, and this is a plain layer again.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Outputs (..., V)."""
        weight: Tensor = self.weight
        outputs, inputs = weight.shape
        rows = outputs - outputs % -_ALIGNED
        there = weight.untyped_storage().nbytes() // weight.element_size()
        is_moved = weight.storage_offset() + rows * inputs > there or not weight.is_contiguous()
        if weight.requires_grad or is_moved:
            return super().forward(input)
        padded = weight.as_strided((rows, inputs), (inputs, 1), weight.storage_offset())
        return F.linear(input, padded)[..., :outputs]


# -- kernels ----------------------------------------------------------------------------------

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
    """`out` (S, rows, outputs), each part of so many steps of I inputs; one row on plain cores."""
    o = tl.program_id(0) * O + tl.arange(0, O)
    m = tl.program_id(2) * M + tl.arange(0, M)
    if M > 1:
        scale_O = tl.load(scale + o, mask=o < outputs, other=0.0).to(tl.float32)
    sums = tl.zeros((O, I) if M == 1 else (M, O), dtype=tl.float32)
    for step in range(0, STEPS):
        i = (tl.program_id(1) * STEPS + step) * I + tl.arange(0, I)
        if M == 1:
            x_I = tl.load(x + i, mask=i < inputs, other=0.0).to(tl.float32)
        else:
            at_x = x + m[:, None] * inputs + i[None, :]
            x_MI = tl.load(at_x, mask=(m < rows)[:, None] & (i < inputs)[None, :], other=0.0)
        at_w = weight + o[:, None].to(tl.int64) * inputs + i[None, :]
        w_OI = tl.load(at_w, mask=(o < outputs)[:, None] & (i < inputs)[None, :], other=0)
        if M == 1:
            sums += w_OI.to(tl.float32) * x_I[None, :]
        else:
            sums = tl.dot(x_MI, tl.trans(w_OI.to(x_MI.dtype)), sums)
    if M == 1:
        scale_O = tl.load(scale + o, mask=o < outputs, other=0.0).to(tl.float32)
        y_O = (tl.sum(sums, axis=1) * scale_O).to(out.dtype.element_ty)
        tl.store(out + tl.program_id(1) * outputs + o, y_O, mask=o < outputs)
    else:
        y_MO = (sums * scale_O[None, :]).to(out.dtype.element_ty)
        at = out + (tl.program_id(1) * rows + m[:, None]).to(tl.int64) * outputs + o[None, :]
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
    O: tl.constexpr,  # noqa: E741
    I: tl.constexpr,  # noqa: E741
):
    """The same of 4 bits; for tensor cores they are widened in the tile."""
    GROUPS: tl.constexpr = I // 64
    J: tl.constexpr = I // 2
    o = tl.program_id(0) * O + tl.arange(0, O)
    m = tl.program_id(2) * M + tl.arange(0, M)
    j = tl.arange(0, J)
    there = (o < outputs)[:, None]
    sums = tl.zeros((O, J) if M == 1 else (M, O), dtype=tl.float32)
    for step in range(0, STEPS):
        first = (tl.program_id(1) * STEPS + step) * I
        i = first + j // 32 * 64 + j % 32
        if M == 1:
            low_J = tl.load(x + i, mask=i < inputs, other=0.0).to(tl.float32)
            high_J = tl.load(x + i + 32, mask=i < inputs, other=0.0).to(tl.float32)
        else:
            here = (m < rows)[:, None] & (i < inputs)[None, :]
            at_x = x + m[:, None] * inputs + i[None, :]
            low_MJ = tl.load(at_x, mask=here, other=0.0)
            high_MJ = tl.load(at_x + 32, mask=here, other=0.0)
        at_w = weight + o[:, None].to(tl.int64) * (inputs // 2) + (first // 2 + j)[None, :]
        w_OJ = tl.load(at_w, mask=there & (i < inputs)[None, :], other=0)
        g = first // 64 + tl.arange(0, GROUPS)
        at_s = scales + (o[:, None].to(tl.int64) * (inputs // 64) + g[None, :]) * 2
        known = there & (g * 64 < inputs)[None, :]
        scale = tl.load(at_s, mask=known, other=0.0).to(tl.float32)[:, :, None]
        middle = tl.load(at_s + 1, mask=known, other=0.0).to(tl.float32)[:, :, None] - 8 * scale
        if M == 1:
            # each run of 16 bytes lies in one group, so spreading these moves no number
            scale = tl.reshape(tl.broadcast_to(scale, (O, GROUPS, 32)), (O, J))
            middle = tl.reshape(tl.broadcast_to(middle, (O, GROUPS, 32)), (O, J))
            low_q = (w_OJ & 15).to(tl.int8).to(tl.float32)
            high_q = (w_OJ >> 4).to(tl.int8).to(tl.float32)
            sums += (low_q * low_J[None, :] + high_q * high_J[None, :]) * scale
            sums += (low_J + high_J)[None, :] * middle
        else:
            low_q = tl.reshape((w_OJ & 15).to(tl.int8), (O, GROUPS, 32)).to(tl.float32)
            high_q = tl.reshape((w_OJ >> 4).to(tl.int8), (O, GROUPS, 32)).to(tl.float32)
            low_w = tl.reshape((low_q * scale + middle).to(low_MJ.dtype), (O, J))
            high_w = tl.reshape((high_q * scale + middle).to(low_MJ.dtype), (O, J))
            sums = tl.dot(low_MJ, tl.trans(low_w), sums)
            sums = tl.dot(high_MJ, tl.trans(high_w), sums)
    if M == 1:
        y_O = tl.sum(sums, axis=1).to(out.dtype.element_ty)
        tl.store(out + tl.program_id(1) * outputs + o, y_O, mask=o < outputs)
    else:
        at = out + (tl.program_id(1) * rows + m[:, None]).to(tl.int64) * outputs + o[None, :]
        y_MO = sums.to(out.dtype.element_ty)
        tl.store(at, y_MO, mask=(m < rows)[:, None] & (o < outputs)[None, :])


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
    """Whether `multiply` is for these rows."""
    return len(x_MI) <= MOST_ROWS and x_MI.dtype in _HALF


def multiply(x_MI: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Rows times the matrix (M, O) that weights of 8 bits (int8) or 4 (uint8) stand for.

    See `quantized.Int8Linear` and `quantized.CardInt4Linear`.
    """
    rows, inputs = x_MI.shape
    outputs = len(weight)
    kernel, tiles = (_int8_kernel, INT8) if weight.dtype == torch.int8 else (_int4_kernel, INT4)
    tile = next(tile for most, tile in tiles.items() if rows <= most)
    blocks, batches = _ceil_div(outputs, tile.o), _ceil_div(rows, tile.m)
    parts = max(1, min(tile.split // (blocks * batches), inputs // tile.i // 4))
    steps = _ceil_div(_ceil_div(inputs, parts), tile.i)
    parts = _ceil_div(inputs, steps * tile.i)
    dtype = torch.float32 if parts > 1 else x_MI.dtype
    out_SMO = torch.empty(parts, rows, outputs, dtype=dtype, device=x_MI.device)
    facts = (x_MI, weight, scale, out_SMO, rows, outputs, inputs, steps, tile.m, tile.o, tile.i)
    grid = (blocks, parts, batches)
    _compiled(kernel)[grid](*facts, num_warps=tile.warps, num_stages=tile.stages)
    if parts == 1:
        return out_SMO[0]
    out_MO = torch.empty(rows, outputs, dtype=x_MI.dtype, device=x_MI.device)
    count = rows * outputs
    _compiled(_sum_kernel)[(_ceil_div(count, _BLOCK),)](out_SMO, out_MO, count, parts, _BLOCK)
    return out_MO


def int4_matrix(weight_OJ: Tensor, scales_OG2: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrix (O, I) that 4 bits stand for."""
    outputs, half = weight_OJ.shape
    out_OI = torch.empty(outputs, 2 * half, dtype=dtype, device=weight_OJ.device)
    _compiled(_int4_matrix_kernel)[_ceil_div(outputs, 32), 2 * half // _GROUP](
        weight_OJ, scales_OG2, out_OI, outputs, 2 * half, 32
    )
    return out_OI


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
    _compiled(_gate_kernel)[(_ceil_div(count, _BLOCK),)](gate_TF, up_TF, count, _BLOCK)
    return gate_TF


def fits(*tensors: Tensor) -> bool:
    """Whether the kernels take these: in half precision, on a card, and nothing is learned."""
    return all(
        one.is_cuda
        and one.dtype in _HALF
        and one.is_contiguous()
        and not (one.requires_grad and torch.is_grad_enabled())
        for one in tensors
    )


def _ceil_div(count: int, size: int) -> int:
    """How many of `size` hold `count`."""
    return -(-count // size)

"""Layers of a Llama in half precision that a card computes better in another form.

Measured on an H200 with 8 B parameters in bfloat16: a decoding step of 32 rows spent 1.3 of its
8.5 ms on the product with a vocabulary of 128,257 (odd, so that no fast kernel takes it; 0.3 ms are
needed to read the weights), and 3 ms on small kernels, of which a norm has eight, rotary positions
ten and a gate two. No weight changes, nor its name. In float32, on processors and where something
is learned through them, the layers do what those of transformers do.

Shapes: V vocabulary, D width, R rows, L positions, H heads, K width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

from NatureLM.models import triton_kernels as kernels
from NatureLM.models.quantized import Int4Linear

_ALIGNED = 64  # outputs of a product in half precision that any kernel takes come in multiples
_HALF = (torch.bfloat16, torch.float16)


def use_cuda_layers(language_model: Any) -> None:
    """Swap the layers of a model that lies on a card; once or again."""
    swapped: dict[type, type] = {LlamaRMSNorm: FusedRMSNorm}
    if kernels.is_here():
        swapped |= {LlamaAttention: FusedAttention, LlamaMLP: FusedMLP}
    for module in language_model.modules():
        module.__class__ = swapped.get(type(module), type(module))
        if isinstance(module, Int4Linear) and kernels.is_here():
            module.lie_for_cards()
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
    fits = kernels.is_width(width) and kernels.fits(query_RLHK, key_RLHK, *turns)
    if not fits:
        both: tuple[Tensor, Tensor] = modeling_llama.apply_rotary_pos_emb(
            query_RHLK, key_RHLK, cos_RLK, sin_RLK
        )
        return both
    cos_TK, sin_TK = (one.view(-1, width) for one in turns)
    for one in (query_RLHK, key_RLHK):
        kernels.rotate(one.flatten(0, 1), cos_TK, sin_TK)
    return query_RHLK, key_RHLK


class FusedMLP(LlamaMLP):
    """The feed-forward layer with its gate as one kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """What it adds to the hidden states (..., D)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.config.hidden_act == "silu" and kernels.fits(gate, up):
            hidden = kernels.gated(gate, up)
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

"""The Q-Former: learned queries that read a group of encoder vectors.

Shapes: N groups, Q queries, T encoder vectors of a group, D width.

A small BERT (post-norm) in which every layer has self-attention over the queries, cross-attention
to the encoder's vectors and a feed-forward; only the query branch exists. Source: BLIP-2's
Q-Former as used by SALMONN and NatureLM-audio; parameter names are those of the published
checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.config.model import QFormerConfig

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class QFormer(nn.Module):
    """Queries (N, Q, D) and encoder vectors (N, T, encoder width) → (N, Q, D)."""

    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.bert = _Bert(cfg, encoder_width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=cfg.initializer_range)
                nn.init.zeros_(module.bias)

    def forward(self, queries_NQD: Tensor, encoded_NTE: Tensor) -> Tensor:
        out: Tensor = self.bert(queries_NQD, encoded_NTE)
        return out


def patch_groups(patches_BPE: Tensor, size: int, stride: int) -> Tensor:
    """(B · groups, size, E): the groups that one set of queries reads at a time.

    Patches that fill no group are left out.
    """
    return patches_BPE.unfold(1, size, stride).transpose(2, 3).flatten(0, 1)


class _Bert(nn.Module):
    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.embeddings = _Embeddings(cfg)
        self.encoder = _Encoder(cfg, encoder_width)

    def forward(self, queries_NQD: Tensor, encoded_NTE: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.embeddings(queries_NQD), encoded_NTE)
        return out


class _Encoder(nn.Module):
    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(cfg, encoder_width) for _ in range(cfg.num_hidden_layers))

    def forward(self, x: Tensor, encoded_NTE: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, encoded_NTE)
        return x


class _Embeddings(nn.Module):
    """Normalises the query vectors; `position_ids` is unused but stands in the checkpoints."""

    position_ids: Tensor

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.arange(cfg.max_position_embeddings)[None])

    def forward(self, queries_NQD: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.LayerNorm(queries_NQD))
        return out


class _Layer(nn.Module):
    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.attention = _Attention(cfg, cfg.hidden_size)
        self.crossattention = _Attention(cfg, encoder_width)
        self.intermediate_query = _Intermediate(cfg)
        self.output_query = _Output(cfg, cfg.intermediate_size)

    def forward(self, x: Tensor, encoded_NTE: Tensor) -> Tensor:
        x = self.attention(x, x)
        x = self.crossattention(x, encoded_NTE)
        out: Tensor = self.output_query(self.intermediate_query(x), x)
        return out


class _Attention(nn.Module):
    """Attention of queries to `source`, then projection, residual and LayerNorm."""

    def __init__(self, cfg: QFormerConfig, source_width: int) -> None:
        super().__init__()
        self.self = _SelfAttention(cfg, source_width)
        self.output = _Output(cfg, cfg.hidden_size)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        out: Tensor = self.output(self.self(x, source), x)
        return out


class _SelfAttention(nn.Module):
    def __init__(self, cfg: QFormerConfig, source_width: int) -> None:
        super().__init__()
        self.heads = cfg.num_attention_heads
        self.dropout = cfg.attention_probs_dropout_prob
        self.query = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.key = nn.Linear(source_width, cfg.hidden_size)
        self.value = nn.Linear(source_width, cfg.hidden_size)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(source), self.value(source))
        )
        rate = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2)


class _Intermediate(nn.Module):
    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(cfg.hidden_size, cfg.intermediate_size)
        self.activation = cfg.hidden_act

    def forward(self, x: Tensor) -> Tensor:
        return _ACTIVATIONS[self.activation](self.dense(x))


class _Output(nn.Module):
    """Projection back to the hidden width, dropout, residual, LayerNorm."""

    def __init__(self, cfg: QFormerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, cfg.hidden_size)
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return out

"""The Q-Former: learned queries that read a group of encoder vectors.

Shapes: N groups, Q queries, T encoder vectors of a group, E their width, D width.

A small BERT (post-norm) in which every layer has self-attention over the queries, cross-attention
to the encoder vectors and a feed-forward network for queries. Source: BLIP-2 (arXiv 2301.12597),
Q-Former as used by SALMONN and NatureLM-audio; parameter names are those of the published
checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.config.model import QFormerConfig
from NatureLM.models.beats import ACTIVATIONS


class QFormer(nn.Module):
    """Queries (N, Q, D) and encoder vectors (N, T, E) → (N, Q, D)."""

    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.bert = nn.ModuleDict(
            {
                "embeddings": _Embeddings(cfg),
                "encoder": nn.ModuleDict({"layer": _Layers(cfg, encoder_width)}),
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=cfg.initializer_range)
                nn.init.zeros_(module.bias)

    def forward(self, queries_NQD: Tensor, encoded_NTE: Tensor) -> Tensor:
        layers = self.bert.get_submodule("encoder.layer")
        out: Tensor = layers(self.bert["embeddings"](queries_NQD), encoded_NTE)
        return out


def patch_groups(patches_BPE: Tensor, size: int, stride: int) -> Tensor:
    """(B · groups, size, E): the groups that one set of queries reads at a time.

    Patches that fill no group are left out.
    """
    return patches_BPE.unfold(1, size, stride).transpose(2, 3).flatten(0, 1)


class _Embeddings(nn.Module):
    """Normalises the query vectors; `position_ids` is unused but stands in the checkpoints."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.arange(cfg.max_position_embeddings)[None])

    def forward(self, queries_NQD: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.LayerNorm(queries_NQD))
        return out


class _Layers(nn.ModuleList):
    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__(_Layer(cfg, encoder_width) for _ in range(cfg.num_hidden_layers))

    def forward(self, x: Tensor, encoded_NTE: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, encoded_NTE)
        return x


class _Layer(nn.Module):
    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.attention = _Attention(cfg, cfg.hidden_size)
        self.crossattention = _Attention(cfg, encoder_width)
        self.intermediate_query = nn.ModuleDict(
            {"dense": nn.Linear(cfg.hidden_size, cfg.intermediate_size)}
        )
        self.activation = ACTIVATIONS[cfg.hidden_act]
        self.output_query = _Output(cfg, cfg.intermediate_size)

    def forward(self, x: Tensor, encoded_NTE: Tensor) -> Tensor:
        x = self.attention(x, x)
        x = self.crossattention(x, encoded_NTE)
        out: Tensor = self.output_query(self.activation(self.intermediate_query["dense"](x)), x)
        return out


class _Attention(nn.Module):
    """Attention of queries to `source`, then projection, residual and LayerNorm."""

    def __init__(self, cfg: QFormerConfig, source_width: int) -> None:
        super().__init__()
        self.heads = cfg.num_attention_heads
        self.dropout = cfg.attention_probs_dropout_prob
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(cfg.hidden_size, cfg.hidden_size),
                "key": nn.Linear(source_width, cfg.hidden_size),
                "value": nn.Linear(source_width, cfg.hidden_size),
            }
        )
        self.output = _Output(cfg, cfg.hidden_size)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (
            self.self[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name, y in (("query", x), ("key", source), ("value", source))
        )
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        out: Tensor = self.output(attended.transpose(1, 2).flatten(2), x)
        return out


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

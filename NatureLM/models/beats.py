"""BEATs, the audio encoder: patches of a log-mel spectrogram through a transformer.

Shapes: B windows, T frames, F mel bins, P patches, D encoder width, H heads, K width of a head.

Source: "BEATs: Audio Pre-Training with Acoustic Tokenizers" (arXiv 2212.09058) as the reference
model uses it. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.config.model import BeatsConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_accurate": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "linear": lambda x: x,
}

# Numbers of the widest tensor between layers: from 32 MB on, the system is asked for memory each
# time, and making it costs more than larger matrix products save.
_QUICK_NUMBERS = 7 << 20


class BEATs(nn.Module):
    """Normalised fbank (B, T, F) → patch vectors (B, P, D), time-major.

    Frames and bins that do not fill a patch at the end are left out. The predictor head, which not
    all checkpoints have, only pretrains an encoder.
    """

    def __init__(self, cfg: BeatsConfig) -> None:
        super().__init__()
        self.cfg = cfg
        size, width = cfg.input_patch_size, cfg.encoder_embed_dim
        self.post_extract_proj = nn.Linear(cfg.embed_dim, width) if cfg.embed_dim != width else None
        self.patch_embedding = nn.Conv2d(1, cfg.embed_dim, size, stride=size, bias=cfg.conv_bias)
        self.dropout_input = nn.Dropout(cfg.dropout_input)
        self.encoder = TransformerEncoder(cfg)
        self.layer_norm = nn.LayerNorm(cfg.embed_dim)
        self.predictor_dropout = nn.Dropout(cfg.predictor_dropout)
        self.predictor = nn.Linear(width, cfg.predictor_class) if cfg.finetuned_model else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random weights as BEATs starts from: normal, with DeepNorm's gains in the layers."""
        if self.layer_norm.weight.is_meta:  # they come from a file
            return
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, PositionConv):
                taps, width = module.weight_g.shape[-1], self.width
                nn.init.normal_(module.weight_v, std=math.sqrt(4.0 / (taps * width)))
                with torch.no_grad():  # the norm as it is: the weight starts as drawn
                    module.weight_g.copy_(module.weight_v.norm(dim=(0, 1), keepdim=True))
        for layer in self.encoder.stack if self.cfg.deep_norm else ():
            beta, attention = (8 * self.cfg.encoder_layers) ** -0.25, layer.self_attn
            first = layer.fc1.linear if isinstance(layer.fc1, GatedLinear) else layer.fc1
            for linear in (attention.q_proj, attention.k_proj):
                nn.init.xavier_normal_(linear.weight)
            for linear in (attention.v_proj, attention.out_proj, first, layer.fc2):
                nn.init.xavier_normal_(linear.weight, gain=beta)

    @property
    def width(self) -> int:
        """Width D of the patch vectors."""
        return self.cfg.encoder_embed_dim

    def forward(self, fbank_BTF: Tensor, padding_mask_BS: Tensor | None = None) -> Tensor:
        """Encode; `padding_mask_BS` marks padded samples (True) that no patch may attend to."""
        patches_BPD = self.layer_norm(self._embed(fbank_BTF))
        mask_BP = None
        if padding_mask_BS is not None:
            mask_BP = pool_mask(padding_mask_BS, fbank_BTF.shape[1])
            mask_BP = pool_mask(mask_BP, patches_BPD.shape[1])
        if self.post_extract_proj is not None:
            patches_BPD = self.post_extract_proj(patches_BPD)
        encoded: Tensor = self.encoder(self.dropout_input(patches_BPD), mask_BP)
        return encoded

    def _embed(self, fbank_BTF: Tensor) -> Tensor:
        """Patches of frames and mel bins, in time order, as vectors (B, P, D): a convolution whose
        stride is its size is one product, which processors compute three times as fast."""
        size, convolution = self.cfg.input_patch_size, self.patch_embedding
        squares = fbank_BTF.unfold(1, size, size).unfold(2, size, size)
        vectors: Tensor = F.linear(
            squares.reshape(-1, size * size), convolution.weight.flatten(1), convolution.bias
        )
        return vectors.view(len(fbank_BTF), -1, vectors.shape[-1])

    def classify(self, fbank_BTF: Tensor) -> Tensor:
        """Class logits (B, classes): the predictor's mean over patches."""
        if self.predictor is None:
            raise ValueError("this encoder has no predictor head (finetuned_model is false)")
        encoded_BPD = self(fbank_BTF)
        logits: Tensor = self.predictor(self.predictor_dropout(encoded_BPD))
        return logits.mean(dim=1)


def pool_mask(mask_BN: Tensor, length: int) -> Tensor:
    """Shorten a padding mask to `length`: an entry is padding when all its samples are."""
    kept = mask_BN.shape[1] - mask_BN.shape[1] % length
    return mask_BN[:, :kept].reshape(mask_BN.shape[0], length, -1).all(-1)


def quick_rows(cfg: BeatsConfig, patches: int) -> int:
    """How many windows a processor encodes quickest together, where nothing is learnt."""
    widest = patches * max(cfg.encoder_ffn_embed_dim, cfg.encoder_attention_heads * patches)
    return max(1, _QUICK_NUMBERS // max(1, widest))


class TransformerEncoder(nn.Module):
    """Convolutional position embedding and the stack of layers; (B, P, D) → (B, P, D)."""

    def __init__(self, cfg: BeatsConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.pos_conv = nn.Sequential(PositionConv(cfg))
        self.layers = nn.ModuleList(EncoderLayer(cfg) for _ in range(cfg.encoder_layers))
        self.layer_norm = nn.LayerNorm(cfg.encoder_embed_dim)
        if cfg.relative_position_embedding:
            # One table, registered under every layer: the checkpoints name it so.
            table = nn.Embedding(cfg.num_buckets, cfg.encoder_attention_heads)
            for layer in self.stack:
                layer.self_attn.relative_attention_bias = table

    @property
    def stack(self) -> list[EncoderLayer]:
        return cast("list[EncoderLayer]", list(self.layers))

    def forward(self, x_BPD: Tensor, mask_BP: Tensor | None = None) -> Tensor:
        rows = x_BPD.shape[0]
        if x_BPD.device.type == "cpu" and not torch.is_grad_enabled():
            rows = quick_rows(self.cfg, x_BPD.shape[1])
        has_bias = self.cfg.relative_position_embedding
        bias_HPP = self._position_bias(x_BPD.shape[1]) if has_bias else None
        if rows >= x_BPD.shape[0]:
            return self._encode(x_BPD, bias_HPP, mask_BP)
        pieces = x_BPD.split(rows)
        masks = [None] * len(pieces) if mask_BP is None else mask_BP.split(rows)
        return torch.cat(
            [self._encode(x, bias_HPP, mask) for x, mask in zip(pieces, masks, strict=True)]
        )

    def _encode(self, x_BPD: Tensor, bias_HPP: Tensor | None, mask_BP: Tensor | None) -> Tensor:
        cfg = self.cfg
        if mask_BP is not None:
            x_BPD = x_BPD.masked_fill(mask_BP.unsqueeze(-1), 0)
        x_BPD = x_BPD + self.pos_conv(x_BPD)
        if not cfg.layer_norm_first:
            x_BPD = self.layer_norm(x_BPD)
        x_BPD = F.dropout(x_BPD, cfg.dropout, self.training)

        for layer in self.stack:
            if self.training and cfg.layer_wise_gradient_decay_ratio != 1.0:
                ratio = cfg.layer_wise_gradient_decay_ratio  # same values, a smaller gradient
                x_BPD = x_BPD * ratio + x_BPD.detach() * (1 - ratio)
            if self.training and torch.rand(()).item() < cfg.encoder_layerdrop:
                continue
            x_BPD = layer(x_BPD, bias_HPP, mask_BP)
        if cfg.layer_norm_first:
            x_BPD = self.layer_norm(x_BPD)
        return x_BPD

    def _position_bias(self, length: int) -> Tensor:
        """(H, P, P) bias of key position minus query position, looked up once per distance."""
        table = self.stack[0].self_attn.relative_attention_bias
        distances = torch.arange(1 - length, length, device=table.weight.device)
        buckets = relative_position_bucket(distances, self.cfg.num_buckets, self.cfg.max_distance)
        bias_DH = table(buckets)
        positions = torch.arange(length, device=distances.device)
        index_PP = positions[None, :] - positions[:, None] + length - 1
        biases: Tensor = bias_DH[index_PP].permute(2, 0, 1)
        return biases


def relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5-style buckets of signed distances: half for each sign, exact when near, log when far."""
    half = num_buckets // 2
    exact = half // 2
    magnitude = distance.abs()
    far = exact + (
        torch.log(magnitude.clamp_min(1).float() / exact)
        / math.log(max_distance / exact)
        * (half - exact)
    ).long().clamp_max(half - 1 - exact)
    return (distance > 0).long() * half + torch.where(magnitude < exact, magnitude, far)


class PositionConv(nn.Module):
    """Grouped convolution over positions, weight-normalised per tap, with GELU.

    An even kernel would give one position too many; the last is dropped.
    """

    def __init__(self, cfg: BeatsConfig) -> None:
        super().__init__()
        self.groups = cfg.conv_pos_groups
        width, taps = cfg.encoder_embed_dim, cfg.conv_pos
        self.weight_g = nn.Parameter(torch.ones(1, 1, taps))
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, taps))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BPD: Tensor) -> Tensor:
        norm = self.weight_v.norm(dim=(0, 1), keepdim=True)
        weight = self.weight_v * (self.weight_g / norm)
        taps = weight.shape[-1]
        y = F.conv1d(
            x_BPD.transpose(1, 2), weight, self.bias, padding=taps // 2, groups=self.groups
        )
        if taps % 2 == 0:
            y = y[..., :-1]
        return F.gelu(y).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, post-norm with DeepNorm residuals unless configured."""

    def __init__(self, cfg: BeatsConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.residual_scale = (2 * cfg.encoder_layers) ** 0.25 if cfg.deep_norm else 1.0
        width, inner = cfg.encoder_embed_dim, cfg.encoder_ffn_embed_dim
        self.self_attn = GatedSelfAttention(cfg)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1: nn.Linear | GatedLinear = (
            GatedLinear(width, inner) if cfg.activation_fn == "glu" else nn.Linear(width, inner)
        )
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, bias_HPP: Tensor | None, mask_BP: Tensor | None) -> Tensor:
        if self.cfg.layer_norm_first:
            x = x + self._attend(self.self_attn_layer_norm(x), bias_HPP, mask_BP)
            return x + self._feed_forward(self.final_layer_norm(x))
        scale = self.residual_scale
        x = self.self_attn_layer_norm(torch.add(self._attend(x, bias_HPP, mask_BP), x, alpha=scale))
        out: Tensor = self.final_layer_norm(torch.add(self._feed_forward(x), x, alpha=scale))
        return out

    def _attend(self, x: Tensor, bias_HPP: Tensor | None, mask_BP: Tensor | None) -> Tensor:
        return F.dropout(self.self_attn(x, bias_HPP, mask_BP), self.cfg.dropout, self.training)

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.cfg.activation_fn != "glu":
            x = ACTIVATIONS[self.cfg.activation_fn](x)
        x = self.fc2(F.dropout(x, self.cfg.activation_dropout, self.training))
        return F.dropout(x, self.cfg.dropout, self.training)


class GatedLinear(nn.Module):
    """Linear map to twice the width, one half gating the other through SiLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.linear(x).chunk(2, dim=-1)
        gated: Tensor = value * F.silu(gate)
        return gated


class GatedSelfAttention(nn.Module):
    """Multi-head self-attention whose position bias is gated per head and query.

    `gru_rel_pos`: two sigmoid gates a and b, computed from each head's query vector, scale the
    bias by `a · (b · grep_a − 1) + 2`.
    """

    relative_attention_bias: nn.Embedding

    def __init__(self, cfg: BeatsConfig) -> None:
        super().__init__()
        width = cfg.encoder_embed_dim
        self.heads = cfg.encoder_attention_heads
        self.dropout = cfg.attention_dropout
        self.k_proj, self.v_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.gated = cfg.gru_rel_pos
        if self.gated:
            self.grep_linear = nn.Linear(width // self.heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, x_BPD: Tensor, bias_HPP: Tensor | None, mask_BP: Tensor | None) -> Tensor:
        q_BHPK, k_BHPK, v_BHPK = (
            projection(x_BPD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(
            q_BHPK,
            k_BHPK,
            v_BHPK,
            attn_mask=self._mask(q_BHPK, bias_HPP, mask_BP),
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out

    def _mask(
        self, q_BHPK: Tensor, bias_HPP: Tensor | None, mask_BP: Tensor | None
    ) -> Tensor | None:
        # with four dimensions, for which processors have a kernel
        scores = None if bias_HPP is None else bias_HPP[None]
        if bias_HPP is not None and self.gated:
            gates = self.grep_linear(q_BHPK).unflatten(-1, (2, 4)).sum(-1).sigmoid()
            gate_a, gate_b = gates.chunk(2, dim=-1)
            scores = (gate_a * (gate_b * self.grep_a - 1.0) + 2.0) * bias_HPP
        if mask_BP is None:
            return scores if scores is None else scores.to(q_BHPK.dtype)
        hidden = torch.zeros_like(mask_BP, dtype=q_BHPK.dtype).masked_fill(mask_BP, -math.inf)
        hidden = hidden[:, None, None, :]
        return hidden if scores is None else scores.to(q_BHPK.dtype) + hidden

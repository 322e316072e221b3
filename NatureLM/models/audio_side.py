"""The audio side of the model: BEATs → window-level Q-Former → projection, and its sizes.

Shapes: B windows, S samples, T frames, F mel bins, P patches, E encoder width, Q audio positions of
a window, D width of the language model, N groups of patches, W width of the Q-Former.

It knows no language model, so that the model of this package, the one that plain transformers
loads and the one inside vLLM share it: `NatureLM.vllm` copies this module into the folders that it
writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from NatureLM.audio.fbank import normalised_fbank
from NatureLM.config.model import BeatsConfig, FbankConfig, QFormerConfig
from NatureLM.errors import ConfigError, UsageError
from NatureLM.models.beats import ACTIVATIONS, BEATs

ENCODERS = {"beats": lambda config: BEATs(config.beats)}


@dataclass(kw_only=True, repr=False, eq=False)
class AudioSizes:
    """The audio side of a configuration, and what follows from it; a base class of those.

    `second_per_window` and `second_stride` are measured in patches of 1 / `patches_per_second`
    seconds, as in the reference. With `max_pooling` there is no Q-Former: patches are pooled by
    `downsample_factor` and projected. A window is encoded once for each of `window_delays`
    (seconds), moved back by so much, and the embeddings are averaged: a small model encodes a call
    differently where it meets the borders of its patches and groups.
    """

    encoder: str = "beats"
    beats_cfg: dict[str, Any] | None = None
    sample_rate: int = 16000
    window_seconds: float = 10.0
    fbank_cfg: dict[str, Any] | None = None
    qformer_cfg: dict[str, Any] | None = None
    window_level_Qformer: bool = True
    num_audio_query_token: int = 1
    second_per_window: float = 0.333333
    second_stride: float = 0.333333
    patches_per_second: float = 50.0
    window_delays: list[float] | None = None  # None: as it is, once
    max_pooling: bool = False
    downsample_factor: int = 8

    @property
    def beats(self) -> BeatsConfig:
        return BeatsConfig.model_validate(self.beats_cfg)

    @property
    def qformer(self) -> QFormerConfig:
        return QFormerConfig.model_validate(self.qformer_cfg)

    @property
    def fbank(self) -> FbankConfig:
        return FbankConfig.model_validate(self.fbank_cfg)

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        return round(self.window_seconds * self.sample_rate)

    @property
    def delayed_samples(self) -> list[int]:
        """How many samples later each pass over a window begins."""
        return [round(delay * self.sample_rate) for delay in self.window_delays or [0.0]]

    @property
    def patch_samples(self) -> int:
        """Samples from one patch of the encoder to the next in time."""
        return self.beats.input_patch_size * self.fbank.frame_samples(self.sample_rate)[1]

    @property
    def group_patches(self) -> int:
        """Patches that one group of the window-level Q-Former reads (its kernel)."""
        return round(self.patches_per_second * self.second_per_window)

    @property
    def group_stride(self) -> int:
        """Patches from the start of one group to the next."""
        return round(self.patches_per_second * self.second_stride)

    def audio_positions(self, seconds: float | None = None) -> int:
        """How many positions of a prompt a window of so many seconds takes; by default one of the
        model's, which is the longest.
        """
        longest = self.window_seconds
        window = round((longest if seconds is None else min(seconds, longest)) * self.sample_rate)
        patches = self.patches(window)
        if self.max_pooling:
            return patches // self.downsample_factor
        groups = 1
        if self.window_level_Qformer:
            groups = max(0, 1 + (patches - self.group_patches) // self.group_stride)
        return groups * self.num_audio_query_token

    def patches(self, samples: int) -> int:
        """Patches of the spectrogram of so many samples."""
        size, fbank = self.beats.input_patch_size, self.fbank
        frames = fbank.frames(samples, self.sample_rate)
        return (frames // size) * (fbank.num_mel_bins // size)


class AudioSide(nn.Module):
    """Modules and methods that turn waveforms into audio embeddings; a base class of models."""

    config: Any

    def build_audio_side(self, config: Any, width: int) -> None:
        """Make the modules, with random weights.

        config: an `AudioSizes` with `encoder`
        width: of the language model
        """
        if config.encoder not in ENCODERS:
            raise ConfigError(
                f"model configuration: encoder must be one of {', '.join(ENCODERS)}, got "
                f"{config.encoder!r}"
            )
        self._fbank: FbankConfig = config.fbank
        self._hop = self._fbank.frame_samples(config.sample_rate)[1]
        self.beats = ENCODERS[config.encoder](config)
        self.ln_audio = nn.LayerNorm(self.beats.width)
        if config.max_pooling:
            self.audio_llama_proj = nn.Linear(self.beats.width, width)
        else:
            qformer = config.qformer
            self.audio_Qformer = QFormer(qformer, self.beats.width)
            self.audio_query_tokens = nn.Parameter(
                torch.empty(1, config.num_audio_query_token, qformer.hidden_size)
            )
            nn.init.normal_(self.audio_query_tokens, std=qformer.initializer_range)
            self.audio_llama_proj = nn.Linear(qformer.hidden_size, width)

    def encode_audio(self, wav_BS: Tensor, padding_mask_BS: Tensor | None = None) -> Tensor:
        """Waveforms in [-1, 1] at the model's sample rate → audio embeddings (B, Q, D).

        A padding mask (True where padded) hides patches from each other's attention. With
        `window_delays` this is the mean over them, in training the first.
        """
        delays = self.config.delayed_samples[: 1 if self.training else None]
        encoded = []
        for delay, fbank_BTF in zip(delays, self._fbanks(wav_BS, delays), strict=True):
            mask_BS = padding_mask_BS
            if mask_BS is not None and delay:
                mask_BS = F.pad(mask_BS, (delay, -delay), value=True)
            encoded.append(self._align(self.beats(fbank_BTF, mask_BS)))
        return torch.stack(encoded).mean(dim=0) if len(encoded) > 1 else encoded[0]

    def encode_patches(self, wav_BS: Tensor, padding_mask_BS: Tensor | None = None) -> Tensor:
        """Waveforms as above → what the audio encoder makes of them (B, P, E), in time order."""
        patches_BPE: Tensor = self.beats(self._fbanks(wav_BS, [0])[0], padding_mask_BS)
        return patches_BPE

    def _fbanks(self, wav_BS: Tensor, delays: Sequence[int]) -> list[Tensor]:
        """Spectrograms (B, T, F) of windows that begin so many samples later, after silence.

        Where delays are whole hops, their spectrograms are parts of one longer spectrogram.
        """
        weight, hop, rate = self.ln_audio.weight, self._hop, self.config.sample_rate
        wav_BS = wav_BS.to(weight.device)
        if wav_BS.dtype != torch.float64:
            wav_BS = wav_BS.float()
        longest, least, samples = max(delays), min(delays), wav_BS.shape[1]
        padded_BS = F.pad(wav_BS, (longest, -least)) if longest else wav_BS
        if any((longest - delay) % hop for delay in delays):
            cuts = [padded_BS[:, longest - delay :][:, :samples] for delay in delays]
            fbanks = [normalised_fbank(cut, rate, self._fbank) for cut in cuts]
        else:
            whole = normalised_fbank(padded_BS, rate, self._fbank)
            frames = max(0, whole.shape[1] - (longest - least) // hop)
            fbanks = [whole[:, (longest - delay) // hop :][:, :frames] for delay in delays]
        return [fbank_BTF.to(weight.dtype) for fbank_BTF in fbanks]

    def _align(self, patches_BPE: Tensor) -> Tensor:
        """Patches → audio embeddings: Q-Former over groups (or over all), or pooling."""
        config = self.config
        if config.max_pooling:
            factor = config.downsample_factor
            pooled = F.max_pool1d(patches_BPE.transpose(1, 2), factor, factor)
            out: Tensor = self.audio_llama_proj(pooled.transpose(1, 2))
            return out
        groups = normed_BPE = self.ln_audio(patches_BPE)
        if config.window_level_Qformer:
            count, size = patches_BPE.shape[1], config.group_patches
            if count < size:
                raise UsageError(
                    f"the audio gives {count} patches, one group needs {size}; "
                    f"pad it to the model's window of {config.window_seconds:g} s"
                )
            groups = patch_groups(normed_BPE, size, config.group_stride)
        queries = self.audio_query_tokens.expand(groups.shape[0], -1, -1)
        read = self.audio_llama_proj(self.audio_Qformer(queries, groups))
        return read.reshape(patches_BPE.shape[0], -1, read.shape[-1])  # type: ignore[no-any-return]


def fit_window(samples: Any, window: int) -> Tensor:
    """A mono waveform cut or padded with silence to so many samples.

    Returns float32 (or float64 as given) of shape (window,), clamped to [-1, 1].
    """
    if isinstance(samples, Tensor) and samples.device.type == "cpu" and not samples.requires_grad:
        samples = samples.numpy() if samples.dtype == torch.float32 else samples
    if isinstance(samples, np.ndarray) and samples.ndim == 1 and samples.dtype == np.float32:
        # Not in torch: in a thread beside the engine's it would make a second pool of threads,
        # and two pools on the same cores slow each other down.
        padded_S = np.zeros(window, np.float32)
        np.clip(samples[:window], -1.0, 1.0, out=padded_S[: min(window, len(samples))])
        return torch.from_numpy(padded_S)
    wav_S = torch.as_tensor(samples)
    if wav_S.ndim != 1:
        raise ValueError(f"a waveform must have shape (samples,), got {tuple(wav_S.shape)}")
    if not wav_S.is_floating_point():
        raise ValueError(
            f"a waveform must hold floating-point samples in [-1, 1], got {wav_S.dtype}; "
            "divide integer samples by their full scale (32768 for 16 bits)"
        )
    if wav_S.dtype != torch.float64:
        wav_S = wav_S.float()
    wav_S = wav_S[:window].clamp(-1.0, 1.0)
    missing = window - wav_S.shape[0]
    return torch.nn.functional.pad(wav_S, (0, missing)) if missing else wav_S


# -- the Q-Former ---------------------------------------------------------------------------


class QFormer(nn.Module):
    """Queries (N, Q, W) and encoder vectors (N, T, E) of N groups → (N, Q, W).

    A small BERT (post-norm) in which every layer has self-attention over the queries,
    cross-attention to the encoder vectors and a feed-forward network for queries. Source: BLIP-2
    (arXiv 2301.12597), Q-Former as used by SALMONN and NatureLM-audio.
    """

    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.cfg = cfg
        layers = (_QFormerLayer(cfg, encoder_width) for _ in range(cfg.num_hidden_layers))
        self.bert = nn.ModuleDict(
            {
                "embeddings": _QueryEmbeddings(cfg),
                "encoder": nn.ModuleDict({"layer": nn.ModuleList(layers)}),
            }
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=cfg.initializer_range)
                nn.init.zeros_(module.bias)

    def forward(self, queries_NQW: Tensor, encoded_NTE: Tensor) -> Tensor:
        x: Tensor = self.bert["embeddings"](queries_NQW)
        for layer in self.bert.get_submodule("encoder.layer").children():
            x = layer(x, encoded_NTE)
        return x


def patch_groups(patches_BPE: Tensor, size: int, stride: int) -> Tensor:
    """(B · groups, size, E): the groups that one set of queries reads at a time.

    Patches that fill no group are left out.
    """
    return patches_BPE.unfold(1, size, stride).transpose(2, 3).flatten(0, 1)


class _QueryEmbeddings(nn.Module):
    """Normalises the query vectors; `position_ids` is unused but stands in the checkpoints."""

    def __init__(self, cfg: QFormerConfig) -> None:
        super().__init__()
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.arange(cfg.max_position_embeddings)[None])

    def forward(self, queries_NQW: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.LayerNorm(queries_NQW))
        return out


class _QFormerLayer(nn.Module):
    def __init__(self, cfg: QFormerConfig, encoder_width: int) -> None:
        super().__init__()
        self.attention = _QFormerAttention(cfg, cfg.hidden_size)
        self.crossattention = _QFormerAttention(cfg, encoder_width)
        self.intermediate_query = nn.ModuleDict(
            {"dense": nn.Linear(cfg.hidden_size, cfg.intermediate_size)}
        )
        self.activation = ACTIVATIONS[cfg.hidden_act]
        self.output_query = _QFormerOutput(cfg, cfg.intermediate_size)

    def forward(self, x: Tensor, encoded_NTE: Tensor) -> Tensor:
        x = self.crossattention(self.attention(x, x), encoded_NTE)
        out: Tensor = self.output_query(self.activation(self.intermediate_query["dense"](x)), x)
        return out


class _QFormerAttention(nn.Module):
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
        self.output = _QFormerOutput(cfg, cfg.hidden_size)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (
            self.self[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name, y in (("query", x), ("key", source), ("value", source))
        )
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        out: Tensor = self.output(attended.transpose(1, 2).flatten(2), x)
        return out


class _QFormerOutput(nn.Module):
    """Projection back to the hidden width, dropout, residual, LayerNorm."""

    def __init__(self, cfg: QFormerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, cfg.hidden_size)
        self.LayerNorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.dropout = nn.Dropout(cfg.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return out

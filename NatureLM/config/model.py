"""Sizes of the network, validated: what `beats_cfg`, `qformer_cfg` and `fbank` may hold.

The defaults are those of the published model. The classes are plain data (no torch), so that both
the YAML schema and the model's own configuration use them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Activation = Literal["relu", "gelu", "gelu_accurate", "gelu_fast", "tanh", "linear", "glu"]

MOST_LAYERS, MOST_WIDTH = 1000, 2**18
"""More than any network of today has: what says more describes none."""


class _Architecture(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


class FbankConfig(_Architecture):
    """Log-mel filter bank as in Kaldi, with the normalisation that BEATs was trained with."""

    num_mel_bins: int = Field(default=128, ge=1, le=4096)
    frame_length_ms: float = Field(default=25.0, gt=0, le=1000)
    frame_shift_ms: float = Field(default=10.0, gt=0, le=1000)
    low_frequency: float = Field(default=20.0, ge=0)
    high_frequency: float | None = Field(
        default=None, gt=0, description="Hz; the Nyquist frequency if null"
    )
    preemphasis: float = Field(default=0.97, ge=0, le=1)
    mean: float = 15.41663
    std: float = Field(default=6.55582, gt=0)

    def frames(self, samples: int, sample_rate: int) -> int:
        """Number of whole frames in `samples` samples (edges are snipped)."""
        length, shift = self.frame_samples(sample_rate)
        return 0 if samples < length else 1 + (samples - length) // shift

    def frame_samples(self, sample_rate: int) -> tuple[int, int]:
        """Frame length and frame shift in samples."""
        return (
            int(sample_rate * self.frame_length_ms / 1000),
            int(sample_rate * self.frame_shift_ms / 1000),
        )


class BeatsConfig(_Architecture):
    """The BEATs encoder; the keys are those of the published checkpoints."""

    input_patch_size: int = Field(default=16, ge=1, le=4096)
    embed_dim: int = Field(default=512, ge=1, le=MOST_WIDTH)
    conv_bias: bool = False

    encoder_layers: int = Field(default=12, ge=1, le=MOST_LAYERS)
    encoder_embed_dim: int = Field(default=768, ge=1, le=MOST_WIDTH)
    encoder_ffn_embed_dim: int = Field(default=3072, ge=1, le=MOST_WIDTH)
    encoder_attention_heads: int = Field(default=12, ge=1, le=MOST_WIDTH)
    activation_fn: Activation = "gelu"

    layer_wise_gradient_decay_ratio: float = Field(default=0.6, gt=0, le=1)
    layer_norm_first: bool = False
    deep_norm: bool = True

    dropout: float = Field(default=0.0, ge=0, lt=1)
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    activation_dropout: float = Field(default=0.0, ge=0, lt=1)
    encoder_layerdrop: float = Field(default=0.05, ge=0, lt=1)
    dropout_input: float = Field(default=0.0, ge=0, lt=1)

    conv_pos: int = Field(default=128, ge=1, le=MOST_WIDTH)
    conv_pos_groups: int = Field(default=16, ge=1, le=MOST_WIDTH)

    relative_position_embedding: bool = True
    num_buckets: int = Field(default=320, ge=4, le=MOST_WIDTH)
    max_distance: int = Field(default=800, ge=2, le=10**6)
    gru_rel_pos: bool = True

    finetuned_model: bool = True
    predictor_dropout: float = Field(default=0.0, ge=0, lt=1)
    predictor_class: int = Field(default=527, ge=1, le=10**4)

    @model_validator(mode="after")
    def _sizes_fit(self) -> BeatsConfig:
        if self.encoder_embed_dim % self.encoder_attention_heads:
            raise ValueError(
                f"encoder_embed_dim {self.encoder_embed_dim} must be a multiple of "
                f"encoder_attention_heads {self.encoder_attention_heads}"
            )
        if self.encoder_embed_dim % self.conv_pos_groups:
            raise ValueError(
                f"encoder_embed_dim {self.encoder_embed_dim} must be a multiple of "
                f"conv_pos_groups {self.conv_pos_groups}"
            )
        if self.deep_norm and self.layer_norm_first:
            raise ValueError("deep_norm and layer_norm_first exclude each other")
        return self


# Keys of a BERT configuration that change nothing here.
_BERT_ONLY = frozenset(
    {
        "add_cross_attention",
        "architectures",
        "classifier_dropout",
        "cross_attention_freq",
        "encoder_width",
        "gradient_checkpointing",
        "model_type",
        "pad_token_id",
        "position_embedding_type",
        "query_length",
        "transformers_version",
        "type_vocab_size",
        "use_cache",
        "vocab_size",
    }
)


class QFormerConfig(_Architecture):
    """The Q-Former; defaults are bert-base sizes with two layers, as published.

    A whole BERT configuration may stand here: its keys without effect on this use are left out
    (there are no word embeddings, and every layer has cross-attention).
    """

    hidden_size: int = Field(default=768, ge=1, le=MOST_WIDTH)
    num_hidden_layers: int = Field(default=2, ge=1, le=MOST_LAYERS)
    num_attention_heads: int = Field(default=12, ge=1, le=MOST_WIDTH)
    intermediate_size: int = Field(default=3072, ge=1, le=MOST_WIDTH)
    hidden_act: Literal["gelu", "relu", "silu"] = "gelu"
    hidden_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(default=0.1, ge=0, lt=1)
    layer_norm_eps: float = Field(default=1e-12, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)
    max_position_embeddings: int = Field(default=512, ge=1, le=MOST_WIDTH)

    @model_validator(mode="before")
    @classmethod
    def _only_what_counts(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        if values.get("cross_attention_freq", 1) != 1:
            raise ValueError("cross_attention_freq must be 1: every layer has cross-attention")
        return {key: value for key, value in values.items() if key not in _BERT_ONLY}

    @model_validator(mode="after")
    def _sizes_fit(self) -> QFormerConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        return self

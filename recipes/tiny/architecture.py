"""Sizes of the embedded model, its fresh encoder, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from NatureLM.config.model import BeatsConfig, FbankConfig
from NatureLM.models.beats import BEATs, PositionConv
from recipes.tiny.species import SOURCES
from recipes.tiny.tasks import samples

Floats = npt.NDArray[np.float32]

FBANK: dict[str, Any] = {"num_mel_bins": 64, "frame_shift_ms": 2.5}
BEATS: dict[str, Any] = {
    # One patch is 64 bins (all of them) x 64 frames of 2.5 ms = 0.16 s: 62 patches in 10 s.
    "input_patch_size": 64,
    "embed_dim": 256,
    "encoder_layers": 4,
    "encoder_embed_dim": 192,
    "encoder_ffn_embed_dim": 768,
    "encoder_attention_heads": 4,
    "layer_norm_first": True,
    "deep_norm": False,
    "dropout": 0.1,
    "dropout_input": 0.1,
    "encoder_layerdrop": 0.0,
    "layer_wise_gradient_decay_ratio": 1.0,
    "conv_pos": 8,
    "conv_pos_groups": 16,
    "num_buckets": 64,
    "max_distance": 128,
    "gru_rel_pos": False,
    "finetuned_model": False,
}

LANGUAGE_MODEL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
NATURELM: dict[str, Any] = {
    "fbank_cfg": FBANK,
    "beats_cfg": BEATS,
    "qformer_cfg": {
        "hidden_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 768,
    },
    # Groups are counted in patches of 0.02 s, as published: 6 patches, which are 0.96 s here, make
    # 10 audio embeddings of a window.
    "second_per_window": 0.12,
    "second_stride": 0.12,
    "lora_rank": 32,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "max_txt_len": 96,
}

# The finished model encodes a window three times, at thirds of a quarter of a group: where a call
# meets the borders of patches and groups then matters less. Chosen on `valid`.
WINDOW_DELAYS = (0.08, 0.16, 0.24)
GROUP = 6  # patches of a group, as second_per_window says


def language_model_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The configuration of the small Llama."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **LANGUAGE_MODEL,
    )


def fbank_config() -> FbankConfig:
    return FbankConfig.model_validate(FBANK)


def new_encoder(patches: Floats, seed: int) -> BEATs:
    """A fresh BEATs whose patch filters are the cosines that carry most of the data's variance.

    They stay as they are: a filter has 4,096 taps, so that a step of Adam in all of them is far
    larger than what a filter says, and learnt filters were worse than these.

    patches: a sample of the training spectrograms, (N, frames, bins) of one patch each
    """
    torch.manual_seed(seed)
    encoder = BEATs(BeatsConfig.model_validate(BEATS))
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    position = cast(PositionConv, encoder.encoder.pos_conv[0])
    distances: Any = encoder.encoder.layers[0].self_attn
    nn.init.normal_(position.weight_v, std=(4 / (BEATS["conv_pos"] * BEATS["embed_dim"])) ** 0.5)
    with torch.no_grad():
        position.weight_g.copy_(position.weight_v.norm(dim=(0, 1), keepdim=True))
        nn.init.zeros_(position.bias)
        nn.init.normal_(distances.relative_attention_bias.weight, std=0.02)
        filters = cosine_filters(patches, BEATS["embed_dim"])
        encoder.patch_embedding.weight.copy_(torch.from_numpy(filters)[:, None])
    encoder.patch_embedding.requires_grad_(False)
    return encoder


def cosine_filters(patches: Floats, count: int) -> Floats:
    """The `count` two-dimensional cosines of most variance over the patches, (count, T, F).

    Each is scaled by its variance to the power of -1/4, halfway to whitening, so that fine detail
    is heard without drowning the coarse shape.
    """
    size = patches.shape[1]
    order = np.arange(size)
    cosines = np.cos(np.pi * (order[None] + 0.5) * order[:, None] / size) * np.sqrt(2 / size)
    cosines[0] /= np.sqrt(2)
    spread = np.einsum("at,nth,bh->nab", cosines, patches, cosines, optimize=True).std(axis=0)
    best = np.argsort(-spread.ravel(), kind="stable")[:count]
    filters = np.stack(
        [np.outer(cosines[i // size], cosines[i % size]) / np.sqrt(spread.ravel()[i]) for i in best]
    )
    scale = size / np.abs(filters).sum(axis=(1, 2)).mean()
    scaled: Floats = (filters * scale).astype(np.float32)
    return scaled


BEGIN, END, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
SPECIAL_TOKENS = (
    BEGIN,
    END,
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_TURN,
    "<|eom_id|>",
    "[PAD]",
)
# Llama 3's rule for cutting text into words: contractions, words, digits, signs, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAME_REPEATS = 40  # how often each name stands in the training text, so that names stay short


def train_tokenizer(
    vocabulary_size: int = 2048, texts: int = 20000, seed: int = 0
) -> PreTrainedTokenizerFast:
    """Train on generated instructions; the same seed gives the same tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(texts, seed), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token="[PAD]",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _texts(count: int, seed: int) -> Iterator[str]:
    for _, prompt, answer in islice(samples(seed), count):
        yield prompt
        yield answer
    for source in SOURCES:
        for text in (source.name, f" {source.name}", source.scientific, f" {source.scientific}"):
            yield from (text,) * _NAME_REPEATS

"""What training takes on a device beside the weights, and refusing it before they are read.

What learns has a float32 weight, a gradient, two moments and what an update makes of them; every
clip of a batch leaves what its backward pass needs. Beside measured runs: docs/how-to/fine-tune.md.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from NatureLM.config.schema import ModelConfig, RunConfig
from NatureLM.errors import ConfigError
from NatureLM.memory import MEMORY_VARIABLE, free_memory
from NatureLM.models.checkpoint.tensors import Precision
from NatureLM.models.fit import Outline, Work, layers_of, need_of
from NatureLM.util import format_bytes

_LEARNT = 4 + 4 + 8 + 8  # bytes for each number: itself, gradient, moments, their update
_AVERAGED = 4  # more with run.ema_decay
_PROMPT, _ANSWER = 40, 10  # tokens, beside those of the sound
_INNER, _WIDTH = 4, 7.5  # numbers kept of a position and layer, in widths of its parts


def parts_that_learn(config: ModelConfig) -> dict[str, bool]:
    """What a configuration does not freeze, as `NatureLM.set_trainable` takes it."""
    return {
        "beats": not config.freeze_beats,
        "qformer": not config.freeze_audio_QFormer,
        "projection": not config.freeze_audio_llama_proj,
        "lora": config.lora,
        "language_model": not config.freeze_llama,
    }


def check_memory(
    outline: Outline,
    precision: Precision,
    device: torch.device,
    config: ModelConfig,
    run: RunConfig,
) -> None:
    """Raise ConfigError where a run takes more than the device has, before weights are read.

    A run whose weights are sharded over cards (FSDP) is not looked at.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return
    weights = need_of(outline, precision, device.type, Work(0, 0)).total
    learnt, passes = (
        learnt_bytes(outline, precision, config, run),
        batch_bytes(outline, config, run),
    )
    free, total = free_memory(device), weights + learnt + passes
    if total <= free.bytes:
        return
    count = run.batch_size_train
    advice = "leave more parts of the model frozen, or train on a device with more"
    if weights + learnt + passes // count <= free.bytes:
        room = int((free.bytes - weights - learnt) // (passes // count))
        advice = f"run.batch_size_train: {room} fits, with a larger run.accum_grad_iters"
    elif not run.gradient_checkpointing:
        advice = "try run.gradient_checkpointing: true, and a smaller run.batch_size_train"
    raise ConfigError(
        f"training needs {format_bytes(total)} (weights {format_bytes(weights)}, what learns "
        f"{format_bytes(learnt)} more, {count} clips at a time {format_bytes(passes)}), and "
        f"{format_bytes(free.bytes)} of {free.what} are free: {advice} (the environment variable "
        f"{MEMORY_VARIABLE} says what is free, if this is wrong)"
    )


def learnt_bytes(
    outline: Outline, precision: Precision, config: ModelConfig, run: RunConfig
) -> int:
    """What the parameters that learn take more than as weights that do not."""
    outline.model.set_trainable(**parts_that_learn(config))
    each = _LEARNT + (_AVERAGED if run.ema_decay else 0)
    return sum(
        ref.tensor.numel() * (each - precision.of(ref.stored_name).itemsize)
        for ref in outline.refs
        if ref.tensor.requires_grad
    )


def batch_bytes(outline: Outline, config: ModelConfig, run: RunConfig) -> int:
    """What the clips of a batch leave for the backward pass."""
    model: Any = outline.model
    size = 2 if run.amp else 4
    text = model.language_model.config
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    positions = model.config.audio_positions() + _PROMPT + _ANSWER
    of_layer = (_INNER * inner + _WIDTH * text.hidden_size) * size
    layers = len(layers_of(model.language_model))
    kept = layers * of_layer
    if run.gradient_checkpointing:
        kept = layers * text.hidden_size * size + of_layer
    logits = 3 * _ANSWER * text.vocab_size * 4
    beats, patches = model.config.beats, model.config.patches(model.config.window_samples)
    of_encoder = beats.encoder_attention_heads * patches**2 + patches * (
        3 * beats.encoder_ffn_embed_dim + 8 * beats.encoder_embed_dim
    )
    passes = 1 if config.freeze_beats else beats.encoder_layers
    return int(run.batch_size_train * (positions * kept + logits + passes * of_encoder * size))

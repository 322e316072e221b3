"""Fixtures that make small random models in many shapes, and reference checkpoints of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from NatureLM.models import NatureLM, NatureLMConfig, NatureLMProcessor
from NatureLM.models.checkpoint.tensors import base_name, state_of

BEATS = {
    "embed_dim": 24,
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 4,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 60,
}
QFORMER = {
    "hidden_size": 40,
    "num_attention_heads": 4,
    "intermediate_size": 56,
    "max_position_embeddings": 16,
}


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `a__b` is the key b of the object a."""
    values = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            values[outer][inner] = value
        else:
            values[outer] = value
    path.write_text(json.dumps(values))


class BuildModel(Protocol):
    def __call__(self, **changes: Any) -> NatureLM: ...


@pytest.fixture(scope="session")
def build_model(nano_folder: Path) -> BuildModel:
    """Makes a random model whose LoRA matters; keyword arguments change its configuration."""

    def build(*, seed: int = 0, llama: dict[str, Any] | None = None, **changes: Any) -> NatureLM:
        tokenizer = AutoTokenizer.from_pretrained(nano_folder / "llama")
        sizes = {
            "vocab_size": len(tokenizer) + 1,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "bos_token_id": 600,
            "eos_token_id": [601, 604],
            **(llama or {}),
        }
        values: dict[str, Any] = {
            "text_config": LlamaConfig(**sizes).to_dict(),
            "beats_cfg": {**BEATS, **changes.pop("beats_cfg", {})},
            "qformer_cfg": {**QFORMER, **changes.pop("qformer_cfg", {})},
            "lora_rank": 4,
            "lora_alpha": 8,
            **changes,
        }
        config = NatureLMConfig(**values)
        torch.manual_seed(seed)
        model = NatureLM(config, NatureLMProcessor.from_config(config, tokenizer))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B" in name:
                    parameter.normal_(std=0.05)
        return model.eval()

    return build


class WriteReference(Protocol):
    def __call__(self, model: NatureLM, folder: Path, *, partial: bool = False) -> Path: ...


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows models have encoded, call by call."""
    from NatureLM.models import NatureLM

    found: list[int] = []
    encode = NatureLM.encode_audio

    def counting(model: NatureLM, wav_BS: Any, *args: Any) -> Any:
        found.append(len(wav_BS))
        return encode(model, wav_BS, *args)

    monkeypatch.setattr(NatureLM, "encode_audio", counting)
    return found


@pytest.fixture(scope="session")
def write_reference(nano_folder: Path) -> WriteReference:
    """Writes a model as the reference would: constructor arguments, tensors, a base beside it."""

    def write(model: NatureLM, folder: Path, *, partial: bool = False) -> Path:
        checkpoint, base = folder / "checkpoint", folder / "llama"
        checkpoint.mkdir(parents=True)
        _write_base(model, base, nano_folder / "llama")
        tensors = {
            name: tensor.clone()
            for name, tensor in state_of(model).items()
            if not partial or (base_name(name) is None and name != "llama_embed_tokens.weight")
        }
        save_file(tensors, checkpoint / "model.safetensors")
        config = model.config
        names = [
            *("beats_cfg", "qformer_cfg", "use_audio_Qformer", "window_level_Qformer"),
            *("num_audio_query_token", "second_per_window", "second_stride", "max_pooling"),
            *("downsample_factor", "lora", "lora_rank", "lora_alpha", "lora_dropout"),
            *("prompt_template", "max_txt_len", "end_sym"),
        ]
        arguments = {name: getattr(config, name) for name in names}
        arguments |= {"llama_path": "../llama", "device": "cpu", "freeze_beats": True}
        (checkpoint / "config.json").write_text(json.dumps(arguments))
        return checkpoint

    return write


def _write_base(model: NatureLM, base: Path, tokenizer: Path) -> None:
    """The language model without LoRA and without the row of `[PAD]`."""
    base.mkdir(parents=True)
    for file in tokenizer.glob("*token*.json"):
        shutil.copy(file, base)
    config = LlamaConfig(**model.config.text_config.to_dict())
    config.vocab_size -= 1
    language_model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    rows = config.vocab_size
    wanted = {base_name(n): t for n, t in state_of(model).items() if base_name(n)}
    wanted["model.embed_tokens.weight"] = model.llama_embed_tokens.weight
    if config.tie_word_embeddings:
        wanted["lm_head.weight"] = model.llama_embed_tokens.weight
    state = {
        name: (
            tensor[:rows] if name.endswith(("embed_tokens.weight", "lm_head.weight")) else tensor
        )
        for name, tensor in wanted.items()
    }
    language_model.load_state_dict(
        {name: tensor.detach().clone() for name, tensor in state.items()}
    )
    language_model.save_pretrained(base)

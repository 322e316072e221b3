"""The random model that speed is measured on, and the sounds and questions it is given.

BEATs in full size and a language model of 12 layers, 768 wide (126 M parameters, vocabulary
32,006), LoRA of rank 32, in float32; the tokenizer is that of the embedded model. `small` gives one
that is quick to run, to try programs with. Random weights cost what trained ones do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig

import NatureLM.models as models
from NatureLM.models import NatureLM, NatureLMConfig, NatureLMProcessor

QUERIES = (
    "What is the common name for the focal species in the audio?",
    "What is the scientific name for the focal species in the audio?",
    "Identify the focal species in the audio and provide its taxonomic name followed by a colon "
    "and its common name.",
)
LLAMA = {
    "vocab_size": 32006,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
SMALL: dict[str, Any] = {
    "text_config": {
        **LLAMA,
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "beats_cfg": {
        "embed_dim": 64,
        "encoder_layers": 2,
        "encoder_embed_dim": 96,
        "encoder_ffn_embed_dim": 192,
        "encoder_attention_heads": 4,
    },
    "qformer_cfg": {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 192},
    "lora_rank": 8,
}


class BenchmarkModel(NatureLM):
    """A model whose answers never end before their last token, unless `ends` is set.

    So every way decodes equally many tokens.
    """

    ends = False

    @property
    def eos_ids(self) -> list[int]:
        return super().eos_ids if self.ends else []


def tokenizer() -> Any:
    """That of the embedded model."""
    return AutoTokenizer.from_pretrained(Path(models.__file__).parent / "data" / "naturelm-tiny")


def config_of(sizes: dict[str, Any]) -> NatureLMConfig:
    """A configuration of these sizes; those of the language model are `text_config`."""
    return NatureLMConfig(**sizes | {"text_config": LlamaConfig(**sizes["text_config"]).to_dict()})


def with_random_weights(config: NatureLMConfig) -> BenchmarkModel:
    """A model of this configuration; the same numbers in every process."""
    torch.manual_seed(0)
    return BenchmarkModel(config, NatureLMProcessor.from_config(config, tokenizer())).eval()


def build(small: bool = False) -> BenchmarkModel:
    """A random model whose α matters and whose answers are clear."""
    model = with_random_weights(config_of(SMALL if small else {"text_config": LLAMA}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.02)  # so that α matters
            elif name.endswith("lm_head.weight"):
                parameter.mul_(10)  # so that answers are no matter of rounding
    return model


def waves(count: int, seconds: float = 10.0, seed: int = 1) -> list[Tensor]:
    """Noise (samples,) at 16 kHz, each clip its own."""
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(round(seconds * 16_000), generator=generator) for _ in range(count)]


def prompt(model: NatureLM, query: str) -> str:
    """The complete text of a question."""
    assert model.processor is not None
    return model.processor.render(query)

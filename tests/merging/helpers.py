"""What the tests of merging share: questions, adapters as files, comparing models."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from NatureLM.generation.engine import GenerationOptions
from NatureLM.merging.lora import active_alpha
from NatureLM.models import NatureLM

OPTIONS = {"max_new_tokens": 6, "num_beams": 2}


def answer_ids(
    model: NatureLM, wav: Tensor, alpha: Any = None, query: str = "Caption the audio"
) -> list[list[int]]:
    """Ids of two questions about a clip."""
    prompts = [model.processor.render(query), model.processor.render("What is it?")]
    options = GenerationOptions(**OPTIONS)  # type: ignore[arg-type]
    return model.generate_ids(prompts, [[wav], [wav]], alpha=alpha, options=options)


def last_logits(model: NatureLM, wav: Tensor, alpha: float | None = None) -> Tensor:
    """Logits after one prompt."""
    asked = nullcontext() if alpha is None else active_alpha(alpha)
    with torch.no_grad(), asked:
        embeds = model.input_embeddings([model.processor.render("What is it?")], [[wav]])[0]
        out: Tensor = model.language_model(inputs_embeds=embeds[None]).logits
    return out


def state_copy(model: NatureLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model: NatureLM, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[n], t) for n, t in before.items())


_WRITTEN: dict[str, dict[str, bytes]] = {}
"""What PEFT wrote, by what it was asked for, as files by name."""


def peft_folder(
    base: Path, folder: Path, *, seed: int = 3, strength: float = 0.1, **settings: Any
) -> Path:
    """An adapter of the base language model, made and written by PEFT itself, each kind once."""
    asked = repr((base, seed, strength, settings))
    if asked not in _WRITTEN:
        _write_adapter(base, folder, seed, strength, settings)
        _WRITTEN[asked] = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in _WRITTEN[asked].items():
        (folder / name).write_bytes(data)
    return folder


def _write_adapter(
    base: Path, folder: Path, seed: int, strength: float, settings: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    values = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **settings}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **values)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=strength)
    model.save_pretrained(folder, save_embedding_layers=False)

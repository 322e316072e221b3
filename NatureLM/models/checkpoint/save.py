"""Writing a model: config, tokenizer and safetensors in one folder.

Tensors carry the reference's names, shared ones stand once under the first of their names, so the
file also reads as a reference checkpoint. Each file is written beside its place and then moved
there, so that a broken write never stands under a good name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from NatureLM.models.checkpoint.names import slots
from NatureLM.models.checkpoint.tensors import INDEX_SUFFIX
from NatureLM.whole import whole_file

if TYPE_CHECKING:
    from NatureLM.models.modeling import NatureLM


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """All tensors of a model by stored name, each once."""
    return {slot.stored_name: slot.tensor.detach() for slot in slots(model)}


def save_model(model: NatureLM, folder: Path, *, max_shard_size: str | int = "5GB") -> None:
    """See `NatureLM.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(state_of(model), folder, max_shard_size=max_shard_size)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.language_model.generation_config.save_pretrained(folder)
    if model.processor is not None:
        model.processor.save_pretrained(folder)


def write_tensors(
    tensors: dict[str, Tensor], folder: Path, *, max_shard_size: str | int = "5GB"
) -> None:
    """Write tensors as `model.safetensors`, or as shards with an index; old weights go."""
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=max_shard_size)
    for name, members in split.filename_to_tensors.items():
        shard = {member: tensors[member].contiguous() for member in members}
        _replace(folder / name, partial(save_file, shard, metadata={"format": "pt"}))
    index_name = f"model{INDEX_SUFFIX}"
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True)
        _replace(folder / index_name, lambda path: path.write_text(text))
    written = {*split.filename_to_tensors, *([index_name] if split.is_sharded else [])}
    for old in (*folder.glob("model*.safetensors"), *folder.glob(f"model*{INDEX_SUFFIX}")):
        if old.name not in written:
            old.unlink()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    with whole_file(path, alone=True) as unfinished:
        write(unfinished)
        unfinished.chmod(0o644)  # safetensors writes for the owner only; models are shared

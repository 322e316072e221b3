"""Writing a model: config, tokenizer and safetensors in one folder, tensor by tensor.

A file's header comes first, then each tensor as it is made, so that memory holds one at a time.
Tensors carry the reference's names, shared ones stand once under the first of their names, so the
file also reads as a reference checkpoint. Each file is written beside its place and then moved
there, so that a broken write never stands under a good name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from NatureLM.models.checkpoint.tensors import (
    DTYPE_CODES,
    INDEX_SUFFIX,
    CheckpointError,
    tensor_refs,
)
from NatureLM.util import atomic_write

if TYPE_CHECKING:
    from NatureLM.models.modeling import NatureLM


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written: its dtype and shape, and how it is made when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def save_model(model: NatureLM, folder: Path, *, max_shard_size: str | int = "5GB") -> None:
    """See `NatureLM.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(state_of(model), folder, max_shard_size=max_shard_size)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.language_model.generation_config.save_pretrained(folder)
    if model.processor is not None:
        model.processor.save_pretrained(folder)


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """All tensors of a model by stored name, each once."""
    return {ref.stored_name: ref.tensor.detach() for ref in tensor_refs(model)}


def write_tensors(
    tensors: Mapping[str, Tensor | LazyTensor],
    folder: Path,
    *,
    max_shard_size: str | int = "5GB",
    on_file: Callable[[str, int], None] | None = None,
) -> None:
    """Write tensors as `model.safetensors`, or as shards with an index; old weights go.

    on_file: is told of each file's name and size in bytes before it is written
    """
    outline = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in tensors.items()
    }
    split = split_torch_state_dict_into_shards(outline, max_shard_size=max_shard_size)
    written = set(split.filename_to_tensors)
    for name, members in split.filename_to_tensors.items():
        if on_file is not None:
            on_file(name, sum(tensors[member].nbytes for member in members))
        write_file({member: tensors[member] for member in members}, folder / name)
    if split.is_sharded:
        index_name = f"model{INDEX_SUFFIX}"
        written.add(index_name)
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        with atomic_write(folder / index_name, alone=True) as unfinished:
            unfinished.write_text(json.dumps(index, indent=2, sort_keys=True))
    for old in (*folder.glob("model*.safetensors"), *folder.glob(f"model*{INDEX_SUFFIX}")):
        if old.name not in written:
            old.unlink()


def write_file(tensors: Mapping[str, Tensor | LazyTensor], path: Path) -> None:
    """One safetensors file, as the library writes it: length of the header, header, bytes.

    Wide dtypes come first, so that every tensor starts at a multiple of its item size.
    """
    for name, one in tensors.items():
        if one.dtype not in DTYPE_CODES:
            raise CheckpointError(f"{path}: tensor {name} has dtype {one.dtype}, unsupported")
    rank = {dtype: number for number, dtype in enumerate(DTYPE_CODES)}
    ordered = sorted(tensors.items(), key=lambda item: (-rank[item[1].dtype], item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, one in ordered:
        start, end = end, end + one.nbytes
        header[name] = {
            "dtype": DTYPE_CODES[one.dtype],
            "shape": list(one.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path, alone=True) as unfinished, unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, one in ordered:
            # A copy: a storage that numpy has seen cannot be freed, as FSDP does with its own.
            tensor = one.make() if isinstance(one, LazyTensor) else one.to("cpu", copy=True)
            assert tensor.shape == one.shape, f"{name}: {tensor.shape}, planned {one.shape}"
            assert tensor.dtype == one.dtype, f"{name}: {tensor.dtype}, planned {one.dtype}"
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            flat.view(torch.uint8).numpy().tofile(file)
            del tensor, flat

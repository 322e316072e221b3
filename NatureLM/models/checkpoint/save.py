"""Writing safetensors tensor by tensor: a file's header first, then each tensor as it is made.

Memory holds one tensor at a time, whatever the size of the files.

Writing a model: config, tokenizer and safetensors in one folder.

Tensors carry the reference's names, shared ones stand once under the first of their names, so the
file also reads as a reference checkpoint. Each file is written beside its place and then moved
there, so that a broken write never stands under a good name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from NatureLM.models.checkpoint.tensors import INDEX_SUFFIX, dtype_code, slots
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
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stream_tensors(
    planned: Mapping[str, LazyTensor],
    folder: Path,
    *,
    max_shard_size: str | int = "5GB",
    on_file: Callable[[str, int], None] | None = None,
) -> None:
    """Write tensors to `model.safetensors`, or to shards with an index.

    on_file: is told of each file's name and size in bytes before it is written
    """
    outline = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in planned.items()
    }
    split = split_torch_state_dict_into_shards(outline, max_shard_size=max_shard_size)
    for name, members in split.filename_to_tensors.items():
        shard = {member: planned[member] for member in members}
        if on_file is not None:
            on_file(name, sum(one.size for one in shard.values()))
        _write_file(folder / name, shard)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        path = folder / f"model{INDEX_SUFFIX}"
        path.write_text(json.dumps(index, indent=2, sort_keys=True))


def _write_file(path: Path, planned: Mapping[str, LazyTensor]) -> None:
    """One safetensors file: length of the header, header, bytes (the format of Hugging Face).

    Wide dtypes come first, so that every tensor starts at a multiple of its item size.
    """
    ordered = sorted(planned.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, one in ordered:
        start, end = end, end + one.size
        header[name] = {
            "dtype": dtype_code(one.dtype),
            "shape": list(one.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, one in ordered:
            tensor = one.make()
            assert tensor.shape == one.shape, f"{name}: {tensor.shape}, planned {one.shape}"
            assert tensor.dtype == one.dtype, f"{name}: {tensor.dtype}, planned {one.dtype}"
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            flat.view(torch.uint8).numpy().tofile(file)
            del tensor, flat


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
    with atomic_write(path, alone=True) as unfinished:
        write(unfinished)
        unfinished.chmod(0o644)  # safetensors writes for the owner only; models are shared

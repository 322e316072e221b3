"""Tensors in safetensors files: an index over one or many files, and reading with little memory.

Tensors whose dtype and device stay are mapped from the file and used in place. Others are read in
blocks and cast on the way, so that a cast load never holds a second copy.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from NatureLM.models.checkpoint.errors import CheckpointError

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_BLOCK_BYTES = 16 * 2**20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def dtype_code(dtype: torch.dtype) -> str:
    """What safetensors calls a dtype; KeyError for one that it does not know."""
    return {kind: code for code, kind in _DTYPES.items()}[dtype]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, dtype, shape and first byte."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor in `dtype` on `device`; integer tensors keep their dtype."""
        wanted = dtype if self.dtype.is_floating_point else self.dtype
        if wanted == self.dtype and device.type == "cpu":
            with safe_open(self.path, framework="pt") as file:
                mapped: Tensor = file.get_tensor(self.name)
            return mapped
        return self._read_blocks(wanted, device)

    def _read_blocks(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.empty(self.shape, dtype=dtype, device=device)
        flat = out.view(-1)
        per_block = _BLOCK_BYTES // self.dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for first in range(0, flat.numel(), per_block):
                count = min(per_block, flat.numel() - first)
                buffer = bytearray(file.read(count * self.dtype.itemsize))
                flat[first : first + count] = torch.frombuffer(buffer, dtype=self.dtype)
        return out


def index_folder(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's safetensors files, by name; single or sharded.

    Raises `CheckpointError` when there are none, when a shard is absent or a file is cut short.
    """
    files = _weight_files(folder)
    index: dict[str, StoredTensor] = {}
    for file in files:
        index.update((tensor.name, tensor) for tensor in read_header(file))
    return index


def _weight_files(folder: Path) -> list[Path]:
    for index_file in sorted(folder.glob(f"*{INDEX_SUFFIX}")):
        names = sorted(set(json.loads(index_file.read_text())["weight_map"].values()))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{index_file} names shards that are not there: {', '.join(absent)}; "
                "copy or download them into the same folder"
            )
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(pickle_refusal(pickles[0]))
    raise CheckpointError(f"{folder} holds no model.safetensors (nor shards with an index)")


def pickle_refusal(path: Path) -> str:
    """Why a pickle is not opened, and what to do."""
    return (
        f"{path} is a pickle file, which can run code when it is opened; only safetensors are "
        f"loaded. If you trust its origin, convert it once:\n"
        f"  naturelm convert {path} OUTPUT_FOLDER --allow-pickle"
    )


def read_header(path: Path) -> Iterable[StoredTensor]:
    """The tensors of one safetensors file, checked against its length."""
    try:
        with safe_open(path, framework="pt"):  # checks the header and the length of the file
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); it may be cut short or be the text "
            "of a pointer (Git LFS): copy or download it again"
        ) from None
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {name} has dtype {entry['dtype']}, unsupported")
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        assert end - start == math.prod(shape) * dtype.itemsize
        tensors.append(StoredTensor(name, path, dtype, shape, 8 + length + start))
    return tensors

"""Tensors of a model and tensors in safetensors files, and the names that they go by.

`TensorRef` is one tensor of a model, with every name and place that share it; `StoredTensor` is one
in a file. Tensors whose dtype and device stay are mapped from the file and used in place; others
are read in blocks and cast on the way, so that a cast load never holds a second copy.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from NatureLM.errors import NatureLMError
from NatureLM.util import digest

T = TypeVar("T")

LANGUAGE_MODEL_PREFIXES = ("llama_model.base_model.model.", "llama_model.")
INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
DTYPE_CODES = {  # in safetensors' own order: files hold the last of these first
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}
_READ_BYTES = 16 * 2**20
_UNUSED = (
    re.compile(r"^beats\.predictor\."),
    re.compile(r"^audio_Qformer\.bert\.embeddings\.(position_ids|word_embeddings|position_emb)"),
    re.compile(r"^audio_Qformer\.cls\."),
    re.compile(r"\.rotary_emb\.inv_freq$"),
)


class CheckpointError(NatureLMError):
    """A checkpoint cannot be found, read, or does not fit its configuration."""


# -- tensors of a model ---------------------------------------------------------------------


@dataclass(frozen=True)
class TensorRef:
    """One tensor of a model: every (module, attribute) that holds it and every name it goes by."""

    names: tuple[str, ...]
    holders: tuple[tuple[nn.Module, str], ...]
    shape: tuple[int, ...]
    is_buffer: bool

    @property
    def stored_name(self) -> str:
        """The name under which a checkpoint stores it: the first in sorted order."""
        return self.names[0]

    @property
    def base_names(self) -> list[str]:
        """What the base language model's checkpoint may call it; empty if it is not of it."""
        return [own for name in self.names if (own := base_name(name)) is not None]

    @property
    def tensor(self) -> Tensor:
        module, attribute = self.holders[0]
        value: Tensor = getattr(module, attribute)
        return value

    def fill(self, tensor: Tensor) -> None:
        """Put `tensor` in all places, as one parameter (which keeps learning or not) or buffer."""
        if self.is_buffer:
            for module, attribute in self.holders:
                module._buffers[attribute] = tensor
            return
        learns = self.tensor.requires_grad and tensor.is_floating_point()
        parameter = nn.Parameter(tensor, requires_grad=learns)
        for module, attribute in self.holders:
            module._parameters[attribute] = parameter


def tensor_refs(model: nn.Module) -> list[TensorRef]:
    """All tensors of a model's state, shared ones once."""
    found: dict[int, dict[str, tuple[nn.Module, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        held = {**module._parameters, **module._buffers}
        for attribute, tensor in held.items():
            if tensor is not None and attribute not in module._non_persistent_buffers_set:
                name = f"{path}.{attribute}" if path else attribute
                found.setdefault(id(tensor), {})[name] = (module, attribute)
    return [_tensor_ref(holders) for holders in found.values()]


def _tensor_ref(holders: dict[str, tuple[nn.Module, str]]) -> TensorRef:
    names = tuple(sorted(holders))
    module, attribute = holders[names[0]]
    return TensorRef(
        names=names,
        holders=tuple(dict.fromkeys(holders[name] for name in names)),
        shape=tuple(getattr(module, attribute).shape),
        is_buffer=attribute in module._buffers,
    )


def first_of(tensors: Mapping[str, T], names: Iterable[str]) -> T | None:
    """The tensor of the first name that is there."""
    return next((tensors[name] for name in names if name in tensors), None)


def is_unused(name: str) -> bool:
    """Whether the reference's checkpoints hold a tensor of this name that nothing computes with."""
    return any(pattern.search(name) for pattern in _UNUSED)


def base_name(name: str) -> str | None:
    """What the base language model's own checkpoint calls a tensor; None if it is not of it."""
    if ".lora_" in name:
        return None
    for prefix in LANGUAGE_MODEL_PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :].replace(".base_layer.", ".")
    return None


def of_language_model(name: str) -> bool:
    """Whether a tensor plays no part in encoding audio."""
    return name.startswith(("llama_model.", "llama_embed_tokens."))


def part_dtype(name: str, explicit: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a tensor: as asked; else float32, and on accelerators bfloat16 for the
    language model, as the published model runs."""
    if explicit is not None:
        return explicit
    if of_language_model(name) and device.type != "cpu":
        return torch.bfloat16
    return torch.float32


# -- tensors in files -----------------------------------------------------------------------


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
        out = torch.empty(self.shape, dtype=wanted, device=device)
        flat = out.view(-1)
        per_block = _READ_BYTES // self.dtype.itemsize
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
    return {tensor.name: tensor for file in _weight_files(folder) for tensor in read_header(file)}


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


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError for a file without one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None


def first_line(error: Exception) -> str:
    """What an error says, in its first line; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def pickle_refusal(path: Path) -> str:
    """Why a pickle is not opened, and what to do."""
    return (
        f"{path} is a pickle file, which can run code when it is opened; only safetensors are "
        f"loaded. If you trust its origin, convert it once:\n"
        f"  naturelm convert {path} OUTPUT_FOLDER --allow-pickle"
    )


def read_header(path: Path) -> list[StoredTensor]:
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
    header.pop("__metadata__", None)
    tensors = []
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {name} has dtype {entry['dtype']}, unsupported")
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        start, end = entry["data_offsets"]
        assert end - start == math.prod(shape) * dtype.itemsize
        tensors.append(StoredTensor(name, path, dtype, shape, 8 + length + start))
    return tensors


_SAMPLE_BYTES = 64 * 2**10
_SAMPLES = 256  # files up to 16 MiB are read whole, larger ones at evenly spaced places


def fingerprint(files: Iterable[Path]) -> str:
    """Hexadecimal digest of files' names, sizes and contents (of large files, 256 places and the
    header); it changes with any other model, not with the folder that the files lie in."""
    # Sorted by what they hold: a checkpoint and its base may each have a model.safetensors.
    digests = sorted(digest(_sampled(path)).hex() for path in set(files))
    return digest("".join(digests), size=8).hex()


def _sampled(path: Path) -> Iterator[str | bytes]:
    size = path.stat().st_size
    yield f"{path.name}:{size};"
    with path.open("rb") as file:
        for offset in range(0, size, max(_SAMPLE_BYTES, size // _SAMPLES)):
            file.seek(offset)
            yield file.read(_SAMPLE_BYTES)

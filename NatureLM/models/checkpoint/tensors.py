"""What can be wrong with a checkpoint, said in one report.

Names of tensors: which are one tensor under several names, which may be absent, what the base
language model calls them.

A short name for exact weights, cheap enough to make at every load.

Tensors in safetensors files: an index over one or many files, and reading with little memory.

Tensors whose dtype and device stay are mapped from the file and used in place. Others are read in
blocks and cast on the way, so that a cast load never holds a second copy.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from NatureLM.errors import NatureLMError
from NatureLM.util import digest

_SHOWN = 12


class CheckpointError(NatureLMError):
    """A checkpoint cannot be found, read, or does not fit its configuration."""


@dataclass
class FitReport:
    """Tensors that a model needs and a checkpoint lacks, holds too many of, or in another shape."""

    source: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)

    def raise_if_bad(self) -> None:
        """Refuse the load when anything is listed; nothing is ever loaded short."""
        if not (self.missing or self.unexpected or self.misshapen):
            return
        sections = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshapen),
        )
        lines = [f"{self.source} does not fit its configuration; nothing was loaded."]
        lines += [
            f"  {len(names)} tensors {title}: {_listed(names)}"
            for title, names in sections
            if names
        ]
        raise CheckpointError("\n".join(lines))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    more = len(names) - _SHOWN
    return shown + (f", and {more} more" if more > 0 else "")


LANGUAGE_MODEL_PREFIXES = ("llama_model.base_model.model.", "llama_model.")
_UNUSED = (
    re.compile(r"^beats\.predictor\."),
    re.compile(r"^audio_Qformer\.bert\.embeddings\.(position_ids|word_embeddings|position_emb)"),
    re.compile(r"^audio_Qformer\.cls\."),
    re.compile(r"\.rotary_emb\.inv_freq$"),
)


@dataclass(frozen=True)
class TensorRef:
    """One tensor of a model: every (module, attribute) that holds it and every name it goes by."""

    names: tuple[str, ...]
    places: tuple[tuple[nn.Module, str], ...]
    shape: tuple[int, ...]
    is_buffer: bool

    @property
    def stored_name(self) -> str:
        """The name under which a checkpoint stores it: the first in sorted order."""
        return self.names[0]

    @property
    def tensor(self) -> Tensor:
        module, attribute = self.places[0]
        value: Tensor = getattr(module, attribute)
        return value

    def fill(self, tensor: Tensor) -> None:
        """Put `tensor` in all places, as one parameter (which keeps learning or not) or buffer."""
        if self.is_buffer:
            for module, attribute in self.places:
                module._buffers[attribute] = tensor
            return
        learns = self.tensor.requires_grad and tensor.is_floating_point()
        parameter = nn.Parameter(tensor, requires_grad=learns)
        for module, attribute in self.places:
            module._parameters[attribute] = parameter


def slots(model: nn.Module) -> list[TensorRef]:
    """All tensors of a model's state, shared ones once."""
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        held = [(a, p) for a, p in module._parameters.items() if p is not None]
        held += [
            (a, b)
            for a, b in module._buffers.items()
            if b is not None and a not in module._non_persistent_buffers_set
        ]
        for attribute, tensor in held:
            places.setdefault(id(tensor), []).append((prefix + attribute, module, attribute))
    return [_slot(found) for found in places.values()]


def _slot(found: list[tuple[str, nn.Module, str]]) -> TensorRef:
    found = sorted(found, key=lambda entry: entry[0])
    _, module, attribute = found[0]
    tensor = getattr(module, attribute)
    unique = {(id(m), a): (m, a) for _, m, a in found}
    return TensorRef(
        names=tuple(name for name, _, _ in found),
        places=tuple(unique.values()),
        shape=tuple(tensor.shape),
        is_buffer=attribute in module._buffers,
    )


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
    """Whether a tensor plays no part in hearing."""
    return name.startswith(("llama_model.", "llama_embed_tokens."))


def part_dtype(name: str, explicit: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of a tensor: as asked; else float32, and on accelerators bfloat16 for the
    language model, as the published model runs."""
    if explicit is not None:
        return explicit
    if of_language_model(name) and device.type != "cpu":
        return torch.bfloat16
    return torch.float32


_BLOCK = 64 * 2**10
_BLOCKS = 256  # files up to 16 MiB are read whole, larger ones at evenly spaced places


def fingerprint(files: Iterable[Path]) -> str:
    """Hexadecimal digest of files' names, sizes and contents (of large files, 256 places and the
    header); it changes with any other model, not with the folder that the files lie in."""
    # Sorted by what they hold: a checkpoint and its base may each have a model.safetensors.
    digests = sorted(_file_digest(path) for path in set(files))
    return digest("".join(digests), size=8).hex()


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    step = max(_BLOCK, size // _BLOCKS)

    def contents() -> Iterator[str | bytes]:
        yield f"{path.name}:{size};"
        with path.open("rb") as file:
            for offset in range(0, size, step):
                file.seek(offset)
                yield file.read(_BLOCK)

    return digest(contents()).hex()


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

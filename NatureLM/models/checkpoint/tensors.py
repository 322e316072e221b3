"""Tensors of a model and tensors in safetensors files, the names that they go by, and writing them.

`TensorRef` is one tensor of a model, with every name and place that share it; `StoredTensor` is one
in a file, mapped from it and used in place where its dtype and device stay; `LazyTensor` is one
that is made when its turn to be written comes. So memory holds one tensor more than it must.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from NatureLM.config.schema import Quantization
from NatureLM.generation.audio_cache import tensor_bytes
from NatureLM.models.quantized import CardInt4Linear
from NatureLM.models.registry import PICKLE_SUFFIXES, CheckpointError, pickle_refusal, read_json
from NatureLM.util import atomic_write, digest, format_bytes, shown

T = TypeVar("T")

LANGUAGE_MODEL_PREFIXES = ("llama_model.base_model.model.", "llama_model.")
INDEX_SUFFIX = ".safetensors.index.json"
_SHARD = re.compile(r"\w[\w.+= -]*\.safetensors")
# Models of today have up to 1,000 tensors for each 10 layers, in a header of 100 bytes for each.
_HEADER_BYTES = 4 << 20
_MOST_TENSORS = 100_000
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
_UNUSED = re.compile(
    r"^beats\.predictor\.|^audio_Qformer\.cls\.|\.rotary_emb\.inv_freq$"
    r"|^audio_Qformer\.bert\.embeddings\.(position_ids|word_embeddings|position_emb)"
)

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
    refs = []
    for by_name in found.values():
        names = tuple(sorted(by_name))
        holders = tuple(dict.fromkeys(by_name[name] for name in names))
        module, attribute = holders[0]
        shape = tuple(getattr(module, attribute).shape)
        refs.append(TensorRef(names, holders, shape, attribute in module._buffers))
    return refs


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of a model by stored name, each once, in the layout of files."""
    return {ref.stored_name: _as_stored(ref) for ref in tensor_refs(model)}


def _as_stored(ref: TensorRef) -> Tensor:
    module, attribute = ref.holders[0]
    if isinstance(module, CardInt4Linear) and attribute in ("weight", module.scale_name):
        return module.as_stored(attribute)
    return ref.tensor.detach()


def first_of(tensors: Mapping[str, T], names: Iterable[str]) -> T | None:
    """The tensor of the first name that is there."""
    return next((tensors[name] for name in names if name in tensors), None)


def is_unused(name: str) -> bool:
    """Whether the reference's checkpoints hold a tensor of this name that nothing computes with."""
    return _UNUSED.search(name) is not None


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


@dataclass(frozen=True)
class Precision:
    """The dtypes of the language model's weights and of the audio side's.

    kind: of the integers that matrices of the language model are, if they are
    """

    language: torch.dtype
    audio: torch.dtype
    kind: Quantization | None = None

    @property
    def name(self) -> str:
        return self.kind or str(self.language).removeprefix("torch.")

    def of(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.language if of_language_model(name) else self.audio


def precision_of(
    dtype: torch.dtype | None, device: torch.device, kind: Quantization | None = None
) -> Precision:
    """As asked; else float32, and for the language model bfloat16 on accelerators, as the published
    model runs, and wherever it is quantised: the quick products of processors with integers take
    it, and it was small memory that was asked for."""
    if dtype is not None:
        return Precision(dtype, dtype, kind)
    half = kind is not None or device.type != "cpu"
    return Precision(torch.bfloat16 if half else torch.float32, torch.float32, kind)


# -- tensors in files -----------------------------------------------------------------------


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, dtype and shape."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self, dtype: torch.dtype, device: torch.device, *, to_keep: bool = True) -> Tensor:
        """The tensor in `dtype` on `device`; integer tensors keep their dtype.

        to_keep: whether it stays in use, and not only what is made of it
        """
        target = dtype if self.dtype.is_floating_point else self.dtype
        open_files = _open_files.get() if to_keep else None
        is_used_in_place = target == self.dtype and device.type == "cpu"
        if open_files is not None and (is_used_in_place or _is_small(self.path)):
            if self.path not in open_files:
                open_files[self.path] = safe_open(self.path, framework="pt")
            mapped: Tensor = open_files[self.path].get_tensor(self.name)
            return mapped.to(device, target)
        with safe_open(self.path, framework="pt") as file:
            mapped = file.get_tensor(self.name)
        return mapped.to(device, target)


def _is_small(path: Path) -> bool:
    """Whether to open a file once for all its tensors takes little memory, and saves time."""
    return path.stat().st_size <= 2**26


_open_files: ContextVar[dict[Path, Any] | None] = ContextVar("naturelm_open_files", default=None)


@contextmanager
def files_mapped_once() -> Iterator[None]:
    """Within the block, tensors that are used in place share one mapping of their file.

    Each would have one of the whole file otherwise, and limits of the address space (`ulimit -v`)
    count them all. What is only read on the way from a large file has its own, so that its pages
    leave memory.
    """
    token = _open_files.set({})
    try:
        yield
    finally:
        _open_files.reset(token)


def index_folder(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's safetensors files, by name; single or sharded.

    Raises `CheckpointError` when there are none, when a shard is absent or a file is cut short.
    """
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        _check_link(folder, file)
        found |= {tensor.name: tensor for tensor in read_header(file)}
        if len(found) > _MOST_TENSORS:
            raise CheckpointError(f"{folder} holds more than {_MOST_TENSORS:,} tensors: too many")
    return found


def _weight_files(folder: Path) -> list[Path]:
    for index_file in sorted(folder.glob(f"*{INDEX_SUFFIX}")):
        shards = read_json(index_file).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else []
        for name in names or [shards]:
            if not (isinstance(name, str) and _SHARD.fullmatch(name) and len(name.encode()) < 256):
                raise CheckpointError(
                    f"{index_file}: weight_map must give each tensor the name of a .safetensors "
                    f"file in the same folder, got {shown(name)}"
                )
        absent = [name for name in sorted(set(names)) if not (folder / name).is_file()]
        if absent:
            more = f" and {len(absent) - 8} more" if absent[8:] else ""
            raise CheckpointError(
                f"{index_file} names shards that are not there: {', '.join(absent[:8])}{more}; "
                "copy or download them into the same folder"
            )
        return [folder / name for name in sorted(set(names))]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickles = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        raise CheckpointError(pickle_refusal(pickles[0]))
    raise CheckpointError(f"{folder} holds no model.safetensors (nor shards with an index)")


def _check_link(folder: Path, path: Path) -> None:
    """Refuse a link out of the folder that is none of Hugging Face's cache, which links to
    `blobs/…` for every file."""
    real = path.resolve()
    if not real.is_relative_to(folder.resolve()) and "blobs" not in real.parts[-3:-1]:
        raise CheckpointError(
            f"{path} is a link out of its folder, to {real}; copy the file into the folder, or "
            "link the folder as a whole"
        )


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, checked against its length."""
    try:
        with path.open("rb") as start:
            if (length := int.from_bytes(start.read(8), "little")) > _HEADER_BYTES:
                raise ValueError(f"its header would have {length:,} bytes, and 4 MiB are read")
        with safe_open(path, framework="pt") as file:
            slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
            found = [(name, one.get_dtype(), tuple(one.get_shape())) for name, one in slices]
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({error}); it may be cut short or be the text "
            "of a pointer (Git LFS): copy or download it again"
        ) from None
    for name, code, _ in found:
        if code not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {name} has dtype {code}, unsupported")
    return [StoredTensor(name, path, _DTYPES[code], shape) for name, code, shape in found]


_SAMPLE_BYTES = 64 * 2**10
_SAMPLES = 256  # files up to 16 MiB are read whole, larger ones at evenly spaced places


def fingerprint(files: Iterable[Path], *, whole: bool = False) -> str:
    """Hexadecimal digest of files' names, sizes and contents (of large files, 256 places and the
    header); it changes with any other model, not with the folder that the files lie in.

    whole: of every byte, as SHA-256 in 64 digits, in place of 16
    """
    # Sorted by what they hold: a checkpoint and its base may each have a model.safetensors.
    digests = sorted(digest(_sampled(path, whole)).hex() for path in set(files))
    return digest("".join(digests), size=32 if whole else 8).hex()


def _sampled(path: Path, whole: bool) -> Iterator[str | bytes]:
    size = path.stat().st_size
    yield f"{path.name}:{size};"
    with path.open("rb") as file:
        step = _SAMPLE_BYTES if whole else max(_SAMPLE_BYTES, size // _SAMPLES)
        for offset in range(0, size, step):
            file.seek(offset)
            yield file.read(_SAMPLE_BYTES)


# -- writing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written: its dtype and shape, and how it is made when its turn comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_tensors(
    tensors: Mapping[str, Tensor | LazyTensor],
    folder: Path,
    *,
    max_shard_size: str | int = "5GB",
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Write tensors as `model.safetensors`, or as shards with an index; old weights go.

    Shared tensors stand under the first of their names, so that the files also read as a checkpoint
    of the reference. Each file is written beside its place and then moved there.

    report: takes a line for each file before it is written
    """
    outline = {
        name: torch.empty(one.shape, dtype=one.dtype, device="meta")
        for name, one in tensors.items()
    }
    split = split_torch_state_dict_into_shards(outline, max_shard_size=max_shard_size)
    written = set(split.filename_to_tensors)
    for name, members in split.filename_to_tensors.items():
        size = sum(tensors[member].nbytes for member in members)
        report(f"writing {name} ({format_bytes(size)})")
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
    """One safetensors file, as the library writes it, but tensor by tensor as they are made.

    The length of the header comes first, then the header, then the bytes. Wide dtypes come first,
    so that every tensor starts at a multiple of its item size.
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
    # Integers are used where they lie, by products of torch that ask for memory so aligned.
    is_quantized = any(one.dtype in (torch.int8, torch.uint8) for one in tensors.values())
    text += b" " * (-(len(text) + 8) % (64 if is_quantized else 8))
    with atomic_write(path, alone=True) as unfinished, unfinished.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, one in ordered:
            # A copy: a storage that numpy has seen cannot be freed, as FSDP does with its own.
            tensor = one.make() if isinstance(one, LazyTensor) else one.to("cpu", copy=True)
            assert tensor.shape == one.shape, f"{name}: {tensor.shape}, planned {one.shape}"
            assert tensor.dtype == one.dtype, f"{name}: {tensor.dtype}, planned {one.dtype}"
            file.write(tensor_bytes(tensor))
            del tensor

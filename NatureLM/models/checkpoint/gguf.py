"""Base language models in GGUF files: converted once to a folder of safetensors, loaded from there.

The folder lies in the cache, by a hash of the file, so that a changed file is converted anew. One
tensor is in memory at a time. Weights of few bits become bfloat16, which is far finer than their
rounding; `--quantize` takes them to integers again.

Headers are read with care: nothing of a stranger's file is believed that does not fit the file's
own length. A header has keys with values, among them the tokenizer's vocabulary, and each tensor's
name, shape, kind and place. Strings and arrays are passed over and found again when they are asked
for.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from NatureLM.config.model import MOST_LAYERS
from NatureLM.models.checkpoint.tensors import LazyTensor, fingerprint, write_tensors
from NatureLM.models.registry import CheckpointError, cache_home, find_base, one_line
from NatureLM.util import digest, file_sha256, format_bytes, library, shown, write_json

logger = logging.getLogger(__name__)

INSTALL = "GGUF files need the package gguf: pip install 'naturelm-audio[gguf]'"
_HEADER_BYTES = 40_000_000  # a vocabulary of 256,000 has 14 MB
_MOST = 10_000  # keys, and tensors: Llama 3.1 405B has 1,137
_MOST_STRINGS = 1_000_000  # of arrays: 256,000 tokens have twice as many merges
_LENGTH = struct.Struct("<Q")
_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_FORMAT = 1  # of what is written here; another one is another folder
_RECORD = "gguf.json"  # written last: a folder without it is not whole
_CHUNK_BYTES = 64 << 20  # of float32, while blocks of few bits are read
_DTYPES = {"F32": torch.float32, "F64": torch.float32, "F16": torch.float16}
_TOKENIZER = "tokenizer.json"
_BESIDE = (_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_TOKENIZER_BYTES = 40_000_000
_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # of Llama 3.1, 3.2 and 3.3
_ROPE_POSITIONS = 8192
# Keys of an architecture that are read, and those that change nothing.
_KNOWN = {
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "expert_count", "expert_used_count"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"),
}
_LLAMA3 = ("llama-bpe", "llama-v3", "llama3")
_LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT = r"\p{N}"
SPLITS = {"gpt-2": None, "smollm": _DIGIT, **dict.fromkeys(_LLAMA3, _LLAMA3_PATTERN)}
"""By llama.cpp's name: how a byte-level vocabulary cuts strings before its merges act, beside what
GPT-2 does; Llama 3 has a pattern in place of that."""
_CONTROL, _ADDED = 3, 4  # kinds of tokens that are never made by merges


def base_folder(named: str | Path | None, checkpoint: Path, *, weights: bool) -> Path:
    """`find_base`; for a GGUF file the folder that it is converted to.

    Without `weights` only the configuration and the tokenizer are sure to be there.
    """
    found = find_base(named, checkpoint, weights=weights)
    return found if found.is_dir() else convert_gguf(found, weights=weights)


def convert_gguf(path: Path, *, weights: bool) -> Path:
    """The folder with what a GGUF file holds, which is made where it is not there yet.

    Raises CheckpointError for a file that is no Llama, or none that can be read.
    """
    header = read_gguf_header(path)
    config = llama_config(header)
    plan = plan_tensors(header, config)
    beside = _tokenizer_beside(header)
    # All that decides what is written but for numbers between 256 places.
    parts = [str(_FORMAT), fingerprint([path]), header.data, *(one.read_bytes() for one in beside)]
    name = f"{path.stem[:80]}-{digest(parts, size=8).hex()}"
    folder = cache_home() / "gguf" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").is_file():
                _write_tokenizer(header, beside, folder)
                write_json(folder / "generation_config.json", _ends(header, config))
                write_json(folder / "config.json", config)
            if weights and not _is_same_file(path, folder):
                _write_weights(header, plan, folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: {path.name} cannot be converted there ({error.strerror or error}); set "
            "NATURELM_CACHE to another folder"
        ) from None
    return folder


# -- the header ------------------------------------------------------------------------------


class _BrokenHeaderError(ValueError):
    """What is wrong with a header, as the end of a sentence."""


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in the file: rows of blocks, each of some numbers in some bytes."""

    name: str
    kind: str  # F16, Q4_K and so on
    code: int  # that of the kind in gguf's GGMLQuantizationType
    shape: tuple[int, ...]  # as torch has it: rows first
    offset: int  # from where the tensors begin
    row_bytes: int

    @property
    def rows(self) -> int:
        """A vector counts as one row."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of itself. Of an array `values` has the place; see `strings`."""

    path: Path
    data: bytes
    values: dict[str, Any]
    tensors: dict[str, GGUFTensor]
    start: int  # of the tensors' bytes

    def refuse(self, what: str) -> CheckpointError:
        """The error that says what is wrong with the file."""
        return CheckpointError(f"{self.path}: {what}")

    def number(
        self, key: str, default: float | None = None, *, least: float = 1, most: float = 2**31
    ) -> float:
        """A number of the header within bounds; raises CheckpointError for any other value."""
        value: Any = self.values.get(key, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise self.refuse(
                f"{key} is {shown(value)}, and it must be a number from {least:,} to {most:,}"
            )
        return float(value)

    def size(
        self, key: str, default: int | None = None, *, least: int = 1, most: int = 2**31
    ) -> int:
        """A whole number within bounds."""
        value = self.number(key, default, least=least, most=most)
        if value != int(value):
            raise self.refuse(f"{key} is {value:g}, and it must be a whole number")
        return int(value)

    def text(self, key: str, default: str | None = None) -> str | None:
        """A string, or the default where there is none."""
        value = self.values.get(key, default)
        if not isinstance(value, str | None):
            raise self.refuse(f"{key} is {shown(value)}, and it must be a string")
        return value

    def strings(self, key: str) -> list[str]:
        """An array of strings; empty where there is none. Raises CheckpointError for no UTF-8."""
        found = self.values.get(key)
        if not isinstance(found, _Array) or found.kind != _STRING:
            return []
        reader = _Reader(self.data, found.offset)
        try:
            return [reader.string() for _ in range(found.count)]
        except UnicodeDecodeError:
            raise self.refuse(f"{key} holds a string that is no UTF-8") from None

    def integers(self, key: str) -> list[int]:
        """An array of 32-bit integers; empty where there is none."""
        found = self.values.get(key)
        if not isinstance(found, _Array) or found.kind not in (4, 5):
            return []
        return list(struct.unpack_from(f"<{found.count}i", self.data, found.offset))


@dataclass(frozen=True)
class _Array:
    """Where an array of a header lies."""

    kind: int
    count: int
    offset: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """The header of a file, all of it checked against the file's length.

    Raises CheckpointError, within a second and 200 MB whatever the file holds.
    """
    gguf = library("gguf", INSTALL, CheckpointError)
    kinds = {  # by its code each kind's name, and the numbers and bytes of a block
        int(kind): (kind.name, *sizes)
        for kind, sizes in gguf.GGML_QUANT_SIZES.items()
        if kind.name[0] in "FBQ" or kind.name.startswith("IQ")
    }
    try:
        with path.open("rb") as file:
            data = file.read(_HEADER_BYTES)
            length = file.seek(0, 2)
        reader = _Reader(data)
        counts = _counts(reader)
        values = _values(reader, counts[1])
        tensors = _tensors(reader, counts[0], kinds)
        alignment = values.get("general.alignment", 32)
        start = _start(tensors.values(), reader.offset, alignment, length)
        return GGUFHeader(path, data[: reader.offset], values, tensors, start)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except struct.error:
        raise CheckpointError(
            f"{path} is no whole GGUF file: its header runs beyond the file or the "
            f"{format_bytes(_HEADER_BYTES)} that are read of one; copy or download it again"
        ) from None
    except (_BrokenHeaderError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no usable GGUF file: {error}") from None


class _Reader:
    """Takes values one after the other; `struct.error` where they would run beyond the end."""

    def __init__(self, data: bytes, offset: int = 0) -> None:
        self.data, self.offset = data, offset
        self.strings = 0  # of arrays

    def number(self, kind: str) -> Any:
        form = f"<{kind}"
        (value,) = struct.unpack_from(form, self.data, self.offset)
        self.offset += struct.calcsize(form)
        return value

    def skip(self, size: int) -> None:
        self.offset += size
        if self.offset > len(self.data):
            raise struct.error

    def string(self) -> str:
        start = self.offset
        self.skip_string()
        return self.data[start + 8 : self.offset].decode()

    def skip_string(self) -> None:
        (size,) = _LENGTH.unpack_from(self.data, self.offset)
        self.skip(8 + size)


def _counts(reader: _Reader) -> tuple[int, int]:
    """The numbers of tensors and of keys."""
    if reader.data[:4] != b"GGUF":
        raise _BrokenHeaderError("it does not begin with GGUF")
    reader.skip(4)
    if (version := reader.number("I")) not in (2, 3):
        raise _BrokenHeaderError(
            f"its version is {version}, and 2 and 3 are read, in the byte order of this machine"
        )
    counts = reader.number("Q"), reader.number("Q")
    for count, what in zip(counts, ("tensors", "keys"), strict=True):
        if count > _MOST:
            raise _BrokenHeaderError(f"it would have {count:,} {what}, and {_MOST:,} are read")
    return counts


def _values(reader: _Reader, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(count):
        key, kind = reader.string(), reader.number("I")
        if key in values:
            raise _BrokenHeaderError(f"it has the key {shown(key)} twice")
        values[key] = _value(reader, kind, key)
    return values


def _value(reader: _Reader, kind: int, key: str) -> Any:
    if kind in _NUMBERS:
        return reader.number(_NUMBERS[kind])
    if kind == _STRING:
        return reader.string()
    if kind != _ARRAY:
        raise _BrokenHeaderError(f"{shown(key)} is of the kind {kind}, which GGUF does not have")
    array = _Array(reader.number("I"), reader.number("Q"), reader.offset)
    if array.kind in _NUMBERS:
        reader.skip(array.count * struct.calcsize(f"<{_NUMBERS[array.kind]}"))
    elif array.kind == _STRING:
        reader.strings += array.count
        if reader.strings > _MOST_STRINGS:
            raise _BrokenHeaderError(f"{shown(key)} would be an array of {array.count:,} strings")
        for _ in range(array.count):
            reader.skip_string()
    else:
        raise _BrokenHeaderError(f"{shown(key)} is an array of the kind {array.kind}")
    return array


def _tensors(
    reader: _Reader, count: int, kinds: dict[int, tuple[str, int, int]]
) -> dict[str, GGUFTensor]:
    found: dict[str, GGUFTensor] = {}
    for _ in range(count):
        name, dimensions = reader.string(), reader.number("I")
        if name in found or not 1 <= dimensions <= 4:
            what = "is there twice" if name in found else f"has {dimensions} dimensions"
            raise _BrokenHeaderError(f"the tensor {shown(name)} {what}")
        shape = tuple(reader.number("Q") for _ in range(dimensions))[::-1]
        code, offset = reader.number("I"), reader.number("Q")
        if code not in kinds:
            raise _BrokenHeaderError(
                f"the tensor {shown(name)} is of the kind {code}, which gguf does not know"
            )
        kind, numbers, size = kinds[code]
        if shape[-1] % numbers:
            raise _BrokenHeaderError(
                f"the tensor {shown(name)} has rows of {shape[-1]:,}, and {kind} has blocks of "
                f"{numbers}"
            )
        found[name] = GGUFTensor(name, kind, code, shape, offset, shape[-1] // numbers * size)
    return found


def _start(tensors: Iterable[GGUFTensor], end: int, alignment: Any, length: int) -> int:
    """Where the tensors begin in the file, which must hold them all."""
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise _BrokenHeaderError(f"general.alignment is {shown(alignment)}")
    start = end + -end % alignment
    for one in tensors:
        place, size = start + one.offset, one.rows * one.row_bytes
        if place + size > length or not size:
            raise _BrokenHeaderError(
                f"the tensor {shown(one.name)} would take {format_bytes(size)} at byte "
                f"{place:,}, and the file has {length:,}: it is cut short, or no GGUF"
            )
    return start


# -- configuration --------------------------------------------------------------------------


def llama_config(header: GGUFHeader) -> dict[str, Any]:
    """The config.json of a Llama, from a header; raises CheckpointError for other architectures."""
    kind = header.text("general.architecture")
    if kind != "llama":
        raise header.refuse(
            f"its architecture is {shown(kind)}, and of GGUF files only llama is read; give the "
            "folder with the model's safetensors"
        )
    if header.values.get("llama.expert_count", 0) != 0:
        raise header.refuse("it is a mixture of experts, which is not read; give a plain Llama")
    if header.values.get("split.count", 1) not in (0, 1):
        raise header.refuse(
            "it is one part of several; join them first: llama-gguf-split --merge FIRST WHOLE"
        )
    unknown = [
        key.removeprefix("llama.")
        for key in header.values
        if key.startswith("llama.") and key.removeprefix("llama.") not in _KNOWN
    ]
    if unknown:
        logger.warning(
            "%s has keys that this version does not know and leaves out: %s",
            header.path,
            ", ".join(map(shown, unknown[:10])),
        )
    hidden = header.size("llama.embedding_length", most=2**20)
    heads = header.size("llama.attention.head_count", most=2**16)
    head = header.size("llama.attention.key_length", max(hidden // heads, 1), most=2**16)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if header.values.get(key, head) != head or head % 2:
            raise header.refuse(f"{key} must be even, and that of the keys ({head})")
    embedding = header.tensors.get("token_embd.weight")
    epsilon = header.number("llama.attention.layer_norm_rms_epsilon", least=0, most=1)
    found = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": header.size("llama.feed_forward_length", most=2**24),
        "num_hidden_layers": header.size("llama.block_count", most=MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": header.size("llama.attention.head_count_kv", heads, most=2**16),
        "head_dim": head,
        "max_position_embeddings": header.size("llama.context_length"),
        "rms_norm_eps": _shortest(epsilon),
        "rope_theta": _shortest(header.number("llama.rope.freq_base", 10000.0, most=1e12)),
        "vocab_size": embedding.rows if embedding else 0,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    return found | _rope_scaling(header, found) | _ends(header, found)


def _shortest(value: float) -> float:
    """A number that the file has in 32 bits, with as few digits as tell it apart."""
    return float(str(np.float32(value)))


def _rope_scaling(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    """How positions are scaled: a key, or for Llama 3.1 and later a tensor of factors."""
    kind = header.text("llama.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise header.refuse(f"llama.rope.scaling.type is {shown(kind)}; none and linear are read")
    if kind == "linear":
        factor = header.number("llama.rope.scaling.factor", 1.0, most=1e6)
        return {"rope_scaling": {"rope_type": "linear", "factor": _shortest(factor)}}
    stored = header.tensors.get("rope_freqs.weight")
    if stored is None:
        return {}
    width = config["head_dim"] // 2
    if stored.shape != (width,) or stored.kind != "F32":
        raise header.refuse(f"rope_freqs.weight is {stored.kind} {stored.shape}, not F32 ({width})")
    factors = read_tensor(header, stored, torch.float32).double()
    factor = float(factors.max())
    scaling = {"rope_type": "llama3", "factor": factor, **_ROPE}
    scaling["original_max_position_embeddings"] = _ROPE_POSITIONS
    if not torch.allclose(factors, _llama3_factors(config, factor), rtol=1e-3):
        raise header.refuse("rope_freqs.weight holds other factors than those of Llama 3.1 to 3.3")
    return {"rope_scaling": scaling} if factor != 1 else {}


def _llama3_factors(config: dict[str, Any], factor: float) -> Tensor:
    """By what each frequency is divided: none of the high ones, all of the low ones by `factor`."""
    steps = torch.arange(0, config["head_dim"], 2, dtype=torch.float64) / config["head_dim"]
    turns = _ROPE_POSITIONS / (2 * torch.pi * config["rope_theta"] ** steps)
    low, high = _ROPE["low_freq_factor"], _ROPE["high_freq_factor"]
    share = ((turns - low) / (high - low)).clamp(0, 1)
    divisors: Tensor = 1 / ((1 - share) / factor + share)
    return divisors


def _ends(header: GGUFHeader, config: dict[str, Any]) -> dict[str, Any]:
    """The tokens that a string begins and ends with."""
    most = max(config["vocab_size"] - 1, 1)

    def tokens(*names: str) -> list[int]:
        keys = [f"tokenizer.ggml.{name}_token_id" for name in names]
        found = {header.number(key, least=0, most=most) for key in keys if key in header.values}
        return sorted(map(int, found))

    begins = tokens("bos")
    return {
        "bos_token_id": begins[0] if begins else None,
        "eos_token_id": tokens("eos", "eot", "eom") or None,
    }


# -- tensors --------------------------------------------------------------------------------


Plan = dict[str, tuple[GGUFTensor, int | None]]
"""By the name that transformers gives it, each tensor of a Llama; of queries and keys the number of
heads, too, whose rows llama.cpp has in its own order."""


def plan_tensors(header: GGUFHeader, config: dict[str, Any]) -> Plan:
    """Where each tensor of a Llama is.

    Raises CheckpointError where some are missing, unknown, or of another shape.
    """
    if config["num_hidden_layers"] > len(header.tensors):
        raise header.refuse(
            f"llama.block_count is {config['num_hidden_layers']:,}, and the file holds "
            f"{len(header.tensors):,} tensors"
        )
    wanted = {name: (own, shape, heads) for own, name, shape, heads in _layout(config)}
    problems = {
        "missing": wanted.keys() - header.tensors.keys(),
        "unknown": header.tensors.keys() - wanted.keys() - {"rope_freqs.weight"},
        "of another shape": {
            f"{name} {header.tensors[name].shape} (needed {shape})"
            for name, (_, shape, _) in wanted.items()
            if name in header.tensors and header.tensors[name].shape != shape
        },
    }
    for what, names in problems.items():
        if names:
            shortened = ", ".join(shown(name).strip("'") for name in sorted(names)[:5])
            raise header.refuse(f"{len(names)} tensors are {what} for a Llama: {shortened}")
    return {own: (header.tensors[name], heads) for name, (own, _, heads) in wanted.items()}


def _layout(config: dict[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...], int | None]]:
    """Each tensor's name in transformers and in GGUF, its shape, and heads to reorder."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, few = config["num_attention_heads"], config["num_key_value_heads"]
    queries, keys = heads * config["head_dim"], few * config["head_dim"]
    yield "model.embed_tokens.weight", "token_embd.weight", (config["vocab_size"], hidden), None
    yield "model.norm.weight", "output_norm.weight", (hidden,), None
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", "output.weight", (config["vocab_size"], hidden), None
    for layer in range(config["num_hidden_layers"]):
        for own, name, shape, turned in (
            ("input_layernorm", "attn_norm", (hidden,), None),
            ("self_attn.q_proj", "attn_q", (queries, hidden), heads),
            ("self_attn.k_proj", "attn_k", (keys, hidden), few),
            ("self_attn.v_proj", "attn_v", (keys, hidden), None),
            ("self_attn.o_proj", "attn_output", (hidden, queries), None),
            ("post_attention_layernorm", "ffn_norm", (hidden,), None),
            ("mlp.gate_proj", "ffn_gate", (inner, hidden), None),
            ("mlp.up_proj", "ffn_up", (inner, hidden), None),
            ("mlp.down_proj", "ffn_down", (hidden, inner), None),
        ):
            yield f"model.layers.{layer}.{own}.weight", f"blk.{layer}.{name}.weight", shape, turned


def read_tensor(
    header: GGUFHeader, stored: GGUFTensor, dtype: torch.dtype, heads: int | None = None
) -> Tensor:
    """A tensor in `dtype`, some rows at a time.

    heads: of queries or keys, whose rows llama.cpp has in pairs (0, half, 1, …)
    """
    quants = library("gguf.quants", INSTALL, CheckpointError)
    kind = library("gguf", INSTALL, CheckpointError).GGMLQuantizationType(stored.code)
    shape = (stored.rows, stored.row_bytes)
    mapped = np.memmap(header.path, np.uint8, "r", header.start + stored.offset, shape)
    width = stored.shape[-1]
    made = torch.empty((stored.rows, width), dtype=dtype)
    step = max(1, _CHUNK_BYTES // (4 * width))
    for first in range(0, stored.rows, step):
        raw = np.array(mapped[first : first + step])
        part = raw.view(np.float64) if stored.kind == "F64" else quants.dequantize(raw, kind)
        made[first : first + step] = torch.from_numpy(part.reshape(-1, width))
    if heads is not None:
        made = made.view(heads, -1, 2, width).transpose(1, 2).reshape(stored.rows, width)
    return made.reshape(stored.shape)


def _write_weights(header: GGUFHeader, plan: Plan, folder: Path) -> None:
    (folder / _RECORD).unlink(missing_ok=True)
    tensors = {}
    for name, (stored, heads) in plan.items():
        dtype = _DTYPES.get(stored.kind, torch.bfloat16)
        read = partial(read_tensor, header, stored, dtype, heads)
        tensors[name] = LazyTensor(dtype, stored.shape, read)
    needed = sum(one.nbytes for one in tensors.values())
    if needed > (free := shutil.disk_usage(folder).free):
        raise CheckpointError(
            f"{header.path}: converted it takes {format_bytes(needed)}, and in {folder} "
            f"{format_bytes(free)} are free; set NATURELM_CACHE to another folder"
        )
    logger.warning(
        "%s is converted once, to %s in %s; later runs load that",
        header.path,
        format_bytes(needed),
        folder,
    )
    before = header.path.stat()
    whole = file_sha256(header.path)
    write_tensors(tensors, folder, max_shard_size="2GB")
    write_json(folder / _RECORD, {"sha256": whole, "modified": before.st_mtime_ns})


def _is_same_file(path: Path, folder: Path) -> bool:
    """Whether the folder has the weights of the file, which is read whole if its time differs."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    now = path.stat()
    if record["modified"] != now.st_mtime_ns:
        if record["sha256"] != file_sha256(path):
            return False
        write_json(folder / _RECORD, record | {"modified": now.st_mtime_ns})
    return True


# -- tokenizer ------------------------------------------------------------------------------


def _tokenizer_beside(header: GGUFHeader) -> list[Path]:
    """Files of a tokenizer in the folder of the GGUF file; none if it is that of another model."""
    folder = header.path.parent
    if not (folder / _TOKENIZER).is_file():
        return []
    if (folder / _TOKENIZER).stat().st_size > _TOKENIZER_BYTES or not _fits(header, folder):
        logger.warning(
            "%s is of another model than %s, whose own tokenizer is used",
            folder / _TOKENIZER,
            header.path.name,
        )
        return []
    return [folder / name for name in _BESIDE if (folder / name).is_file()]


def _fits(header: GGUFHeader, folder: Path) -> bool:
    """Whether nearly all tokens are those of the file, which writes some added ones otherwise."""
    from tokenizers import Tokenizer

    try:
        vocabulary = Tokenizer.from_file(str(folder / _TOKENIZER)).get_vocab()
    except Exception:  # the library has no class of its own
        return False
    tokens = header.strings("tokenizer.ggml.tokens")
    same = sum(vocabulary.get(token) == number for number, token in enumerate(tokens))
    return not tokens or same >= 0.95 * max(len(tokens), len(vocabulary))


def _write_tokenizer(header: GGUFHeader, beside: list[Path], folder: Path) -> None:
    """The files of the tokenizer beside the GGUF file, else of that in it."""
    if beside:
        for path in beside:
            shutil.copyfile(path, folder / path.name)
        return
    remedy = f"put the {_TOKENIZER} of the original model into its folder"
    kind, split = header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")
    if kind == "gpt2" and split not in SPLITS:
        raise header.refuse(f"its tokenizer cuts strings as {shown(split)}, not known; {remedy}")
    try:
        made = _byte_level(header) if kind == "gpt2" else _sentence_pieces(header)
        made.chat_template = header.text("tokenizer.chat_template")
        made.save_pretrained(folder)
    except Exception as error:  # of a stranger's vocabulary: each has its own
        reason = one_line(error)
        raise header.refuse(f"it holds no usable tokenizer ({reason}); {remedy}") from error


def _byte_level(header: GGUFHeader) -> Any:
    """The tokenizer of a byte-level vocabulary.

    That of transformers' own reader has a token more where the vocabulary has none for what is
    unknown, as Llama 3's.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    tokens = header.strings("tokenizer.ggml.tokens")
    pairs = [merge.split(" ") for merge in header.strings("tokenizer.ggml.merges")]
    like_llama3 = header.text("tokenizer.ggml.pre") in _LLAMA3
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for left, right in pairs],
            ignore_merges=like_llama3,
        )
    )
    pattern = SPLITS[header.text("tokenizer.ggml.pre") or ""]
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern in (None, _DIGIT))
    cuts = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, by_bytes]) if cuts else by_bytes
    made.decoder = decoders.ByteLevel()
    kinds = header.integers("tokenizer.ggml.token_type")
    for token, kind in zip(tokens, kinds, strict=bool(kinds)):
        if kind in (_CONTROL, _ADDED):
            made.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL)])
    named = {
        f"{name}_token": tokens[header.size(f"tokenizer.ggml.{key}_token_id", least=0)]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"))
        if f"tokenizer.ggml.{key}_token_id" in header.values
    }
    first = named.get("bos_token")
    if first and header.values.get("tokenizer.ggml.add_bos_token", like_llama3) is True:
        made.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=None, special_tokens=[(first, vocabulary[first])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, **named)


def _sentence_pieces(header: GGUFHeader) -> Any:
    """The tokenizer of a vocabulary of sentence pieces, as transformers' own reader makes it."""
    from transformers import AutoTokenizer

    path = header.path
    made: Any = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    if len(made) != (stored := len(header.strings("tokenizer.ggml.tokens"))):
        raise header.refuse(f"{len(made):,} tokens were made of the {stored:,} in it")
    return made

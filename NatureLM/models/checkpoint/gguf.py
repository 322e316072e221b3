"""Base language models in GGUF files: converted once to a folder of safetensors, loaded from there.

The folder lies in the cache, by a hash of the file, so that a changed file is converted anew. One
tensor is in memory at a time. Weights of few bits become bfloat16, which is far finer than their
rounding; `--quantize` takes them to integers again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from NatureLM.config.model import MOST_LAYERS
from NatureLM.models.checkpoint.gguf_header import INSTALL, GGUFHeader, GGUFTensor, read_gguf_header
from NatureLM.models.checkpoint.tensors import LazyTensor, fingerprint, write_tensors
from NatureLM.models.registry import CheckpointError, cache_home, find_base, one_line
from NatureLM.util import digest, file_sha256, format_bytes, library, shown, write_json

logger = logging.getLogger(__name__)

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
_KNOWN = frozenset(
    {
        *("context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("vocab_size", "attention.head_count", "attention.head_count_kv", "expert_count"),
        *("attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length"),
        *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
        *("expert_used_count", "tensor_data_layout", "rope.scaling.finetuned"),
        "rope.scaling.original_context_length",
    }
)
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
    folder = _folder(header, beside)
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


def _folder(header: GGUFHeader, beside: list[Path]) -> Path:
    """In the cache, by all that decides what is written but for numbers between 256 places."""
    parts = [str(_FORMAT), fingerprint([header.path]), header.data]
    found = digest([*parts, *(path.read_bytes() for path in beside)], size=8).hex()
    return cache_home() / "gguf" / f"{header.path.stem[:80]}-{found}"


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
    mapped = np.memmap(header.path, np.uint8, "r", stored.offset, shape)
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
    tensors = {name: _lazy(header, *planned) for name, planned in plan.items()}
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
    _record(folder, before, whole)


def _lazy(header: GGUFHeader, stored: GGUFTensor, heads: int | None) -> LazyTensor:
    dtype = _DTYPES.get(stored.kind, torch.bfloat16)
    return LazyTensor(dtype, stored.shape, lambda: read_tensor(header, stored, dtype, heads))


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
        _record(folder, now, record["sha256"])
    return True


def _record(folder: Path, stat: os.stat_result, sha256: str) -> None:
    write_json(folder / _RECORD, {"sha256": sha256, "modified": stat.st_mtime_ns})


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
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
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
    made.pre_tokenizer = _pre_tokenizer(header)
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


def _pre_tokenizer(header: GGUFHeader) -> Any:
    """What cuts a string before the merges act."""
    from tokenizers import Regex, pre_tokenizers

    pattern = SPLITS[header.text("tokenizer.ggml.pre") or ""]
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern == _DIGIT),
        ]
    )


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

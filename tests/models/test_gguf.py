"""Base language models in GGUF files: the same logits as from safetensors, and careful reading."""

from __future__ import annotations

import json
import logging
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from NatureLM.config.schema import DatasetsConfig, ModelConfig, RunConfig
from NatureLM.generation.audio_cache import CACHE_VARIABLE
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.gguf import (
    convert_gguf,
    llama_config,
    read_gguf_header,
    read_tensor,
)
from NatureLM.models.registry import CheckpointError
from NatureLM.training.build import start_model
from tests.models.test_strangers import refusal

Kind = gguf.GGMLQuantizationType
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{one}_proj": f"attn_{one}" for one in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{one}_proj": f"ffn_{one}" for one in ("gate", "up", "down")},
}


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of transformers' Llama."""
    path = name.removesuffix(".weight")
    if not path.startswith("model.layers."):
        return f"{NAMES[path]}.weight"
    _, _, layer, part = path.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys as llama.cpp has them: both halves of a head in turns."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(
    base: Path,
    path: Path,
    kind: Kind = Kind.F32,
    *,
    tokens: bool = False,
    tensors: dict[str, np.ndarray | None] | None = None,
    keys: dict[str, Any] | None = None,
) -> Path:
    """The Llama of a folder as llama.cpp's converter writes it.

    tokens: with its tokenizer
    tensors, keys: others, or in place of its own; None leaves one out
    """
    config = json.loads((base / "config.json").read_text())
    heads, few = config["num_attention_heads"], config["num_key_value_heads"]
    values: dict[str, Any] = {
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": few,
        "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "llama.rope.dimension_count": config["hidden_size"] // heads,
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": 601,
        "tokenizer.ggml.eot_token_id": 604,
    }
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {**values, **(keys or {})}.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    if tokens:
        add_tokens(writer, base)
    stored: dict[str, np.ndarray | None] = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        turned = {"q_proj": heads, "k_proj": few}.get(name.split(".")[-2])
        rows = tensor.numpy()
        stored[gguf_name(name)] = rows if turned is None else paired(rows, turned)
    for name, array in {**stored, **(tensors or {})}.items():
        if array is not None:
            own = Kind.F32 if array.ndim == 1 else kind
            writer.add_tensor(name, gguf.quantize(array, own), raw_dtype=own)
    write_out(writer)
    return path


def write_out(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokens(writer: gguf.GGUFWriter, base: Path) -> None:
    """The vocabulary of tokenizer.json under llama.cpp's keys."""
    values = json.loads((base / "tokenizer.json").read_text())
    special = {one["id"]: one["content"] for one in values["added_tokens"]}
    vocabulary = {number: token for token, number in values["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([vocabulary[number] for number in sorted(vocabulary)])
    writer.add_token_types([3 if number in special else 1 for number in sorted(vocabulary)])
    pairs = values["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in pairs])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture(scope="module")
def checkpoint(
    build_model: Any, write_reference: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A checkpoint without weights of the language model, which lies in ../llama.

    Its layers have rows that the blocks of llama.cpp fit, and fewer keys than queries.
    """
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    folder = tmp_path_factory.mktemp("gguf")
    made: Path = write_reference(build_model(llama=sizes), folder, partial=True)
    return made


@pytest.fixture(scope="module")
def base(checkpoint: Path) -> Path:
    return checkpoint.parent / "llama"


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> NatureLM:
    return NatureLM.from_pretrained(checkpoint)


IDS = torch.tensor([[600, 5, 17, 300, 41, 2, 604]])


def logits(model: NatureLM) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.language_model(IDS).logits
    return found


# What the rounding of each kind does to logits of at most 0.58.
KINDS = {
    Kind.F32: 0,
    Kind.F16: 5e-4,
    Kind.BF16: 4e-3,
    Kind.Q8_0: 1.5e-2,
    Kind.Q4_1: 0.2,
    Kind.Q4_0: 0.2,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_logits_are_those_of_safetensors(
    kind: Kind, checkpoint: Path, base: Path, plain: NatureLM, tmp_path: Path
) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", kind, tokens=True)
    model = NatureLM.from_pretrained(checkpoint, llama_path=path)
    difference = (logits(model) - logits(plain)).abs().max()
    assert difference <= KINDS[kind]
    assert (difference > 0) == (kind != Kind.F32)
    assert model.eos_ids == plain.eos_ids
    assert model.config.text_config.vocab_size == plain.config.text_config.vocab_size


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_kinds_that_are_only_read(name: str, tmp_path: Path) -> None:
    """Blocks by hand: a scale of 1 and numbers of 0, which stand for the least of the kind."""
    kind, one = Kind[name], np.float16(1).tobytes()
    block = {
        # scale, scale of the least, eight scales and leasts of 6 bits, 4 bits each
        "Q4_K": one + one + bytes([1] * 4 + [2] * 4 + [0x21] * 4) + bytes(128),
        # 4 bits each, 2 bits each, scales, scale
        "Q6_K": bytes(128 + 64) + bytes([1] * 16) + one,
    }[name]
    writer = gguf.GGUFWriter(tmp_path / "one.gguf", "llama")
    data = np.frombuffer(block * 3, np.uint8).reshape(3, -1)
    writer.add_tensor("one", data, raw_dtype=kind)
    write_out(writer)
    header = read_gguf_header(tmp_path / "one.gguf")
    found = read_tensor(header, header.tensors["one"], torch.float32)
    assert found.shape == (3, 256)
    assert set(found.unique().tolist()) == ({-2.0} if name == "Q4_K" else {-32.0})


def test_large_tensors_are_read_in_parts(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_gguf_header(write_gguf(base, tmp_path / "base.gguf", Kind.Q8_0))
    stored = header.tensors["blk.1.attn_q.weight"]
    whole = read_tensor(header, stored, torch.bfloat16, heads=4)
    monkeypatch.setattr("NatureLM.models.checkpoint.gguf._CHUNK_BYTES", 5 * 4 * 64)
    assert torch.equal(read_tensor(header, stored, torch.bfloat16, heads=4), whole)


def test_tied_embeddings(base: Path, tmp_path: Path) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True, tensors={"output.weight": None})
    folder = convert_gguf(path, weights=True)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_positions_of_llama_3_1(base: Path, tmp_path: Path) -> None:
    """The file has no key for them, but what each frequency is divided by."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    own = json.loads((base / "config.json").read_text())
    theta = own["rope_parameters"]["rope_theta"]
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_theta=theta, rope_scaling=scaling
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    freqs = 1 / theta ** (torch.arange(0, 16, 2) / 16)
    factors = {"rope_freqs.weight": (freqs / scaled).numpy()}
    path = write_gguf(base, tmp_path / "base.gguf", tensors=factors)
    found = llama_config(read_gguf_header(path))["rope_scaling"]
    assert found == {name: scaling[name] for name in found}
    assert len(found) == 5
    factors["rope_freqs.weight"] = np.linspace(1, 8, 8, dtype=np.float32)
    path = write_gguf(base, tmp_path / "other.gguf", tensors=factors)
    assert "holds other factors than those of Llama 3.1" in refusal(
        lambda: convert_gguf(path, weights=False)
    )


# -- tokenizers -----------------------------------------------------------------------------

TEXTS = ("A wren sings 1234567 times.\n\nI'm   here", "<|begin_of_text|>Ünï 鳥<|eot_id|>")


def test_the_tokenizer_in_the_file(base: Path, tmp_path: Path) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True)
    found = AutoTokenizer.from_pretrained(convert_gguf(path, weights=False))
    known = AutoTokenizer.from_pretrained(base)
    assert len(found) == len(known)
    for text in TEXTS:
        ids = known(text, add_special_tokens=False).input_ids
        assert found(text, add_special_tokens=False).input_ids == ids
        assert found.decode(ids) == known.decode(ids)


def test_a_vocabulary_of_sentence_pieces(base: Path, tmp_path: Path) -> None:
    """Of Llama 2 and its kin: no merges but scores, and bytes for what is in no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    pieces += ["▁a", "ab", "▁ab", "▁", "a", "b"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 6]
    scores = [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0]
    keys: dict[str, Any] = {"tokens": pieces, "scores": scores, "token_type": kinds}
    keys |= {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "eot_token_id": 2}
    keys = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    path = write_gguf(base, tmp_path / "base.gguf", keys=keys)
    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(path, weights=False))
    assert len(tokenizer) == len(pieces)
    ids = tokenizer("ab aé", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁ab", "▁a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "ab aé"


def test_the_tokenizer_beside_the_file(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beside = (base / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(beside)
    bare = write_gguf(base, tmp_path / "bare.gguf")
    assert (convert_gguf(bare, weights=False) / "tokenizer.json").read_bytes() == beside
    whole = write_gguf(base, tmp_path / "whole.gguf", tokens=True)
    assert (convert_gguf(whole, weights=False) / "tokenizer.json").read_bytes() == beside
    other = json.loads(beside)
    other["model"]["vocab"] = {k: 599 - n for k, n in other["model"]["vocab"].items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(other))
    found = AutoTokenizer.from_pretrained(convert_gguf(whole, weights=False))
    assert found(TEXTS[0]).input_ids == AutoTokenizer.from_pretrained(base)(TEXTS[0]).input_ids
    assert "is of another model than whole.gguf, whose own tokenizer is used" in caplog.text


def test_tokens_that_are_no_text(base: Path, tmp_path: Path) -> None:
    """Beside a tokenizer.json, too, with which they are compared."""
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"tokenizer.ggml.tokens") + 21 + 4 + 4 + 8 + 8] = 0xFF
    path.write_bytes(data)
    assert "it holds no usable tokenizer (" in refusal(lambda: convert_gguf(path, weights=False))
    (tmp_path / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    says = "tokenizer.ggml.tokens holds a string that is no UTF-8"
    assert says in refusal(lambda: convert_gguf(path, weights=False))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "it holds no usable tokenizer ("),
        ({"tokenizer.ggml.model": "gpt2"}, "its tokenizer cuts strings as None, not known"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "chameleon"},
            "its tokenizer cuts strings as 'chameleon', not known; put the tokenizer.json of",
        ),
    ],
)
def test_no_tokenizer(keys: dict[str, Any], says: str, base: Path, tmp_path: Path) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", keys=keys)
    assert says in refusal(lambda: convert_gguf(path, weights=False))


# -- converted once -------------------------------------------------------------------------


def test_a_changed_file_is_converted_anew(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A change between the places that a hash samples, too; a copy or a new time is none."""
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True)
    caplog.set_level(logging.WARNING)
    folder = convert_gguf(path, weights=False)
    assert not (folder / "model.safetensors").exists()
    assert convert_gguf(path, weights=True) == folder
    assert caplog.text.count("is converted once, to ") == 1
    weights = folder / "model.safetensors"
    before = weights.read_bytes()

    def inode() -> int:
        return weights.stat().st_ino

    first = inode()
    os.utime(path, (1, 1))
    assert convert_gguf(path, weights=True) == folder
    assert inode() == first

    header = read_gguf_header(path)
    last = header.start + header.tensors["output_norm.weight"].offset
    with path.open("r+b") as file:
        file.seek(last)
        file.write(struct.pack("<f", 3.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("NatureLM.models.checkpoint.gguf.fingerprint", lambda _: "as before")
        other = convert_gguf(path, weights=True)  # as a hash that samples may see it
        os.utime(path, (2, 2))
        changed = (other / "model.safetensors").read_bytes()
        with path.open("r+b") as file:
            file.seek(last)
            file.write(struct.pack("<f", 1.0))
        assert convert_gguf(path, weights=True) == other
        assert (other / "model.safetensors").read_bytes() == before != changed
    assert caplog.text.count("is converted once, to ") == 3
    assert convert_gguf(path, weights=True) == folder


def test_weights_that_were_not_written_to_the_end(base: Path, tmp_path: Path) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True)
    folder = convert_gguf(path, weights=True)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "gguf.json").unlink()
    (folder / "model.safetensors").write_bytes(b"half")
    convert_gguf(path, weights=True)
    assert (folder / "model.safetensors").read_bytes() == whole


def test_quantised_and_pinned(checkpoint: Path, base: Path, tmp_path: Path) -> None:
    """The recorded hash is that of the weights, wherever they are converted."""
    path = write_gguf(base, tmp_path / "base.gguf", Kind.Q8_0, tokens=True)
    model = NatureLM.from_pretrained(checkpoint, llama_path=path, quantize="int8")
    assert model.config.quantized == "int8"
    assert torch.isfinite(logits(model)).all()
    again = NatureLM.from_pretrained(
        checkpoint, llama_path=path, weights_hash=model.fingerprint, dtype="bfloat16"
    )
    assert again.fingerprint == model.fingerprint
    other = write_gguf(base, tmp_path / "other.gguf", Kind.Q4_0, tokens=True)
    with pytest.raises(CheckpointError, match="the hash asked for is"):
        NatureLM.from_pretrained(checkpoint, llama_path=other, weights_hash=model.fingerprint)


def test_training_begins_with_it(base: Path, tmp_path: Path, plain: NatureLM) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True)
    model = {"llama_path": str(path), "lora_rank": 4, "lora_alpha": 8}
    model |= {name: getattr(plain.config, name) for name in ("beats_cfg", "qformer_cfg")}
    made = start_model(ModelConfig.model_validate(model), DatasetsConfig(), RunConfig())
    wanted = plain.language_model.model.layers[1].self_attn.k_proj
    found = made.language_model.model.layers[1].self_attn.k_proj
    assert torch.equal(found.base_layer.weight, wanted.base_layer.weight)


# -- files of strangers ---------------------------------------------------------------------

Damage = Callable[[bytearray], object]


def at(place: int, form: str, value: Any) -> Damage:
    return lambda data: struct.pack_into(form, data, place, value)


def after(key: bytes, form: str, value: Any, skip: int = 0) -> Damage:
    """What stands behind a name in the header."""
    return lambda data: struct.pack_into(form, data, data.index(key) + len(key) + skip, value)


def cut(size: int) -> Damage:
    return lambda data: data.__delitem__(slice(size, None))


def pointer(data: bytearray) -> None:
    data[:] = b"version https://git-lfs.github.com/spec/v1\n"


BROKEN: dict[str, tuple[Damage, str]] = {
    "a pointer": (pointer, "is no usable GGUF file: it does not begin with GGUF"),
    "nothing": (cut(0), "it does not begin with GGUF"),
    "four bytes": (cut(4), "its header runs beyond the file or the 40 MB that are read of one"),
    "another version": (at(4, "<I", 9), "its version is 9, and 2 and 3 are read"),
    "another byte order": (at(4, ">I", 3), "its version is 50331648, and"),
    "tensors without end": (at(8, "<Q", 2**63), "it would have 9,223,372,036,854,775,808 tensors"),
    "keys without end": (at(16, "<Q", 10**9), "it would have 1,000,000,000 keys, and 10,000 are"),
    "a key without end": (at(24, "<Q", 2**62), "its header runs beyond the file"),
    "half a header": (cut(500), "its header runs beyond the file"),
    "half a file": (cut(40_000), "it is cut short, or no GGUF"),
    "no such kind of value": (
        after(b"llama.block_count", "<I", 77),
        "'llama.block_count' is of the kind 77, which GGUF does not have",
    ),
    "arrays of arrays": (
        after(b"ggml.tokens", "<I", 9, 4),
        "'tokenizer.ggml.tokens' is an array of the kind 9",
    ),
    "numbers without end": (after(b"ggml.token_type", "<Q", 2**60, 8), "its header runs beyond"),
    "tokens without end": (
        after(b"ggml.tokens", "<Q", 10**12, 8),
        "'tokenizer.ggml.tokens' would be an array of 1,000,000,000,000 strings",
    ),
    "no UTF-8": (after(b"general.architectur", "<B", 0xFF), "is no usable GGUF file: 'utf-8'"),
    "a tensor of no dimensions": (
        after(b"blk.0.attn_q.weight", "<I", 0),
        "the tensor 'blk.0.attn_q.weight' has 0 dimensions",
    ),
    "a tensor without end": (
        after(b"blk.0.attn_q.weight", "<Q", 2**62, 4),
        "and the file has ",
    ),
    "no such kind": (
        after(b"blk.0.attn_q.weight", "<I", 99, 20),
        "is of the kind 99, which gguf does not know",
    ),
    "rows of half a block": (
        after(b"blk.0.attn_q.weight", "<I", int(Kind.Q4_K), 20),
        "has rows of 64, and Q4_K has blocks of 256",
    ),
    "a tensor elsewhere": (after(b"blk.0.attn_q.weight", "<Q", 2**63, 24), "and the file has "),
}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_gguf(base, tmp_path_factory.mktemp("whole") / "base.gguf", tokens=True)
    read_gguf_header(path)
    return path.read_bytes()


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_in_one_sentence(case: str, whole: bytes, tmp_path: Path) -> None:
    damage, says = BROKEN[case]
    data = bytearray(whole)
    damage(data)
    path = tmp_path / "base.gguf"
    path.write_bytes(data)
    message = refusal(lambda: convert_gguf(path, weights=True))
    assert message.startswith(str(path))
    assert says in message
    assert "\n" not in message
    assert not (tmp_path / "cache").exists()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "an architecture": (
        {"keys": {"general.architecture": "qwen2"}},
        "its architecture is 'qwen2', and of GGUF files only llama is read",
    ),
    "experts": ({"keys": {"llama.expert_count": 8}}, "it is a mixture of experts"),
    "a part": ({"keys": {"split.count": 3}}, "it is one part of several; join them first"),
    "layers without end": (
        {"keys": {"llama.block_count": 900}},
        "llama.block_count is 900, and the file holds 21 tensors",
    ),
    "too many layers": (
        {"keys": {"llama.block_count": 2**31}},
        "llama.block_count is 2147483648, and it must be a number from 1 to ",
    ),
    "a word": (
        {"keys": {"llama.embedding_length": "wide"}},
        "llama.embedding_length is 'wide', and it must be a number from 1 to ",
    ),
    "no number": (
        {"keys": {"llama.attention.layer_norm_rms_epsilon": float("nan")}},
        "layer_norm_rms_epsilon is nan, and it must be a number from 0 to 1",
    ),
    "half a head": (
        {"keys": {"llama.attention.head_count": 2.5}},
        "llama.attention.head_count is 2.5, and it must be a whole number",
    ),
    "heads that half turn": (
        {"keys": {"llama.rope.dimension_count": 8}},
        "llama.rope.dimension_count must be even, and that of the keys (16)",
    ),
    "positions": (
        {"keys": {"llama.rope.scaling.type": "yarn"}},
        "llama.rope.scaling.type is 'yarn'; none and linear are read",
    ),
    "another width": (
        {"keys": {"llama.embedding_length": 128, "llama.attention.key_length": 16}},
        "tensors are of another shape for a Llama: blk.0.attn_k.weight (32, 64) (needed (32, 128))",
    ),
    "a tensor too few": (
        {"tensors": {"blk.1.ffn_up.weight": None}},
        "1 tensors are missing for a Llama: blk.1.ffn_up.weight",
    ),
    "a tensor too many": (
        {"tensors": {"blk.1.attn_q.bias": np.zeros(64, np.float32)}},
        "1 tensors are unknown for a Llama: blk.1.attn_q.bias",
    ),
    "an end that is none": (
        {"keys": {"tokenizer.ggml.eos_token_id": 10**6}},
        "tokenizer.ggml.eos_token_id is 1000000, and it must be a number from 0 to 604",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_models_are_refused_in_one_sentence(case: str, base: Path, tmp_path: Path) -> None:
    changes, says = OTHERS[case]
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True, **changes)
    message = refusal(lambda: convert_gguf(path, weights=True))
    assert message.startswith(f"{path}: ")
    assert says in message
    assert not (tmp_path / "cache").exists()


def test_a_million_strings_are_no_reason_to_wait(tmp_path: Path) -> None:
    """As many as fit into what is read, each of them empty."""
    count = 4_900_000
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 4)
    for number in range(4):
        name = f"tokenizer.ggml.{number}".encode()
        head += struct.pack("<Q", len(name)) + name
        head += struct.pack("<IIQ", 9, 8, count // 4) + bytes(8 * (count // 4))
    path = tmp_path / "base.gguf"
    path.write_bytes(head)
    assert "would be an array of 1,225,000 strings" in refusal(lambda: read_gguf_header(path))


def test_too_little_room(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True)
    room = SimpleNamespace(free=9)
    monkeypatch.setattr("NatureLM.models.checkpoint.gguf.shutil.disk_usage", lambda _: room)
    with pytest.raises(CheckpointError, match=r"takes 556.8 kB, and in .* 9 bytes are free; set"):
        convert_gguf(path, weights=True)


def test_what_gguf_needs(
    base: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(base, tmp_path / "base.gguf", tokens=True)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match="the package gguf: pip install 'naturelm-audio"):
        NatureLM.from_pretrained(checkpoint, llama_path=path)


def test_a_file_that_is_not_there(checkpoint: Path) -> None:
    (checkpoint.parent / "empty.gguf").touch()
    with pytest.raises(CheckpointError, match=r"'bases/model.gguf' is neither a"):
        NatureLM.from_pretrained(checkpoint, llama_path="bases/model.gguf")
    with pytest.raises(CheckpointError, match="is a language model without hearing"):
        NatureLM.from_pretrained(checkpoint.parent / "empty.gguf")

"""Checkpoints in and out: layouts, shards, reports, refusals, no network, old pickles."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from NatureLM.errors import ConfigError, NatureLMError, UsageError
from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.export import convert_checkpoint
from NatureLM.models.checkpoint.tensors import fingerprint
from NatureLM.models.registry import CheckpointError
from tests.builders import edit_json

WEIGHTS = "model.safetensors"

SHAPES: dict[str, dict[str, Any]] = {
    "as published": {},
    "overlapping groups, three queries": {
        "num_audio_query_token": 3,
        "second_per_window": 0.5,
        "second_stride": 0.2,
    },
    "one group": {"window_level_Qformer": False, "num_audio_query_token": 5},
    "pooling": {"max_pooling": True, "use_audio_Qformer": False, "downsample_factor": 4},
    "pre-norm encoder without gates": {
        "beats_cfg": {
            "layer_norm_first": True,
            "deep_norm": False,
            "gru_rel_pos": False,
            "finetuned_model": False,
            "conv_pos": 7,
            "conv_bias": True,
        }
    },
    "no position bias, no projection, glu": {
        "beats_cfg": {
            "relative_position_embedding": False,
            "embed_dim": 32,
            "activation_fn": "glu",
        }
    },
    "deeper, no grouped attention": {
        "llama": {"num_hidden_layers": 3, "num_key_value_heads": 4},
        "qformer_cfg": {"num_hidden_layers": 3},
        "lora_rank": 2,
    },
    "tied embeddings": {"llama": {"tie_word_embeddings": True}},
    "no adapter": {"lora": False},
}


@pytest.fixture
def reference(build_model: Any, write_reference: Any, tmp_path: Path) -> Path:
    """A checkpoint of the published layout with all tensors, its base beside it."""
    folder: Path = write_reference(build_model(), tmp_path)
    return folder


@pytest.fixture
def partial(build_model: Any, write_reference: Any, tmp_path: Path) -> Path:
    """One without the tensors of the base."""
    folder: Path = write_reference(build_model(), tmp_path, partial=True)
    return folder


def answers(model: NatureLM, wav: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    prompts = [model.processor.render("What is it?"), model.processor.render("Caption the audio")]
    alpha = 0.5 if model.config.lora else 1.0
    texts = model.generate(prompts, [[wav], [wav]], alpha=alpha, max_new_tokens=6)
    with torch.no_grad():
        return model.encode_audio(wav[None]), texts


@pytest.mark.parametrize("shape", SHAPES)
def test_every_layout_gives_the_same_model(
    shape: str, build_model: Any, write_reference: Any, nano_waveforms: Any, tmp_path: Path
) -> None:
    model = build_model(**SHAPES[shape])
    wav = nano_waveforms["trill"][:20_000]
    wanted_embeds, wanted_texts = answers(model, wav)
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    full = write_reference(model, tmp_path / "full")
    partial = write_reference(model, tmp_path / "partial", partial=True)
    for folder in (tmp_path / "own", tmp_path / "sharded", full, partial):
        loaded = NatureLM.from_pretrained(folder)
        embeds, texts = answers(loaded, wav)
        assert torch.equal(embeds, wanted_embeds), folder
        assert texts == wanted_texts, folder
        got, wanted = loaded.state_dict(), model.state_dict()
        assert got.keys() == wanted.keys()
        for name, tensor in wanted.items():
            rows = -1 if folder == partial and tensor.shape[:1] == (606,) else None
            assert torch.equal(got[name][:rows] if tensor.ndim else got[name], tensor[:rows]), name


def test_the_pad_row_of_a_partial_checkpoint_is_never_the_best(partial: Path) -> None:
    loaded = NatureLM.from_pretrained(partial)
    head = loaded.language_model.lm_head.weight
    assert torch.allclose(head[-1], head[:-1].mean(0), atol=1e-6)


def test_dtype_and_trainable_parts_after_loading(nano_folder: Path, nano: NatureLM) -> None:
    loaded = NatureLM.from_pretrained(nano_folder / "checkpoint", dtype="bfloat16")
    kinds = {p.dtype for p in loaded.parameters()}
    assert kinds == {torch.bfloat16}
    assert torch.equal(loaded.ln_audio.weight, nano.ln_audio.weight.bfloat16())
    assert loaded.audio_Qformer.bert.embeddings.position_ids.dtype == torch.int64
    learning = {n for n, p in loaded.named_parameters() if p.requires_grad}
    assert not any(n.startswith("beats.") or "base_layer" in n for n in learning)
    assert sum(".lora_" in n for n in learning) == 2 * 4 * 2


def test_computed_buffers_are_those_of_an_ordinary_build(build_model: Any, tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64, "rope_theta": 5e5}
    model = build_model(llama={"rope_parameters": rope, "max_position_embeddings": 512})
    model.save_pretrained(tmp_path)
    loaded = NatureLM.from_pretrained(tmp_path)
    wanted = model.language_model.model.rotary_emb.inv_freq
    assert torch.equal(loaded.language_model.model.rotary_emb.inv_freq, wanted)


def test_one_report_names_all_that_does_not_fit(reference: Path) -> None:
    tensors = load_file(reference / WEIGHTS)
    del tensors["ln_audio.bias"]
    tensors["ln_audio.weight"] = tensors["ln_audio.weight"][:-1].clone()
    tensors["surplus.weight"] = torch.zeros(2)
    save_file(tensors, reference / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        NatureLM.from_pretrained(reference)
    message = str(caught.value)
    assert "1 tensors missing: ln_audio.bias" in message
    assert "1 tensors unexpected: surplus.weight" in message
    assert "ln_audio.weight (31,) (needed (32,))" in message
    assert str(reference) in message


def test_tensors_known_to_be_unused_may_be_absent(reference: Path, nano_waveforms: Any) -> None:
    wanted = answers(NatureLM.from_pretrained(reference), nano_waveforms["howl"])
    tensors = load_file(reference / WEIGHTS)
    unused = [n for n in tensors if n.startswith("beats.predictor") or n.endswith("position_ids")]
    assert len(unused) == 3
    for name in unused:
        del tensors[name]
    save_file(tensors, reference / WEIGHTS)
    loaded = NatureLM.from_pretrained(reference)
    assert answers(loaded, nano_waveforms["howl"])[1] == wanted[1]
    ids = loaded.audio_Qformer.bert.embeddings.position_ids
    assert ids.tolist() == [list(range(16))]


def test_a_missing_tensor_of_the_base_is_named(partial: Path) -> None:
    base = partial.parent / "llama" / WEIGHTS
    tensors = load_file(base)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        NatureLM.from_pretrained(partial)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: os.truncate(f / WEIGHTS, 1000), "model.safetensors cannot be read as"),
        (
            lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
            "model.safetensors cannot be read as safetensors",
        ),
        (lambda f: (f / WEIGHTS).rename(f / "model.pt"), "naturelm convert"),
        (lambda f: (f / WEIGHTS).unlink(), "holds no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (
            lambda f: edit_json(f / "config.json", llama_path="nowhere"),
            "'nowhere' is neither a folder",
        ),
    ],
)
def test_damaged_checkpoints_are_refused_with_the_reason(
    damage: Any, says: str, reference: Path
) -> None:
    damage(reference)
    with pytest.raises(NatureLMError, match=says):
        NatureLM.from_pretrained(reference)


def test_a_key_of_the_configuration_that_is_not_known_is_named(
    reference: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = json.loads((reference / "config.json").read_text())["qformer_cfg"]
    sizes |= {"cross_attention_freq": 1, "type_vocab_size": 2, "encoder_width": 32}
    edit_json(reference / "config.json", qformer_cfg=sizes, surprise=1)
    NatureLM.from_pretrained(reference)
    assert "leaves out: surprise" in caplog.text
    edit_json(reference / "config.json", qformer_cfg={**sizes, "cross_attention_freq": 2})
    with pytest.raises(ConfigError, match="cross_attention_freq must be 1"):
        NatureLM.from_pretrained(reference)


def test_shards_that_are_absent_or_left_over(build_model: Any, tmp_path: Path) -> None:
    model = build_model()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        NatureLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
    NatureLM.from_pretrained(tmp_path)


def test_local_folders_never_touch_the_network(
    build_model: Any, write_reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    model = build_model()
    model.save_pretrained(tmp_path / "own")
    partial = write_reference(model, tmp_path / "partial", partial=True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    NatureLM.from_pretrained(tmp_path / "own")
    NatureLM.from_pretrained(partial)
    NatureLM.from_pretrained(partial, llama_path=tmp_path / "partial" / "llama")


@pytest.mark.parametrize("name", ["naturelm-audio", "EarthSpeciesProject/NatureLM-audio"])
def test_the_published_model_without_access_says_what_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        NatureLM.from_pretrained(name)
    message = str(caught.value)
    assert "Accept the Llama 3.1 license" in message
    assert "hf auth login" in message
    assert "naturelm-tiny" in message


def test_a_name_that_is_nothing_lists_the_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="naturelm-tiny, naturelm-small, naturelm-audio"):
        NatureLM.from_pretrained("naturelm-huge")
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="naturelm convert"):
        NatureLM.from_pretrained(file)


def test_fingerprint_follows_the_weights_not_the_folder(build_model: Any, tmp_path: Path) -> None:
    build_model(seed=1).save_pretrained(tmp_path / "a")
    build_model(seed=1).save_pretrained(tmp_path / "b")
    build_model(seed=2).save_pretrained(tmp_path / "c")
    a, b, c = (NatureLM.from_pretrained(tmp_path / name).fingerprint for name in "abc")
    assert a == b != c


def test_fingerprint_does_not_depend_on_the_order_of_equally_named_files(tmp_path: Path) -> None:
    files = []
    for number in range(6):  # a checkpoint, its base, shards of others: all of one name
        files.append(tmp_path / str(number) / "model.safetensors")
        files[-1].parent.mkdir()
        files[-1].write_bytes(bytes([number]) * 100)
    moved = tmp_path / "moved"
    (tmp_path / "0").rename(moved)
    elsewhere = [moved / "model.safetensors", *files[1:]]
    wanted = fingerprint(elsewhere)
    moved.rename(tmp_path / "0")
    assert fingerprint(reversed(files)) == fingerprint(files) == wanted
    assert fingerprint(files[1:]) != wanted


def test_an_unknown_dtype_is_named(nano_folder: Path) -> None:
    for wrong in ("float33", "int64"):
        with pytest.raises(UsageError, match=f"'{wrong}' is not one of auto, float32"):
            NatureLM.from_pretrained(nano_folder / "checkpoint", dtype=wrong)


# -- old pickled checkpoints become safetensors on request, and only tensors come out of them --


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_training_checkpoint_becomes_loadable(
    wrapped: bool, build_model: Any, write_reference: Any, nano_waveforms: Any, tmp_path: Path
) -> None:
    model = build_model()
    reference = write_reference(model, tmp_path)
    prefix = "module." if wrapped else ""
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {"model": state, "optimizer": {"step": torch.ones(1)}, "epoch": 3}, tmp_path / "old.pth"
    )
    out = tmp_path / "out" / "converted"
    names = convert_checkpoint(
        tmp_path / "old.pth", out, allow_pickle=True, config=reference / "config.json"
    )
    assert names == sorted(load_file(reference / "model.safetensors"))
    loaded = NatureLM.from_pretrained(out, llama_path=tmp_path / "llama")
    wav = nano_waveforms["howl"]
    with torch.no_grad():
        assert torch.equal(loaded.encode_audio(wav[None]), model.encode_audio(wav[None]))


def test_trained_tensors_alone_are_enough(
    build_model: Any, write_reference: Any, tmp_path: Path
) -> None:
    model = build_model()
    reference = write_reference(model, tmp_path)
    kept = {n: t for n, t in model.state_dict().items() if "base_layer" not in n}
    kept = {n: t for n, t in kept.items() if not n.startswith("llama_model") or "lora" in n}
    kept.pop("llama_embed_tokens.weight")
    torch.save({"model": kept}, reference / "old.pt", _use_new_zipfile_serialization=False)
    convert_checkpoint(reference / "old.pt", tmp_path / "checkpoint2", allow_pickle=True)
    assert json.loads((tmp_path / "checkpoint2" / "config.json").read_text())["lora_rank"] == 4
    NatureLM.from_pretrained(tmp_path / "checkpoint2")


def test_without_a_configuration_the_published_one_is_written(
    build_model: Any, tmp_path: Path
) -> None:
    torch.save({"model": {"ln_audio.weight": torch.ones(3)}}, tmp_path / "old.pth")
    convert_checkpoint(tmp_path / "old.pth", tmp_path / "out", allow_pickle=True)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["llama_path"] == "meta-llama/Meta-Llama-3.1-8B-Instruct"
    assert values["beats_cfg"]["encoder_layers"] == 12


def test_pickles_are_opened_on_request_only_and_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "created"
    torch.save({"model": {"a": Bomb(victim)}}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        convert_checkpoint(tmp_path / "evil.pth", tmp_path / "out")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        convert_checkpoint(tmp_path / "evil.pth", tmp_path / "out", allow_pickle=True)
    assert not victim.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("old.pth", {"model": [1, 2]}, "holds no mapping of tensors"),
        ("old.pth", {"model": {"a": 1}}, "holds no tensors"),
        ("x.safetensors", b"", "no pickle checkpoint"),
        ("torn.pth", b"PK\x03\x04nonsense", "cannot be read"),
        ("none.pth", None, "is not a file"),
    ],
)
def test_sources_that_are_no_old_checkpoints(
    name: str, content: Any, says: str, tmp_path: Path
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(CheckpointError, match=says):
        convert_checkpoint(tmp_path / name, tmp_path / "out", allow_pickle=True)

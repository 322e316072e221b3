"""Old pickled checkpoints become safetensors on request, and only tensors come out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from NatureLM.models import NatureLM
from NatureLM.models.checkpoint.convert import convert_checkpoint
from NatureLM.models.checkpoint.tensors import CheckpointError


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
    ("content", "says"),
    [
        ({"model": [1, 2]}, "holds no mapping of tensors"),
        ({"model": {"a": 1}}, "holds no tensors"),
    ],
)
def test_other_contents_are_named(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "old.pth")
    with pytest.raises(CheckpointError, match=says):
        convert_checkpoint(tmp_path / "old.pth", tmp_path / "out", allow_pickle=True)


def test_wrong_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        convert_checkpoint(tmp_path / "none.pth", tmp_path / "out", allow_pickle=True)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no pickle checkpoint"):
        convert_checkpoint(tmp_path / "x.safetensors", tmp_path / "out", allow_pickle=True)
    (tmp_path / "torn.pth").write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert_checkpoint(tmp_path / "torn.pth", tmp_path / "out", allow_pickle=True)

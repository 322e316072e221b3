"""The adapter alone: it answers as the whole result where nothing else learned, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from NatureLM.errors import ConfigError
from NatureLM.models import NatureLM
from NatureLM.training.train import train

pytest.importorskip("accelerate")
FROZEN = {"freeze_beats": True, "freeze_audio_QFormer": True, "freeze_audio_llama_proj": True}


@pytest.fixture
def base(make_config, tmp_path: Path) -> Path:
    """A trained model whose adapter is not zero."""
    config = make_config(max_steps=2, optims={"init_lr": 0.05}, output_dir=str(tmp_path / "base"))
    return train(config).folder / "final"


def losses(model: NatureLM) -> torch.Tensor:
    """Of answers to noise; equal only if all of the model is."""
    noise = torch.randn(3, model.config.window_samples, generator=torch.Generator().manual_seed(0))
    batch = {
        "prompts": [model.processor.render("What is it?")] * 3,
        "audios": [[wav] for wav in 0.1 * noise],
        "answers": ["Wolf", "Rain", "Cuckoo"],
    }
    with torch.inference_mode():
        return model.loss(batch).per_example_loss


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_adapter_alone_answers_as_the_whole_result(
    make_config, base: Path, tmp_path: Path, capsys, ema_decay: float
):
    config = make_config(
        max_steps=4,
        save_adapter=True,
        ema_decay=ema_decay,
        optims={"init_lr": 0.05},
        output_dir=str(tmp_path / "tuned"),
        model={"ckpt": str(base), **FROZEN},
    )
    folder = train(config).folder
    assert f"Adapter: {folder / 'adapter'}\n" in capsys.readouterr().err
    whole = losses(NatureLM.from_pretrained(folder / "final"))
    assert torch.equal(losses(NatureLM.from_pretrained(base, adapter=folder / "adapter")), whole)
    assert not torch.allclose(losses(NatureLM.from_pretrained(base)), whole, atol=1e-3)
    described = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert described["peft_type"] == "LORA"
    assert described["r"] == 4
    assert "Nothing else learned" in (folder / "adapter" / "README.md").read_text()


def test_what_an_adapter_leaves_out_is_said(make_config, tmp_path: Path, capsys):
    config = make_config(max_steps=1, save_adapter=True, output_dir=str(tmp_path / "all"))
    folder = train(config).folder
    said = "the audio encoder (BEATs), the Q-Former, the projection"
    assert f"without what else learned: {said}" in capsys.readouterr().err
    card = (folder / "adapter" / "README.md").read_text()
    assert said in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("model", "run", "message"),
    [
        ({"lora": False}, {}, "the model has no adapter"),
        ({}, {"task": "encoder"}, "a run of the task encoder has no adapter"),
    ],
)
def test_an_adapter_that_will_not_be_there(make_config, clips_folder, model, run, message):
    data = {"train": [{"path": str(clips_folder)}]} if run else {}
    with pytest.raises(ConfigError, match=message):
        train(make_config(save_adapter=True, model=model, datasets=data, **run))

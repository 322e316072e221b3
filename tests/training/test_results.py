"""What a run leaves: the model, its adapter, their cards; the page on fine-tuning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from markdown_pages import ROOT, Block, blocks, commands

from NatureLM.config import load_config
from NatureLM.errors import ConfigError
from NatureLM.inference.pipeline import Pipeline
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


PAGE = ROOT / "docs" / "how-to" / "fine-tune.md"
QUESTION = "What is the common name for the focal species in the audio?"


def block_with(text: str, language: str) -> Block:
    (found,) = [b for b in blocks(PAGE) if text in b.text and b.language == language and b.runs]
    return found


@pytest.mark.slow
def test_two_new_species_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(block_with("my-clips.csv", "python").text, str(PAGE), "exec"), {})
    (words,) = commands(block_with("run.max_steps", "bash"))
    options = [words[i + 1] for i, word in enumerate(words) if word == "--options"]
    result = train(load_config("configs/finetune.yml", options))
    assert result.scores["accuracy"] >= 5 / 6

    clips = sorted(Path("my-clips").glob("*_[789].flac"))
    assert len(clips) == 6
    before = Pipeline("naturelm-tiny")(clips, QUESTION)
    assert not any(map(is_right, before, clips))
    after = Pipeline(NatureLM.from_pretrained(result.folder / "final"))(clips, QUESTION)
    assert sum(map(is_right, after, clips)) >= 5
    tuned = NatureLM.from_pretrained("naturelm-tiny", adapter=result.folder / "adapter")
    assert Pipeline(tuned)(clips, QUESTION) == after


def is_right(answer: str, clip: Path) -> bool:
    return " ".join(clip.stem.split("_")[:2]) in answer.lower()

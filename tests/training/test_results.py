"""The command, its configurations, and what a run leaves: the model, its adapter, their cards."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from commands import call, write_lines
from markdown_pages import ROOT, Block, blocks, commands

from NatureLM.cli.train import report
from NatureLM.config import load_config
from NatureLM.config.load import dump_config
from NatureLM.errors import ConfigError
from NatureLM.inference.pipeline import Pipeline
from NatureLM.models import NatureLM, NatureLMConfig
from NatureLM.training.optim import part_of
from NatureLM.training.train import Trainer, train

from .conftest import LLAMA_8B

pytest.importorskip("accelerate")


def check(path: Path, *options: str, ends: int = 0) -> str:
    changes = [word for option in options for word in ("--options", option)]
    return call("train", "--cfg-path", path, "--check", *changes, ends=ends)


@pytest.fixture
def config_file(make_config, tmp_path: Path) -> Path:
    config = make_config(
        augmentations={"use_augmentation": True, "gain_prob": 1.0, "time_masks": 2}
    )
    path = tmp_path / "train.yml"
    path.write_text(dump_config(config))
    return path


def test_check_shows_ten_samples_as_the_model_sees_them(config_file: Path, tmp_path: Path):
    shown = check(config_file)
    assert "table: 24 rows (name 12, yes-no 12)" in shown
    assert "12 audio files, all there" in shown
    assert shown.count("    answer  ") == 10
    assert "<|start_header_id|>user<|end_header_id|>\\n\\n<Audio><AudioHere></Audio>" in shown
    assert re.search(r"audio   0\.\d0 s of sound in 1 window", shown)
    assert re.search(r"changes gain [+-]\d+\.\d dB, 2 masks", shown)
    assert not (tmp_path / "run").exists()


def test_what_check_shows_is_what_training_gets(make_config):
    config = make_config(batch_size_train=10, augmentations={"use_augmentation": True})
    (batch,) = next(iter(Trainer(config).loader.steps(0, 1)))
    lines = "\n".join(report(config))
    for number, sample in enumerate(batch, start=1):
        assert f"[{number}] {sample.id} " in lines
        assert repr(sample.prompt) in lines


def test_missing_audio_is_reported(config_file: Path, tmp_path: Path):
    rows = [{"path": f"gone{i}.wav", "prompt": "?", "answer": "x"} for i in range(3)]
    table = write_lines(tmp_path / "gone.jsonl", rows)
    shown = check(config_file, f"datasets.train=[{{path: {table}}}]", ends=1)
    assert "3 of 3 audio files are not there, such as" in shown
    assert "none of the first 10 samples can be read" in shown


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("run.optims.init_lr=-1", "run.optims.init_lr"),
        ("run.epochs=3", "run.epochs"),
        ("datasets.train=[{path: nowhere.csv}]", "nowhere.csv: there is no such table"),
        ("datasets.train=[]", "no train data: set datasets.train_ann_path"),
    ],
)
def test_wrong_settings_end_with_a_message(config_file: Path, option: str, message: str):
    assert message in check(config_file, option, ends=2)


@pytest.mark.parametrize("name", ["train_stage1.yml", "train_stage2.yml"])
def test_shipped_configurations_have_the_published_settings(name: str, caplog):
    config = load_config(ROOT / "configs" / name)
    assert not caplog.messages
    optims = config.run.optims
    assert (optims.warmup_steps, optims.init_lr, optims.min_lr) == (5000, 9e-5, 1e-5)
    assert (optims.weight_decay, optims.beta2, optims.max_grad_norm) == (0.05, 0.999, 2.0)
    assert config.model.llama_path == "meta-llama/Meta-Llama-3.1-8B-Instruct"
    assert config.model.freeze_llama
    assert not config.model.freeze_beats
    assert (config.model.lora_rank, config.model.lora_alpha) == (32, 32)
    assert config.model.prompt_template.count("<|eot_id|>") == 1


def test_the_configuration_for_fine_tuning_trains_the_adapter_only(caplog):
    config = load_config(ROOT / "configs" / "finetune.yml")
    assert not caplog.messages
    model, run = config.model, config.run
    assert model.freeze_beats
    assert model.freeze_audio_QFormer
    assert model.freeze_audio_llama_proj
    assert model.freeze_llama
    assert model.lora
    assert run.save_adapter
    assert run.batch_size_train * run.accum_grad_iters == 16
    (train,), (valid,) = config.datasets.train, config.datasets.valid
    assert (train.path, train.where) == ("my-clips.csv", {"split": "train"})
    assert (valid.path, valid.where) == ("my-clips.csv", {"split": "valid"})


def test_the_sizes_that_the_page_on_fine_tuning_counts_with():
    """8.03 billion, 91, 19, 3 and 27.3 million weights."""
    with torch.device("meta"):
        model = NatureLM(NatureLMConfig(text_config=LLAMA_8B.to_dict()))
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        sizes[part_of(name)] += parameter.numel()
    page = (ROOT / "docs" / "how-to" / "fine-tune.md").read_text()
    assert round(sizes["language_model"] / 1e9, 2) == 8.03
    assert "8.03 billion" in page
    assert round(sizes["lora"] / 1e6, 1) == 27.3
    assert "27.3 million" in page
    parts = [round(sizes[part] / 1e6) for part in ("beats", "qformer", "projection")]
    assert (
        "BEATs ({} million), Q-Former ({} million), projection ({} million)".format(*parts) in page
    )


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
    parts = "the audio encoder (BEATs), the Q-Former, the projection"
    assert f"without what else learned: {parts}" in capsys.readouterr().err
    card = (folder / "adapter" / "README.md").read_text()
    assert parts in card
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

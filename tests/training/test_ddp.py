"""Two processes make the updates of one with the same global batch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import rows, write_lines
from safetensors.torch import load_file

from NatureLM.config.load import dump_config
from NatureLM.config.schema import Config
from NatureLM.errors import ConfigError, UsageError
from NatureLM.training.optim import check_shardable, split_units
from NatureLM.training.train import Trainer, train

pytest.importorskip("accelerate")
ACCELERATE = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
WAYS = ["ddp", "fsdp"]


def numbers(folder: Path, kind: str) -> dict[tuple[str, int], float]:
    """(kind of line, step) → a number of `log.jsonl`."""
    lines = rows(folder / "log.jsonl")
    return {(line["kind"], line["step"]): line[kind] for line in lines if kind in line}


def launch(config: Config, way: str, environment: dict[str, str], *options: str) -> Path:
    """Run with two processes, started as a user does; they talk through gloo. The run's folder."""
    folder = Path(config.run.output_dir)
    path = folder.with_suffix(".yml")
    path.write_text(dump_config(config))
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", str(ACCELERATE / f"{way}.yml"), "--main_process_port=0"]
    command += ["-m", "NatureLM.cli.train", "--cfg-path", str(path), *options]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def tensors(folder: Path, file: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / f"{file}.safetensors")


@pytest.fixture
def odd_table(table: Path) -> Path:
    """Eleven rows: the processes get unequally many batches of three, and answer unequally long."""
    lines = table.read_text().splitlines()[:11]
    path = table.with_name("eleven.jsonl")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_are_as_one(
    make_config, table: Path, odd_table: Path, tmp_path: Path, quiet_environment, way: str
):
    def config(name: str, batch: int) -> Config:
        return make_config(
            batch_size_train=batch,
            batch_size_eval=3,
            accum_grad_iters=2,
            max_steps=4,
            eval_every=2,
            decode_ratio=1.0,
            ema_decay=0.5,
            output_dir=str(tmp_path / name),
            datasets={"train": [{"path": str(table)}], "valid": [{"path": str(odd_table)}]},
            model={
                "lora_dropout": 0.0,
                "beats_cfg": {"encoder_layerdrop": 0.0},
                "qformer_cfg": {
                    "hidden_dropout_prob": 0.0,
                    "attention_probs_dropout_prob": 0.0,
                },
            },
        )

    train(config("one", 4))
    one, two = tmp_path / "one", launch(config("two", 2), way, quiet_environment)
    for kind, count in (("loss", 6), ("accuracy", 2), ("macro_accuracy", 2)):
        expected, found = numbers(one, kind), numbers(two, kind)
        assert expected.keys() == found.keys()
        assert len(expected) == count
        for key, value in expected.items():
            assert found[key] == pytest.approx(value, abs=1e-5), (kind, key)
    for file in ("weights", "optimizer", "average"):
        expected, found = tensors(one, file, 4), tensors(two, file, 4)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5, msg=name)
    expected, found = (load_file(run / "final" / "model.safetensors") for run in (one, two))
    assert {n: (t.dtype, t.shape) for n, t in expected.items()} == {
        n: (t.dtype, t.shape) for n, t in found.items()
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_all_that_may_differ_between_processes(
    make_config, table: Path, tmp_path: Path, quiet_environment, way: str
):
    """Dropped layers, rows without audio, activations computed anew, bfloat16, all parts learn; and
    a run that goes on from its checkpoint ends as the one that was not stopped."""
    text = write_lines(tmp_path / "text.jsonl", [{"prompt": "Say yes.", "answer": "yes"}] * 12)
    config = make_config(
        batch_size_train=1,
        accum_grad_iters=2,
        max_steps=6,
        save_every=3,
        keep_checkpoints=3,
        ema_decay=0.9,
        amp=True,
        gradient_checkpointing=True,
        output_dir=str(tmp_path / "run"),
        datasets={"train": [{"path": str(table)}, {"path": str(text)}]},
        model={"freeze_llama": False, "beats_cfg": {"encoder_layerdrop": 0.5}},
    )
    folder = launch(config, way, quiet_environment)
    whole = {file: tensors(folder, file, 6) for file in ("weights", "optimizer", "average")}
    assert any(name.endswith("lm_head.weight") for name in whole["weights"])
    shutil.rmtree(folder / "checkpoints" / "step_00000006")
    launch(config, way, quiet_environment, "--resume")
    for file, expected in whole.items():
        found = tensors(folder, file, 6)
        assert all(found[name].equal(value) for name, value in expected.items()), file


@pytest.mark.parametrize(
    ("datasets", "optims", "message"),
    [
        ({"questions_per_clip": 2}, {}, "questions_per_clip is above 1"),
        ({}, {"muon_lr": 0.02}, "muon_lr needs whole matrices"),
    ],
)
def test_what_fsdp_cannot_follow_is_refused(
    make_config, monkeypatch: pytest.MonkeyPatch, datasets, optims, message: str
):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    config = make_config(datasets=datasets, optims=optims)
    check_shardable(ONE, config.run, config.datasets)
    with pytest.raises(ConfigError, match=message):
        check_shardable(TWO, config.run, config.datasets)
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UsageError, match="only the second is supported: fsdp_version: 2"):
        check_shardable(TWO, config.run, config.datasets)


ONE, TWO = SimpleNamespace(num_processes=1), SimpleNamespace(num_processes=2)


def test_units_are_the_layers_of_the_language_model(make_config):
    units = split_units(Trainer(make_config()).objective)
    assert {type(unit).__name__ for unit in units} == {"LlamaDecoderLayer"}
    assert len(units) == 2

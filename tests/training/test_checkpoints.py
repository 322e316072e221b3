"""Checkpoints are whole or not there; a run is resumed only with its settings; logs go with it."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from NatureLM.errors import UsageError
from NatureLM.training import checkpoint as files
from NatureLM.training.checkpoint import check_same, run_settings
from NatureLM.training.logs import RunLog, duration, keep_until
from NatureLM.training.optim import trainable

TENSORS = {files.WEIGHTS: {"weight": torch.ones(2)}}


def write(folder: Path, step: int) -> files.Checkpoint:
    return files.write_checkpoint(folder, step, TENSORS, {"step": step})


def test_a_broken_write_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1)

    def fail(*_: object) -> None:
        raise OSError("the machine went down")

    for moment in ("save_file", "_to_disk"):
        with monkeypatch.context() as patched:
            patched.setattr(files, moment, fail)
            with pytest.raises(OSError, match="went down"):
                write(tmp_path, 2)
        assert [c.step for c in files.checkpoints(tmp_path)] == [1]
    write(tmp_path, 2)
    assert [c.step for c in files.checkpoints(tmp_path)] == [1, 2]


def test_a_broken_removal_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch):
    write(tmp_path, 1)
    write(tmp_path, 2)
    real = files.shutil.rmtree

    def half(folder: Path, **settings: object) -> None:
        if folder.exists() and "old" in folder.name:
            (folder / files.WEIGHTS).unlink(missing_ok=True)
            raise OSError("the machine went down")
        real(folder, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", half)
        with pytest.raises(OSError, match="went down"):
            files.clean(tmp_path, keep=1)
    assert [c.step for c in files.checkpoints(tmp_path)] == [2]
    files.clean(tmp_path, keep=1)
    assert os.listdir(tmp_path) == ["step_00000002"]


def test_retention(tmp_path: Path):
    for step in range(1, 7):
        write(tmp_path, step)
    files.clean(tmp_path, keep=2, also=[3])
    assert [c.step for c in files.checkpoints(tmp_path)] == [3, 5, 6]


def test_the_optimiser_comes_back_exactly(tmp_path: Path):
    def trained() -> tuple[nn.Module, torch.optim.AdamW]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(module.parameters())
        module(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return module, optimizer

    module, optimizer = trained()
    tensors = files.optimizer_tensors(optimizer, trainable(module))
    assert set(tensors) == {
        f"{name}/{kind}"
        for name in ("weight", "bias")
        for kind in ("exp_avg", "exp_avg_sq", "step")
    }
    written = files.write_checkpoint(tmp_path, 1, {files.OPTIMIZER: tensors}, {})
    other, fresh = trained()
    fresh.state.clear()
    files.load_optimizer(fresh, trainable(other), written.tensors(files.OPTIMIZER))
    for model, optim in ((module, optimizer), (other, fresh)):
        optim.zero_grad()
        model(torch.full((1, 3), 2.0)).sum().backward()
        optim.step()
    assert torch.equal(module.weight, other.weight)


def test_weights_of_another_model_are_refused(tmp_path: Path):
    parameters = trainable(nn.Linear(2, 2))
    with pytest.raises(files.NatureLMError, match="different: bias, weight"):
        files.load_weights(parameters, {"weight": torch.ones(3, 2)}, tmp_path)


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"ste')
    keep_until(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_lines_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = RunLog(tmp_path, step=0, total=10)
    numbers = {"loss": 1.5, "learning_rate": 1e-4, "samples_per_second": 8.0}
    with log.running():
        log.train(5, numbers)
        log.evaluation(5, {"loss": 2.0})
    shown = capsys.readouterr().err
    assert "step 5/10: loss 1.5000, 8.0 samples/s, rate 1.00e-04" in shown
    assert "valid loss 2.0000" in shown
    written = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert written[0] == {"kind": "train", "step": 5, **numbers}
    assert written[1] == {"kind": "valid", "step": 5, "loss": 2.0}
    RunLog(tmp_path / "second", step=0, total=10, main=False).say("nothing")
    assert not (tmp_path / "second").exists()
    assert (duration(75), duration(7300)) == ("1 min 15 s", "2 h 1 min")


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in that takes what trackio takes (it is large, and no test dependency)."""
    calls: list[tuple[str, object]] = []
    stand_in = ModuleType("trackio")
    stand_in.init = lambda **settings: calls.append(("init", settings))
    stand_in.log = lambda numbers, step: calls.append(("log", (numbers, step)))
    stand_in.finish = lambda: calls.append(("finish", None))
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    log = RunLog(tmp_path / "birds", step=0, total=1, trackers=["trackio"])
    with log.running():
        log.evaluation(1, {"loss": 2.0})
    assert calls == [
        ("init", {"project": "naturelm", "name": "birds", "resume": "allow"}),
        ("log", ({"valid/loss": 2.0}, 1)),
        ("finish", None),
    ]


def test_a_tracker_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UsageError, match=r"run\.trackers names trackio: pip install trackio"):
        RunLog(tmp_path, step=0, total=1, trackers=["trackio"])


def test_tensorboard(tmp_path: Path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path, step=0, total=1, trackers=["tensorboard"])
    with log.running():
        log.evaluation(1, {"loss": 2.0})
    assert list((tmp_path / "tensorboard").glob("events*"))


SOURCE = Path("step_1")


def test_what_changes_no_number_may_change(make_config):
    one = run_settings(make_config(), data="d", processes=1)
    other = run_settings(make_config(num_workers=3, save_adapter=True), data="d", processes=1)
    check_same(one, other, SOURCE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 14}, r"run\.seed: 13 then, 14 now"),
        ({"optims": {"weight_decay": 0.0}}, r"run\.optims"),
        ({"datasets": {"temperature": 2.0}}, r"datasets\.temperature: 1\.0 then, 2\.0 now"),
        ({"model": {"lora_rank": 8}}, r"model\.lora_rank: 4 then, 8 now"),
    ],
)
def test_what_changes_numbers_may_not(make_config, change, message: str):
    before = run_settings(make_config(), data="d", processes=1)
    with pytest.raises(UsageError, match=message):
        check_same(before, run_settings(make_config(**change), data="d", processes=1), SOURCE)
    with pytest.raises(UsageError, match="training data: 'd' then, 'e' now"):
        check_same(before, run_settings(make_config(), data="e", processes=1), SOURCE)


def test_a_run_of_an_older_version_goes_on(make_config):
    now = run_settings(make_config(), data="d", processes=1)
    before = copy.deepcopy(now)
    del before["datasets.train"][0]["split"]
    del before["run.optims"]["beta1"]
    del before["run.gradient_checkpointing"]
    check_same(before, now, SOURCE)
    changed = run_settings(make_config(gradient_checkpointing=True), data="d", processes=1)
    with pytest.raises(UsageError, match=r"run\.gradient_checkpointing: False then, True now"):
        check_same(before, changed, SOURCE)

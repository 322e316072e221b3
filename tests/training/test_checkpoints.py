"""Checkpoints are whole or not there; a run that is killed and resumed ends as if it was not."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import rows
from safetensors.torch import load_file
from torch import nn

from NatureLM.config.schema import Config
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.training import outputs as files
from NatureLM.training.optim import trainable
from NatureLM.training.outputs import RunLog, check_same, checkpoints, keep_until, run_settings
from NatureLM.training.train import train

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
            with pytest.raises(NatureLMError, match=r"went down.*--resume goes on"):
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


def test_weights_of_another_model_are_refused(tmp_path: Path):
    parameters = trainable(nn.Linear(2, 2))
    with pytest.raises(files.NatureLMError, match="different: bias, weight"):
        files.load_weights(parameters, {"weight": torch.ones(3, 2)}, tmp_path)


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"ste')
    keep_until(path, 2)
    assert [line["step"] for line in rows(path)] == [1, 2]


def test_lines_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    log = RunLog(tmp_path, step=0, total=10)
    numbers = {"loss": 1.5, "learning_rate": 1e-4, "samples_per_second": 8.0}
    with log.running():
        log.train(5, numbers)
        log.evaluation(5, {"loss": 2.0})
    shown = capsys.readouterr().err
    assert "step 5/10: loss 1.5000, 8.0 samples/s, rate 1.00e-04, 0 min 0 s left" in shown
    assert "valid loss 2.0000" in shown
    written = rows(tmp_path / "log.jsonl")
    assert written[0] == {"kind": "train", "step": 5, **numbers}
    assert written[1] == {"kind": "valid", "step": 5, "loss": 2.0}
    RunLog(tmp_path / "second", step=0, total=10, main=False).say("nothing")
    assert not (tmp_path / "second").exists()


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


STEPS = 14


def run(settings: dict[str, Any]) -> None:
    """What the child process does."""
    import torch

    torch.set_num_threads(1)
    train(Config.model_validate(settings), resume=True)


def killed(context: Any, settings: dict[str, Any], step: int, delay: float) -> int:
    """Start or resume the run in a process of its own, kill it `delay` seconds after `step` is
    saved; the step of the last checkpoint that it left."""
    folder = Path(settings["run"]["output_dir"]) / "checkpoints"
    child = context.Process(target=run, args=(settings,))
    child.start()
    deadline = time.monotonic() + 120
    while (not (found := checkpoints(folder)) or found[-1].step < step) and child.is_alive():
        assert time.monotonic() < deadline, "the child makes no checkpoint"
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the child ended before it was killed"
    return checkpoints(folder)[-1].step


def test_killed_at_three_random_moments(make_config, table: Path, tmp_path: Path):
    pytest.importorskip("accelerate")
    config = make_config(
        max_steps=STEPS,
        save_every=1,
        eval_every=5,
        num_workers=2,
        ema_decay=0.9,
        datasets={"valid": [{"path": str(table)}]},
        augmentations={
            "use_augmentation": True,
            "synthetic_noise_prob": 0.5,
            "gain_prob": 0.5,
            "placement_prob": 0.5,
            "time_masks": 1,
        },
        output_dir=str(tmp_path / "whole"),
    )
    settings = config.model_dump(exclude_unset=True)
    train(config)

    settings["run"]["output_dir"] = str(tmp_path / "killed")
    # Not forked from this process, whose threads of other tests may hold a lock at that moment.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["NatureLM.training.train", "accelerate"])
    rng = random.Random()  # other moments every time: whenever it is, the end is the same
    steps = [killed(context, settings, at, rng.uniform(0, 0.05)) for at in (2, 4, 6)]
    assert steps == sorted(steps)
    assert steps[-1] < STEPS, "the last kill came after the end"
    train(Config.model_validate(settings), resume=True)

    whole, parts = tmp_path / "whole", tmp_path / "killed"
    for file in ("weights", "optimizer", "average"):
        one, other = (
            load_file(folder / "checkpoints" / f"step_{STEPS:08d}" / f"{file}.safetensors")
            for folder in (whole, parts)
        )
        assert one.keys() == other.keys()
        assert all(one[name].equal(other[name]) for name in one), file
    model = "final/model.safetensors"
    assert (whole / model).read_bytes() == (parts / model).read_bytes()
    assert numbers(whole) == numbers(parts)
    assert not list((parts / "checkpoints").glob(".partial*"))


def numbers(folder: Path) -> list[tuple[str, int, float]]:
    """Kind, step and loss of every line of the log."""
    return [(line["kind"], line["step"], line["loss"]) for line in rows(folder / "log.jsonl")]

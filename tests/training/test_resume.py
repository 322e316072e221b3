"""A run that is killed at any moment and resumed ends with the very same weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from NatureLM.config.schema import Config
from NatureLM.training.checkpoint import checkpoints
from NatureLM.training.train import train

pytest.importorskip("accelerate")
STEPS = 20


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
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the child ended before it was killed"
    return checkpoints(folder)[-1].step


def test_killed_at_three_random_moments(make_config, table: Path, tmp_path: Path):
    config = make_config(
        max_steps=STEPS,
        save_every=1,
        eval_every=7,
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["NatureLM.training.train", "accelerate"])
    rng = random.Random()  # other moments every time: whenever it is, the end is the same
    steps = [killed(context, settings, at, rng.uniform(0, 0.05)) for at in (2, 7, 12)]
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
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [(line["kind"], line["step"], line["loss"]) for line in lines]


def test_the_weights_depend_on_what_is_restored(make_config, tmp_path: Path):
    """The comparison above can fail: without its optimiser state a run ends elsewhere."""
    ends = []
    for name in ("one", "two"):
        config = make_config(max_steps=4, save_every=2, output_dir=str(tmp_path / name))
        half = make_config(max_steps=4, save_every=2, output_dir=str(tmp_path / name))
        train(config)
        last = tmp_path / name / "checkpoints" / "step_00000004"
        last.rename(tmp_path / name / "removed")
        if name == "two":
            (tmp_path / name / "checkpoints" / "step_00000002" / "optimizer.safetensors").unlink()
        train(half, resume=True)
        ends.append(load_file(last / "weights.safetensors"))
        first = load_file(tmp_path / name / "removed" / "weights.safetensors")
        same = all(first[key].equal(ends[-1][key]) for key in first)
        assert same == (name == "one")

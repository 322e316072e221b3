"""`naturelm train`: train or fine-tune, or check what a training would see."""

from __future__ import annotations

import os
from pathlib import Path

from NatureLM.cli import options as of
from NatureLM.cli.terminal import stop_message
from NatureLM.progress import show


def train(
    cfg_path: Path = of.option(..., "Configuration of the run (YAML).", None, "--cfg-path", "-c"),
    options: list[str] | None = of.option(
        None,
        "Change a value of the configuration, such as run.seed=1. May be given several times.",
        metavar="KEY=VALUE",
    ),
    resume: bool = of.option(False, "Go on from the latest checkpoint in run.output_dir."),
    check: bool = of.option(False, "Check configuration and data and show samples; no training."),
) -> None:
    """Train a model, from the settings in a file.

    naturelm train --cfg-path configs/train_stage1.yml --options run.output_dir=runs/first

    The result is run.output_dir/final; `naturelm infer --model` takes it as it is.
    """
    from NatureLM.config import load_config
    from NatureLM.util import check_place

    config = load_config(cfg_path, options or [])
    if check:
        from NatureLM.training.check import report

        for line in report(config):
            show(line)
        return
    if config.run is not None and os.environ.get("RANK", "0") == "0":  # one of all processes
        check_place(Path(config.run.output_dir), "run.output_dir", folder=True)
    of.import_model(for_training=True)
    from transformers.utils.logging import disable_progress_bar

    from NatureLM.training.train import train as run_training

    disable_progress_bar()
    with stop_message(
        "Stopped. Go on from the last checkpoint with the same command and --resume."
    ):
        run_training(config, resume=resume)


def main() -> None:
    """`naturelm train` as a module, for launchers: `accelerate launch -m NatureLM.cli.train …`."""
    from NatureLM.cli.main import NATURELM_COMMANDS, run_command

    run_command("train", NATURELM_COMMANDS["train"])


if __name__ == "__main__":
    main()

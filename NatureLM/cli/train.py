"""`naturelm train`: train or fine-tune, or check what a training would see."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli import options as of

logger = logging.getLogger(__name__)


def train(
    cfg_path: Annotated[
        Path,
        of.option("Configuration of the run (YAML).", names=("--cfg-path", "-c")),
    ],
    options: Annotated[
        list[str] | None,
        of.option(
            "Change a value of the configuration, such as run.seed=1. May be given several times.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    resume: Annotated[
        bool,
        of.option("Go on from the latest checkpoint in run.output_dir."),
    ] = False,
    check: Annotated[
        bool,
        of.option("Check configuration and data and show samples; no training."),
    ] = False,
) -> None:
    """Train a model, from the settings in a file.

    naturelm train --cfg-path configs/train_stage1.yml --options run.output_dir=runs/first

    The result is run.output_dir/final; `naturelm infer --model` takes it as it is.
    """
    from NatureLM.cli.errors import Stopped
    from NatureLM.config import load_config

    config = load_config(cfg_path, options or [])
    if check:
        from NatureLM.training.check import report

        for line in report(config):
            typer.echo(line)
        return
    of.import_model()
    from transformers.utils.logging import disable_progress_bar

    from NatureLM.training.train import train as run_training

    disable_progress_bar()
    try:
        run_training(config, resume=resume)
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            "Stopped. Go on from the last checkpoint with the same command and --resume.",
            interrupt,
        ) from None


def main() -> None:
    """`naturelm train` as a module, for launchers: `accelerate launch -m NatureLM.cli.train …`."""
    from NatureLM.cli.main import NATURELM_COMMANDS, run_command

    run_command("train", NATURELM_COMMANDS["train"])


if __name__ == "__main__":
    main()

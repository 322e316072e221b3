"""`naturelm train`: train or fine-tune, or check what a training would see."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from NatureLM.cli import options as of
from NatureLM.cli.terminal import stop_message
from NatureLM.errors import AudioError, NatureLMError
from NatureLM.progress import show

if TYPE_CHECKING:
    from NatureLM.config.schema import Config, DatasetsConfig, RunConfig
    from NatureLM.training.data import Data
    from NatureLM.training.samples import Sample


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


def report(config: Config, samples: int = 10) -> Iterator[str]:
    """Lines about data and settings, then samples as the model will see them.

    Raises what the run would raise: `ConfigError`, `DataError`, and a `NatureLMError` when no
    shown sample's audio can be read.
    """
    from NatureLM.config.schema import DatasetsConfig, RunConfig
    from NatureLM.training.data import load_data, make_order
    from NatureLM.training.samples import make_builders

    run, datasets = config.run or RunConfig(), config.datasets or DatasetsConfig()
    data = load_data(datasets, run)
    step_size = run.batch_size_train * run.accum_grad_iters
    order = make_order(data, datasets, run, step_size)
    template, sample_rate, seconds = _front_end(config, datasets, run)
    builder, *_, _ = make_builders(
        data,
        datasets,
        run,
        template=template,
        sample_rate=sample_rate,
        window_samples=round(seconds * sample_rate),
    )
    yield from _summary(run, data, order.epoch_steps(step_size), step_size)
    unreadable = 0
    for number, draw in enumerate(order.draws(0, samples), start=1):
        yield ""
        try:
            yield from _shown(number, builder.build(draw))
        except AudioError as error:
            unreadable += 1
            yield f"[{number}] cannot be used: {error}"
    if unreadable == samples:
        raise NatureLMError(f"none of the first {samples} samples can be read")


def _front_end(config: Config, datasets: DatasetsConfig, run: RunConfig) -> tuple[str, int, float]:
    """Template, sample rate and window: those of the checkpoint that the run starts from."""
    template, rate = config.model.prompt_template, config.model.sample_rate
    seconds = datasets.audio_max_length_seconds
    if run.task == "encoder":
        return "{}", rate, seconds
    if run.task == "text" or config.model.ckpt is None:
        return template, rate, seconds
    from NatureLM.models.registry import find_checkpoint, read_config

    values = read_config(find_checkpoint(config.model.ckpt, revision=config.model.revision))
    return (
        values.get("prompt_template", template),
        int(values.get("sample_rate", rate)),
        float(values.get("window_seconds", seconds)),
    )


def _summary(run: RunConfig, data: Data, epoch_steps: int, step_size: int) -> Iterator[str]:
    """Steps, rows, and which audio files are not there, without opening any."""
    from NatureLM.data.sample import FileSource

    steps = run.max_steps or run.optims.max_epoch * epoch_steps
    yield f"Task {run.task}: {steps} steps of {step_size} samples for each process"
    for rows in data.datasets:
        tasks = Counter(row.task or "no task named" for row in rows)
        named = ", ".join(f"{task} {count}" for task, count in tasks.most_common(6))
        yield f"  train  {rows[0].dataset}: {len(rows)} rows ({named})"
    for name, rows in (("valid", data.valid), ("test", data.test)):
        if rows:
            yield f"  {name:5}  {len(rows)} rows"
    clips = (c for row in [*data.train, *data.valid, *data.test] for c in row.clips)
    paths = sorted({c.source.path for c in clips if isinstance(c.source, FileSource)}, key=str)
    gone = [path for path in paths if not path.is_file()]
    if gone:
        yield f"  {len(gone)} of {len(paths)} audio files are not there, such as {gone[0]}"
    elif paths:
        yield f"  {len(paths)} audio files, all there"


def _shown(number: int, sample: Sample) -> Iterator[str]:
    about = ", ".join(part for part in (sample.dataset, sample.task) if part)
    yield f"[{number}] {sample.id} ({about})"
    yield f"    prompt  {sample.prompt!r}"
    yield f"    answer  {sample.answer!r}"
    if sample.audios:
        lengths = ", ".join(f"{seconds:.2f} s" for seconds in sample.seconds)
        yield f"    audio   {lengths} of sound in {len(sample.audios)} window(s)"
    masks = sum(len(mask) for mask in sample.masks)
    for question in sample.further:
        yield f"    and     {question.prompt!r}"
        yield f"            {question.answer!r}"
    notes = [*sample.notes, *([f"{masks} masks"] if masks else [])]
    if notes:
        yield f"    changes {', '.join(notes)}"


def main() -> None:
    """`naturelm train` as a module, for launchers: `accelerate launch -m NatureLM.cli.train …`."""
    from NatureLM.cli.main import NATURELM_COMMANDS, run_command

    run_command("train", NATURELM_COMMANDS["train"])


if __name__ == "__main__":
    main()

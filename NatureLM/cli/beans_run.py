"""`beans run`: the benchmark, or an experiment on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli import experiment_options as options_of
from NatureLM.cli import model_options as of_model


def run(
    cfg_path: Annotated[
        Path | None,
        typer.Option(
            help="Configuration file, such as configs/inference.yml or configs/cbi.yml.",
            show_default="built-in settings",
        ),
    ] = None,
    data_path: options_of.DataPath = None,
    output_path: Annotated[
        Path | None,
        typer.Option(
            help="Where the answers go: a folder, or a file NAME.jsonl, whose metrics are in "
            "NAME_metrics.jsonl. What exists is gone on with.",
            show_default="runs/ and the name of the configuration",
        ),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(
            help="Components that are tested, set off by commas.",
            show_default="all that the data hold",
        ),
    ] = None,
    merging_alpha: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="How much of the adapter is merged in, where extended.lora_scales is not set.",
            show_default="generate.merging_alpha of the configuration, 1.0",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A name from `naturelm models`, an id on the Hugging Face Hub, or a folder.",
            show_default="model.ckpt of the configuration, naturelm-tiny",
        ),
    ] = None,
    adapter: of_model.Adapter = None,
    device: of_model.Device = "auto",
    dtype: of_model.Dtype = "auto",
    options: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY.SUB=VALUE",
            help="Change a value of the configuration, such as extended.limit=100. May be given "
            "several times.",
            show_default=False,
        ),
    ] = None,
    max_memory: of_model.MaxMemory = None,
    cache_dir: of_model.CacheDir = None,
    dry_run: options_of.DryRun = False,
    workers: options_of.Workers = 2,
) -> None:
    """Ask a model about labelled samples; `beans --cfg-path ...` is the same.

    Each sample is asked its own question, and the answers are scored; or it is asked the queries
    of the section `extended` of the configuration.

    beans --cfg-path configs/inference.yml --data-path beans-zero --output-path answers.jsonl
    """
    from NatureLM.cli import experiment
    from NatureLM.cli.scoring_options import listed
    from NatureLM.config import load_config

    def note(text: str) -> None:
        typer.echo(f"Note: {text}", err=True)

    request = experiment.make_experiment(
        load_config(cfg_path, options_of.with_data_path(options, data_path), warn=note),
        cfg_path=cfg_path,
        command="beans",
        data_path=data_path,
        model=model,
        adapter=adapter,
        device=device,
        dtype=dtype,
        output_path=output_path,
        workers=workers,
        max_memory=max_memory,
        cache_dir=cache_dir,
        merging_alpha=merging_alpha,
        datasets=None if components is None else listed("--components", components),
    )
    raise typer.Exit(experiment.run(request, dry_run=dry_run, warn=note))

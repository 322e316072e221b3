"""`naturelm infer`: questions about recordings, answers as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli import experiment_options as options_of
from NatureLM.cli import model_options as of_model
from NatureLM.cli import species_options as lists

_INPUT = "What to ask"
_OUTPUT = "Output"


def infer(
    recordings: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings or folders, as with --audio-path.", show_default=False),
    ] = None,
    audio_path: Annotated[
        list[Path] | None,
        typer.Option(
            "--audio-path",
            "--audio",
            "-a",
            help="A recording, or a folder with recordings. May be given several times.",
            show_default=False,
            rich_help_panel=_INPUT,
        ),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            "-q",
            help="What to ask of every window. May be given several times.",
            show_default=False,
            rich_help_panel=_INPUT,
        ),
    ] = None,
    model: of_model.OptionalModelName = None,
    adapter: of_model.Adapter = None,
    merging_alpha: Annotated[
        float | None,
        typer.Option(
            help="Share of the adapter: 0 is the base language model, 1 the adapted one.",
            show_default="generate.merging_alpha of the configuration, 1.0",
            rich_help_panel=of_model.MODEL,
        ),
    ] = None,
    device: of_model.Device = "auto",
    dtype: of_model.Dtype = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Answers and windows at a time. Changes the speed, never the answers.",
            show_default="chosen for the device",
            rich_help_panel=of_model.MODEL,
        ),
    ] = None,
    max_memory: of_model.MaxMemory = None,
    cache_dir: of_model.CacheDir = None,
    cfg_path: of_model.CfgPath = None,
    options: of_model.Overrides = None,
    window_length_seconds: of_model.WindowLength = 10.0,
    hop_length_seconds: of_model.HopLength = 10.0,
    channel: of_model.Channel = "mean",
    time_expansion: of_model.TimeExpansion = 1.0,
    output_path: Annotated[
        Path | None,
        typer.Option(
            help="File for the answers, one JSON line for each (of an experiment: a folder). One "
            "that exists is gone on with.",
            show_default="inference_output.jsonl",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Start the output file anew.", rich_help_panel=_OUTPUT),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Do not show the answers.", rich_help_panel=_OUTPUT),
    ] = False,
    species_list: lists.SpeciesListOption = None,
    mode: lists.ModeOption = None,
    species_names: lists.SpeciesNames = "common",
    several: lists.Several = False,
    top_k: lists.TopK = 3,
    min_confidence: lists.MinConfidence = 0.0,
    data_path: options_of.DataPath = None,
    dry_run: options_of.DryRun = False,
    workers: options_of.Workers = 2,
) -> None:
    """Ask questions about recordings: one answer for each window and question.

    naturelm infer --audio-path assets --query "Caption the audio"

    A configuration with a section `extended` is an experiment: its samples come from --data-path.

    A run that was stopped goes on where it stopped when the same command is given again.
    """
    from NatureLM.cli.progress import make_reporter
    from NatureLM.config import load_config

    reporter = make_reporter(show_answers=not quiet)
    overrides = options_of.with_data_path(options, data_path)
    config = load_config(cfg_path, overrides, warn=reporter.note)
    audio_paths, queries = [*(recordings or []), *(audio_path or [])], query or []
    if config.extended is not None:
        from NatureLM.cli import experiment

        experiment.refuse_options(
            cfg_path,
            {
                "--audio-path": bool(audio_paths),
                "--query": bool(queries),
                "--merging-alpha": merging_alpha is not None,
                "--batch-size": batch_size is not None,
                "--window-length-seconds": window_length_seconds != 10.0,
                "--hop-length-seconds": hop_length_seconds != 10.0,
                "--channel": channel != "mean",
                "--time-expansion": time_expansion != 1.0,
                "--overwrite": overwrite,
                "--species-list": species_list is not None,
                "--mode": mode is not None,
                "--species-names": species_names != "common",
                "--several": several,
                "--top-k": top_k != 3,
                "--min-confidence": min_confidence != 0.0,
            },
        )
        asked = experiment.make_experiment(
            config,
            cfg_path=cfg_path,
            command="naturelm infer",
            data_path=data_path,
            model=model,
            adapter=adapter,
            device=device,
            dtype=dtype,
            output_path=output_path,
            workers=workers,
            max_memory=max_memory,
            cache_dir=cache_dir,
        )
        raise typer.Exit(experiment.run(asked, dry_run=dry_run, warn=reporter.note))

    from NatureLM.cli.inference import make_request, run

    options_of.refuse_without_experiment(data_path, dry_run, cfg_path)
    request = make_request(
        audio_paths=audio_paths,
        queries=queries,
        model=model,
        adapter=adapter,
        merging_alpha=merging_alpha,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        max_memory=max_memory,
        cache_dir=cache_dir,
        config=config,
        window_length_seconds=window_length_seconds,
        hop_length_seconds=hop_length_seconds,
        channel=channel,
        time_expansion=time_expansion,
        output_path=output_path or Path("inference_output.jsonl"),
        overwrite=overwrite,
        warn=reporter.note,
        listed=lists.ListOptions(species_list, mode, species_names, several, top_k, min_confidence),
    )
    raise typer.Exit(run(request, reporter))

"""Experiments from a configuration: `naturelm infer` with a section `extended`, and `beans run`."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from NatureLM.cli.errors import SOME_FAILED, Stopped
from NatureLM.cli.progress import ExperimentProgress, duration
from NatureLM.cli.request import DEFAULT_MODEL, device_option, dtype_option
from NatureLM.config import Config, ExperimentConfig
from NatureLM.config.base import TableSource
from NatureLM.errors import UsageError
from NatureLM.util import parse_bytes

if TYPE_CHECKING:
    from NatureLM.experiments.plan import Plan

logger = logging.getLogger(__name__)
BEANS_ZERO = "EarthSpeciesProject/BEANS-Zero"
_EMBEDDED = DEFAULT_MODEL


@dataclass(frozen=True)
class ExperimentRequest:
    """A checked request to run an experiment, or to show its plan.

    is_scored: whether metrics are written beside the answers at the end
    """

    name: str
    config: Config
    extended: ExperimentConfig
    model: str
    adapter: str | None
    device: str
    dtype: str
    output: Path
    workers: int
    command: str
    max_memory: int | None = None
    cache_dir: Path | None = None
    is_scored: bool = False


def make_experiment(
    config: Config,
    *,
    cfg_path: Path | None,
    command: str,
    data_path: str | None,
    model: str | None,
    adapter: str | None,
    device: str,
    dtype: str,
    output_path: Path | None,
    workers: int,
    max_memory: str | None = None,
    cache_dir: Path | None = None,
    merging_alpha: float | None = None,
    datasets: Sequence[str] | None = None,
) -> ExperimentRequest:
    """Check what was asked for. Without `extended.queries` each sample is asked its own prompt.

    command: the verb that was called, for messages
    merging_alpha: α where `extended.lora_scales` is not set; None takes that of the configuration
    datasets: those that are tested in place of the configuration's

    Raises UsageError.
    """
    if workers < 1:
        raise UsageError(f"--workers is {workers}, and it must be at least 1")
    extended = config.extended or ExperimentConfig()
    if "lora_scales" in extended.model_fields_set:
        refuse_options(cfg_path, {"--merging-alpha": merging_alpha is not None})
    else:
        alpha = config.generate.merging_alpha if merging_alpha is None else merging_alpha
        if not math.isfinite(alpha):
            raise UsageError(f"--merging-alpha is {alpha:g}, and it must be a finite number")
        extended = extended.model_copy(update={"lora_scales": [alpha]})
    if datasets is not None:
        extended = extended.model_copy(update={"datasets": list(datasets)})
    if data_path is not None:
        rest = extended.data.model_dump(exclude={"path"}) if extended.data is not None else {}
        extended = extended.model_copy(update={"data": TableSource(path=data_path, **rest)})
    stem = "experiment" if cfg_path is None else cfg_path.stem
    return ExperimentRequest(
        name=str(cfg_path or "--options"),
        config=config,
        extended=extended,
        model=model or config.model.ckpt or DEFAULT_MODEL,
        adapter=adapter,
        device=device_option(device),
        dtype=dtype_option(dtype),
        output=output_path or Path(extended.output_path or f"runs/{stem}"),
        workers=workers,
        command=command,
        max_memory=None if max_memory is None else parse_bytes(max_memory, "--max-memory"),
        cache_dir=cache_dir,
        is_scored=command == "beans" and extended.queries is None,
    )


def refuse_options(cfg_path: Path | None, given: Mapping[str, bool]) -> None:
    """Raise UsageError for options that mean nothing in an experiment and are given."""
    names = [name for name, is_given in given.items() if is_given]
    if names:
        raise UsageError(
            f"{', '.join(names)}: {cfg_path or '--options'} has a section `extended`, an "
            "experiment, whose samples, questions and scales stand there (--data-path names its "
            "data): leave the option or the section out"
        )


def run(request: ExperimentRequest, *, dry_run: bool) -> int:
    """Show the plan, or run it; the exit code."""
    _check_data(request)
    plan = _plan(request)
    if dry_run:
        for line in describe(request, plan):
            typer.echo(line)
        return 0
    return _run(request, plan)


def _plan(request: ExperimentRequest) -> Plan:
    from NatureLM.experiments.run import make_plan
    from NatureLM.merging.recipe import extrapolation_note

    for alpha in request.extended.lora_scales:
        note = extrapolation_note(alpha)
        if note is not None:
            logger.warning(note)
    return make_plan(request.extended, request.config.model.prompt_template, warn=logger.warning)


def _run(request: ExperimentRequest, plan: Plan) -> int:
    from NatureLM.cli.infer import load_model
    from NatureLM.experiments.run import answers_path
    from NatureLM.experiments.store import TrialStore
    from NatureLM.inference.loading import processor_of
    from NatureLM.models.checkpoint.tensors import CheckpointError

    TrialStore(answers_path(request.output)).close()  # what is wrong with it shows before the work
    try:
        model = load_model(request)
    except CheckpointError as error:
        raise MissingError(request, [str(error)]) from error
    from NatureLM.experiments.run import run_experiment

    progress = ExperimentProgress()
    try:
        summary = run_experiment(
            model,
            plan.with_template(processor_of(model).prompt_template),
            request.output,
            generate=request.config.generate,
            batch_tokens=request.extended.batch_tokens,
            max_memory=request.max_memory,
            cache_dir=request.cache_dir,
            workers=request.workers,
            progress=progress,
            warn=logger.warning,
        )
    except KeyboardInterrupt as interrupt:
        raise Stopped(
            f"Stopped. What was answered is in {request.output}; the same command goes on from "
            "there.",
            interrupt,
        ) from None
    finally:
        progress.close()
    typer.echo(str(summary))
    if request.is_scored:
        _score(summary.path)
    elif request.command == "beans":
        typer.echo(f"Score them: beans score {summary.path} --output-path scores")
    return SOME_FAILED if summary.errors else 0


def _score(answers: Path) -> None:
    """Metrics beside the answers, and shown; or why there are none."""
    from NatureLM.cli.score import show_scores
    from NatureLM.evaluation.write import NothingToScoreError, score_beside

    try:
        scores, path = score_beside(answers)
    except NothingToScoreError as error:
        typer.echo(str(error), err=True)
        return
    typer.echo("")
    show_scores(scores)
    for remark in scores.remarks:
        typer.echo(remark, err=True)
    if len(scores.problems):
        kinds = ", ".join(f"{count} x {kind}" for kind, count in scores.problems.kinds().items())
        typer.echo(f"Not scored, and counted in the metrics: {kinds}", err=True)
    typer.echo(f"Metrics: {path}")


class MissingError(UsageError):
    """Weights or data are not on this machine; the message says how to get each."""

    def __init__(self, request: ExperimentRequest, problems: Sequence[str]) -> None:
        lines = [f"{request.name} cannot run yet:", *(f"- {one}" for one in problems)]
        if request.model != _EMBEDDED or request.extended.data is None:
            lines += [
                "To run it now, with the embedded model and a table of your own recordings "
                "(columns such as file and common_name):",
                f"  {request.command} --cfg-path {request.name} --model {_EMBEDDED} "
                "--data-path TABLE",
            ]
        super().__init__("\n".join(lines))


def _check_data(request: ExperimentRequest) -> None:
    """Say all that is missing at once, before anything large is loaded."""
    problem = _data_problem(request.extended.data)
    if problem is not None:
        weights = _weights_problem(request.model)
        raise MissingError(request, [problem, *([weights] if weights else [])])


def _data_problem(data: TableSource | None) -> str | None:
    from NatureLM.models.checkpoint.hub import is_hub_id

    if data is not None and (os.path.exists(data.path) or is_hub_id(data.path)):
        return None
    what = (
        "no data are named, with --data-path or as extended.data.path"
        if data is None
        else f"{data.path}: there is no such file or folder"
    )
    return (
        f"{what}. BEANS-Zero is about 180 GB: `hf download --repo-type dataset {BEANS_ZERO} "
        "--local-dir beans-zero`, or for some of it `beans fetch --components NAMES --output-path "
        f"beans-zero`, and --data-path beans-zero; or --data-path {BEANS_ZERO}, which fetches what "
        "is read; or a table of your own"
    )


def _weights_problem(model: str) -> str | None:
    from NatureLM.models.checkpoint.hub import access_help
    from NatureLM.models.registry import find

    entry = find(model)
    if Path(model).is_dir() or (entry is not None and entry.folder is not None):
        return None
    steps = access_help(model if entry is None else entry.source)
    return f"the weights of {model} are not on this machine. {steps}"


def describe(request: ExperimentRequest, plan: Plan) -> list[str]:
    """The plan in words: counts, an estimate of the time, the first prompt of each query."""
    data = request.extended.data
    scales = ", ".join(f"{alpha:g}" for alpha in plan.alphas)
    datasets = ", ".join(dict.fromkeys(one.dataset_name for one in plan.samples))
    facts = [
        ("data", f"{data.path if data else ''} ({datasets})"),
        ("model", request.model),
        ("samples", f"{plan.n_samples}"),
        ("queries", f"{plan.n_queries}"),
        ("scales", f"{len(plan.alphas)} ({scales})"),
        ("encodings", f"{plan.n_encodings}"),
        ("generations", f"{len(plan)}"),
        ("time", _time(request, plan)),
        ("results", f"{request.output}"),
        ("plan", plan.fingerprint()),
    ]
    lines = [f"{name:<13}{value}" for name, value in facts]
    for cell in plan.cells_of(plan.samples[0]):
        if cell.alpha == plan.alphas[0]:
            lines += [
                "",
                f"query {cell.query}, for sample {cell.sample_id} ({cell.label}), with "
                + ", ".join(clip.key for clip in cell.audios),
                *(f"  {line}".rstrip() for line in cell.prompt.splitlines()),
            ]
    return lines


def _time(request: ExperimentRequest, plan: Plan) -> str:
    from NatureLM.experiments.run import LARGE, SMALL, estimate_seconds

    speed = SMALL if request.model == _EMBEDDED else LARGE
    generate = request.config.generate
    seconds = estimate_seconds(
        plan, speed, max_new_tokens=generate.max_new_tokens, num_beams=generate.num_beams
    )
    return f"about {duration(seconds)} on {speed.machine}"

"""Experiments from a configuration: `naturelm infer` with a section `extended`, and `beans run`."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.cli import options as of
from NatureLM.cli.terminal import RESUMES, SOME_FAILED, stop_message
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, say, show
from NatureLM.storage import AnyPath, local_only

if TYPE_CHECKING:
    from NatureLM.config import Config, ExperimentConfig
    from NatureLM.experiments.plan import Plan
    from NatureLM.experiments.run import TrialProgress

logger = logging.getLogger(__name__)
BEANS_ZERO = "EarthSpeciesProject/BEANS-Zero"
_EXPERIMENTS = "Experiments"


@dataclass(frozen=True)
class ExperimentOptions(of.ModelOptions):
    """The options of commands that may run an experiment."""

    merging_alpha: float | None = None
    output_path: AnyPath | None = None
    data_path: str | None = of.option(
        None,
        "What is tested: BEANS-Zero on disk or its id on the Hub, or a table of your own.",
        _EXPERIMENTS,
        show_default="extended.data.path of the configuration",
    )
    dry_run: bool = of.option(
        False, "Show the plan and the first prompts; ask nothing.", _EXPERIMENTS
    )
    workers: int | None = of.option(
        None, "Threads that decode ahead of the model.", _EXPERIMENTS, show_default="2"
    )

    def load_config(self) -> Config:
        """The configuration with its overrides.

        --data-path stands before them where they name other keys of the data.
        """
        from NatureLM.config import load_config

        given = list(self.options or ())
        changes_data = any(one.strip().startswith("extended.data.") for one in given)
        if self.data_path is not None and changes_data:
            given.insert(0, f"extended.data.path={as_yaml(self.data_path)}")
        return load_config(self.cfg_path, given)


def as_yaml(value: Any) -> str:
    """A value as an override holds it."""
    text = json.dumps(value, ensure_ascii=False)
    # The bytes of a file name that is no UTF-8 are escaped: YAML holds no halves of characters.
    return text if text.isprintable() else json.dumps(value)


@dataclass(frozen=True)
class Experiment:
    """An experiment: what was asked for, and what it comes to with the configuration.

    extended: the section of the configuration, with data, α and datasets that were named
    command: what was called, for messages
    """

    request: ExperimentOptions
    config: Config
    extended: ExperimentConfig
    command: str

    @property
    def name(self) -> str:
        """What messages call the configuration."""
        return str(self.request.cfg_path or "--options")

    @property
    def model(self) -> str:
        """The name of the model."""
        return of.model_name(self.request.model, self.config)

    @property
    def output(self) -> Path:
        """Folder or file of the results."""
        path = self.request.cfg_path
        stem = "experiment" if path is None else path.stem
        named = self.request.output_path
        if named is not None:
            return local_only(named, "--output-path")
        return Path(self.extended.output_path or f"runs/{stem}")


def run(
    request: ExperimentOptions,
    config: Config,
    *,
    command: str,
    datasets: Sequence[str] | None = None,
) -> int:
    """Run an experiment, or show its plan (--dry-run); the exit code.

    datasets: those that are tested in place of the configuration's

    Raises UsageError.
    """
    from NatureLM.experiments.plan import make_plan
    from NatureLM.merging.recipe import extrapolation_note
    from NatureLM.util import check_place

    extended = _extended(request, config, datasets)
    experiment = Experiment(request, config, extended, command)
    request.check_device()
    max_memory = of.memory_size(request.max_memory)
    _check_data(experiment)
    for note in filter(None, map(extrapolation_note, extended.lora_scales)):
        logger.warning(note)
    if not request.dry_run:
        named = "extended.output_path" if request.output_path is None else "--output-path"
        is_file = experiment.output.suffix == ".jsonl"
        check_place(experiment.output, named, folder=not is_file)
    plan = make_plan(extended, config.model.prompt_template)
    if request.dry_run:
        for line in describe(experiment, plan):
            show(line)
        return 0
    return _run(experiment, plan, max_memory)


def refuse_options(cfg_path: Path | None, names: Sequence[str]) -> None:
    """Raise UsageError for options that mean nothing in an experiment and were given."""
    if names:
        raise UsageError(
            f"{', '.join(names)}: {cfg_path or '--options'} has a section `extended`, an "
            "experiment, whose samples, questions and scales stand there (--data-path names its "
            "data): leave the option or the section out"
        )


def _extended(
    request: ExperimentOptions, config: Config, datasets: Sequence[str] | None
) -> ExperimentConfig:
    """The section `extended` with what was given instead of its keys.

    Without `extended.queries` each sample is asked its own prompt.
    """
    from NatureLM.config import ExperimentConfig
    from NatureLM.config.schema import TableSource
    from NatureLM.util import check_range

    if request.workers is not None:
        check_range("--workers", request.workers, 1, 1000)
    extended = config.extended or ExperimentConfig()
    changes: dict[str, Any] = {}
    if "lora_scales" in extended.model_fields_set:
        if request.merging_alpha is not None:
            refuse_options(request.cfg_path, ["--merging-alpha"])
    else:
        given = request.merging_alpha
        alpha = config.generate.merging_alpha if given is None else given
        if not math.isfinite(alpha):
            raise UsageError(f"--merging-alpha is {alpha:g}, and it must be a finite number")
        changes["lora_scales"] = [alpha]
    if datasets is not None:
        changes["datasets"] = list(datasets)
    if request.data_path is not None:
        rest = extended.data.model_dump(exclude={"path"}) if extended.data is not None else {}
        changes["data"] = TableSource.named(request.data_path, **rest)
    return extended.model_copy(update=changes)


def _run(experiment: Experiment, plan: Plan, max_memory: int | None) -> int:
    from NatureLM.experiments.run import TrialStore, answers_path
    from NatureLM.inference.loading import processor_of
    from NatureLM.models.registry import CheckpointError

    request, config = experiment.request, experiment.config
    TrialStore(answers_path(experiment.output)).close()  # what is wrong with it shows first
    try:
        model = request.load_model(config)
    except CheckpointError as error:
        raise _missing(experiment, [str(error)]) from error
    from NatureLM.experiments.run import run_experiment

    progress = ExperimentProgress(len(plan))
    stopped = f"Stopped. What was answered is in {experiment.output}; {RESUMES}"
    with stop_message(stopped), progress:
        summary = run_experiment(
            model,
            plan.with_template(processor_of(model).prompt_template),
            experiment.output,
            generate=config.generate,
            batch_tokens=experiment.extended.batch_tokens,
            max_memory=max_memory,
            cache_dir=request.cache_dir,
            workers=request.workers or 2,
            progress=progress,
        )
    show(str(summary))
    if experiment.command == "beans":
        if experiment.extended.queries is None:
            _score(summary.path)
        else:
            show(f"Score them: beans score {summary.path} --output-path scores")
    return SOME_FAILED if summary.progress.errors else 0


def _score(answers: Path) -> None:
    """Metrics beside the answers, and shown; or why there are none."""
    from NatureLM.cli.score import show_scores
    from NatureLM.evaluation.answers import NothingToScoreError
    from NatureLM.evaluation.score import score_file

    try:
        scores, path = score_file(answers)
    except NothingToScoreError as error:
        show(str(error), err=True)
        return
    show("")
    show_scores(scores)
    for remark in scores.remarks:
        show(remark, err=True)
    if scores.problems:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in scores.problem_kinds().items())
        show(f"Not scored, and counted in the metrics: {kinds}", err=True)
    show(f"Metrics: {path}")


def _missing(experiment: Experiment, problems: Sequence[str]) -> UsageError:
    """The error for weights or data that are not on this machine; it says how to get each."""
    from NatureLM.models.registry import EMBEDDED

    lines = [f"{experiment.name} cannot run yet:", *(f"- {one}" for one in problems)]
    if experiment.model != EMBEDDED or experiment.extended.data is None:
        lines += [
            "To run it now, with the embedded model and a table of your own recordings "
            "(columns such as file and common_name):",
            f"  {experiment.command} --cfg-path {experiment.name} --model {EMBEDDED} "
            "--data-path TABLE",
        ]
    return UsageError("\n".join(lines))


def _check_data(experiment: Experiment) -> None:
    """Say all that is missing at once, before anything large is loaded."""
    from NatureLM.models.registry import access_help, find, is_hub_id

    data, model = experiment.extended.data, experiment.model
    if data is not None and (os.path.exists(data.path) or is_hub_id(data.path)):
        return
    what = (
        "no data are named, with --data-path or as extended.data.path"
        if data is None
        else f"{data.path}: there is no such file or folder"
    )
    problems = [
        f"{what}. BEANS-Zero is about 180 GB: `hf download --repo-type dataset {BEANS_ZERO} "
        "--local-dir beans-zero`, or for some of it `beans fetch --components NAMES --output-path "
        f"beans-zero`, and --data-path beans-zero; or --data-path {BEANS_ZERO}, which fetches what "
        "is read; or a table of your own"
    ]
    entry = find(model)
    if not (Path(model).is_dir() or (entry is not None and entry.folder is not None)):
        steps = access_help(model if entry is None else entry.source)
        problems.append(f"the weights of {model} are not on this machine. {steps}")
    raise _missing(experiment, problems)


def describe(experiment: Experiment, plan: Plan) -> list[str]:
    """The plan in words: counts, an estimate of the time, the first prompt of each query."""
    from NatureLM.experiments.plan import LARGE, SMALL, estimate_seconds
    from NatureLM.models.registry import EMBEDDED

    data, generate = experiment.extended.data, experiment.config.generate
    speed = SMALL if experiment.model == EMBEDDED else LARGE
    seconds = estimate_seconds(
        plan, speed, max_new_tokens=generate.max_new_tokens, num_beams=generate.num_beams
    )
    scales = ", ".join(f"{alpha:g}" for alpha in plan.alphas)
    datasets = ", ".join(dict.fromkeys(one.dataset_name for one in plan.samples))
    facts = [
        ("data", f"{data.path if data else ''} ({datasets})"),
        ("model", experiment.model),
        ("samples", f"{len(plan.samples)}"),
        ("queries", f"{plan.n_queries}"),
        ("scales", f"{len(plan.alphas)} ({scales})"),
        ("encodings", f"{plan.n_encodings}"),
        ("generations", f"{len(plan)}"),
        ("time", f"about {duration(seconds)} on {speed.machine}"),
        ("results", f"{experiment.output}"),
        ("plan", plan.fingerprint()),
    ]
    lines = [f"{name:<13}{value}" for name, value in facts]
    for trial in plan.trials_of(plan.samples[0]):
        if trial.alpha == plan.alphas[0]:
            lines += [
                "",
                f"query {trial.query}, for sample {trial.sample_id} ({trial.label}), with "
                + ", ".join(clip.key for clip in trial.audios),
                *(f"  {line}".rstrip() for line in trial.prompt.splitlines()),
            ]
    return lines


_LINE_EVERY = 10.0  # seconds, in a log
_FIRST_ANSWERS = 16  # they wait for the model to warm up, and say nothing about the time left


class ExperimentProgress(ProgressBar):
    """Where an experiment stands, on stderr: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, total: int) -> None:
        super().__init__("bar", "{task.fields[line]}", total=total, line="")
        self._said = 0.0

    def __call__(self, done: TrialProgress) -> None:
        """Show where the run stands, if the last time is long enough ago or it is done."""
        line, now = progress_line(done), time.monotonic()
        self.update(done.done, line=line)
        is_due = done.done >= done.total or now - self._said >= _LINE_EVERY
        if is_due and not self.is_shown:
            self._said = now
            say(line)


def progress_line(done: TrialProgress) -> str:
    """`120/5082 answers, 31.0/s, 2 min left; right at α: 0 0.10, 1 0.62`."""
    parts = [f"{done.done}/{done.total} answers"]
    if done.answers:
        parts.append(f"{done.rate:.1f}/s")
    left = done.seconds_left
    if left and done.answers + done.errors >= _FIRST_ANSWERS:
        parts.append(f"{duration(left)} left")
    if done.errors:
        parts.append(f"{done.errors} without an answer")
    right = ", ".join(f"{alpha:g} {share:.2f}" for alpha, share in done.accuracy().items())
    return ", ".join(parts) + (f"; right at α: {right}" if right else "")


def duration(seconds: float) -> str:
    """An estimate in the unit that fits."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

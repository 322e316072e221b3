"""`naturelm tune-alpha`: the α to use, by recordings with known answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from NatureLM.cli import options as of
from NatureLM.cli.score import (
    COLUMN,
    COLUMN_FORM,
    KNOWN_ANSWERS,
    LABELS,
    PROTOCOL,
    QUERY,
    RESAMPLES,
    SEED,
    TASK,
    WHERE,
    WHERE_FORM,
    ScoringOptions,
)
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, printable, say, show

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.experiments.plan import Plan
    from NatureLM.experiments.tune import Tuning
    from NatureLM.models import NatureLM

_SEARCH = "Search"
_SCORING = "Scoring"


@dataclass(frozen=True)
class TuneRequest(of.ModelOptions):
    """The options of `naturelm tune-alpha`."""

    ORDER: ClassVar[tuple[Any, ...]] = (
        *("data", "query", "output_path", "column", "where", "limit"),
        *("metric", "protocol", "labels", "task", "resamples", "seed"),
        *("low", "high", "coarse", "fine", "towards"),
        *(of.WeightsOptions, "adapter", of.PrecisionOptions),
    )
    data: str | None = of.option(
        None,
        "Recordings with known answers: a table (.jsonl, .csv, .parquet), a folder with one, or a "
        "dataset on disk.",
        KNOWN_ANSWERS,
        show_default="extended.data of the configuration",
    )
    query: str | None = of.but(
        QUERY, show_default="the one of extended.queries, else each sample's own"
    )
    output_path: Path = of.option(
        Path("tune-alpha"), "Folder for table, figure and answers.", KNOWN_ANSWERS
    )
    column: list[str] | None = COLUMN
    where: list[str] | None = WHERE
    limit: int | None = of.option(
        None,
        "So many samples at most.",
        KNOWN_ANSWERS,
        min=1,
        max=of.MAX_ROWS,
        show_default="all",
    )
    metric: str = of.option(
        "accuracy",
        "What is to be highest.",
        _SCORING,
        metavar="accuracy|f1|precision|recall|map|cider",
    )
    protocol: str = of.but(PROTOCOL, rich_help_panel=_SCORING)
    labels: Path | None = LABELS
    task: str | None = TASK
    resamples: int = RESAMPLES
    seed: int = SEED
    low: float = of.option(0.0, "Smallest α.", _SEARCH, "--from")
    high: float = of.option(1.0, "Largest α.", _SEARCH, "--to")
    coarse: float = of.option(0.2, "First step.", _SEARCH)
    fine: float = of.option(0.05, "Step around the best.", _SEARCH)
    towards: str = of.option(
        "base",
        "Which end is preferred among α that are equally good, within one standard error.",
        _SEARCH,
        metavar="base|adapted",
    )
    batch_size: int = of.option(32, "Answers at a time.", of.MODEL, min=1, max=of.MAX_BATCH)

    def load_config(self) -> Config:
        """The configuration; what was given stands in its section `extended`, which checks it."""
        from NatureLM.config import load_config

        return load_config(self.cfg_path, [*(self.options or ()), *self._overrides()])

    def _overrides(self) -> Iterator[str]:
        if self.data is not None:
            yield f"extended.data.path={of.as_yaml(self.data)}"
        if self.query is not None:
            yield f"extended.queries={of.as_yaml([self.query])}"
        if self.limit is not None:
            yield f"extended.limit={self.limit}"
        if self.seed:  # 0 leaves the one of the configuration
            yield f"extended.seed={self.seed}"
        for section, values in (
            ("columns", of.pairs("--column", self.column, COLUMN_FORM, may_be_empty=True)),
            ("where", of.pairs("--where", self.where, WHERE_FORM, may_be_empty=True)),
        ):
            for name, value in values.items():
                yield f"extended.data.{section}.{name}={of.as_yaml(value)}"


def tune_alpha(request: TuneRequest) -> None:
    """Find the α to use on recordings with known answers, with intervals.

    naturelm tune-alpha --data clips.csv --query "What is the common name?" --output-path tuned
    """
    from NatureLM.evaluation.protocols import protocol
    from NatureLM.experiments import tune
    from NatureLM.util import check_place

    config = request.load_config()
    scoring = ScoringOptions(labels=request.labels, resamples=request.resamples, seed=request.seed)
    grid = tune.Grid(request.low, request.high, request.coarse, request.fine)
    side: Any = of.one_of("--towards", request.towards, ("base", "adapted"))
    check_place(request.output_path, "--output-path", folder=True)
    plan = _plan(config)
    reading = replace(scoring, task=_task(plan, request.task)).reading()
    tune.check_metric(request.metric, reading.task or "classification")
    request.check_device()
    of.memory_size(request.max_memory)
    has_figures = of.can_draw()
    tuner = tune.Tuner(request.metric, protocol(request.protocol), reading, scoring.evaluation())
    name = of.model_name(request.model, config)
    say(f"Loading {name}")
    rows: list[dict[str, Any]] = []
    model = request.load_model(config)
    from NatureLM.experiments.run import weights_of

    tuning = tuner.tune(_asker(request, model, config, plan, rows), grid, side)
    settings = {
        "model": name,
        **model.revisions,
        "weights": weights_of(model),
        "adapter": request.adapter,
        "query": None if plan.queries is None else plan.queries[0],
        "protocol": request.protocol,
        "resamples": request.resamples,
        "seed": request.seed,
        "generate": config.generate.model_dump(mode="json", exclude={"merging_alpha"}),
    }
    written = tune.write_tuning(tuning, rows, request.output_path, settings)
    if has_figures:
        written += tune.draw_tuning(tuning, request.output_path)
    _show_tuning(tuning)
    names = ", ".join(path.name for path in written)
    show(f"\n{tune.verdict(tuning)}\nWrote {names} to {request.output_path}")


def _plan(config: Config) -> Plan:
    """What is asked, once of each sample; α comes later."""
    from NatureLM.experiments.plan import make_plan

    extended = config.extended
    if extended is None or extended.data is None:
        raise UsageError("there is nothing to tune on: name recordings with known answers (--data)")
    if len(extended.queries or [""]) > 1:
        raise UsageError(
            f"α is tuned for one question, and extended.queries has {len(extended.queries or [])}: "
            "choose one with --query"
        )
    extended = extended.model_copy(update={"lora_scales": [1.0]})
    return make_plan(extended, config.model.prompt_template)


def _task(plan: Plan, named: str | None) -> str:
    """The task of the samples: as named, else what they say, else classification."""
    from NatureLM.data.components import components

    if named is not None:
        return named
    known, names = components(), {one.dataset_name for one in plan.samples}
    said = {one.task for one in plan.samples if one.task}
    said |= {known[name].task for name in names if name in known}
    if len(said) > 1:
        raise UsageError(
            f"α is chosen for one task, and there are samples of {', '.join(sorted(said))}: "
            "choose them with --where"
        )
    return said.pop() if said else "classification"


def _asker(
    request: TuneRequest, model: NatureLM, config: Config, plan: Plan, kept: list[dict[str, Any]]
) -> Callable[[Sequence[float]], list[dict[str, Any]]]:
    """The function that answers at some α; every row goes into `kept`, too."""
    from NatureLM.experiments.run import Answerer
    from NatureLM.inference.loading import processor_of

    trials = list(plan.with_template(processor_of(model).prompt_template).trials())
    say(f"Encoding {len(trials)} samples")
    bar = ProgressBar("bar", "{task.completed}/{task.total} answers")
    answerer = Answerer(
        model,
        trials,
        rows=request.batch_size,
        max_memory=of.memory_size(request.max_memory),
        cache_dir=request.cache_dir,
        report=lambda done, total: bar.update(done, total=total),
        **config.generate.model_dump(exclude={"merging_alpha"}),
    )
    for problem in answerer.left_out.values():
        say(f"left out: {printable(problem)}")

    def ask(alphas: Sequence[float]) -> list[dict[str, Any]]:
        listed = ", ".join(f"{alpha:g}" for alpha in alphas)
        say(f"Asking {len(answerer.trials)} samples at α = {listed}")
        with bar:
            rows = answerer(alphas)
        kept.extend(rows)
        return rows

    return ask


def _show_tuning(tuning: Tuning) -> None:
    rows = []
    for trial in tuning.trials:
        low, high = trial.interval or (float("nan"), float("nan"))
        behind = tuning.behind(trial)
        marks = ["highest"] if trial is tuning.best else []
        marks += ["chosen"] if trial is tuning.chosen else []
        rows.append(
            [
                f"{trial.alpha:g}",
                f"{trial.value:.3f} [{low:.3f}, {high:.3f}]",
                f"{trial.standard_error:.3f}",
                "-" if behind is None else f"[{behind[0]:+.3f}, {behind[1]:+.3f}]",
                ", ".join(marks),
            ]
        )
    columns = ["α", tuning.metric, "standard error", "behind the highest", ""]
    of.print_table(columns, rows, right={"α", "standard error"})
    best = tuning.best
    show(f"{best.n} samples, resampled by {best.cluster_by} ({best.clusters})")

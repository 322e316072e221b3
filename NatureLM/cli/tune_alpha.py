"""`naturelm tune-alpha`: which α to use, found on recordings with known answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from NatureLM.cli import options as of_model
from NatureLM.cli import options as options_of
from NatureLM.cli import options as scoring
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.config import Config
    from NatureLM.experiments.plan import Plan
    from NatureLM.experiments.tune import Tuning

logger = logging.getLogger(__name__)
_DATA = "Recordings with known answers"
_SEARCH = "Search"
_SCORING = "Scoring"


def tune_alpha(
    data: Annotated[
        str | None,
        typer.Option(
            help="Recordings with known answers: a table (.jsonl, .csv, .parquet), a folder with "
            "one, or a dataset on disk.",
            show_default="extended.data of the configuration",
            rich_help_panel=_DATA,
        ),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            "--query",
            "-q",
            help="What to ask of every recording.",
            show_default="the one of extended.queries, else each sample's own",
            rich_help_panel=_DATA,
        ),
    ] = None,
    output_path: Annotated[
        Path, typer.Option(help="Folder for table, figure and answers.", rich_help_panel=_DATA)
    ] = Path("tune-alpha"),
    column: options_of.Column = None,
    where: options_of.Where = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many samples at most.", show_default="all", rich_help_panel=_DATA
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            metavar="accuracy|f1|precision|recall|map|cider",
            help="What is to be highest.",
            rich_help_panel=_SCORING,
        ),
    ] = "accuracy",
    protocol: Annotated[
        str,
        typer.Option(
            metavar="beans-zero|paper|mention|strict",
            help="How answers are read.",
            rich_help_panel=_SCORING,
        ),
    ] = "beans-zero",
    labels: scoring.Labels = None,
    task: scoring.Task = None,
    resamples: scoring.Resamples = 1000,
    seed: scoring.Seed = 0,
    low: Annotated[
        float, typer.Option("--from", help="Smallest α.", rich_help_panel=_SEARCH)
    ] = 0.0,
    high: Annotated[float, typer.Option("--to", help="Largest α.", rich_help_panel=_SEARCH)] = 1.0,
    coarse: Annotated[float, typer.Option(help="First step.", rich_help_panel=_SEARCH)] = 0.2,
    fine: Annotated[
        float, typer.Option(help="Step around the best.", rich_help_panel=_SEARCH)
    ] = 0.05,
    towards: Annotated[
        str,
        typer.Option(
            metavar="base|adapted",
            help="Which end is preferred among α that are equally good, within one standard error.",
            rich_help_panel=_SEARCH,
        ),
    ] = "base",
    model: of_model.OptionalModelName = None,
    adapter: of_model.Adapter = None,
    device: of_model.Device = "auto",
    dtype: of_model.Dtype = "auto",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Answers at a time.", rich_help_panel=of_model.MODEL)
    ] = 32,
    max_memory: of_model.MaxMemory = None,
    cache_dir: of_model.CacheDir = None,
    cfg_path: of_model.CfgPath = None,
    options: of_model.Overrides = None,
) -> None:
    """Find the α to use on recordings with known answers, with intervals.

    naturelm tune-alpha --data clips.csv --query "What is the common name?" --output-path tuned
    """
    from NatureLM.cli.request import DEFAULT_MODEL, device_option, dtype_option
    from NatureLM.config import load_config
    from NatureLM.evaluation.protocols import protocol as find
    from NatureLM.evaluation.write import check_folder
    from NatureLM.experiments.tune import Grid, Tuner, check_metric
    from NatureLM.util import parse_bytes

    given = list(_overrides(data, query, column or (), where or (), limit, seed))
    config = load_config(cfg_path, [*(options or []), *given])
    evaluation = scoring.make_evaluation(resamples, seed)
    grid = Grid(low, high, coarse, fine)
    side: Any = scoring.one_of("--towards", towards, ("base", "adapted"))
    plan = _plan(config)
    reading = scoring.make_reading(None, labels, None, None, _task(plan, task), None)
    check_metric(metric, reading.task or "classification")
    choice = of_model.ModelChoice(
        model=model or config.model.ckpt or DEFAULT_MODEL,
        adapter=adapter,
        device=device_option(device),
        dtype=dtype_option(dtype),
        config=config,
    )
    means = {
        "rows": batch_size,
        "max_memory": None if max_memory is None else parse_bytes(max_memory, "--max-memory"),
        "cache_dir": cache_dir,
    }
    has_figures = _has_figures()
    tuner = Tuner(metric, find(protocol), reading, evaluation)
    check_folder(output_path)
    rows: list[dict[str, Any]] = []
    tuning = tuner.tune(_asker(choice, plan, means, rows), grid, side)
    settings = {
        "model": choice.model,
        "adapter": adapter,
        "query": None if plan.queries is None else plan.queries[0],
        "protocol": protocol,
        "resamples": resamples,
        "seed": seed,
        "generate": config.generate.model_dump(mode="json", exclude={"merging_alpha"}),
    }
    _finish(tuning, rows, output_path, settings, has_figures)


def _overrides(
    data: str | None,
    query: str | None,
    columns: Sequence[str],
    where: Sequence[str],
    limit: int | None,
    seed: int,
) -> Iterator[str]:
    """The options as values of the section `extended`, which checks them."""
    if data is not None:
        yield f"extended.data.path={options_of.as_yaml(data)}"
    if query is not None:
        yield f"extended.queries={options_of.as_yaml([query])}"
    if limit is not None:
        yield f"extended.limit={limit}"
    if seed:  # 0 leaves the one of the configuration
        yield f"extended.seed={seed}"
    for option, section, texts in (
        ("--column", "columns", columns),
        ("--where", "where", where),
    ):
        for text in texts:
            name, equals, value = text.partition("=")
            if not (name.strip() and equals):
                example = "label=common_name" if section == "columns" else "split=valid"
                raise UsageError(f"{option} {text}: write it as {example}")
            yield f"extended.data.{section}.{name.strip()}={options_of.as_yaml(value.strip())}"


def _plan(config: Config) -> Plan:
    """What is asked, once of each sample; α comes later."""
    from NatureLM.experiments.run import make_plan

    extended = config.extended
    if extended is None or extended.data is None:
        raise UsageError("there is nothing to tune on: name recordings with known answers (--data)")
    if len(extended.queries or [""]) > 1:
        raise UsageError(
            f"α is tuned for one question, and extended.queries has {len(extended.queries or [])}: "
            "choose one with --query"
        )
    extended = extended.model_copy(update={"lora_scales": [1.0]})
    return make_plan(extended, config.model.prompt_template, warn=logger.warning)


def _task(plan: Plan, named: str | None) -> str:
    """The task of the samples: as named, else what they say, else classification."""
    from NatureLM.data.components import components

    if named is not None:
        return named
    known = [
        components()[one.dataset_name] for one in plan.samples if one.dataset_name in components()
    ]
    said = {one.task for one in plan.samples if one.task} | {one.task for one in known}
    if len(said) > 1:
        raise UsageError(
            f"α is chosen for one task, and there are samples of {', '.join(sorted(said))}: "
            "choose them with --where"
        )
    return said.pop() if said else "classification"


def _asker(
    choice: of_model.ModelChoice,
    plan: Plan,
    means: Mapping[str, Any],
    kept: list[dict[str, Any]],
) -> Any:
    """The function that answers at some α; every row goes into `kept`, too.

    means: what an `Answerer` works with, which changes no answer
    """
    from NatureLM.cli.infer import load_model
    from NatureLM.experiments.run import Answerer
    from NatureLM.inference.loading import processor_of

    _note(f"Loading {choice.model}")
    model = load_model(choice)
    cells = list(plan.with_template(processor_of(model).prompt_template).cells())
    _note(f"Encoding {len(cells)} samples")
    generation = choice.config.generate.model_dump(exclude={"merging_alpha"})
    answerer = Answerer(model, cells, **means, note=logger.warning, report=_progress, **generation)
    for problem in answerer.left_out.values():
        _note(f"left out: {problem}")

    def ask(alphas: Sequence[float]) -> list[dict[str, Any]]:
        listed = ", ".join(f"{alpha:g}" for alpha in alphas)
        _note(f"Asking {len(answerer.cells)} samples at α = {listed}")
        rows = answerer(alphas)
        kept.extend(rows)
        return rows

    return ask


def _finish(
    tuning: Tuning,
    rows: list[dict[str, Any]],
    folder: Path,
    settings: dict[str, Any],
    has_figures: bool,
) -> None:
    from NatureLM.experiments.tune import draw_tuning, verdict, write_tuning

    written = write_tuning(tuning, rows, folder, settings)
    if has_figures:
        written += draw_tuning(tuning, folder)
    _show(tuning)
    names = ", ".join(path.name for path in written)
    typer.echo(f"\n{verdict(tuning)}\nWrote {names} to {folder}")


def _show(tuning: Tuning) -> None:
    from NatureLM.cli.options import print_table

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
    print_table(columns, rows, right={"α", "standard error"})
    best = tuning.best
    typer.echo(f"{best.n} samples, resampled by {best.cluster_by} ({best.clusters})")


def _has_figures() -> bool:
    """Whether a figure can be drawn; said before the work, not after it."""
    from NatureLM.reports.figures import need_matplotlib

    try:
        need_matplotlib()
    except UsageError as error:
        _note(f"There will be no figure: {error}")
        return False
    return True


def _progress(done: int, total: int) -> None:
    import sys

    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        typer.echo(f"\r{done}/{total} answers{end}", err=True, nl=False)


def _note(text: str) -> None:
    typer.echo(text, err=True)

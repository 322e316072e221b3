"""What recordings with known answers decide: the α to use (`tune-alpha`), and what confidences mean
(`calibrate`, of reviewed clips as well)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from NatureLM.cli import options as of
from NatureLM.cli.experiment import as_yaml
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
    from NatureLM.data.sample import Sample
    from NatureLM.experiments.plan import Plan
    from NatureLM.experiments.tune import Reliability, Scored, Tuning
    from NatureLM.models import NatureLM
    from NatureLM.review.thresholds import Calibrated, SpeciesCurve

logger = logging.getLogger(__name__)
_SEARCH = "Search"
_SCORING = "Scoring"
_SHOWN = 0.95  # the chance of being right of thresholds that are shown
_MOST_REASONS = 20
_MOST_CURVES = 6
_BINS = 5


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
            yield f"extended.data.path={as_yaml(self.data)}"
        if self.query is not None:
            yield f"extended.queries={as_yaml([self.query])}"
        if self.limit is not None:
            yield f"extended.limit={self.limit}"
        if self.seed:  # 0 leaves the one of the configuration
            yield f"extended.seed={self.seed}"
        for section, values in (
            ("columns", of.pairs("--column", self.column, COLUMN_FORM, may_be_empty=True)),
            ("where", of.pairs("--where", self.where, WHERE_FORM, may_be_empty=True)),
        ):
            for name, value in values.items():
                yield f"extended.data.{section}.{name}={as_yaml(value)}"


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


# Confidences


def calibrate(
    *,
    table: str = of.argument(
        ...,
        "A table with the columns path and label (.csv, .jsonl, .parquet), or a folder with one, "
        "or one of reviewed clips.",
    ),
    where: list[str] | None = WHERE,
    test_where: list[str] | None = of.option(
        None,
        "Rows to measure on, such as split=test; they should be others.",
        KNOWN_ANSWERS,
        metavar="COLUMN=VALUE",
        show_default="the rows that it is fitted to",
    ),
    column: list[str] | None = COLUMN,
    species_list: str | None = of.option(
        None,
        "The labels to choose from.",
        KNOWN_ANSWERS,
        metavar="FILE|NAMES|PRESET",
        show_default="the labels of the table",
    ),
    query: str | None = of.but(QUERY, show_default="the question for the name of the species"),
    normalize: str = of.option(
        "sum",
        "How labels are made comparable: by log-likelihood, by that of a token, or by what the "
        "sound adds.",
        of.MODEL,
        metavar="sum|mean|prior",
    ),
    weights: of.WeightsOptions,
    adapter: str | None = of.ADAPTER,
    merging_alpha: float = of.option(1.0, "Share of the adapter.", of.MODEL),
    on: of.PrecisionOptions,
    output_path: Path | None = of.option(
        None,
        "File for the calibration.",
        of.OUTPUT,
        *("--output-path", "--output"),
        show_default="calibration.json in the folder of the model; thresholds.csv in that of "
        "reviewed clips",
    ),
    figure: Path | None = of.option(
        None,
        "File (.svg) for a reliability diagram; of reviewed clips for their curves.",
        of.OUTPUT,
    ),
    min_clips: int = of.option(
        20, "Species with fewer judged clips have no threshold.", "Reviewed clips", min=4
    ),
) -> None:
    """Fit the temperature that makes the confidence in species mean what it says.

    naturelm calibrate clips.csv --where split=valid --test-where split=test

    `naturelm infer --species-list ...` then uses it wherever the model is used at this α.

    Of a folder of reviewed clips (`naturelm segments`, `naturelm review`): fit how the chance of
    being right grows with the confidence, and write thresholds, which --min-confidence reads.
    """
    if is_reviewed(table):
        given = {
            "--where": where,
            "--test-where": test_where,
            "--column": column,
            "--species-list": species_list,
            "--query": query,
            "--adapter": adapter,
        }
        calibrate_clips(Path(table), output_path, figure, min_clips, given)
        return
    from NatureLM.experiments.tune import fit_calibration, measure, score_samples
    from NatureLM.generation.labels import check_normalize
    from NatureLM.inference.calibration import write_calibration
    from NatureLM.reports.figures import draw_reliability, need_matplotlib, svg
    from NatureLM.util import check_place, write_text

    check_normalize(normalize)
    if query is not None and not query.strip():
        raise UsageError("--query is empty: give a question, or leave the option out")
    target = _target(output_path, "@".join(filter(None, (weights.name, weights.revision))))
    check_place(target, "--output-path")
    _check_figure(figure)
    if figure is not None:
        check_place(figure, "--figure")
        need_matplotlib()
    samples = _samples(table, column, where)
    others = _samples(table, column, test_where, is_read=True) if test_where else None
    names, asked = _question(samples, species_list, query)
    on.check_device()
    say(f"Loading {weights.name}")
    loaded = of.load_model(weights.name, adapter=adapter, **vars(on), **weights.pinned)
    how: Any = {"alpha": merging_alpha, "normalize": normalize}

    def score(of_samples: Sequence[Sample]) -> list[Scored]:
        say(f"Scoring {len(names)} labels on {len(of_samples)} recordings")
        return score_samples(loaded, of_samples, names, asked, **how)

    fitted = score(samples)
    tested = fitted if others is None else score(others)
    found = fit_calibration(loaded, fitted, asked, **how)
    before, after = measure(tested, 1.0), measure(tested, found.temperature)
    if found.is_at_the_edge:
        say(
            f"Note: the temperature is as far as it goes, {found.temperature:g}: "
            f"{found.samples} recordings do not say how sure the model should be. Take more, "
            "among them some that it gets wrong"
        )
    write_calibration(found, target)
    if figure is not None:
        lines = {"as scored": before.bins, f"temperature {after.temperature:.2f}": after.bins}
        write_text(figure, svg(draw_reliability(lines, f"{after.error.samples} recordings")))
    _show_reliability(before, after, fitted=len(fitted), on_others=others is not None)
    show(f"Calibration: {target}")


def _check_figure(figure: Path | None) -> None:
    if figure is not None and figure.suffix.lower() != ".svg":
        raise UsageError(f"--figure is {figure}, and its name must end in .svg")


def _target(output_path: Path | None, model: str) -> Path:
    """Where the calibration goes: beside the model, unless that belongs to the package."""
    from NatureLM.inference.calibration import beside_model
    from NatureLM.models.registry import EMBEDDED

    target = output_path or beside_model(model)
    if target is None:
        raise UsageError(f"{model} is no folder on this machine: say where with --output-path")
    embedded = beside_model(EMBEDDED)
    if output_path is None and embedded is not None and target.resolve() == embedded.resolve():
        raise UsageError(
            f"{model} belongs to the installed package, whose files stay as they are: say where "
            "the calibration goes with --output-path"
        )
    return target


def _samples(
    table: str, columns: Sequence[str] | None, where: Sequence[str] | None, *, is_read: bool = False
) -> tuple[Sample, ...]:
    """Rows of a table; `is_read`: its notes were shown."""
    from NatureLM.config.schema import TableSource
    from NatureLM.data.sample import open_samples

    names = of.pairs("--column", columns, COLUMN_FORM)
    values: Any = of.pairs("--where", where, WHERE_FORM)
    found = open_samples(TableSource.named(table, columns=names, where=values))
    for note in () if is_read else found.notes:
        logger.warning("Note: %s", note)
    return found.samples


def _question(
    samples: Sequence[Sample], species_list: str | None, query: str | None
) -> tuple[tuple[str, ...], str]:
    """The labels to choose from, and what is asked."""
    from NatureLM.species import default_question, kind_of, presets, read_species_list

    if species_list is not None:
        found = read_species_list(species_list, presets=presets())
        for text in found.notes:
            logger.warning("Note: %s", text)
        names, kind = found.names, found.kind
    else:
        names = tuple(sorted({sample.label for sample in samples}))
        kind = kind_of(names)
    return names, query or default_question(names, kind)


def _show_reliability(
    before: Reliability, after: Reliability, *, fitted: int, on_others: bool
) -> None:
    rows = [
        [name, f"{one.temperature:.2f}", str(one.error), str(one.nll), str(one.accuracy)]
        for name, one in (("as scored", before), ("calibrated", after))
    ]
    columns = ["confidence", "temperature", "calibration error", "surprise (nats)", "accuracy"]
    of.print_table(columns, rows, right={"temperature"})
    which = "others than it was fitted to" if on_others else "those that it was fitted to"
    show(
        f"Fitted to {fitted} recordings; measured on {after.error.samples}, {which}, resampled by "
        f"{after.error.clusters} groups."
    )


# Of clips that were reviewed


def is_reviewed(place: str) -> bool:
    """Whether this is a folder of clips for review, in place of a table."""
    from NatureLM.review.folder import index_path

    return index_path(place).is_file()


def calibrate_clips(
    folder: Path,
    output_path: Path | None,
    figure: Path | None,
    min_clips: int,
    given: Mapping[str, Any],
) -> None:
    """Fit curves to reviewed clips, write and show their thresholds.

    given: options that mean nothing here, with their values

    Raises UsageError where one of them is given, or nothing was reviewed.
    """
    from NatureLM.review.thresholds import calibrate_folder
    from NatureLM.util import check_place, write_text

    in_vain = [name for name, value in given.items() if value]
    if in_vain:
        raise UsageError(
            f"{folder} holds reviewed clips, of which thresholds are made without a model; "
            f"{', '.join(in_vain)} is for tables of recordings with known answers"
        )
    if output_path is not None:
        check_place(output_path, "--output-path")
    _check_figure(figure)
    target = figure or folder / "thresholds.svg"
    draws = of.can_draw(is_needed=figure is not None)
    made = calibrate_folder(folder, output_path=output_path, least_clips=min_clips)
    _show_thresholds(made)
    drawn = draws and any(one.curve is not None for one in made.curves)
    if drawn:
        from NatureLM.reports.figures import svg

        write_text(target, svg(_figure(made)))
    show(f"Thresholds: {made.path}" + (f", curves: {target}" if drawn else ""))


def _show_thresholds(made: Calibrated) -> None:
    """A table of what is known, then why the rest is not, then how far reviewers agree."""
    questions = {one.question for one in made.curves}
    rows = [_row(made, one, len(questions) > 1) for one in made.curves]
    columns = ["species", "clips", "right", f"threshold for {_SHOWN:g}", "95 % interval"]
    of.print_table(columns, rows, right={"clips", "right"})
    missing = [
        (one.species, line.why)
        for one in made.curves
        if (line := made.line(one, _SHOWN)).threshold is None
    ]
    for species, why in missing[:_MOST_REASONS]:
        show(f"{species}: no threshold for {_SHOWN:g}: {why}")
    if len(missing) > _MOST_REASONS:
        show(f"and {len(missing) - _MOST_REASONS} more without one; the table says why")
    review, agreed = made.review, made.review.agreement
    show(
        f"Judged: {len(review.judged)} of {len(review.segments)} clips; undecided: "
        f"{review.undecided}; reviewers: {agreed.reviewers}."
    )
    if review.unknown:
        show(f"Verdicts about clips that are not in the index do not count: {review.unknown}.")
    if agreed.share is not None:
        kappa = "" if agreed.kappa is None else f", kappa {agreed.kappa:.2f}"
        show(f"Of {agreed.clips} clips of several reviewers {agreed.share:.0%} agree{kappa}.")


def _row(made: Calibrated, one: SpeciesCurve, has_questions: bool) -> list[str]:
    line = made.line(one, _SHOWN)
    name = f"{one.species} ({one.question})" if has_questions else one.species
    value = "-" if line.threshold is None else f"{line.threshold:.3f}"
    interval = "-"
    if line.threshold is not None and line.low is not None and line.high is not None:
        interval = f"{line.low:.3f} to {line.high:.3f}"
    return [name, str(len(one.clips)), str(one.right), value, interval]


def _figure(made: Calibrated) -> Any:
    """Curves of the species with most clips."""
    import numpy as np

    from NatureLM.evaluation.metrics import reliability_bins
    from NatureLM.reports.figures import draw_certainty
    from NatureLM.review.thresholds import CHANCES

    known = [one for one in made.curves if one.curve is not None]
    known.sort(key=lambda one: (-len(one.clips), one.species))
    curves = {}
    for one in known[:_MOST_CURVES]:
        assert one.curve is not None
        sure = [clip.confidence or 0.0 for clip, _ in one.clips]
        right = [is_right for _, is_right in one.clips]
        places = np.linspace(min(sure), max(sure), 200)
        bins = reliability_bins(sure, np.array(right, dtype=np.float64), None, _BINS)
        name = f"{one.species}, {len(one.clips)} clips"
        curves[name] = (places.tolist(), one.curve.chance(places).tolist(), bins)
    title = f"Chance of being right, {len(made.review.judged)} reviewed clips"
    return draw_certainty(curves, CHANCES, title)

"""What samples with known answers decide: the α to use, and how far confidences can be trusted.

α is searched from coarse to fine. Its maximum is as much luck as merit: on a few dozen samples
several α differ by less than chance. So of all α that follow one another from it towards one end,
and whose values are no further below it than one standard error, the last one is chosen (Breiman
and others, "Classification and Regression Trees", 1984: the simplest model that the data cannot
tell from the best). The simpler end is `base`, α = 0, where the model keeps most of what the
language model could do.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np

from NatureLM.data.components import METRICS_OF, Task, metric_name
from NatureLM.data.sample import Sample
from NatureLM.errors import NatureLMError, UsageError
from NatureLM.evaluation.answers import ReadOptions, load_rows
from NatureLM.evaluation.metrics import (
    BINS,
    BootstrapOptions,
    Estimate,
    Floats,
    ReliabilityBin,
    accuracy,
    calibration_error,
    clustered_interval,
    percentile_interval,
    reliability_bins,
)
from NatureLM.evaluation.protocols import Protocol
from NatureLM.evaluation.score import GroupScore, Interval, score_answers
from NatureLM.experiments.run import ClipLoader
from NatureLM.generation.labels import NOTHING, LabelScores, Normalize
from NatureLM.inference.calibration import Calibration, fit_temperature
from NatureLM.inference.loading import processor_of
from NatureLM.merging.recipe import extrapolation_note
from NatureLM.reports.charts import Curve, CurveChart, Point
from NatureLM.results.tables import write_csv
from NatureLM.util import write_json, write_text

if TYPE_CHECKING:
    from NatureLM.generation.audio_cache import EmbeddingCache
    from NatureLM.models import NatureLM

logger = logging.getLogger(__name__)

Row: TypeAlias = dict[str, Any]
Ask: TypeAlias = Callable[[Sequence[float]], Iterable[Row]]
"""Answers all samples at each of some α: rows as `beans score` reads them."""

Side = Literal["base", "adapted"]
_MOST_STEPS = 200
_SMALLEST = 1e-12  # of a probability, so that its logarithm is finite


@dataclass(frozen=True)
class Grid:
    """Where to look for α: every `coarse` from `low` to `high`, then every `fine` near the best.

    Raises UsageError for steps that lead nowhere.
    """

    low: float = 0.0
    high: float = 1.0
    coarse: float = 0.2
    fine: float = 0.05

    def __post_init__(self) -> None:
        values = (self.low, self.high, self.coarse, self.fine)
        if not all(map(math.isfinite, values)):
            raise UsageError(f"α is searched between finite numbers, got {values}")
        if self.low >= self.high:
            raise UsageError(f"α is searched from {self.low:g} to {self.high:g}: give low < high")
        if not 0 < self.fine <= self.coarse:
            raise UsageError(
                f"the coarse step is {self.coarse:g} and the fine one {self.fine:g}: both must be "
                "above 0, and the fine one no larger"
            )
        if (self.high - self.low) / self.fine > _MOST_STEPS:
            raise UsageError(
                f"steps of {self.fine:g} from {self.low:g} to {self.high:g} are more than "
                f"{_MOST_STEPS}: give a larger fine step"
            )

    def first(self) -> list[float]:
        """The coarse values, both ends among them."""
        steps = math.floor((self.high - self.low) / self.coarse + 1e-9)
        inner = [_rounded(self.low + step * self.coarse) for step in range(1, steps + 1)]
        return [self.low, *(value for value in inner if value < self.high - 1e-9), self.high]

    def around(self, best: float, tried: Iterable[float]) -> list[float]:
        """The fine values less than a coarse step from `best` that were not tried."""
        known = set(tried)
        reach = math.ceil(self.coarse / self.fine - 1e-9)
        values = (_rounded(best + step * self.fine) for step in range(-reach, reach + 1))
        return [
            value
            for value in values
            if self.low <= value <= self.high
            and abs(value - best) < self.coarse - 1e-9
            and value not in known
        ]


@dataclass(frozen=True)
class AlphaScore:
    """How good one α is.

    standard_error: of the value, over resamples
    resampled: the value in each resample; the resamples of all trials are the same
    """

    alpha: float
    value: float
    interval: Interval | None
    standard_error: float
    n: int
    clusters: int
    cluster_by: str
    baselines: Mapping[str, float]
    resampled: Floats = field(repr=False, compare=False)


@dataclass(frozen=True)
class Tuning:
    """All trials by rising α, and the two choices; see the module for the rules.

    best: the trial with the highest value (the one nearest to `towards` among equals)
    chosen: the one by the rule of one standard error
    threshold: the value that was good enough
    """

    metric: str
    towards: Side
    trials: tuple[AlphaScore, ...]
    best: AlphaScore
    chosen: AlphaScore
    threshold: float

    def behind(self, trial: AlphaScore) -> Interval | None:
        """95 % interval of how far a trial is behind the best one, sample by sample the same."""
        return percentile_interval(self.best.resampled - trial.resampled)


@dataclass(frozen=True)
class Tuner:
    """Scores answers by one metric.

    options: names and labels of the answers; groups are made by α alone

    Raises UsageError for a metric that the samples' task does not have.
    """

    metric: str
    protocol: Protocol
    options: ReadOptions = field(default_factory=ReadOptions)
    bootstrap: BootstrapOptions = field(default_factory=BootstrapOptions)

    def tune(self, ask: Ask, grid: Grid = Grid(), towards: Side = "base") -> Tuning:
        """Try the coarse values, then the fine ones around the best, and choose."""
        if towards not in get_args(Side):
            raise UsageError(f"towards is {towards!r}; take one of {', '.join(get_args(Side))}")
        trials = self.trials(ask(grid.first()))
        best = best_of(trials, towards)
        if finer := grid.around(best.alpha, [trial.alpha for trial in trials]):
            trials += self.trials(ask(finer))
        return choose(trials, self.metric, towards)

    def trials(self, rows: Iterable[Row]) -> list[AlphaScore]:
        """The trials of answers, one for each α; lines that cannot be scored are errors."""
        answers = load_rows(rows, replace(self.options, by=("lora_scale",)))
        datasets = sorted({str(group.key[0]) for group in answers.groups})
        if len(datasets) > 1:
            raise UsageError(
                f"α is chosen on one data set, and there are {', '.join(datasets)}: choose one "
                "(--where dataset_name=NAME)"
            )
        scores = score_answers(answers, [self.protocol], self.bootstrap)
        return [self._trial(group) for group in scores.groups]

    def _trial(self, group: GroupScore) -> AlphaScore:
        metric = self.metric
        if metric not in group.metrics:  # of SPICE it is known only now
            known = ", ".join(group.metrics)
            raise UsageError(f"{metric} could not be measured here, only {known}")
        resampled = group.samples.resampled(group.cluster_codes, self.bootstrap)[metric]
        known_values = resampled[~np.isnan(resampled)]
        return AlphaScore(
            alpha=float(group.key[1]),  # type: ignore[arg-type]
            value=group.metrics[metric],
            interval=group.intervals.get(metric),
            standard_error=float(known_values.std(ddof=1)) if len(known_values) > 1 else 0.0,
            n=len(group.ids),
            clusters=group.clusters,
            cluster_by=group.cluster_by,
            baselines={name: one[metric] for name, one in group.baselines.items() if metric in one},
            resampled=resampled,
        )


def check_metric(metric: str, task: Task) -> None:
    """Raise UsageError for a metric that a task does not have."""
    if metric not in METRICS_OF[task]:
        known = ", ".join(METRICS_OF[task])
        raise UsageError(f"--metric {metric}: answers of {task} are measured by {known}")


def best_of(trials: Sequence[AlphaScore], towards: Side) -> AlphaScore:
    """The trial with the highest value; among equals the one nearest to that end."""
    sign = -1 if towards == "base" else 1
    return max(trials, key=lambda trial: (trial.value, sign * trial.alpha))


def choose(trials: Sequence[AlphaScore], metric: str, towards: Side) -> Tuning:
    """The maximum, and the choice by the rule of one standard error."""
    ordered = sorted(trials, key=lambda trial: trial.alpha)
    best = best_of(ordered, towards)
    threshold = best.value - best.standard_error
    place = ordered.index(best)
    onward = ordered[place::-1] if towards == "base" else ordered[place:]
    *_, chosen = takewhile(lambda trial: not trial.value < threshold, onward)
    return Tuning(metric, towards, tuple(ordered), best, chosen, threshold)


def _rounded(value: float) -> float:
    """Steps of 0.05 give 0.15, not 0.15000000000000002; and no zero has a sign."""
    return round(value, 10) + 0.0


def write_tuning(
    tuning: Tuning, rows: Sequence[Row], folder: Path, settings: Mapping[str, Any]
) -> list[Path]:
    """Write all but the figure; returns the files.

    tune.csv, tune.json: the trials; alpha.yml: a configuration with the chosen α; answers.jsonl
    """
    records = [_record(tuning, one) for one in tuning.trials]
    about = {
        "alpha": tuning.chosen.alpha,
        "rule": "one standard error",
        "towards": tuning.towards,
        "metric": tuning.metric,
        "best_alpha": tuning.best.alpha,
        "best_value": tuning.best.value,
        "threshold": tuning.threshold,
        "baselines": dict(tuning.best.baselines),
        "cluster_by": tuning.best.cluster_by,
        **settings,
        "trials": records,
    }
    setting = f"generate:\n  merging_alpha: {tuning.chosen.alpha!r}\n"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return [
        write_json(folder / "tune.json", about),
        write_csv(folder / "tune.csv", list(records[0]), [list(one.values()) for one in records]),
        write_text(
            folder / "alpha.yml",
            f"# Chosen by naturelm tune-alpha; use it with --cfg-path.\n{setting}",
        ),
        write_text(folder / "answers.jsonl", lines),
    ]


def draw_tuning(tuning: Tuning, folder: Path) -> list[Path]:
    """Draw the trials as SVG and PNG. Raises UsageError without matplotlib."""
    from NatureLM.reports.figures import draw, write_figure

    return write_figure(draw(chart_of(tuning)), folder / "tune")[1]


def chart_of(tuning: Tuning) -> CurveChart:
    """The trials as a curve; level lines are the baselines and what was good enough."""
    name = metric_name(tuning.metric)
    points = [Point(one.alpha, one.value, *(one.interval or (None, None))) for one in tuning.trials]
    return CurveChart(
        key="tune",
        title=f"{name} over α",
        measure=name,
        curves=(Curve(f"{name}, 95 % interval", tuple(points)),),
        baselines={
            "one standard error below the best": tuning.threshold,
            **tuning.best.baselines,
        },
        marks={"highest": tuning.best.alpha, "chosen": tuning.chosen.alpha},
        is_share=tuning.metric != "cider",
    )


def verdict(tuning: Tuning) -> str:
    """The choice in a sentence or two."""
    best, chosen = tuning.best, tuning.chosen
    name = metric_name(tuning.metric)
    if chosen is best:
        text = (
            f"Use α = {chosen.alpha:g}: {name} is highest there, {best.value:.3f}, and falls by "
            f"more than one standard error ({best.standard_error:.3f}) towards the "
            f"{tuning.towards} model."
        )
    else:
        text = (
            f"Use α = {chosen.alpha:g}: {name} {chosen.value:.3f} is within one standard error "
            f"({best.standard_error:.3f}) of the highest, {best.value:.3f} at α = {best.alpha:g}, "
            f"and nearer to the {tuning.towards} model."
        )
    note = extrapolation_note(chosen.alpha)
    return f"{text} Note: {note}." if note else text


def _record(tuning: Tuning, trial: AlphaScore) -> dict[str, Any]:
    """A trial as a row of the table."""
    low, high = trial.interval or (None, None)
    behind_low, behind_high = tuning.behind(trial) or (None, None)
    return {
        "alpha": trial.alpha,
        "value": trial.value,
        "low": low,
        "high": high,
        "standard_error": trial.standard_error,
        "behind_low": behind_low,
        "behind_high": behind_high,
        "n": trial.n,
        "clusters": trial.clusters,
        "is_best": trial is tuning.best,
        "is_chosen": trial is tuning.chosen,
    }


# Confidence in labels: scored, fitted, measured


@dataclass(frozen=True)
class Scored:
    """A sample and the scores of all labels, `None` among them."""

    sample: Sample
    scores: LabelScores

    def confidence(self, temperature: float) -> float:
        """Probability of the likeliest label."""
        return self.scores.at_temperature(temperature).confidence

    def of_species(self, temperature: float) -> float:
        """Probability of the likeliest label that is not `None`."""
        pairs = self.scores.at_temperature(temperature).ranked()
        return next((share for label, share in pairs if label != NOTHING), 0.0)

    @property
    def is_right(self) -> bool:
        """Whether the likeliest label is the true one."""
        return self.scores.best == self.sample.label


@dataclass(frozen=True)
class Reliability:
    """How far confidences at a temperature mean what they say, with intervals over clusters.

    error: expected calibration error; nll: mean of -log probability of the true label, nats
    """

    temperature: float
    accuracy: Estimate
    error: Estimate
    nll: Estimate
    bins: tuple[ReliabilityBin, ...]

    def plain(self) -> dict[str, Any]:
        """As plain values; bins without samples are left out."""
        return {
            "temperature": self.temperature,
            "accuracy": asdict(self.accuracy),
            "error": asdict(self.error),
            "surprise": asdict(self.nll),
            "bins": [asdict(one) for one in self.bins if one.samples > 0],
        }


def score_samples(
    model: NatureLM,
    samples: Sequence[Sample],
    labels: Sequence[str],
    query: str,
    *,
    alpha: float = 1.0,
    normalize: Normalize = "sum",
    embeddings: EmbeddingCache | None = None,
) -> list[Scored]:
    """The scores of the labels and `None` for the first window of each sample, in their order.

    embeddings: where encoded clips are kept from one call to the next

    Recordings that cannot be read are logged and left out.

    Raises NatureLMError where none can be read, UsageError for a question or a label that is too
    long for the language model.
    """
    from NatureLM.generation.engine import (
        Answer,
        Engine,
        Request,
        fold_if_single_alpha,
        yield_in_input_order,
    )
    from NatureLM.generation.labels import LabelChoice
    from NatureLM.prompts import PLACEHOLDER

    load = ClipLoader(model, (sample.clip for sample in samples))
    prompt = processor_of(model).render(query)
    clips = prompt.count(PLACEHOLDER)
    names = tuple(labels) if NOTHING in labels else (*labels, NOTHING)
    choice = LabelChoice(names, normalize=normalize)
    requests = (
        Request(place, prompt, (sample.clip.key,) * clips, alpha, choice=choice)
        for place, sample in enumerate(samples)
    )
    found: list[Scored] = []
    engine = Engine(model, embeddings=embeddings)
    asked = Request(query, prompt, ("",) * clips, alpha, choice=choice)
    if problem := engine.problem_of(asked, clips * model.config.audio_positions()):
        raise problem
    with fold_if_single_alpha(model, [alpha]):
        for answer in yield_in_input_order(engine.run, requests, load):
            assert isinstance(answer, Answer)
            sample = samples[cast(int, answer.key)]
            if answer.scores is not None:
                found.append(Scored(sample, answer.scores))
            else:
                logger.warning("left out: %s", answer.error)
    if not found:
        raise NatureLMError("no recording could be heard, so there is nothing to go by")
    return found


def fit_calibration(
    model: NatureLM,
    scored: Sequence[Scored],
    query: str,
    *,
    alpha: float = 1.0,
    normalize: Normalize = "sum",
) -> Calibration:
    """The temperature of samples whose label is among those that were scored.

    Raises NatureLMError where there is none.
    """
    usable = [one for one in scored if one.sample.label in one.scores.labels]
    if not usable:
        raise NatureLMError(
            "no recording has a label that is in the list, so there is nothing to fit to"
        )
    right = [one.scores.labels.index(one.sample.label) for one in usable]
    temperature = fit_temperature([one.scores.scores for one in usable], right)
    return Calibration(
        temperature=round(temperature, 4),
        normalize=normalize,
        merging_alpha=alpha,
        weights=model.fingerprint,
        query=query,
        labels=len(usable[0].scores.labels),
        samples=len(usable),
        clusters=len({one.sample.cluster for one in usable}),
        revision=model.revisions.get("revision"),
    )


def measure(
    scored: Sequence[Scored], temperature: float, *, bins: int = BINS, repeats: int = 2000
) -> Reliability:
    """How far the confidences mean what they say."""
    sure = np.array([one.confidence(temperature) for one in scored])
    right = np.array([one.is_right for one in scored], dtype=np.float64)
    clusters = [one.sample.cluster for one in scored]
    ranked = [dict(one.scores.at_temperature(temperature).ranked()) for one in scored]
    shares = [of.get(one.sample.label, 0.0) for of, one in zip(ranked, scored, strict=True)]
    nlls = -np.log(np.maximum(shares, _SMALLEST))

    def interval(statistic: Callable[[Any], float]) -> Estimate:
        return clustered_interval(statistic, clusters, repeats=repeats)

    return Reliability(
        temperature,
        interval(lambda weights: accuracy(right, weights)),
        interval(lambda weights: calibration_error(sure, right, weights, bins)),
        interval(lambda weights: float(nlls @ weights / weights.sum())),
        tuple(reliability_bins(sure, right, None, bins)),
    )

"""What tuning leaves: a table, the value to use, a figure, and all answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from NatureLM.beans.scoring.writing import write_csv, write_data, write_folder_json
from NatureLM.experiments.tune import Row, Trial, Tuning
from NatureLM.merging.notes import extrapolation_note
from NatureLM.reports.charts import METRIC_NAMES, Curve, CurveChart, Point

COLUMNS = (
    "alpha",
    "value",
    "low",
    "high",
    "standard_error",
    "behind_low",
    "behind_high",
    "n",
    "clusters",
    "is_best",
    "is_chosen",
)
_SETTING = """\
# Chosen by naturelm tune-alpha; use it with --cfg-path.
generate:
  merging_alpha: {alpha!r}
"""


def write_tuning(
    tuning: Tuning, rows: Sequence[Row], folder: Path, settings: Mapping[str, Any]
) -> list[Path]:
    """Write all but the figure; returns the files.

    tune.csv, tune.json: the trials; alpha.yml: a configuration with the chosen α; answers.jsonl
    """
    records = [dict(zip(COLUMNS, _cells(tuning, one), strict=True)) for one in tuning.trials]
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
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    return [
        write_folder_json(about, folder, "tune.json"),
        write_csv(folder / "tune.csv", COLUMNS, [list(record.values()) for record in records]),
        write_data(folder / "alpha.yml", _SETTING.format(alpha=tuning.chosen.alpha).encode()),
        write_data(folder / "answers.jsonl", lines.encode()),
    ]


def draw_tuning(tuning: Tuning, folder: Path) -> list[Path]:
    """Draw the trials as SVG and PNG. Raises UsageError without matplotlib."""
    from NatureLM.reports.figures import draw
    from NatureLM.reports.figures.files import png, svg

    figure = draw(chart_of(tuning))
    return [
        write_data(folder / "tune.svg", svg(figure).encode()),
        write_data(folder / "tune.png", png(figure)),
    ]


def chart_of(tuning: Tuning) -> CurveChart:
    """The trials as a curve; level lines are the baselines and what was good enough."""
    name = METRIC_NAMES.get(tuning.metric, tuning.metric)
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
        marks={
            "highest": tuning.best.alpha,
            "chosen": tuning.chosen.alpha,
        },
        is_share=tuning.metric != "cider",
    )


def verdict(tuning: Tuning) -> str:
    """The choice in a sentence or two."""
    best, chosen = tuning.best, tuning.chosen
    name = METRIC_NAMES.get(tuning.metric, tuning.metric)
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


def _cells(tuning: Tuning, trial: Trial) -> list[Any]:
    interval = trial.interval or (None, None)
    behind = tuning.behind(trial) or (None, None)
    return [
        trial.alpha,
        trial.value,
        *interval,
        trial.standard_error,
        *behind,
        trial.n,
        trial.clusters,
        trial is tuning.best,
        trial is tuning.chosen,
    ]

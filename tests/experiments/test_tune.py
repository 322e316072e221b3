"""The search for α and the choice, without a model."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import write_lines
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("rapidfuzz")

from NatureLM.errors import UsageError
from NatureLM.evaluation.answers import ReadOptions
from NatureLM.evaluation.metrics import BootstrapOptions
from NatureLM.evaluation.protocols import protocol
from NatureLM.evaluation.score import score
from NatureLM.experiments.tune import (
    AlphaScore,
    Grid,
    Tuner,
    chart_of,
    check_metric,
    choose,
    verdict,
    write_tuning,
)

NAMES = ["Owl", "Loon", "Wolf"]
READING = ReadOptions(task="classification")


class Answers:
    """Answers whose chance to be right is a function of α; remembers what was asked."""

    def __init__(self, chance: Callable[[float], float], samples: int = 60) -> None:
        self.chance = chance
        self.samples = samples
        self.asked: list[list[float]] = []
        self.rows: list[dict[str, Any]] = []

    def __call__(self, alphas: Sequence[float]) -> list[dict[str, Any]]:
        self.asked.append(list(alphas))
        made = [self._row(alpha, number) for alpha in alphas for number in range(self.samples)]
        self.rows += made
        return made

    def _row(self, alpha: float, number: int) -> dict[str, Any]:
        label = NAMES[number % 3]
        hardness = random.Random(number // 2).random()  # two clips of one recording
        is_right = hardness < self.chance(alpha)
        return {
            "prediction": label if is_right else "Nothing",
            "label": label,
            "id": f"s{number}",
            "dataset_name": "mine",
            "lora_scale": alpha,
            "query": 0,
            "cluster": f"r{number // 2}",
        }


def peak(alpha: float) -> float:
    return 0.9 - 2 * abs(alpha - 0.45)


def tuner(metric: str = "accuracy") -> Tuner:
    return Tuner(metric, protocol("strict"), READING, BootstrapOptions(resamples=200))


def test_coarse_values_then_fine_ones_around_the_best() -> None:
    answers = Answers(peak, samples=300)
    tuning = tuner().tune(answers)
    assert answers.asked == [
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
        [0.25, 0.3, 0.35, 0.45, 0.5, 0.55],
    ]
    assert [trial.alpha for trial in tuning.trials] == sorted(
        [*answers.asked[0], *answers.asked[1]]
    )
    assert tuning.best.alpha == 0.45
    assert 0.0 < tuning.chosen.alpha <= 0.45


def test_values_are_those_of_scoring(tmp_path: Path) -> None:
    answers = Answers(peak)
    tuning = tuner("f1").tune(answers)
    path = write_lines(tmp_path / "answers.jsonl", answers.rows)
    scores = score(
        [path], [protocol("strict")], options=READING, bootstrap=BootstrapOptions(resamples=200)
    )
    records = {record["lora_scale"]: record for record in scores.records()}
    assert len(records) == len(tuning.trials)
    for trial in tuning.trials:
        record = records[trial.alpha]
        assert trial.value == record["f1"]
        assert list(trial.interval or ()) == record["intervals"]["f1"]
        assert (trial.clusters, trial.cluster_by, trial.n) == (30, "cluster", 60)
        assert trial.baselines["majority"] == record["baselines"]["majority"]["f1"]
        assert trial.standard_error == pytest.approx(np.std(trial.resampled, ddof=1))
        low, high = trial.interval or (0, 0)
        assert trial.standard_error == pytest.approx((high - low) / 4, abs=0.02)


def test_clusters_widen_the_standard_error() -> None:
    together = tuner().tune(Answers(peak))
    apart = Tuner(
        "accuracy", protocol("strict"), ReadOptions(task="classification", cluster="id"),
        BootstrapOptions(resamples=200),
    ).tune(Answers(peak))  # fmt: skip
    assert together.best.standard_error > 1.2 * apart.best.standard_error


def trial(alpha: float, value: float, standard_error: float = 0.1) -> AlphaScore:
    return AlphaScore(alpha, value, None, standard_error, 10, 10, "sample", {}, np.array([value]))


@pytest.mark.parametrize(
    ("values", "towards", "best", "chosen"),
    [
        ({0.0: 0.5, 0.4: 0.85, 0.6: 0.9, 1.0: 0.3}, "base", 0.6, 0.4),
        ({0.0: 0.5, 0.4: 0.85, 0.6: 0.9, 1.0: 0.3}, "adapted", 0.6, 0.6),
        ({0.0: 0.9, 0.5: 0.9, 1.0: 0.9}, "base", 0.0, 0.0),
        ({0.0: 0.9, 0.5: 0.9, 1.0: 0.9}, "adapted", 1.0, 1.0),
        # Good enough again beyond a dip: not reached.
        ({0.0: 0.85, 0.2: 0.3, 0.4: 0.82, 0.6: 0.9, 1.0: 0.3}, "base", 0.6, 0.4),
        ({0.0: 0.85, 0.5: 0.9, 0.7: 0.3, 1.0: 0.89}, "adapted", 0.5, 0.5),
    ],
)
def test_the_rule_of_one_standard_error(
    values: dict[float, float], towards: Any, best: float, chosen: float
) -> None:
    tuning = choose([trial(*pair) for pair in values.items()], "accuracy", towards)
    assert (tuning.best.alpha, tuning.chosen.alpha) == (best, chosen)
    assert tuning.threshold == pytest.approx(tuning.best.value - 0.1)
    assert f"Use α = {chosen:g}" in verdict(tuning)
    assert chart_of(tuning).marks == {"highest": best, "chosen": chosen}


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=12),
    error=st.floats(0, 0.5),
    towards=st.sampled_from(["base", "adapted"]),
)
def test_the_choice_is_never_worse_than_one_standard_error(
    values: list[float], error: float, towards: Any
) -> None:
    trials = [trial(place / 10, value, error) for place, value in enumerate(values)]
    tuning = choose(trials, "accuracy", towards)
    assert tuning.best.value == max(values)
    assert tuning.chosen.value >= tuning.best.value - error
    if towards == "base":
        assert tuning.chosen.alpha <= tuning.best.alpha
    else:
        assert tuning.chosen.alpha >= tuning.best.alpha


@given(
    low=st.floats(-1, 0.4),
    width=st.floats(0.1, 2),
    coarse=st.floats(0.05, 1),
    part=st.integers(1, 6),
)
def test_grids(low: float, width: float, coarse: float, part: int) -> None:
    assume(width * part / coarse < 200)  # more steps are refused
    grid = Grid(low, low + width, coarse, coarse / part)
    first = grid.first()
    assert (first[0], first[-1]) == (pytest.approx(low), grid.high)
    assert first == sorted(set(first))
    assert all(b - a <= coarse + 1e-6 for a, b in itertools.pairwise(first))
    for best in first:
        finer = grid.around(best, first)
        assert not set(finer) & set(first)
        assert all(grid.low <= value <= grid.high for value in finer)
        assert all(abs(value - best) < coarse for value in finer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.0, 0.0, 0.2, 0.05), "give low < high"),
        ((0.0, 1.0, 0.05, 0.2), "the fine one no larger"),
        ((0.0, 1.0, 0.2, 0.0), "must be above 0"),
        ((0.0, 1.0, 0.2, 0.001), "larger fine step"),
        ((0.0, math.inf, 0.2, 0.05), "finite"),
    ],
)
def test_steps_that_lead_nowhere(values: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Grid(*values)


def test_what_cannot_be_tuned() -> None:
    with pytest.raises(UsageError, match="measured by accuracy, f1"):
        check_metric("cider", "classification")
    rows = Answers(peak)([0.0])
    rows[0]["dataset_name"] = "other"
    with pytest.raises(UsageError, match="there are mine, other"):
        tuner().trials(rows)
    with pytest.raises(UsageError, match="could not be measured here"):
        tuner("map").trials(Answers(peak)([0.0]))
    with pytest.raises(UsageError, match="take one of base, adapted"):
        tuner().tune(Answers(peak), towards="left")  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    answers = Answers(peak)
    tuning = tuner().tune(answers)
    written = write_tuning(tuning, answers.rows, tmp_path, {"model": "m"})
    assert {path.name for path in written} == {
        "tune.json",
        "tune.csv",
        "alpha.yml",
        "answers.jsonl",
    }
    about = json.loads((tmp_path / "tune.json").read_text())
    assert (about["alpha"], about["best_alpha"]) == (tuning.chosen.alpha, tuning.best.alpha)
    assert about["model"] == "m"
    (best,) = [one for one in about["trials"] if one["is_best"]]
    assert (best["alpha"], best["behind_low"], best["behind_high"]) == (tuning.best.alpha, 0, 0)
    worst = about["trials"][-1]
    assert 0 < worst["behind_low"] < tuning.best.value - worst["value"] < worst["behind_high"]
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == len(answers.rows)
    from NatureLM.config import load_config

    assert load_config(tmp_path / "alpha.yml").generate.merging_alpha == tuning.chosen.alpha

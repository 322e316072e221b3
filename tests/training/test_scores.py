"""Scores of evaluations: the project's metrics, over clusters, the same however work is shared."""

from __future__ import annotations

import pytest

from NatureLM.evaluation.bootstrap import clustered_interval
from NatureLM.evaluation.metrics import accuracy, macro_accuracy
from NatureLM.training.evaluation import (
    ScoredAnswer,
    _is_decoded,
    answer_scores,
    format_scores,
    score_lines,
)
from NatureLM.training.train import Trainer

ROWS = [
    ScoredAnswer(f"r{i}", correct, label, f"g{i // 2}")
    for i, (correct, label) in enumerate(
        [(True, "Wren"), (True, "Wren"), (False, "Wren"), (True, "Wren"), (False, "Owl")] * 4
    )
]


def test_they_are_those_of_the_metrics_package():
    scores = answer_scores(ROWS)
    rows = sorted(ROWS)
    correct, labels = [row.correct for row in rows], [row.label for row in rows]
    assert scores["accuracy"] == accuracy(correct) == 0.6
    assert scores["macro_accuracy"] == macro_accuracy(correct, labels) == 0.375
    interval = clustered_interval(
        lambda w: accuracy(correct, w), [row.cluster for row in rows], repeats=500
    )
    assert (scores["accuracy_low"], scores["accuracy_high"]) == (interval.low, interval.high)
    alone = answer_scores([row._replace(cluster=row.id) for row in ROWS])
    assert alone["accuracy_low"] != scores["accuracy_low"]  # clusters, not clips


def test_order_does_not_matter_and_nothing_is_nothing():
    assert answer_scores(ROWS[::-1]) == answer_scores(ROWS)
    assert answer_scores([]) == {}


def test_in_words():
    scores = {"loss": 1.5, "accuracy": 0.75, "accuracy_low": 0.5, "accuracy_high": 0.9}
    assert format_scores(scores) == "loss 1.5000, accuracy 0.7500 [0.500, 0.900]"
    assert dict(score_lines(scores))["accuracy"] == "0.7500 [0.500, 0.900]"


@pytest.mark.parametrize(("ratio", "expected"), [(0, 0), (0.1, 1), (0.5, 5), (1, 10)])
def test_which_batches_are_answered(ratio: float, expected: int):
    answered = [number for number in range(10) if _is_decoded(number, ratio)]
    assert len(answered) == expected
    assert not answered or answered[0] == 0  # a small table is answered, too


def test_samples_carry_their_cluster(make_config):
    trainer = Trainer(make_config())
    example = trainer.data.train[0]
    assert trainer.builder.plain(example).group == example.id

"""Metrics in a file beside the answers of a run of the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

from NatureLM.beans.scoring.answers import Reading
from NatureLM.beans.scoring.evaluate import DEFAULT, Evaluation
from NatureLM.beans.scoring.gather import read_answers
from NatureLM.beans.scoring.problems import Problems
from NatureLM.beans.scoring.protocols import protocol
from NatureLM.beans.scoring.reading import METRICS
from NatureLM.beans.scoring.scores import Scores, score_answers
from NatureLM.beans.scoring.writing import without_nan, write_data
from NatureLM.errors import UsageError

BENCHMARK = "beans-zero"


class NothingToScoreError(UsageError):
    """No row of the answers can be scored; the message says why."""


def metrics_path(answers: Path) -> Path:
    """The file of metrics of a file of answers: `x.jsonl` has `x_metrics.jsonl`."""
    return answers.with_name(answers.stem + METRICS)


def score_beside(answers: Path, evaluation: Evaluation = DEFAULT) -> tuple[Scores, Path]:
    """Score a file of answers under the benchmark's protocol, and write a line for each data set.

    Rows without an answer, and those of data sets without a task, are counted and left out. The
    file of metrics is there whole or not at all. Raises NothingToScoreError, and takes away the
    metrics of an earlier run, where no row can be scored.
    """
    problems, path = Problems("skip"), metrics_path(answers)
    reading = Reading()
    try:
        found = read_answers([answers], reading, problems)
    except UsageError as error:
        path.unlink(missing_ok=True)
        why = f" (the first: {problems.found[0].message})" if problems.found else ""
        raise NothingToScoreError(f"No metrics: {error}{why}") from None
    scores = score_answers(found, [protocol(BENCHMARK)], problems, evaluation=evaluation)
    lines = [
        json.dumps(without_nan(record), ensure_ascii=False, allow_nan=False) + "\n"
        for record in scores.records()
    ]
    write_data(path, "".join(lines).encode("utf-8", "backslashreplace"))
    return scores, path

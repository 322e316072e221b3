"""`score`: files of answers to records of metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from NatureLM.beans.scoring.answers import Answers, Reading
from NatureLM.beans.scoring.evaluate import DEFAULT, Evaluation, Evaluator
from NatureLM.beans.scoring.gather import read_answers
from NatureLM.beans.scoring.problems import OnError, Problems
from NatureLM.beans.scoring.protocols import Protocol
from NatureLM.beans.scoring.reading import find_files
from NatureLM.beans.scoring.results import METRICS, GroupScore
from NatureLM.metrics.spice import find_spice

CIDER_OF_THE_BENCHMARK = 10.0
"""The benchmark divides CIDEr by this."""


@dataclass(frozen=True)
class Scores:
    """All groups under all protocols, and what could not be scored."""

    by: tuple[str, ...]
    groups: list[GroupScore]
    problems: Problems
    answers: int
    remarks: list[str] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        """The records of `metrics.json`."""
        errors = Counter(problem.group for problem in self.problems.found)
        return [self._record(group, errors[group.key]) for group in self.groups]

    def _record(self, group: GroupScore, errors: int) -> dict[str, Any]:
        key = dict(zip(self.by, group.key[1:], strict=True))
        record: dict[str, Any] = {
            "dataset": group.key[0],
            "query": key.pop("query", None),
            "lora_scale": key.pop("lora_scale", None),
            **key,
            "protocol": group.protocol,
            "task": group.task,
            "n": len(group.ids),
            **{name: group.metrics.get(name) for name in METRICS},
        }
        if "cider" in group.metrics:
            record["cider_benchmark"] = group.metrics["cider"] / CIDER_OF_THE_BENCHMARK
        return record | {
            "intervals": {
                name: interval and list(interval) for name, interval in group.intervals.items()
            },
            "clusters": group.clusters,
            "cluster_by": group.cluster_by,
            "baselines": group.baselines,
            "errors": len(self.problems),
            "errors_in_group": errors,
        }


def score(
    paths: Sequence[str | Path],
    protocols: Sequence[Protocol],
    *,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    evaluation: Evaluation = DEFAULT,
    on_error: OnError = "fail",
) -> Scores:
    """Score the answers of all files, group by group.

    Raises ScoringError at the first line that cannot be scored, unless `on_error` is "skip", and
    UsageError where nothing can be.
    """
    problems = Problems(on_error)
    answers = read_answers(find_files(paths), reading, problems)
    return score_answers(answers, protocols, problems, reading=reading, evaluation=evaluation)


def score_answers(
    answers: Answers,
    protocols: Sequence[Protocol],
    problems: Problems,
    *,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    evaluation: Evaluation = DEFAULT,
) -> Scores:
    """The same for answers that have been read; `reading` says how, `problems` what was wrong."""
    remarks = []
    if evaluation.spice is None and any(group.task == "captioning" for group in answers.groups):
        spice = find_spice()
        if isinstance(spice, str):
            remarks.append(spice)
        else:
            evaluation = replace(evaluation, spice=spice)
    evaluator = Evaluator(answers, reading, evaluation)
    groups = [
        evaluator.score(group, protocol) for group in answers.groups for protocol in protocols
    ]
    if evaluator.nameless:
        names = ", ".join(sorted(evaluator.nameless))
        remarks.append(
            f"Labels without a scientific name are left out where it is asked for: {names}"
        )
    return Scores(answers.by, groups, problems, len(answers), remarks)

"""One run or scored folder, read: charts, tables and single answers as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from NatureLM.app.experiments.find import Found
from NatureLM.app.experiments.scored import read_scored
from NatureLM.reports.charts import CurveChart
from NatureLM.reports.tables import Table

MOST_ANSWERS = 2000


@dataclass(frozen=True)
class Answer:
    """A single answer. `right` is None for captions, which are neither right nor wrong."""

    line: str
    alpha: float | None
    sample: str
    label: str
    answer: str
    taken_for: str
    right: bool | None


@dataclass(frozen=True)
class Experiment:
    """What is shown.

    facts: what was read and how, by name
    charts: curves over α
    classes: the table of classes of each line (data set and question), by its name
    answers: single answers, the same samples at every α; none for a scored folder
    remark: what should be known besides
    """

    name: str
    facts: dict[str, str]
    charts: tuple[CurveChart, ...]
    metrics: Table
    classes: dict[str, Table]
    answers: tuple[Answer, ...]
    remark: str


def open_experiment(found: Found) -> Experiment:
    """Read a folder; a second time only when its files have changed.

    Raises UsageError and OutputError for files that cannot be scored.
    """
    return _open(found, found.identity)


@lru_cache(maxsize=8)
def _open(found: Found, identity: object) -> Experiment:
    if found.kind == "scored":
        scored = read_scored(found.files[0])
        return Experiment(
            found.name,
            scored.facts,
            scored.charts,
            scored.metrics,
            scored.classes,
            (),
            "This folder holds scores; single answers are in the folder of the run.",
        )
    return _run(found.name, found.files)


def _run(name: str, files: tuple[Path, ...]) -> Experiment:
    from NatureLM.beans.scoring import protocol, score
    from NatureLM.reports import make_report

    scores = score([str(path) for path in files], [protocol("beans-zero")], on_error="skip")
    report = make_report(
        scores, title=name, sources=[path.name for path in files], most_answers=MOST_ANSWERS
    )
    lines = [one for dataset in report.datasets for one in dataset.lines]
    shown = report.answers
    remark = "; ".join(report.remarks)
    if shown.shown < shown.total:
        remark = f"{shown.shown:,} of {shown.total:,} answers can be read here. {remark}".strip()
    return Experiment(
        name=name,
        facts=report.facts,
        charts=tuple(chart for dataset in report.datasets for chart in dataset.charts),
        metrics=report.metrics,
        classes={
            f"{one.line.dataset}, {one.line.name}": one.classes
            for one in lines
            if one.classes is not None and one.classes.rows
        },
        answers=tuple(_answers(shown.data)),
        remark=remark,
    )


def _answers(data: dict[str, list[list[object]]]) -> Iterator[Answer]:
    """Single answers from the form in which the page of a report holds them."""
    groups, texts = data["groups"], data["texts"]
    for group, *places, score in data["rows"]:
        dataset, line, alpha, is_caption = groups[int(str(group))]
        sample, label, answer, taken = (str(texts[int(str(place))]) for place in places)
        yield Answer(
            line=f"{dataset}, {line}",
            alpha=alpha if isinstance(alpha, int | float) else None,
            sample=sample,
            label=label,
            answer=answer,
            taken_for=taken,
            right=None if is_caption else score == 1,
        )

"""`make_report`: scores to charts, tables and single answers, all as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from NatureLM.errors import UsageError
from NatureLM.evaluation.metrics import BootstrapOptions
from NatureLM.evaluation.score import GroupScore, Scores
from NatureLM.reports.charts import (
    Chart,
    CurveChart,
    GridChart,
    Keys,
    Series,
    Table,
    change_chart,
    class_table,
    confusion_chart,
    confusion_table,
    curve_charts,
    form_table,
    grid_table,
    heat_charts,
    metrics_table,
    series_of,
)
from NatureLM.util import digest

MOST_ANSWERS = 3000
LONGEST_ANSWER = 1500
"""Characters of an answer that are shown."""

_CURVES_OF_A_CHART = 6


@dataclass(frozen=True)
class AnswerSample:
    """Single answers in the form that the page's script reads.

    data: `groups` (data set, question, α, whether its answers are captions), `texts`, and `rows` of
        numbers: group, places of id, label, answer and what it was taken for among the texts, and
        1 or 0 for right or wrong; captions are neither and have their CIDEr there
    shown, total: how many answers are there, and how many were scored
    samples: of each series, at every α the same ones
    """

    data: dict[str, Any]
    shown: int
    total: int
    samples: int


@dataclass(frozen=True)
class SeriesReport:
    """What is shown of one question to one data set."""

    series: Series
    charts: tuple[Chart, ...]
    classes: Table | None
    confusions: Table | None


@dataclass(frozen=True)
class DatasetReport:
    """What is shown of one data set: curves of all its questions, then each question."""

    name: str
    charts: tuple[CurveChart, ...]
    series: tuple[SeriesReport, ...]


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    facts: what was read and how, by name
    overview: charts over several data sets
    """

    title: str
    facts: dict[str, str]
    metrics: Table
    form: Table
    overview: tuple[GridChart, ...]
    datasets: tuple[DatasetReport, ...]
    answers: AnswerSample
    remarks: tuple[str, ...]

    @property
    def series(self) -> list[SeriesReport]:
        """All series in the order of the page."""
        return [one for dataset in self.datasets for one in dataset.series]

    def charts(self) -> Iterator[Chart]:
        """All charts in the order of the page."""
        yield from self.overview
        for dataset in self.datasets:
            yield from dataset.charts
            for one in dataset.series:
                yield from one.charts

    def tables(self) -> Iterator[Table]:
        """All tables in the order of the page."""
        yield from (self.metrics, self.form, *map(grid_table, self.overview))
        for one in self.series:
            yield from (table for table in (one.classes, one.confusions) if table is not None)


def make_report(
    scores: Scores,
    *,
    title: str = "Report",
    sources: Sequence[str] = (),
    between: tuple[float, float] | None = None,
    most_answers: int = MOST_ANSWERS,
    bootstrap: BootstrapOptions = BootstrapOptions(),  # noqa: B008 (frozen)
) -> Report:
    """Arrange scores of one protocol for reading.

    sources: names of the files that were scored
    between: the two α whose classes are compared; None takes α = 1 and the best of each series
    most_answers: how many single answers are shown at most
    bootstrap: how intervals of the answers' form are made; take the one of the scores

    Raises UsageError for scores of several protocols, and where an α of `between` is missing.
    """
    protocols = {group.protocol for group in scores.groups}
    if len(protocols) != 1:
        raise UsageError(
            f"a report shows one protocol, and there are {', '.join(sorted(protocols))}"
        )
    datasets = series_of(scores, bootstrap)
    every = [one for found in datasets.values() for one in found]
    by = sorted({group.cluster_by for group in scores.groups})
    samples = max(len(group.ids) for group in scores.groups)
    groups = len(scores.groups)
    facts = {
        "Files": ", ".join(sources),
        "Answers": f"{scores.answers:,} in {groups} groups of up to {samples:,} samples",
        "Protocol": protocols.pop(),
        "Intervals": f"95 % bootstrap, {bootstrap.resamples:,} resamples by {' or '.join(by)}",
        "Lines left out": f"{len(scores.problems):,}",
    }
    keys = Keys()
    overview = tuple(map(keys.unique, heat_charts(every)))
    return Report(
        title=title,
        facts={name: fact for name, fact in facts.items() if fact},
        metrics=keys.unique(metrics_table(every)),
        form=keys.unique(form_table(every)),
        overview=overview,
        datasets=tuple(_dataset(keys, name, found, between) for name, found in datasets.items()),
        answers=_sample_answers(every, most_answers),
        remarks=tuple(scores.remarks),
    )


def _dataset(
    keys: Keys, name: str, series: Sequence[Series], between: tuple[float, float] | None
) -> DatasetReport:
    charts: list[CurveChart] = []
    for task in dict.fromkeys(one.task for one in series):
        alike = [one for one in series if one.task == task]
        for start in range(0, len(alike), _CURVES_OF_A_CHART):
            charts += curve_charts(name, alike[start : start + _CURVES_OF_A_CHART])
    return DatasetReport(
        name,
        tuple(map(keys.unique, charts)),
        tuple(_series(keys, one, between) for one in series),
    )


def _series(keys: Keys, series: Series, between: tuple[float, float] | None) -> SeriesReport:
    charts: list[Chart | None] = [change_chart(series, between), confusion_chart(series)]
    classes, confusions = class_table(series, between), confusion_table(series)
    return SeriesReport(
        series,
        tuple(keys.unique(chart) for chart in charts if chart is not None),
        classes and keys.unique(classes),
        confusions and keys.unique(confusions),
    )


def _sample_answers(series: Sequence[Series], limit: int) -> AnswerSample:
    """At most `limit` answers, from every group alike.

    Which samples is decided by a checksum of their ids, so the same are shown at every α and the
    same whenever the report is made.
    """
    groups = [(one, alpha, group) for one in series for alpha, group in one]
    sizes = [len(group.ids) for _, _, group in groups]
    most = 0  # samples of each group with which the limit is kept
    while most < max(sizes) and sum(min(size, most + 1) for size in sizes) <= limit:
        most += 1
    most = most or min(1, limit)
    texts: dict[str, int] = {}
    rows = [
        [number, *row]
        for number, (_, _, group) in enumerate(groups)
        for row in _answer_rows(group, most, texts)
    ][: max(0, limit)]
    data = {
        "groups": [
            [one.dataset, one.name, alpha, one.task == "captioning"] for one, alpha, _ in groups
        ],
        "texts": list(texts),
        "rows": rows,
    }
    return AnswerSample(data, len(rows), sum(sizes), most)


def _answer_rows(
    group: GroupScore, most: int, texts: dict[str, int]
) -> Iterator[tuple[float | int, ...]]:
    """What is shown of some samples of a group; `texts` numbers the texts."""
    checksums = [digest(one.encode("utf-8", "backslashreplace")) for one in group.ids]
    places = sorted(range(len(checksums)), key=checksums.__getitem__)[:most]
    for place in sorted(places):
        answer = group.answers[place]
        if len(answer) > LONGEST_ANSWER:
            more = len(answer) - LONGEST_ANSWER
            answer = f"{answer[:LONGEST_ANSWER]} … ({more} more characters)"
        shown = (group.ids[place], group.labels[place], answer, group.samples.predicted[place])
        score = round(float(group.samples.correct[place]), 3)
        numbers = [texts.setdefault(text, len(texts)) for text in shown]
        yield *numbers, int(score) if score in (0, 1) else score

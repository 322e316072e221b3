"""The single answers that a page holds, for people to read.

`make_report`: scores to charts, tables and answers, all as plain data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from NatureLM.errors import UsageError
from NatureLM.evaluation.bootstrap import BootstrapOptions
from NatureLM.evaluation.score import GroupScore, Scores
from NatureLM.reports.charts import (
    Chart,
    CurveChart,
    GridChart,
    Series,
    datasets_of,
    heat_charts,
    lines_of,
    metric_charts,
)
from NatureLM.reports.form import AnswerFormat, FormReader, form_charts, forms_of
from NatureLM.reports.tables import (
    Table,
    change_chart,
    class_table,
    confusion_chart,
    confusion_table,
    form_table,
    grid_table,
    metrics_table,
)
from NatureLM.util import digest

LONGEST = 1500
"""Characters of an answer that are shown."""


@dataclass(frozen=True)
class Shown:
    """Answers in the form that the page's script reads.

    data: `groups` (data set, question, α, whether its answers are captions), `texts`, and `rows` of
        numbers: group, places of id, label, answer and what it was taken for among the texts, and
        1 or 0 for right or wrong; captions are neither and have their CIDEr there
    shown, total: how many answers are there, and how many were scored
    samples: of each line, at every α the same ones
    """

    data: dict[str, Any]
    shown: int
    total: int
    samples: int


def choose_answers(lines: Sequence[Series], limit: int) -> Shown:
    """At most `limit` answers, from every group alike.

    Which samples is decided by a checksum of their ids, so the same are shown at every α and the
    same whenever the report is made.
    """
    groups: list[tuple[Series, int]] = [
        (line, place) for line in lines for place in range(len(line.groups))
    ]
    total = sum(len(line.groups[place].ids) for line, place in groups)
    most = _samples_of_each(groups, limit)
    texts: dict[str, int] = {}
    rows: list[list[float | int]] = []
    for number, (line, place) in enumerate(groups):
        rows += _rows(number, line.groups[place], most, texts)
    rows = rows[: max(0, limit)]
    data = {
        "groups": [
            [line.dataset, line.name, line.alphas[place], line.task == "captioning"]
            for line, place in groups
        ],
        "texts": list(texts),
        "rows": rows,
    }
    return Shown(data, len(rows), total, most)


def _samples_of_each(groups: Sequence[tuple[Series, int]], limit: int) -> int:
    """The largest number of samples of each group with which the limit is kept."""
    sizes = [len(line.groups[place].ids) for line, place in groups]
    most = 0
    while most < max(sizes) and sum(min(size, most + 1) for size in sizes) <= limit:
        most += 1
    return most or min(1, limit)


def _order(group: GroupScore) -> list[int]:
    def key(sample: int) -> bytes:
        return digest(group.ids[sample].encode("utf-8", "backslashreplace"))

    return sorted(range(len(group.ids)), key=key)


def _rows(
    number: int, group: GroupScore, most: int, texts: dict[str, int]
) -> list[list[float | int]]:
    taken, right = group.samples.predicted, group.samples.correct
    rows = []
    for sample in sorted(_order(group)[:most]):
        answer = group.answers[sample]
        if len(answer) > LONGEST:
            answer = f"{answer[:LONGEST]} … ({len(answer) - LONGEST} more characters)"
        shown = (group.ids[sample], group.labels[sample], answer, taken[sample])
        score = round(float(right[sample]), 3)
        rows.append(
            [
                number,
                *(texts.setdefault(text, len(texts)) for text in shown),
                int(score) if score in (0, 1) else score,
            ]
        )
    return rows


MOST_ANSWERS = 3000
_CURVES_OF_A_CHART = 6

Keyed = TypeVar("Keyed", CurveChart, GridChart, Chart, Table)


@dataclass(frozen=True)
class LineReport:
    """What is shown of one question to one data set."""

    line: Series
    charts: tuple[Chart, ...]
    classes: Table | None
    confusions: Table | None


@dataclass(frozen=True)
class DatasetReport:
    """What is shown of one data set: curves of all its questions, then each question."""

    name: str
    charts: tuple[CurveChart, ...]
    lines: tuple[LineReport, ...]


@dataclass(frozen=True)
class Report:
    """Everything that a report shows.

    facts: what was read and how, by name
    overview: charts over several data sets
    between: the two α that were asked for
    """

    title: str
    facts: dict[str, str]
    metrics: Table
    form: Table
    overview: tuple[GridChart, ...]
    grids: tuple[Table, ...]
    datasets: tuple[DatasetReport, ...]
    answers: Shown
    remarks: tuple[str, ...]
    between: tuple[float, float] | None

    @property
    def lines(self) -> list[Series]:
        """All lines."""
        return [one.line for dataset in self.datasets for one in dataset.lines]

    def charts(self) -> Iterator[Chart]:
        """All charts in the order of the page."""
        yield from self.overview
        for dataset in self.datasets:
            yield from dataset.charts
            for one in dataset.lines:
                yield from one.charts

    def tables(self) -> Iterator[Table]:
        """All tables in the order of the page."""
        yield from (self.metrics, self.form, *self.grids)
        for dataset in self.datasets:
            for one in dataset.lines:
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
    between: the two α whose classes are compared; None takes α = 1 and the best of each line
    most_answers: how many single answers are shown at most
    bootstrap: how intervals of the answers' form are made; take the one of the scores

    Raises UsageError for scores of several protocols, and where an α of `between` is missing.
    """
    protocols = {group.protocol for group in scores.groups}
    if len(protocols) != 1:
        raise UsageError(
            f"a report shows one protocol, and there are {', '.join(sorted(protocols))}"
        )
    datasets = datasets_of(lines_of(scores))
    lines = [line for found in datasets.values() for line in found]
    reader = FormReader(bootstrap)
    forms = {(line.dataset, line.name): forms_of(line, reader) for line in lines}
    names = _Names()
    overview = tuple(map(names.unique, heat_charts(datasets)))
    return Report(
        title=title,
        facts=_facts(scores, sources, next(iter(protocols)), bootstrap),
        metrics=names.unique(metrics_table(lines)),
        form=names.unique(form_table(lines, list(forms.values()))),
        overview=overview,
        grids=tuple(grid_table(chart) for chart in overview),
        datasets=tuple(
            _dataset_report(name, found, forms, between, names) for name, found in datasets.items()
        ),
        answers=choose_answers(lines, most_answers),
        remarks=tuple(scores.remarks),
        between=between,
    )


class _Names:
    """Gives charts and tables keys that may be names of files, each another."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def unique(self, one: Keyed) -> Keyed:
        """The same under a key that nothing else has."""
        slug = re.sub(r"[^a-z0-9._]+", "-", one.key.lower()).strip("-.")[:80] or "figure"
        key, number = slug, 2
        while key in self._used:
            key, number = f"{slug}-{number}", number + 1
        self._used.add(key)
        return replace(one, key=key)


def _dataset_report(
    name: str,
    lines: Sequence[Series],
    forms: dict[tuple[str, str], list[AnswerFormat]],
    between: tuple[float, float] | None,
    names: _Names,
) -> DatasetReport:
    charts: list[CurveChart] = []
    for task in dict.fromkeys(line.task for line in lines):
        alike = [line for line in lines if line.task == task]
        for start in range(0, len(alike), _CURVES_OF_A_CHART):
            part = alike[start : start + _CURVES_OF_A_CHART]
            charts += metric_charts(name, part)
            charts += form_charts(name, part, [forms[line.dataset, line.name] for line in part])
    return DatasetReport(
        name,
        tuple(map(names.unique, charts)),
        tuple(_line_report(line, between, names) for line in lines),
    )


def _line_report(line: Series, between: tuple[float, float] | None, names: _Names) -> LineReport:
    charts: list[Chart | None] = [change_chart(line, between), confusion_chart(line)]
    classes, confusions = class_table(line, between), confusion_table(line)
    return LineReport(
        line,
        tuple(names.unique(chart) for chart in charts if chart is not None),
        classes and names.unique(classes),
        confusions and names.unique(confusions),
    )


def _facts(
    scores: Scores, sources: Sequence[str], protocol: str, bootstrap: BootstrapOptions
) -> dict[str, str]:
    by = sorted({group.cluster_by for group in scores.groups})
    samples = max(len(group.ids) for group in scores.groups)
    groups = len(scores.groups)
    facts = {
        "Answers": f"{scores.answers:,} in {groups} groups of up to {samples:,} samples",
        "Protocol": protocol,
        "Intervals": f"95 % bootstrap, {bootstrap.resamples:,} resamples by {' or '.join(by)}",
        "Lines left out": f"{len(scores.problems):,}",
    }
    return ({"Files": ", ".join(sources)} if sources else {}) | facts

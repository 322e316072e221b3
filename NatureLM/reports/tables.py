"""The tables of a report, class by class and mistake by mistake, as CSV, Markdown and LaTeX.

And the format of answers, right or wrong: how long they are, whether they do as they were told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from NatureLM.data.components import METRICS, metric_name
from NatureLM.evaluation.bootstrap import (
    BootstrapOptions,
    Estimate,
    Floats,
    percentile_interval,
    resampled_mean,
)
from NatureLM.evaluation.protocols import END_OF_TEXT, NO_LABEL, PROTOCOLS, Matcher
from NatureLM.evaluation.score import GroupScore
from NatureLM.evaluation.tasks import ClassRow
from NatureLM.reports.charts import (
    Change,
    ChangeChart,
    CurveChart,
    GridChart,
    Series,
    alpha_text,
    curve,
)

MOST_CONFUSIONS = 50
MOST_CHANGES = 12
"""Classes shown at either end of the changes."""

WORST = 10
OTHERS = 3
ALL_OTHERS = "(other labels)"
LONG = 60
"""Rows from which on a table of LaTeX runs over pages."""

Cell: TypeAlias = str | int | float | Estimate | None


@dataclass(frozen=True)
class AnswerFormat:
    """The form of the answers of one group.

    words: mean number of words
    is_label: share of answers that are one of the labels and nothing else
    names_one: share of answers that contain exactly one of the labels
    matched: share of answers that the protocol took for some label
    """

    words: Estimate
    is_label: Estimate | None = None
    names_one: Estimate | None = None
    matched: Estimate | None = None


class FormatReader:
    """Measures the form of groups; a distinct answer is looked at once for the same labels."""

    def __init__(self, bootstrap: BootstrapOptions) -> None:
        self._bootstrap = bootstrap
        self._matchers: dict[tuple[str, tuple[str, ...]], Matcher] = {}

    def read(self, group: GroupScore) -> AnswerFormat:
        """Means over the group's answers with intervals."""
        texts = [answer.partition(END_OF_TEXT)[0] for answer in group.answers]
        words = self._mean(group, [len(text.split()) for text in texts])
        if group.task == "captioning":
            return AnswerFormat(words)
        is_label = self._mean(group, _are_labels(group, texts))
        if group.task == "detection":
            return AnswerFormat(words, is_label)
        names_one = self._mean(group, self._name_one(group, texts))
        labels = set(group.candidates)
        matched = [taken in labels for taken in group.samples.predicted]
        return AnswerFormat(words, is_label, names_one, self._mean(group, matched))

    def _name_one(self, group: GroupScore, texts: Sequence[str]) -> Sequence[bool]:
        """Whether exactly one label is contained in an answer."""
        labels = tuple(label for label in group.candidates if label != NO_LABEL)
        key = (str(group.key[0]), labels)
        if key not in self._matchers:
            self._matchers[key] = Matcher(PROTOCOLS["mention"], *key)
        return [code >= 0 for code in self._matchers[key].codes(texts).tolist()]

    def _mean(self, group: GroupScore, each: Sequence[float]) -> Estimate:
        values: Floats = np.array(each, dtype=np.float64)
        drawn = resampled_mean(values, group.cluster_codes, self._bootstrap)
        return Estimate(float(values.mean()), *(percentile_interval(drawn) or ()))


def _are_labels(group: GroupScore, texts: Sequence[str]) -> list[bool]:
    """Whether all of an answer is a label (in detection, a list of labels)."""
    labels = {label.strip().casefold() for label in group.candidates}
    is_list = group.task == "detection"
    parts = [text.split(",") if is_list else [text] for text in texts]
    return [all(part.strip().casefold() in labels for part in one) for one in parts]


def form_charts(
    dataset: str, series: Sequence[Series], forms: Sequence[Sequence[AnswerFormat]]
) -> list[CurveChart]:
    """Charts of the form over α, with a curve for each series; `forms` of each at its α."""
    # A protocol that takes every answer for a label has nothing to show there.
    takes_all = all(f.matched is None or f.matched.value == 1 for one in forms for f in one)
    charts = []
    for field, measure in (
        ("is_label", "answers that are a label"),
        ("names_one", "answers that name one label"),
        ("matched", "answers taken for a label"),
        ("words", "words per answer"),
    ):
        curves = tuple(
            curve(one.name, zip(one.alphas, (getattr(f, field) for f in found), strict=True))
            for one, found in zip(series, forms, strict=True)
        )
        if all(one.points for one in curves) and not (field == "matched" and takes_all):
            key, title = f"{dataset}-{field.replace('_', '-')}", f"{dataset}: {measure}"
            charts.append(CurveChart(key, title, measure, curves, is_share=field != "words"))
    return charts


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    key: name of the table's files
    measured: columns whose cells are estimates; in CSV the interval has columns of its own
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    measured: frozenset[str] = frozenset()

    @property
    def is_number(self) -> tuple[bool, ...]:
        """Whether a column holds numbers."""
        return tuple(
            all(isinstance(row[place], int | float | Estimate | None) for row in self.rows)
            for place in range(len(self.columns))
        )


def metrics_table(series: Sequence[Series]) -> Table:
    """All metrics of all series at every α, with intervals and the baselines beside them."""
    metrics = [
        name
        for name in METRICS
        if name != "top1" and any(name in group.metrics for one in series for group in one.groups)
    ]
    rows: list[tuple[Cell, ...]] = [
        (
            *(one.dataset, one.name, alpha_text(alpha), len(group.ids)),
            *map(group.estimate, metrics),
            *(group.baselines.get(k, {}).get(one.main_metric) for k in ("majority", "random")),
        )
        for one in series
        for alpha, group in one
    ]
    names = list(map(metric_name, metrics))
    return Table(
        key="metrics",
        title="Metrics with 95 % intervals; majority and random are what answers without "
        "listening get in the first of accuracy, F1 and CIDEr that the task has",
        columns=("data set", "question", "α", "n", *names, "majority", "random"),
        rows=tuple(rows),
        measured=frozenset(names),
    )


def form_table(series: Sequence[Series], forms: Sequence[Sequence[AnswerFormat]]) -> Table:
    """The form of answers at every α; `forms` of each series at its α."""
    names = ("words per answer", "are a label", "name one label", "taken for a label")
    rows = [
        (
            *(one.dataset, one.name, alpha_text(alpha)),
            *(form.words, form.is_label, form.names_one, form.matched),
        )
        for one, found in zip(series, forms, strict=True)
        for alpha, form in zip(one.alphas, found, strict=True)
    ]
    return Table(
        "form",
        "Form of the answers: mean length, and shares that do as they were told",
        ("data set", "question", "α", *names),
        tuple(rows),
        measured=frozenset(names),
    )


def grid_table(chart: GridChart) -> Table:
    """A heat map as a table."""
    rows = tuple((name, *row) for name, row in zip(chart.rows, chart.values, strict=True))
    columns = tuple(f"{chart.column_title} {name}" for name in chart.columns)
    return Table(chart.key, chart.title, (chart.row_title or "data set", *columns), rows)


def class_table(series: Series, between: tuple[float, float] | None) -> Table | None:
    """Every class of a series at two α (at one, where there is only one); None without classes."""
    if series.task == "captioning":
        return None
    places = series.pair(between) or (series.best,)
    found = [_rows_by_label(series.groups[place]) for place in places]
    columns = ["class", "n"]
    for place in places:
        at = f" at {alpha_text(series.alphas[place])}" if len(places) > 1 else ""
        columns += [f"precision{at}", f"recall{at}", f"F1{at}"]
    rows: list[tuple[Cell, ...]] = []
    for label in sorted({label for rows_of in found for label in rows_of}):
        per_class = [rows_of.get(label) for rows_of in found]
        cells: list[Cell] = [label, max(row.support for row in per_class if row is not None)]
        for row in per_class:
            cells += [row.precision, row.recall, row.f1] if row else [None, None, None]
        if len(places) > 1:
            cells.append(_f1(found[-1], label) - _f1(found[0], label))
        rows.append(tuple(cells))
    if len(places) > 1:
        columns.append("change of F1")
    title = f"Classes of {series.dataset}, {series.name}"
    key = f"{series.dataset}-{series.name}-classes"
    return Table(key, title, tuple(columns), tuple(rows))


def change_chart(series: Series, between: tuple[float, float] | None) -> ChangeChart | None:
    """F1 of each class at two α: the largest gains and losses; None where nothing can change."""
    pair = series.pair(between)
    if pair is None or series.task == "captioning":
        return None
    before, after = (_rows_by_label(series.groups[place]) for place in pair)
    changes = [
        Change(label, row.support, _f1(before, label), row.f1)
        for label, row in after.items()
        if row.support
    ]
    changes.sort(key=lambda one: (one.before - one.after, one.name))
    gains = [one for one in changes if one.after > one.before]
    losses = [one for one in changes if one.after < one.before]
    shown = changes
    if len(changes) > 2 * MOST_CHANGES:
        shown = gains[:MOST_CHANGES] + losses[-MOST_CHANGES:]
    if not shown:
        return None
    return ChangeChart(
        key=f"{series.dataset}-{series.name}-change",
        title=f"{series.dataset}, {series.name}: F1 of classes",
        measure="F1 of the class",
        before=f"α = {alpha_text(series.alphas[pair[0]])}",
        after=f"α = {alpha_text(series.alphas[pair[1]])}",
        classes=tuple(shown),
        gains=len(gains),
        losses=len(losses),
        total=len(changes),
    )


def _rows_by_label(group: GroupScore) -> dict[str, ClassRow]:
    return {row.label: row for row in group.samples.class_rows()}


def _f1(rows: Mapping[str, ClassRow], label: str) -> float:
    return rows[label].f1 if label in rows else 0.0


def confusion_table(series: Series) -> Table | None:
    """The most frequent mistakes at the best α; None where labels are no single ones."""
    if series.task != "classification":
        return None
    found: list[tuple[str, str, int, float]] = [
        (label, taken, n, n / sum(row.values()))
        for label, row in _confusions(series.groups[series.best]).items()
        for taken, n in row.items()
        if label != taken
    ]
    found.sort(key=lambda one: (-one[2], one[0], one[1]))
    return Table(
        f"{series.dataset}-{series.name}-confusions",
        f"Most frequent mistakes: {series.dataset}, {series.name}, "
        f"α = {alpha_text(series.alphas[series.best])}",
        ("class", "taken for", "times", "share of the class"),
        tuple(found[:MOST_CONFUSIONS]),
    )


def confusion_chart(series: Series) -> GridChart | None:
    """The classes with most errors at the best α, and what their clips were taken for.

    Cells hold shares of the row. None where labels are sets or texts, or nothing is wrong.
    """
    if series.task != "classification":
        return None
    counts = _confusions(series.groups[series.best])
    wrong = Counter({label: sum(row.values()) - row[label] for label, row in counts.items()})
    worst = sorted(wrong, key=lambda one: (-wrong[one], one))[:WORST]
    if not any(wrong.values()):
        return None
    taken: Counter[str] = Counter()
    for label in worst:
        taken.update({name: n for name, n in counts[label].items() if name not in worst})
    others = sorted(taken, key=lambda one: (-taken[one], one))[:OTHERS]
    answered = {name for label in worst for name in counts[label] if counts[label][name]}
    columns = [name for name in (*worst, *others) if name in answered]
    rest = len(taken) > len(others)
    totals = [sum(counts[label].values()) for label in worst]
    table = [[counts[label][name] for name in columns] for label in worst]
    if rest:
        table = [[*row, total - sum(row)] for row, total in zip(table, totals, strict=True)]
    return GridChart(
        key=f"{series.dataset}-{series.name}-confusion",
        title=f"{series.dataset}, {series.name}: worst classes, α = "
        f"{alpha_text(series.alphas[series.best])}",
        measure="share of the class's clips",
        rows=tuple(worst),
        columns=(*columns, ALL_OTHERS) if rest else tuple(columns),
        values=tuple(
            tuple(n / total for n in row) for row, total in zip(table, totals, strict=True)
        ),
        row_title="true",
        column_title="taken for",
        counts=tuple(map(tuple, table)),
    )


def _confusions(group: GroupScore) -> dict[str, Counter[str]]:
    """How often each label was taken for what."""
    counts: dict[str, Counter[str]] = {}
    for row in group.samples.confusion_rows():
        counts.setdefault(row.label, Counter())[row.predicted] += row.count
    return counts


def cell_text(cell: Cell) -> str:
    """A cell as people read it: shares to three places."""
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def csv_parts(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of full precision; intervals have columns of their own."""
    columns: list[str] = []
    for name in table.columns:
        columns += [name, f"{name}_low", f"{name}_high"] if name in table.measured else [name]
    rows = []
    for cells in table.rows:
        row: list[Any] = []
        for name, cell in zip(table.columns, cells, strict=True):
            if isinstance(cell, Estimate):
                bounds = [None if math.isnan(one) else one for one in (cell.low, cell.high)]
                row += [cell.value, *bounds]
            else:
                row += [cell, None, None] if name in table.measured else [cell]
        rows.append(row)
    return columns, rows


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""
    lines = [
        _markdown_row(table.columns),
        "|" + "|".join("--:" if number else "---" for number in table.is_number) + "|",
        *(_markdown_row([cell_text(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (
        " ".join(cell.split())
        .replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
        .replace("_", "\\_")
        for cell in cells
    )
    return f"| {' | '.join(escaped)} |"


def latex(table: Table) -> str:
    """The table in LaTeX with booktabs; a long one as a longtable."""
    form = "".join("r" if number else "l" for number in table.is_number)
    head = _latex_row(table.columns)
    body = [_latex_row([cell_text(cell) for cell in row]) for row in table.rows]
    caption = f"\\caption{{{_latex_text(table.title)}}}"
    if len(body) > LONG:
        lines = [
            "% needs \\usepackage{booktabs,longtable}",
            f"\\begin{{longtable}}{{{form}}}",
            f"{caption}\\\\",
            *("\\toprule", head, "\\midrule", "\\endhead", "\\bottomrule", "\\endfoot"),
            *body,
            "\\end{longtable}",
        ]
    else:
        lines = [
            "% needs \\usepackage{booktabs}",
            *("\\begin{table}", "\\centering", caption),
            f"\\begin{{tabular}}{{{form}}}",
            *("\\toprule", head, "\\midrule", *body, "\\bottomrule"),
            *("\\end{tabular}", "\\end{table}"),
        ]
    return "\n".join(lines) + "\n"


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedbl{}",
    "α": "$\\alpha$",
    "−": "$-$",
    "…": "\\dots{}",
}


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex_text, cells)) + " \\\\"


def _latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))

"""The tables that a report holds.

Class by class: what changes between two α, and what is taken for what.

Tables of a report, and what they are as CSV, Markdown and LaTeX.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from NatureLM.evaluation.score import GroupScore
from NatureLM.evaluation.tasks import METRICS, ClassRow, metric_name
from NatureLM.reports.charts import (
    Change,
    ChangeChart,
    GridChart,
    Point,
    Series,
    alpha_text,
)
from NatureLM.reports.form import AnswerFormat

MOST_CONFUSIONS = 50


def metrics_table(lines: Sequence[Series]) -> Table:
    """All metrics of all lines at every α, with intervals and the baselines beside them."""
    groups = [group for line in lines for group in line.groups]
    metrics = [
        name
        for name in METRICS
        if name != "top1" and any(name in group.metrics for group in groups)
    ]
    rows = []
    for line in lines:
        for alpha, group in zip(line.alphas, line.groups, strict=True):
            cells: list[Cell] = [line.dataset, line.name, alpha_text(alpha), len(group.ids)]
            for name in metrics:
                low, high = group.intervals.get(name) or (None, None)
                cells.append(Measured(group.metrics.get(name), low, high))
            for kind in ("majority", "random"):
                cells.append(group.baselines.get(kind, {}).get(line.main_metric))
            rows.append(tuple(cells))
    names = [metric_name(name) for name in metrics]
    return Table(
        key="metrics",
        title="Metrics with 95 % intervals; majority and random are what answers without "
        "listening get in the first of accuracy, F1 and CIDEr that the task has",
        columns=("data set", "question", "α", "n", *names, "majority", "random"),
        rows=tuple(rows),
        measured=frozenset(names),
    )


def class_table(line: Series, between: tuple[float, float] | None) -> Table | None:
    """Every class of a line at two α (at one, where there is only one); None without classes."""
    if line.task == "captioning":
        return None
    places = line.pair(between) or (line.best,)
    found = [rows_by_label(line.groups[place]) for place in places]
    labels = sorted({label for rows in found for label in rows})
    columns = ["class", "n"]
    for place in places:
        at = f" at {alpha_text(line.alphas[place])}" if len(places) > 1 else ""
        columns += [f"precision{at}", f"recall{at}", f"F1{at}"]
    rows: list[tuple[Cell, ...]] = []
    for label in labels:
        per_class = [rows_of.get(label) for rows_of in found]
        support = max(row.support for row in per_class if row is not None)
        cells: list[Cell] = [label, support]
        for row in per_class:
            cells += _scores(row)
        if len(places) > 1:
            cells.append(_row_f1(per_class[-1]) - _row_f1(per_class[0]))
        rows.append(tuple(cells))
    if len(places) > 1:
        columns.append("change of F1")
    title = f"Classes of {line.dataset}, {line.name}"
    return Table(f"{line.dataset}-{line.name}-classes", title, tuple(columns), tuple(rows))


def confusion_table(line: Series) -> Table | None:
    """The most frequent mistakes at the best α; None where labels are no single ones."""
    if line.task != "classification":
        return None
    found: list[tuple[str, str, int, float]] = [
        (label, taken, n, n / sum(row.values()))
        for label, row in confusion_counts(line.groups[line.best]).items()
        for taken, n in row.items()
        if label != taken
    ]
    found.sort(key=lambda one: (-one[2], one[0], one[1]))
    return Table(
        f"{line.dataset}-{line.name}-confusions",
        f"Most frequent mistakes: {line.dataset}, {line.name}, "
        f"α = {alpha_text(line.alphas[line.best])}",
        ("class", "taken for", "times", "share of the class"),
        tuple(found[:MOST_CONFUSIONS]),
    )


def form_table(lines: Sequence[Series], forms: Sequence[Sequence[AnswerFormat]]) -> Table:
    """The form of answers at every α."""
    names = ("words per answer", "are a label", "name one label", "taken for a label")
    rows: list[tuple[Cell, ...]] = []
    for line, found in zip(lines, forms, strict=True):
        for alpha, form in zip(line.alphas, found, strict=True):
            points = (form.words, form.is_label, form.names_one, form.matched)
            shares = map(_measured, points)
            rows.append((line.dataset, line.name, alpha_text(alpha), *shares))
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


def _measured(point: Point | None) -> Measured:
    return Measured(None) if point is None else Measured(point.value, point.low, point.high)


def _scores(row: ClassRow | None) -> list[Cell]:
    return [None, None, None] if row is None else [row.precision, row.recall, row.f1]


def _row_f1(row: ClassRow | None) -> float:
    return 0.0 if row is None else row.f1


MOST_CHANGES = 12
"""Classes shown at either end of the changes."""

WORST = 10
OTHERS = 3
ALL_OTHERS = "(other labels)"


def change_chart(line: Series, between: tuple[float, float] | None) -> ChangeChart | None:
    """F1 of each class at two α: the largest gains and losses; None where nothing can change."""
    pair = line.pair(between)
    if pair is None or line.task == "captioning":
        return None
    before, after = (rows_by_label(line.groups[place]) for place in pair)
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
        key=f"{line.dataset}-{line.name}-change",
        title=f"{line.dataset}, {line.name}: F1 of classes",
        measure="F1 of the class",
        before=f"α = {alpha_text(line.alphas[pair[0]])}",
        after=f"α = {alpha_text(line.alphas[pair[1]])}",
        classes=tuple(shown),
        gains=len(gains),
        losses=len(losses),
        total=len(changes),
    )


def confusion_chart(line: Series) -> GridChart | None:
    """The classes with most errors at the best α, and what their clips were taken for.

    Cells hold shares of the row. None where labels are sets or texts, or nothing is wrong.
    """
    if line.task != "classification":
        return None
    group = line.groups[line.best]
    counts = confusion_counts(group)
    wrong = Counter({label: sum(row.values()) - row[label] for label, row in counts.items()})
    worst = sorted(wrong, key=lambda one: (-wrong[one], one))[:WORST]
    if not any(wrong.values()):
        return None
    taken: Counter[str] = Counter()
    for label in worst:
        taken.update({name: n for name, n in counts[label].items() if name not in worst})
    others = sorted(taken, key=lambda one: (-taken[one], one))[:OTHERS]
    said = {name for label in worst for name in counts[label] if counts[label][name]}
    columns = [name for name in (*worst, *others) if name in said]
    rest = len(taken) > len(others)
    table = []
    for label in worst:
        row = [counts[label][name] for name in columns]
        table.append([*row, sum(counts[label].values()) - sum(row)] if rest else row)
    totals = [sum(counts[label].values()) for label in worst]
    return GridChart(
        key=f"{line.dataset}-{line.name}-confusion",
        title=f"{line.dataset}, {line.name}: worst classes, α = "
        f"{alpha_text(line.alphas[line.best])}",
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


def confusion_counts(group: GroupScore) -> dict[str, Counter[str]]:
    """How often each label was taken for what."""
    counts: dict[str, Counter[str]] = {}
    for row in group.samples.confusion_rows():
        counts.setdefault(row.label, Counter())[row.predicted] += row.count
    return counts


def rows_by_label(group: GroupScore) -> dict[str, ClassRow]:
    """The row of each label."""
    return {row.label: row for row in group.samples.class_rows()}


def _f1(rows: dict[str, ClassRow], label: str) -> float:
    return rows[label].f1 if label in rows else 0.0


LONG = 60
"""Rows from which on a table of LaTeX runs over pages."""


@dataclass(frozen=True)
class Measured:
    """A value with its interval: three columns in CSV, one text elsewhere."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


Cell: TypeAlias = str | int | float | Measured | None


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    key: name of the table's files
    measured: columns whose cells are `Measured`
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
            all(isinstance(row[place], int | float | Measured | None) for row in self.rows)
            for place in range(len(self.columns))
        )


def csv_parts(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of full precision; intervals have columns of their own."""
    columns: list[str] = []
    for name in table.columns:
        columns += [name, f"{name}_low", f"{name}_high"] if name in table.measured else [name]
    return columns, [[part for cell in row for part in _csv_cells(cell)] for row in table.rows]


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""
    lines = [
        _markdown_row(table.columns),
        "|" + "|".join("--:" if number else "---" for number in table.is_number) + "|",
        *(_markdown_row([cell_text(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table in LaTeX with booktabs; a long one as a longtable."""
    form = "".join("r" if number else "l" for number in table.is_number)
    head = _latex_row(table.columns)
    body = [_latex_row([cell_text(cell) for cell in row]) for row in table.rows]
    if len(body) > LONG:
        lines = [
            "% needs \\usepackage{booktabs,longtable}",
            f"\\begin{{longtable}}{{{form}}}",
            f"\\caption{{{latex_text(table.title)}}}\\\\",
            *("\\toprule", head, "\\midrule", "\\endhead", "\\bottomrule", "\\endfoot"),
            *body,
            "\\end{longtable}",
        ]
    else:
        lines = [
            "% needs \\usepackage{booktabs}",
            *("\\begin{table}", "\\centering", f"\\caption{{{latex_text(table.title)}}}"),
            f"\\begin{{tabular}}{{{form}}}",
            *("\\toprule", head, "\\midrule", *body, "\\bottomrule"),
            *("\\end{tabular}", "\\end{table}"),
        ]
    return "\n".join(lines) + "\n"


def cell_text(cell: Cell) -> str:
    """A cell as people read it: shares to three places."""
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


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


def _csv_cells(cell: Cell) -> list[Any]:
    return [cell.value, cell.low, cell.high] if isinstance(cell, Measured) else [cell]


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


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + " \\\\"

"""Class by class: what changes between two α, and what is taken for what."""

from __future__ import annotations

from collections import Counter

from NatureLM.beans.scoring.results import ClassRow, GroupScore
from NatureLM.reports.charts import Change, ChangeChart, GridChart
from NatureLM.reports.study import Line, alpha_text

MOST_CHANGES = 12
"""Classes shown at either end of the changes."""

WORST = 10
OTHERS = 3
ALL_OTHERS = "(other labels)"


def change_chart(line: Line, between: tuple[float, float] | None) -> ChangeChart | None:
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


def confusion_chart(line: Line) -> GridChart | None:
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

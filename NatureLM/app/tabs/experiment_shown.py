"""An experiment as HTML and tables; every text of a run is escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from NatureLM.app.experiments.opened import Answer, Experiment
from NatureLM.errors import UsageError
from NatureLM.reports.charts import CurveChart
from NatureLM.reports.tables import Table, cell_text

ANSWER_HEADERS = ("Sample", "α", "Right", "Answer", "Label", "Taken for", "Question")
MOST_ROWS = 2000


def facts_html(experiment: Experiment) -> str:
    """What was read, and how."""
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in experiment.facts.items()
    )
    remark = f'<p class="about">{escape(experiment.remark)}</p>' if experiment.remark else ""
    return f'<h2>{escape(experiment.name)}</h2><dl class="facts">{facts}</dl>{remark}'


def charts_html(experiment: Experiment) -> str:
    """The curves as drawings, each with its numbers as data."""
    from NatureLM.reports.figures import draw, need_matplotlib
    from NatureLM.reports.figures.files import inline_svg, svg

    if not experiment.charts:
        return ""
    try:
        need_matplotlib()
    except UsageError as error:
        return f'<p class="notice hint">{escape(str(error))}</p>'

    def figure(chart: CurveChart) -> str:
        drawn = inline_svg(svg(draw(chart)), chart.key, escape(chart.title, quote=True))
        numbers = escape(json.dumps([asdict(curve) for curve in chart.curves]), quote=True)
        return f'<figure data-chart="{escape(chart.key)}" data-curves="{numbers}">{drawn}</figure>'

    return f'<div class="figures">{"".join(map(figure, experiment.charts))}</div>'


def table_value(table: Table) -> dict[str, Any]:
    """A table of a report as the component shows it."""
    return {
        "headers": list(table.columns),
        "data": [[_cell(cell) for cell in row] for row in table.rows[:MOST_ROWS]],
    }


def answer_rows(
    answers: Sequence[Answer], alpha: float | None, words: str, only_wrong: bool
) -> dict[str, Any]:
    """Single answers under `ANSWER_HEADERS`.

    alpha: only at this α; words: only those with all of them; only_wrong: none that is right
    """
    wanted = (words or "").casefold().split()
    rows = []
    for one in answers:
        text = f"{one.sample} {one.answer} {one.label} {one.taken_for} {one.line}".casefold()
        if alpha is not None and one.alpha != alpha:
            continue
        if (only_wrong and one.right is not False) or not all(word in text for word in wanted):
            continue
        right = {True: "yes", False: "no", None: ""}[one.right]
        share = "" if one.alpha is None else f"{one.alpha:g}"
        rows.append([one.sample, share, right, one.answer, one.label, one.taken_for, one.line])
    return {"headers": list(ANSWER_HEADERS), "data": rows[:MOST_ROWS]}


def _cell(cell: Any) -> Any:
    return cell if isinstance(cell, int | str) else cell_text(cell)

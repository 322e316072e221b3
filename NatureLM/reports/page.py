"""A report as a folder: the page, every figure as SVG and PNG, every table in three formats.

The page is one HTML file with its styles, script, figures and answers in it; the script shows
answers as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from NatureLM.data.components import metric_name
from NatureLM.reports.charts import (
    ChangeChart,
    Chart,
    CurveChart,
    GridChart,
    Series,
    Table,
    alpha_text,
    cell_text,
)
from NatureLM.reports.elements import (
    asset,
    csv_parts,
    escape,
    figure,
    folded,
    header,
    html_page,
    table_html,
    write_figure,
)
from NatureLM.reports.figures import draw, need_matplotlib
from NatureLM.reports.report import DatasetReport, Report, SeriesReport
from NatureLM.util import write_csv, write_text

PAGE = "index.html"
LONG = 60
"""Rows from which on a table of LaTeX runs over pages."""

_MANY = 3
"""Data sets from which on each is folded up."""


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write `index.html`, `figures/` and `tables/` into the folder; returns the files.

    The page holds everything and needs nothing else. Files of an earlier report under the same
    names are replaced. Raises UsageError without matplotlib, or where nothing can be written.
    """
    need_matplotlib()
    folder = Path(folder)
    written: list[Path] = []
    drawn: dict[str, str] = {}
    for chart in report.charts():
        drawn[chart.key], files = write_figure(draw(chart), folder / "figures" / chart.key)
        written += files
    for table in report.tables():
        place = f"{folder / 'tables' / table.key}"
        written.append(write_csv(Path(f"{place}.csv"), *csv_parts(table)))
        written.append(write_text(Path(f"{place}.md"), markdown(table)))
        written.append(write_text(Path(f"{place}.tex"), latex(table)))
    return [write_text(folder / PAGE, page(report, drawn)), *written]


def page(report: Report, drawn: Mapping[str, str]) -> str:
    """The page of a report; `drawn` has the SVG of each chart by its key."""
    return html_page(
        report.title,
        _body(report, drawn),
        scripts=("tables.js", "page.js"),
        data={
            "chart-data": [asdict(chart) for chart in report.charts()],
            "answer-data": report.answers.data,
        },
    )


def _body(report: Report, drawn: Mapping[str, str]) -> Iterator[str]:
    yield _head(report)
    if report.overview:
        yield '<section id="overview"><h2>All data sets</h2><div class="figures">'
        yield from (_figure(chart, drawn) for chart in report.overview)
        yield "</div></section>"
    for number, dataset in enumerate(report.datasets):
        yield from _dataset(dataset, number, drawn, is_open=len(report.datasets) <= _MANY)
    yield '<section id="numbers"><h2>Numbers</h2>'
    yield folded(report.metrics.title, table_html(report.metrics))
    yield folded(report.form.title, table_html(report.form))
    yield "</section>"
    yield from _browser(report)


def _head(report: Report) -> str:
    links = [("overview", "All data sets")] if report.overview else []
    links += [(f"data-{n}", one.name) for n, one in enumerate(report.datasets)]
    links += [("numbers", "Numbers"), ("answers", "Answers")]
    return header(report.title, report.facts, report.remarks, links)


def _dataset(
    dataset: DatasetReport, number: int, drawn: Mapping[str, str], *, is_open: bool
) -> Iterator[str]:
    state = " open" if is_open else ""
    yield f'<details class="dataset" id="data-{number}"{state}>'
    yield f"<summary><h2>{escape(dataset.name)}</h2></summary>"
    yield '<ul class="headlines">'
    yield from (f"<li>{_headline(one.series)}</li>" for one in dataset.series)
    yield '</ul><div class="figures">'
    yield from (_figure(chart, drawn) for chart in dataset.charts)
    yield "</div>"
    for one in dataset.series:
        yield from _series(one, drawn)
    yield "</details>"


def _series(one: SeriesReport, drawn: Mapping[str, str]) -> Iterator[str]:
    yield f"<h3>{escape(one.series.name)}</h3>"
    if prompt := one.series.groups[0].prompt:
        yield folded("What was asked (the first sample)", f"<pre>{escape(prompt)}</pre>")
    if one.charts:
        yield '<div class="figures">'
        yield from (_figure(chart, drawn) for chart in one.charts)
        yield "</div>"
    for table in (one.classes, one.confusions):
        if table is not None and table.rows:
            yield folded(f"{table.title} ({len(table.rows)})", table_html(table))


def _headline(series: Series) -> str:
    """What happened to the main metric along α, in a sentence."""
    metric, best = series.main_metric, series.groups[series.best]
    estimate = best.estimate(metric)
    text = f"<b>{escape(series.name)}</b>: {metric_name(metric)} "
    if len(series.groups) > 1:
        at = series.alphas[series.best]
        text += f"is highest at α = {alpha_text(at)}: {estimate}"
        if 1.0 in series.alphas and at != 1.0:
            adapted = series.groups[series.alphas.index(1.0)].metrics[metric]
            text += f", {adapted:.3f} at α = 1"
    else:
        text += str(estimate)
    baseline = best.baselines.get("majority", {}).get(metric)
    if baseline is not None:
        text += f"; always the same answer would get {baseline:.3f}"
    return text + "."


def _figure(chart: Chart, drawn: Mapping[str, str]) -> str:
    return figure(chart.key, chart.title, drawn, _caption(chart))


def _caption(chart: Chart) -> str:
    if isinstance(chart, CurveChart):
        has_alpha = len({p.alpha for curve in chart.curves for p in curve.points}) > 1
        text = "Bands" if has_alpha else "Bars"
        text += " are 95 % intervals."
        if chart.baselines:
            text += " Grey lines: answers without listening."
        return text
    if isinstance(chart, ChangeChart):
        shown = len(chart.classes)
        text = f"{chart.before} (hollow) and {chart.after} (filled); number of samples in brackets."
        if shown < chart.total:
            text += (
                f" The {shown} largest of {chart.gains} gains and {chart.losses} losses among "
                f"{chart.total} classes; the table has all."
            )
        return text
    if isinstance(chart, GridChart) and chart.counts:
        return (
            "How often clips of a class (rows) were taken for what (columns); the colour is the "
            "share of the row. The classes with the most errors come first."
        )
    return "The brighter, the higher."


def _browser(report: Report) -> Iterator[str]:
    answers = report.answers
    if answers.shown == answers.total:
        scope = f"All {answers.total:,} answers."
    else:
        scope = (
            f"{answers.shown:,} of {answers.total:,} answers are in this page: the same "
            f"{answers.samples:,} samples for every question and α, chosen by a checksum of their "
            "ids. All are in the files that the report was made from."
        )
    yield '<section id="answers"><h2>Answers</h2>'
    yield f'<p id="said">{escape(scope)}</p>'
    yield '<noscript><p class="remark">The answers are shown by a script.</p></noscript>'
    yield asset("browser.html")
    yield "</section>"


_MARKDOWN = str.maketrans({**{one: f"\\{one}" for one in "\\|*_"}, "<": "&lt;"})
_LATEX = str.maketrans(
    {
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
)


def _texts(table: Table, escapes: dict[int, str]) -> list[list[str]]:
    """Names of columns, then rows, with what a format would read as its own escaped."""
    rows = [table.columns, *(map(cell_text, row) for row in table.rows)]
    return [[" ".join(cell.split()).translate(escapes) for cell in row] for row in rows]


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""
    head, *body = (f"| {' | '.join(row)} |" for row in _texts(table, _MARKDOWN))
    rule = "|".join("--:" if number else "---" for number in table.is_number)
    return "\n".join([head, f"|{rule}|", *body]) + "\n"


def latex(table: Table) -> str:
    """The table in LaTeX with booktabs; a long one as a longtable."""
    form = "".join("r" if number else "l" for number in table.is_number)
    head, *body = (" & ".join(row) + " \\\\" for row in _texts(table, _LATEX))
    caption = f"\\caption{{{' '.join(table.title.split()).translate(_LATEX)}}}"
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

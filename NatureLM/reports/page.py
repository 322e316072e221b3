"""Reports as folders: the page, every figure as SVG and PNG, every table as files.

A page is one HTML file that needs no other: styles, script, figures, answers and sounds are in it.
Texts from answers are escaped wherever they stand, and a content security policy lets no script but
the page's own run and nothing be loaded.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

from NatureLM.data.components import metric_name
from NatureLM.evaluation.metrics import Estimate
from NatureLM.progress import printable
from NatureLM.reports.activity import ActivityChart, BarChart, DayHourChart, draw_activity
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
from NatureLM.reports.clips import HeardClip
from NatureLM.reports.field import ColumnReport, FieldReport, NameReport
from NatureLM.reports.figures import draw, inline_svg, need_matplotlib, style_sheet, write_figure
from NatureLM.reports.report import DatasetReport, Report, SeriesReport
from NatureLM.results.tables import write_csv
from NatureLM.util import digest, write_text

PAGE = "index.html"
LONG = 60
"""Rows from which on a table of LaTeX runs over pages."""

_MANY = 3
"""Data sets from which on each is folded up."""

_OPEN = 3  # names that are unfolded
_MOST_ROWS = 300  # of a table in the page of a report on recordings


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write `index.html`, `figures/` and `tables/` (CSV, Markdown and LaTeX) into the folder.

    Files of an earlier report under the same names are replaced. Returns the files. Raises
    UsageError without matplotlib, or where nothing can be written.
    """
    folder = Path(folder)
    drawn, written = _write_figures(folder, report.charts(), draw)
    for table in report.tables():
        place = f"{folder / 'tables' / table.key}"
        written.append(write_csv(Path(f"{place}.csv"), *csv_parts(table)))
        written.append(write_text(Path(f"{place}.md"), markdown(table)))
        written.append(write_text(Path(f"{place}.tex"), latex(table)))
    return [write_text(folder / PAGE, page(report, drawn)), *written]


def write_field_report(report: FieldReport, folder: str | Path) -> list[Path]:
    """The same of a report on recordings, whose tables are CSV alone."""
    folder = Path(folder)
    drawn, written = _write_figures(folder, report.charts(), draw_activity, is_placed=True)
    for table in report.tables():
        written.append(write_csv(folder / "tables" / f"{table.key}.csv", *csv_parts(table)))
    return [write_text(folder / PAGE, field_page(report, drawn)), *written]


def _write_figures(
    folder: Path,
    charts: Iterable[Any],
    draw: Callable[[Any], Any],
    *,
    is_placed: bool = False,
) -> tuple[dict[str, str], list[Path]]:
    """Charts as SVG and PNG below `figures/`: the SVG of each by its key, and the files."""
    need_matplotlib()
    drawn: dict[str, str] = {}
    written: list[Path] = []
    for chart in charts:
        place = folder / "figures" / chart.key
        drawn[chart.key], files = write_figure(draw(chart), place, is_placed=is_placed)
        written += files
    return drawn, written


# What pages are made of


def escape(text: str) -> str:
    """Text for HTML, without what turns letters around or cannot be seen."""
    return html.escape(printable(text, lines=True))


def html_page(
    title: str,
    body: Iterable[str],
    *,
    scripts: Sequence[str],
    data: Mapping[str, Any],
    has_media: bool = False,
) -> str:
    """A whole page.

    body: parts of HTML
    scripts: files among the assets that make up the page's one script
    data: what the script reads, by the id of the element that holds it as JSON
    has_media: whether pictures and sounds stand in the page
    """
    script = "\n".join(map(asset, scripts))
    checksum = base64.b64encode(digest(script)).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'"
    if has_media:
        policy += "; img-src data:; media-src data:"
    parts = {
        "title": escape(title),
        "policy": escape(policy),
        "style": style_sheet() + asset("page.css"),
        "body": "\n".join(body),
        "data": "\n".join(
            f'<script type="application/json" id="{name}">{json_text(content)}</script>'
            for name, content in data.items()
        ),
        "script": script,
    }
    text = asset("page.html")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part, 1)
    return text


def header(
    title: str,
    facts: Mapping[str, str],
    remarks: Iterable[str],
    links: Iterable[tuple[str, str]],
) -> str:
    """The head of a page: facts by name, remarks, and links to parts (id and name) of the page."""
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    said = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in remarks)
    items = "".join(f'<a href="#{place}">{escape(name)}</a>' for place, name in links)
    return (
        f"<header><h1>{escape(title)}</h1><dl>{listed}</dl>{said}"
        f'<nav aria-label="Parts of the report">{items}</nav></header>'
    )


def json_text(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table_html(table: Table) -> str:
    head = "".join(
        f'<th scope="col" class="{"number" if number else "text"}">{escape(name)}</th>'
        for name, number in zip(table.columns, table.is_number, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = []
        for cell in row:
            value = cell.value if isinstance(cell, Estimate) else cell
            sort = f' data-value="{value!r}"' if isinstance(value, int | float) else ""
            kind = "text" if isinstance(cell, str) else "number"
            cells.append(f'<td class="{kind}"{sort}>{escape(cell_text(cell))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table class="sortable" id="table-{table.key}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _figure(
    chart: Chart | ActivityChart, drawn: Mapping[str, str], *, is_tall: bool = False
) -> str:
    """A figure of the page, of the drawings by their keys; a tall one may stand beside two."""
    picture = inline_svg(drawn[chart.key], chart.key, escape(chart.title))
    caption = (
        _activity_caption(chart) if isinstance(chart, BarChart | DayHourChart) else _caption(chart)
    )
    kind = ' class="tall"' if is_tall else ""
    return (
        f'<figure id="figure-{chart.key}"{kind}><div class="picture">{picture}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def asset(name: str) -> str:
    return resources.files("NatureLM.reports").joinpath(f"assets/{name}").read_text("utf-8")


# The page of scores


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


# The page of recordings


def field_page(report: FieldReport, drawn: Mapping[str, str]) -> str:
    """The page of a report; `drawn` has the SVG of each chart by its key."""
    return html_page(
        report.title,
        _field_body(report, drawn),
        scripts=("tables.js", "clips.js"),
        data={},
        has_media=True,
    )


def _field_body(report: FieldReport, drawn: Mapping[str, str]) -> Iterator[str]:
    links = [("heard", "What was heard")]
    links += [(f"name-{n}", one.name) for n, one in enumerate(report.names)]
    links += [("columns", "Other answers")] if report.columns else []
    links += [("unheard", "What was not heard")]
    yield header(report.title, report.facts, report.remarks, links)
    yield from _heard(report, drawn)
    for number, one in enumerate(report.names):
        yield from _name(one, number, drawn)
    if report.columns:
        yield '<section id="columns"><h2>Other answers</h2><div class="figures">'
        yield from map(_column, report.columns)
        yield "</div></section>"
    yield from _unheard(report)


def _heard(report: FieldReport, drawn: Mapping[str, str]) -> Iterator[str]:
    yield '<section id="heard"><h2>What was heard</h2>'
    yield _table(report.heard) if report.heard.rows else "<p>Nothing.</p>"
    if report.effort is not None:
        yield f'<div class="figures">{_figure(report.effort, drawn)}</div>'
    yield "</section>"


def _name(one: NameReport, number: int, drawn: Mapping[str, str]) -> Iterator[str]:
    state = " open" if number < _OPEN else ""
    latin = f" <i>{escape(one.scientific_name)}</i>" if one.scientific_name else ""
    yield f'<details class="dataset" id="name-{number}"{state}>'
    yield f"<summary><h2>{escape(one.name)}{latin}</h2></summary>"
    yield f'<p>{escape(one.headline)}</p><div class="figures">'
    first, *others = one.charts
    yield _figure(first, drawn)
    if one.sites is not None:
        yield _figure(one.sites, drawn, is_tall=True)
    yield from (_figure(chart, drawn) for chart in others)
    yield "</div>"
    if one.clips:
        yield '<h3>The surest clips</h3><div class="clips">'
        yield from (_clip(clip, one.name) for clip in one.clips)
        yield "</div>"
    yield "</details>"


def _activity_caption(chart: ActivityChart) -> str:
    text = f"{chart.measure[0].upper()}{chart.measure[1:]}"
    if isinstance(chart, BarChart):
        return f"{text}." + (" Hatched: nothing was recorded." if None in chart.rates else "")
    text += " in an hour of a day." if chart.key == "effort" else "."
    if chart.calendar.unit != "day":
        text += f" Each column is a {chart.calendar.unit}."
    return f"{text} Empty: nothing was recorded."


def _clip(clip: HeardClip, name: str) -> str:
    about = f"{clip.recording}, {clip.start:,.1f} s"
    if clip.confidence is not None:
        about = f"{clip.confidence:.2f} · {about}"
    if clip.problem:
        return (
            f'<figure class="clip"><figcaption>{escape(about)}: no sound, '
            f"{escape(clip.problem)}</figcaption></figure>"
        )
    heard = f"{clip.seconds:.2g} s, 0 to {clip.highest_hz / 1000:g} kHz"
    if clip.slowed != 1:
        heard += f", {clip.slowed:g} times slower than it was"
    alt = escape(f"Spectrogram of {name}: {heard}")
    label = escape(f"{name}, {clip.recording}")
    return (
        f'<figure class="clip"><img src="{clip.picture}" alt="{alt}">'
        f'<audio controls preload="metadata" src="{clip.sound}" aria-label="{label}"></audio>'
        f"<figcaption>{escape(about)}<br>{escape(heard)}</figcaption></figure>"
    )


def _column(column: ColumnReport) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(text)}</th><td class="number">{count:,}</td>'
        f'<td class="share"><span style="width:{100 * share:.1f}%"></span></td>'
        f'<td class="number">{100 * share:.1f} %</td></tr>'
        for text, count, share in column.bars
    )
    table = f'<table class="bars"><tbody>{rows}</tbody></table>' if rows else ""
    return (
        f"<div><h3>{escape(column.name)}</h3>"
        f'<p class="remark">{escape(column.about)}</p>{table}</div>'
    )


def _unheard(report: FieldReport) -> Iterator[str]:
    yield '<section id="unheard"><h2>What was not heard</h2>'
    if report.unheard:
        yield '<ul class="headlines">'
        yield from (f"<li>{escape(line)}</li>" for line in report.unheard)
        yield "</ul>"
    else:
        yield "<p>Every recording was heard to its end.</p>"
    for table in (report.not_heard, report.clocks, report.gaps):
        if table.rows:
            yield folded(f"{table.title} ({len(table.rows):,})", _table(table))
    yield "</section>"


def _table(table: Table) -> str:
    """The table, or its first rows and where the others are."""
    more = len(table.rows) - _MOST_ROWS
    if more <= 0:
        return table_html(table)
    first = replace(table, rows=table.rows[:_MOST_ROWS])
    note = f"The first {_MOST_ROWS} of {len(table.rows):,} rows; all are in tables/{table.key}.csv."
    return f'{table_html(first)}<p class="remark">{escape(note)}</p>'


# Tables as files


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

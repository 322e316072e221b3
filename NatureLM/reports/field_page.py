"""A report on recordings as a folder: the page, every figure as SVG and PNG, every table as CSV.

The page is one HTML file with its styles, figures, sounds and their pictures in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from NatureLM.reports.activity import ActivityChart, BarChart
from NatureLM.reports.activity_figures import draw_activity
from NatureLM.reports.charts import Table
from NatureLM.reports.clips import HeardClip
from NatureLM.reports.columns import ColumnReport
from NatureLM.reports.elements import (
    csv_parts,
    escape,
    figure,
    folded,
    header,
    html_page,
    table_html,
    write_figure,
)
from NatureLM.reports.field import FieldReport, NameReport
from NatureLM.reports.figures import need_matplotlib
from NatureLM.results.tables import without_formula
from NatureLM.util import write_csv, write_text

PAGE = "index.html"

_OPEN = 3  # names that are unfolded
_MOST_ROWS = 300  # of a table in the page


def write_field_report(report: FieldReport, folder: str | Path) -> list[Path]:
    """Write `index.html`, `figures/` and `tables/` into the folder; returns the files.

    The page holds everything and needs nothing else. Files of an earlier report under the same
    names are replaced. Raises UsageError without matplotlib, or where nothing can be written.
    """
    need_matplotlib()
    folder = Path(folder)
    written: list[Path] = []
    drawn: dict[str, str] = {}
    for chart in report.charts():
        place = folder / "figures" / chart.key
        drawn[chart.key], files = write_figure(draw_activity(chart), place, is_placed=True)
        written += files
    for table in report.tables():
        columns, rows = csv_parts(table)
        target = folder / "tables" / f"{table.key}.csv"
        written.append(write_csv(target, columns, ([*map(_safe, row)] for row in rows)))
    return [write_text(folder / PAGE, field_page(report, drawn)), *written]


def _safe(cell: Any) -> Any:
    return without_formula(cell) if isinstance(cell, str) else cell


def field_page(report: FieldReport, drawn: Mapping[str, str]) -> str:
    """The page of a report; `drawn` has the SVG of each chart by its key."""
    return html_page(
        report.title,
        _body(report, drawn),
        scripts=("tables.js", "clips.js"),
        data={},
        has_media=True,
    )


def _body(report: FieldReport, drawn: Mapping[str, str]) -> Iterator[str]:
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


def _figure(chart: ActivityChart, drawn: Mapping[str, str], *, is_tall: bool = False) -> str:
    return figure(chart.key, chart.title, drawn, _caption(chart), is_tall=is_tall)


def _caption(chart: ActivityChart) -> str:
    if isinstance(chart, BarChart):
        has_gaps = any(rate is None for rate in chart.rates)
        gaps = " Hatched: nothing was recorded." if has_gaps else ""
        return f"{chart.measure[0].upper()}{chart.measure[1:]}.{gaps}"
    text = f"{chart.measure[0].upper()}{chart.measure[1:]}"
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
    first = Table(table.key, table.title, table.columns, table.rows[:_MOST_ROWS], table.measured)
    note = f"The first {_MOST_ROWS} of {len(table.rows):,} rows; all are in tables/{table.key}.csv."
    return f'{table_html(first)}<p class="remark">{escape(note)}</p>'

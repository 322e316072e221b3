"""A report as a folder: the page, every figure as SVG and PNG, every table in three formats."""

from __future__ import annotations

from pathlib import Path

from NatureLM.beans.scoring.writing import write_csv, write_data
from NatureLM.reports.figures import draw, need_matplotlib
from NatureLM.reports.figures.files import png, svg
from NatureLM.reports.page import page
from NatureLM.reports.report import Report
from NatureLM.reports.tables import Table, csv_parts, latex, markdown

PAGE = "index.html"


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
        figure = draw(chart)
        drawn[chart.key] = svg(figure)
        place = folder / "figures" / chart.key
        written.append(write_data(_with(place, ".svg"), drawn[chart.key].encode()))
        written.append(write_data(_with(place, ".png"), png(figure)))
    for table in report.tables():
        written += _write_table(table, folder / "tables" / table.key)
    text = page(report, drawn).encode("utf-8", "backslashreplace")
    return [write_data(folder / PAGE, text), *written]


def _write_table(table: Table, place: Path) -> list[Path]:
    columns, rows = csv_parts(table)
    return [
        write_csv(_with(place, ".csv"), columns, rows),
        write_data(_with(place, ".md"), markdown(table).encode("utf-8", "backslashreplace")),
        write_data(_with(place, ".tex"), latex(table).encode("utf-8", "backslashreplace")),
    ]


def _with(place: Path, suffix: str) -> Path:
    return place.with_name(place.name + suffix)

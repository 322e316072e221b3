"""Cells whose colour is their value: data sets over α, and what is taken for what."""

from __future__ import annotations

from typing import Any

from NatureLM.reports.charts import GridChart
from NatureLM.reports.figures.style import LIGHT, WIDTH, fitted, new_figure, put_title

_NAME = 24
_MOST_WRITTEN = 14
"""Columns up to which the values are written into the cells."""


def draw_grid(chart: GridChart) -> Any:
    """Every value as a coloured cell. The colours run from dark blue (0) to yellow (highest)."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    rows, columns = len(chart.rows), len(chart.columns)
    width = max(WIDTH, min(9.0, 1.8 + 0.26 * columns))
    figure, axes = new_figure(1.5 + 0.3 * rows + _depth(chart), width)
    colors = colormaps["cividis"]
    highest = 1.0 if chart.counts else max((_known(chart)), default=0.0) or 1.0
    for row, values in enumerate(chart.values):
        for column, value in enumerate(values):
            if value is None:
                continue
            if chart.counts and not chart.counts[row][column]:
                axes.add_patch(_empty(row, column))
                continue
            share = min(1.0, max(0.0, value / highest))
            cell = Rectangle(
                (column - 0.5, row - 0.5),
                1,
                1,
                facecolor=colors(share),
                edgecolor=LIGHT["paper"],
                linewidth=1.2,
                gid=f"cell-{row}-{column}",
            )
            axes.add_patch(cell)
            text = _written(chart, row, column, value)
            if text:
                axes.text(
                    column,
                    row,
                    text,
                    ha="center",
                    va="center",
                    fontsize=7 if columns > 9 else 8,
                    color="#ffffff" if share < 0.55 else "#000001",
                )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xticks(range(columns), [fitted(name, _NAME) for name in chart.columns])
    if _is_long(chart):
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_yticks(range(rows), [fitted(name, _NAME, 2) for name in chart.rows])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel(chart.column_title)
    axes.set_ylabel(chart.row_title)
    put_title(figure, chart.title)
    return figure


def _empty(row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=LIGHT["grid"], linewidth=0.6
    )


def _known(chart: GridChart) -> list[float]:
    return [value for row in chart.values for value in row if value is not None]


def _written(chart: GridChart, row: int, column: int, value: float) -> str:
    if len(chart.columns) > _MOST_WRITTEN:
        return ""
    if chart.counts:
        count = chart.counts[row][column]
        return str(count) if count else ""
    return f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.1f}"


def _is_long(chart: GridChart) -> bool:
    return max(map(len, chart.columns)) > 4


def _depth(chart: GridChart) -> float:
    """Inches that the names below the columns take."""
    longest = min(_NAME, max(map(len, chart.columns)))
    return 0.085 * longest if _is_long(chart) else 0.1

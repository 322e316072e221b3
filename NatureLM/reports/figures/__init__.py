"""Figures: every kind of chart drawn by matplotlib, which the extra `plots` brings."""

from __future__ import annotations

from typing import Any

from NatureLM.reports.charts import ChangeChart, Chart, CurveChart
from NatureLM.reports.figures.change import draw_change
from NatureLM.reports.figures.curves import draw_curves
from NatureLM.reports.figures.grid import draw_grid
from NatureLM.reports.figures.style import need_matplotlib, styled

__all__ = ["draw", "need_matplotlib"]


def draw(chart: Chart) -> Any:
    """The chart as a matplotlib figure. Raises UsageError without matplotlib."""
    need_matplotlib()
    with styled():
        if isinstance(chart, CurveChart):
            return draw_curves(chart)
        if isinstance(chart, ChangeChart):
            return draw_change(chart)
        return draw_grid(chart)

"""Figures of when something was heard, drawn by matplotlib in the colours of all reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from NatureLM.reports.activity import (
    HOURS,
    ActivityChart,
    BarChart,
    DayHourChart,
    Panel,
    level,
)
from NatureLM.reports.figures import LIGHT, add_grid, fitted, need_matplotlib, new_figure, styled

_PANEL_HEIGHT, _ONLY_PANEL_HEIGHT = 1.25, 2.0  # inches
_TICK_STEPS = (0.5, 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 300, 600)

Block = tuple[int, int, int, int]
"""Of cells with one shade: first column, first hour, columns, hours."""


def draw_activity(chart: ActivityChart) -> Any:
    """The chart as a matplotlib figure. Raises UsageError without matplotlib."""
    need_matplotlib()
    with styled():
        return _draw_days(chart) if isinstance(chart, DayHourChart) else _draw_bars(chart)


def _draw_days(chart: DayHourChart) -> Any:
    panels = chart.panels
    height = _ONLY_PANEL_HEIGHT if len(panels) == 1 else _PANEL_HEIGHT
    figure, first = new_figure(chart.title, 1.25 + (height + 0.25) * len(panels))
    first.remove()
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for one, panel in zip(axes, panels, strict=True):
        _draw_panel(one, chart, panel)
    ticks = chart.calendar.ticks()
    axes[-1].set_xticks([place + 0.5 for place in ticks], list(ticks.values()))
    if chart.calendar.unit not in ("day", "year"):
        axes[-1].set_xlabel(f"{chart.calendar.unit}s")
    figure.supylabel("hour of the day", fontsize=9)
    figure.legend(
        handles=_keys(chart), loc="outside lower left", ncols=3, borderaxespad=0.2, fontsize=7.5,
        handlelength=1.1, columnspacing=1.0,
    )  # fmt: skip
    return figure


def _draw_panel(axes: Any, chart: DayHourChart, panel: Panel) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    shades = [[level(rate, chart.edges) for rate in row] for row in panel.rates]
    for shade, blocks in sorted(_blocks(shades).items()):
        corners, codes = [], []
        for column, hour, columns, hours in blocks:
            right, top = column + columns, hour + hours
            corners += [(column, hour), (right, hour), (right, top), (column, top), (column, hour)]
            codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
        # Without smoothed edges, neighbours leave no light between them.
        patch = PathPatch(
            Path(corners, codes), facecolor=_shade(shade), linewidth=0, antialiased=False
        )
        patch.set_gid(f"shade-{shade}-{panel.name}")
        axes.add_patch(patch)
    axes.set(xlim=(0, chart.calendar.count), ylim=(0, HOURS))
    axes.set_yticks([0, 6, 12, 18, 24])
    if panel.name:
        axes.set_title(fitted(panel.name, 48), loc="left", fontsize=8.5, pad=3)


def _blocks(shades: Sequence[Sequence[int]]) -> dict[int, list[Block]]:
    """Cells of one shade that touch, as rectangles, so that a year takes little room."""
    found: dict[int, list[Block]] = defaultdict(list)
    open_blocks: dict[tuple[int, int, int], int] = {}  # shade, first hour, hours → first column
    columns = len(shades[0])
    for column in range(columns + 1):
        runs = set(_runs([row[column] for row in shades])) if column < columns else set()
        for key in [key for key in open_blocks if key not in runs]:
            shade, hour, hours = key
            first = open_blocks.pop(key)
            found[shade].append((first, hour, column - first, hours))
        for key in runs:
            open_blocks.setdefault(key, column)
    return {shade: sorted(blocks) for shade, blocks in found.items()}


def _runs(shades: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Shade, first hour and number of hours of what was recorded in a column."""
    hour = 0
    for shade, alike in groupby(shades):
        hours = len(list(alike))
        if shade >= 0:
            yield shade, hour, hours
        hour += hours


def _shade(shade: int) -> str:
    return LIGHT["quiet"] if shade == 0 else LIGHT[f"heard-{shade}"]


def _keys(chart: DayHourChart) -> list[Any]:
    from matplotlib.patches import Patch

    look: dict[str, Any] = {"edgecolor": LIGHT["muted"], "linewidth": 0.5}
    is_effort = chart.key == "effort"
    keys = [Patch(facecolor="none", label="not recorded", **look)]
    if not is_effort:
        keys.append(Patch(facecolor=_shade(0), label="recorded, not heard", **look))
    if chart.edges[-1]:
        keys += [
            Patch(facecolor=_shade(n + 1), label=f"to {rate_text(edge, chart.is_share)}", **look)
            for n, edge in enumerate(chart.edges)
        ]
    return keys


def rate_text(rate: float, is_share: bool) -> str:
    """A rate as people write it: `2.5 %`, or a number to two places."""
    value = 100 * rate if is_share else rate
    places = 0 if value >= 10 or value == round(value) else 1 if value >= 1 else 2
    return f"{value:,.{places}f} %" if is_share else f"{value:,.{places}f}"


def _draw_bars(chart: BarChart) -> Any:
    figure, axes = new_figure(chart.title, 2.5)
    scale = 100 if chart.is_share else 1
    starts = [chart.start + chart.width * n for n in range(len(chart.rates))]
    known = [
        (x, scale * rate) for x, rate in zip(starts, chart.rates, strict=True) if rate is not None
    ]
    axes.bar(
        [x for x, _ in known],
        [rate for _, rate in known],
        width=chart.width * 0.92,
        align="edge",
        color=LIGHT["series-0"],
        linewidth=0,
        gid="bars",
    )
    for x, rate in zip(starts, chart.rates, strict=True):
        if rate is None:
            axes.axvspan(
                x, x + chart.width, facecolor="none", edgecolor=LIGHT["grid"], hatch="////",
                linewidth=0, gid="not-recorded",
            )  # fmt: skip
    if chart.mark and starts[0] <= 0 <= starts[-1] + chart.width:
        axes.axvline(0, color=LIGHT["series-1"], linestyle=(0, (5, 1.5)), linewidth=1.3)
        axes.annotate(
            chart.mark, (0, 1), (3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", fontsize=8,
        )  # fmt: skip
    end = starts[-1] + chart.width
    step = next((one for one in _TICK_STEPS if (end - chart.start) / one <= 12), _TICK_STEPS[-1])
    axes.set_xticks(_ticks(chart.start, end, step))
    axes.set(xlim=(chart.start, end), xlabel=chart.x_title)
    axes.set_ylabel("% of windows" if chart.is_share else chart.measure)
    highest = max((rate for _, rate in known), default=0.0)
    axes.set_ylim(0, highest * 1.12 or 1)
    add_grid(axes, "y")
    return figure


def _ticks(start: float, end: float, step: float) -> list[float]:
    first = int(-(-start // step))
    return [step * n for n in range(first, int(end // step) + 1)]

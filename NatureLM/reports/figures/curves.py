"""Values over α with their intervals; where there is one α only, one row for each line."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from NatureLM.reports.charts import Curve, CurveChart
from NatureLM.reports.figures.style import (
    DASHES,
    LIGHT,
    MARKERS,
    SERIES,
    fitted,
    new_figure,
    put_title,
)

_NAME = 52
_MOST_TICKS = 11
_LEAST_GAP = 0.09
"""Of the whole axis, between two values of α that are both written."""
_BASELINE_DASHES = ((0, (6, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)), (0, (2, 4)))


def draw_curves(chart: CurveChart) -> Any:
    """Curves with bands, and baselines as level lines."""
    alphas = sorted(
        {p.alpha for curve in chart.curves for p in curve.points if p.alpha is not None}
    )
    if len(alphas) < 2:
        return _draw_rows(chart)
    entries = len(chart.curves) + len(chart.baselines) + len(chart.marks)
    figure, axes = new_figure(2.75 + 0.17 * entries)
    for place, curve in enumerate(chart.curves):
        _draw_curve(axes, curve, place)
    _draw_baselines(axes.axhline, chart)
    put_title(figure, chart.title)
    for place, (name, alpha) in enumerate(chart.marks.items(), start=1):
        axes.axvline(
            alpha,
            color=SERIES[place % len(SERIES)],
            linestyle=DASHES[place % len(DASHES)],
            linewidth=1.3,
            label=fitted(f"{name}: α = {alpha:g}", _NAME),
            zorder=1,
            gid=f"mark-{place - 1}",
        )
    axes.set_xlabel("α, share of the adapter")
    closest = min(after - before for before, after in itertools.pairwise(alphas))
    if len(alphas) <= _MOST_TICKS and closest >= _LEAST_GAP * (alphas[-1] - alphas[0]):
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes.set_ylim(0, _top(chart))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower left", ncols=1, handlelength=3.2, borderaxespad=0.2)
    return figure


def _draw_curve(axes: Any, curve: Curve, place: int) -> None:
    color = SERIES[place % len(SERIES)]
    points = [point for point in curve.points if point.alpha is not None]
    alphas = [point.alpha for point in points]
    banded = [point for point in points if point.low is not None]
    if banded:
        axes.fill_between(
            [point.alpha for point in banded],
            [point.low for point in banded],
            [point.high for point in banded],
            color=color,
            alpha=0.16,
            linewidth=0,
            gid=f"band-{place}",
        )
    axes.plot(
        alphas,
        [point.value for point in points],
        color=color,
        linestyle=DASHES[place % len(DASHES)],
        marker=MARKERS[place % len(MARKERS)],
        markersize=4.5,
        markeredgewidth=0,
        linewidth=1.7,
        label=fitted(curve.name, _NAME, 2),
        gid=f"curve-{place}",
    )


def _draw_rows(chart: CurveChart) -> Any:
    """One row for each curve, whose only point has its interval as a bar."""
    curves = chart.curves[::-1]
    figure, axes = new_figure(1.25 + 0.36 * len(curves) + 0.17 * len(chart.baselines))
    names = []
    for row, curve in enumerate(curves):
        place = len(curves) - 1 - row
        for point in curve.points:
            if point.low is not None and point.high is not None:
                axes.plot(
                    [point.low, point.high],
                    [row, row],
                    color=SERIES[place % len(SERIES)],
                    linewidth=2.2,
                    solid_capstyle="butt",
                    gid=f"interval-{place}",
                )
            axes.plot(
                [point.value],
                [row],
                color=SERIES[place % len(SERIES)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=7,
                gid=f"curve-{place}",
            )
        names.append(fitted(curve.name, 24, 2))
    _draw_baselines(axes.axvline, chart)
    put_title(figure, chart.title)
    axes.set_yticks(range(len(curves)), names)
    axes.set_ylim(-0.6, len(curves) - 0.4)
    axes.set_xlim(-0.02 * _top(chart), _top(chart))
    axes.set_xlabel(fitted(chart.measure, _NAME))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    if chart.baselines:
        figure.legend(loc="outside lower left", ncols=1, handlelength=3.2, borderaxespad=0.2)
    return figure


def _draw_baselines(line: Callable[..., Any], chart: CurveChart) -> None:
    """Level lines, drawn with `axhline` or `axvline` of the axes."""
    for place, (name, value) in enumerate(chart.baselines.items()):
        line(
            value,
            color=LIGHT["muted"],
            linestyle=_BASELINE_DASHES[place % len(_BASELINE_DASHES)],
            linewidth=1.1,
            label=fitted(f"{name} ({value:.3f})", _NAME),
            zorder=1,
            gid=f"baseline-{place}",
        )


def _top(chart: CurveChart) -> float:
    """The upper end of the axis: a little above the highest thing drawn, at most all."""
    values = [point.high or point.value for curve in chart.curves for point in curve.points]
    highest = max([*values, *chart.baselines.values(), 0.0])
    if highest <= 0:
        return 1.0
    return min(1.03, highest * 1.08) if chart.is_share else highest * 1.08

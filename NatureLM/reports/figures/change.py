"""Classes before and after: a hollow and a filled mark, joined by a line."""

from __future__ import annotations

from typing import Any

from NatureLM.reports.charts import Change, ChangeChart
from NatureLM.reports.figures.style import LIGHT, SERIES, fitted, new_figure, put_title

_NAME = 26
_GAIN, _LOSS = SERIES[0], SERIES[1]


def draw_change(chart: ChangeChart) -> Any:
    """A row for each class, from the largest gain to the largest loss."""
    classes = chart.classes
    names = [f"{fitted(one.name, _NAME, 2)} ({one.support})" for one in classes]
    has_long = any("\n" in name for name in names)
    figure, axes = new_figure(1.75 + (0.34 if has_long else 0.26) * len(classes))
    for row, one in enumerate(classes):
        _draw_class(axes, row, one)
    # Shown in the legend whatever there is to see, so that figures can be compared.
    for label, marker, color, fill in (
        (chart.before, "o", LIGHT["muted"], LIGHT["paper"]),
        (f"{chart.after}, better", "o", _GAIN, _GAIN),
        (f"{chart.after}, worse or the same", "s", _LOSS, _LOSS),
    ):
        axes.plot(
            [], [], marker=marker, linestyle="none", label=label, color=color, markerfacecolor=fill
        )
    put_title(figure, chart.title)
    axes.set_yticks(range(len(classes)), names, fontsize=7.5 if has_long else 8.5)
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(chart.measure)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower left", ncols=1, borderaxespad=0.2)
    return figure


def _draw_class(axes: Any, row: int, one: Change) -> None:
    better = one.after > one.before
    color = _GAIN if better else _LOSS
    axes.plot([one.before, one.after], [row, row], color=color, linewidth=1.6, zorder=2)
    axes.plot(
        [one.before],
        [row],
        marker="o",
        color=LIGHT["muted"],
        markerfacecolor=LIGHT["paper"],
        markersize=5.5,
        zorder=3,
        gid=f"before-{row}",
    )
    axes.plot(
        [one.after],
        [row],
        marker="o" if better else "s",
        color=color,
        markersize=5.5,
        zorder=4,
        gid=f"after-{row}",
    )

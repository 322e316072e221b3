"""The reliability diagram: how often answers are right, over how sure the model was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from NatureLM.reports.figures.style import (
    DASHES,
    LIGHT,
    MARKERS,
    SERIES,
    need_matplotlib,
    new_figure,
    put_title,
    styled,
)

_SMALLEST, _LARGEST = 3.0, 11.0  # points: markers grow with the samples of a bin


class Bin(Protocol):
    """What is drawn of a bin."""

    @property
    def confidence(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def samples(self) -> float: ...


def draw_reliability(lines: Mapping[str, Sequence[Bin]], title: str) -> Any:
    """Share of right answers over mean confidence, one line for each name, as a figure.

    Markers are as large as their bin has samples; on the dashed diagonal confidence is what it
    says. Raises UsageError without matplotlib.
    """
    need_matplotlib()
    with styled():
        figure, axes = new_figure(4.6)
        axes.plot(
            [0, 1], [0, 1], color=LIGHT["muted"], linestyle=(0, (4, 3)), linewidth=1.1, zorder=1
        )
        for place, (name, bins) in enumerate(lines.items()):
            filled = [one for one in bins if one.samples > 0]
            most = max((one.samples for one in filled), default=1.0)
            color = SERIES[place % len(SERIES)]
            axes.plot(
                [one.confidence for one in filled],
                [one.accuracy for one in filled],
                color=color,
                linestyle=DASHES[place % len(DASHES)],
                linewidth=1.4,
                marker=MARKERS[place % len(MARKERS)],
                markersize=_SMALLEST,
                label=name,
                gid=f"curve-{place}",
            )
            axes.scatter(
                [one.confidence for one in filled],
                [one.accuracy for one in filled],
                s=[
                    (_SMALLEST + (_LARGEST - _SMALLEST) * (one.samples / most) ** 0.5) ** 2
                    for one in filled
                ],
                color=color,
                marker=MARKERS[place % len(MARKERS)],
                linewidths=0,
                alpha=0.75,
            )
        put_title(figure, title)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_aspect("equal")
        axes.set_xlabel("confidence (mean of a bin)")
        axes.set_ylabel("share of right answers")
        axes.grid()
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", ncols=1, handlelength=3.2, borderaxespad=0.2)
        return figure

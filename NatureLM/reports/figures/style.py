"""How figures look: colours that colour-blind readers can tell apart, sizes, labels that fit.

Every colour of `LIGHT` stands for a role. Pages replace it by a variable of that name, so that one
drawing serves light and dark pages; files keep the light colours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from NatureLM.errors import UsageError

WIDTH = 4.7
"""Inches: a figure fills a telephone's screen and is still read there."""

# The hues are those of Okabe and Ito, "Color Universal Design" (2008), a little darker or lighter
# where the background asks for it.
LIGHT = {
    "ink": "#1c1b1a",
    "muted": "#5f5e5b",
    "grid": "#dcdad5",
    "paper": "#fefdfb",
    "series-0": "#0070b0",
    "series-1": "#d05a00",
    "series-2": "#b8588f",
    "series-3": "#008a68",
    "series-4": "#a67400",
    "series-5": "#4d4d8f",
}
DARK = {
    "ink": "#ecebe7",
    "muted": "#a9a7a1",
    "grid": "#3b3b3f",
    "paper": "#1d1e21",
    "series-0": "#56b4f0",
    "series-1": "#f28e4b",
    "series-2": "#e79ac6",
    "series-3": "#2fc79b",
    "series-4": "#e8bd3a",
    "series-5": "#a9a9ee",
}
SERIES = tuple(color for role, color in LIGHT.items() if role.startswith("series"))
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1.5, 1)))

_SETTINGS: dict[str, Any] = {
    "axes.edgecolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.labelcolor": LIGHT["ink"],
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 100,
    "figure.facecolor": LIGHT["paper"],
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.7,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "savefig.facecolor": LIGHT["paper"],
    "svg.fonttype": "path",
    "svg.hashsalt": "naturelm",
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "xtick.color": LIGHT["muted"],
    "xtick.labelcolor": LIGHT["ink"],
    "xtick.labelsize": 8.5,
    "ytick.color": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["ink"],
    "ytick.labelsize": 8.5,
}


def need_matplotlib() -> None:
    """Raise UsageError, with what to do, where matplotlib is not installed."""
    try:
        import_module("matplotlib")
    except ImportError:
        raise UsageError(
            "figures need matplotlib, which is not installed: pip install 'naturelm-audio[plots]'"
        ) from None


@contextmanager
def styled() -> Iterator[None]:
    """Our settings in place of those of the reader's machine, until the block ends."""
    matplotlib: Any = import_module("matplotlib")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(height: float, width: float = WIDTH) -> tuple[Any, Any]:
    """A figure and its axes; no window is opened and nothing is remembered."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def put_title(figure: Any, title: str) -> None:
    """The title, from the left edge of the figure on."""
    figure.suptitle(fitted(title, 48, 2), x=0.02, ha="left", fontsize=10, fontweight="bold")


def fitted(text: str, width: int, lines: int = 1) -> str:
    """The text in at most so many lines of so many characters; `…` stands for what is left out.

    One line keeps the beginning; of several, the last keeps the end, where titles say what is
    measured and long names differ.
    """
    rest = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    made: list[str] = []
    while len(made) < lines - 1 and len(rest) > width:
        made.append(textwrap.wrap(rest, width, break_on_hyphens=False)[0])
        rest = rest[len(made[-1]) :].lstrip()
    if len(rest) > width:
        cut = width - 1
        rest = f"…{rest[-cut:].lstrip()}" if made else f"{rest[:cut].rstrip()}…"
    return "\n".join([*made, rest])

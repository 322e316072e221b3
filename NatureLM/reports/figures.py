"""Figures: every kind of chart drawn by matplotlib, which the extra `plots` brings.

Colours are told apart by colour-blind readers. Every colour of `LIGHT` stands for a role. Pages
replace it by a variable of that name, so that one drawing serves light and dark pages; files keep
the light colours. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from NatureLM.evaluation.metrics import ReliabilityBin
from NatureLM.reports.charts import Change, ChangeChart, Chart, Curve, CurveChart, GridChart
from NatureLM.util import library, write_data, write_text

WIDTH = 4.7
"""Inches: a figure fills a telephone's screen and is still read there."""

# Roles in light and in dark pages. The hues are those of Okabe and Ito, "Color Universal Design"
# (2008), a little darker or lighter where the background asks for it.
_COLORS = {
    "ink": ("#1c1b1a", "#ecebe7"),
    "muted": ("#5f5e5b", "#a9a7a1"),
    "grid": ("#dcdad5", "#3b3b3f"),
    "paper": ("#fefdfb", "#1d1e21"),
    "series-0": ("#0070b0", "#56b4f0"),
    "series-1": ("#d05a00", "#f28e4b"),
    "series-2": ("#b8588f", "#e79ac6"),
    "series-3": ("#008a68", "#2fc79b"),
    "series-4": ("#a67400", "#e8bd3a"),
    "series-5": ("#4d4d8f", "#a9a9ee"),
    # Recorded and nothing heard, then ever more: even in grey, each is darker (on dark pages
    # brighter) than the one before.
    "quiet": ("#e4e1da", "#35363b"),
    "heard-1": ("#9dc6de", "#2d6791"),
    "heard-2": ("#5fa3c9", "#3d8cc0"),
    "heard-3": ("#2b7bb0", "#66b2e2"),
    "heard-4": ("#135487", "#a3d4f3"),
    "heard-5": ("#0a2c4f", "#e9f6ff"),
}
LIGHT = {role: light for role, (light, _) in _COLORS.items()}
DARK = {role: dark for role, (_, dark) in _COLORS.items()}
_SERIES = tuple(color for role, color in LIGHT.items() if role.startswith("series"))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1.2, 1, 1.2)), (0, (1.5, 1)))

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

_BASELINE_DASHES = ((0, (6, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)), (0, (2, 4)))
_CHANGE_NAME_LENGTH = 26
_CURVE_NAME_LENGTH = 52
_GRID_NAME_LENGTH = 24
_MOST_TICKS = 11
_LEAST_GAP = 0.09
"""Of the whole axis, between two values of α that are both written."""
_MOST_WRITTEN = 14
"""Columns up to which the values are written into the cells."""
_SMALLEST, _LARGEST = 3.0, 11.0  # points: markers of bins grow with their samples
_DPI = 200
_ID = re.compile(r'(\bid="|href="#|url\(#)')


def need_matplotlib() -> None:
    """Raise UsageError, with what to do, where matplotlib is not installed."""
    library(
        "matplotlib",
        "figures need matplotlib, which is not installed: pip install 'naturelm-audio[plots]'",
    )


def draw(chart: Chart) -> Any:
    """The chart as a matplotlib figure. Raises UsageError without matplotlib."""
    need_matplotlib()
    with styled():
        if isinstance(chart, GridChart):
            return _draw_grid(chart)
        return _draw_curves(chart) if isinstance(chart, CurveChart) else _draw_change(chart)


def svg(figure: Any) -> str:
    """The figure as an SVG file of its own, in light colours."""
    stream = io.StringIO()
    with styled():
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def png(figure: Any) -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    with styled():
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def write_figure(figure: Any, place: Path, *, is_placed: bool = False) -> tuple[str, list[Path]]:
    """The figure as `place`.svg and .png: the SVG, and the files.

    is_placed: all has its place after the first drawing, and none is looked for again
    """
    text = svg(figure)
    if is_placed:
        figure.set_layout_engine("none")
    files = [write_text(Path(f"{place}.svg"), text), write_data(Path(f"{place}.png"), png(figure))]
    return text, files


def inline_svg(text: str, key: str, title: str) -> str:
    """An SVG file as a part of a page: colours are the page's, ids are its own.

    key: makes the ids differ from those of other figures; title: what it is read out as
    """
    body = text[text.index("<svg") :]
    opening, _, rest = body.partition(">")
    box = re.search(r'viewBox="[^"]+"', opening)
    assert box is not None, "matplotlib writes a viewBox"
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = _ID.sub(lambda found: f"{found[1]}{key}-", rest)
    for role, color in LIGHT.items():
        rest = rest.replace(color, f"var(--{role})")
    points = float(box[0].split()[2])
    return (
        f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" '
        f'aria-label="{title}" style="--width: {points * 96 / 72:.0f}px">{rest.strip()}'
    )


def style_sheet() -> str:
    """The variables of the colours, for light and for dark pages; paper is light."""
    light, dark = (
        ":root{" + "".join(f"--{role}:{color};" for role, color in colors.items()) + "}"
        for colors in (LIGHT, DARK)
    )
    return f"{light}\n@media screen and (prefers-color-scheme: dark){{{dark}}}\n"


@contextmanager
def styled() -> Iterator[None]:
    """Our settings in place of those of the reader's machine, until the block ends."""
    matplotlib: Any = import_module("matplotlib")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(title: str, height: float, width: float = WIDTH) -> tuple[Any, Any]:
    """A figure with its title and its axes; no window is opened and nothing is remembered."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fitted(title, 48, 2), x=0.02, ha="left", fontsize=10, fontweight="bold")
    return figure, figure.add_subplot()


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


def _color(place: int) -> str:
    return _SERIES[place % len(_SERIES)]


def _mark(place: int) -> dict[str, Any]:
    """Colour and marker of a series."""
    return {"color": _color(place), "marker": _MARKERS[place % len(_MARKERS)]}


def _dashed(place: int) -> dict[str, Any]:
    """Colour and dashes of a series."""
    return {"color": _color(place), "linestyle": _DASHES[place % len(_DASHES)]}


def add_grid(axes: Any, axis: str = "both") -> None:
    axes.grid(axis=axis)
    axes.set_axisbelow(True)


def _add_legend(figure: Any, **lengths: float) -> None:
    figure.legend(loc="outside lower left", ncols=1, borderaxespad=0.2, **lengths)


def _draw_curves(chart: CurveChart) -> Any:
    """Curves with bands, and baselines as level lines."""
    alphas = sorted(
        {p.alpha for curve in chart.curves for p in curve.points if p.alpha is not None}
    )
    if len(alphas) < 2:
        return _draw_rows(chart)
    entries = len(chart.curves) + len(chart.baselines) + len(chart.marks)
    figure, axes = new_figure(chart.title, 2.75 + 0.17 * entries)
    for place, curve in enumerate(chart.curves):
        _draw_curve(axes, curve, place)
    _draw_baselines(axes.axhline, chart)
    for place, (name, alpha) in enumerate(chart.marks.items(), start=1):
        axes.axvline(
            alpha,
            **_dashed(place),
            linewidth=1.3,
            label=fitted(f"{name}: α = {alpha:g}", _CURVE_NAME_LENGTH),
            zorder=1,
            gid=f"mark-{place - 1}",
        )
    axes.set_xlabel("α, share of the adapter")
    closest = min(after - before for before, after in itertools.pairwise(alphas))
    if len(alphas) <= _MOST_TICKS and closest >= _LEAST_GAP * (alphas[-1] - alphas[0]):
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
    axes.set_ylim(0, _top(chart))
    add_grid(axes, "y")
    _add_legend(figure, handlelength=3.2)
    return figure


def _draw_curve(axes: Any, curve: Curve, place: int) -> None:
    points = [point for point in curve.points if point.alpha is not None]
    bands = [(point.alpha, point.low, point.high) for point in points if point.low is not None]
    if bands:
        look = {"color": _color(place), "alpha": 0.16, "linewidth": 0, "gid": f"band-{place}"}
        axes.fill_between(*zip(*bands, strict=True), **look)
    axes.plot(
        [point.alpha for point in points],
        [point.value for point in points],
        **_dashed(place) | _mark(place),
        markersize=4.5,
        markeredgewidth=0,
        linewidth=1.7,
        label=fitted(curve.name, _CURVE_NAME_LENGTH, 2),
        gid=f"curve-{place}",
    )


def _draw_rows(chart: CurveChart) -> Any:
    """One row for each curve, whose only point has its interval as a bar."""
    rows = list(enumerate(chart.curves))[::-1]
    height = 1.25 + 0.36 * len(rows) + 0.17 * len(chart.baselines)
    figure, axes = new_figure(chart.title, height)
    for row, (place, curve) in enumerate(rows):
        for point in curve.points:
            if point.low is not None and point.high is not None:
                axes.plot(
                    [point.low, point.high],
                    [row, row],
                    color=_color(place),
                    linewidth=2.2,
                    solid_capstyle="butt",
                    gid=f"interval-{place}",
                )
            axes.plot([point.value], [row], **_mark(place), markersize=7, gid=f"curve-{place}")
    _draw_baselines(axes.axvline, chart)
    axes.set_yticks(range(len(rows)), [fitted(curve.name, 24, 2) for _, curve in rows])
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlim=(-0.02 * _top(chart), _top(chart)))
    axes.set_xlabel(fitted(chart.measure, _CURVE_NAME_LENGTH))
    add_grid(axes, "x")
    if chart.baselines:
        _add_legend(figure, handlelength=3.2)
    return figure


def _draw_baselines(line: Callable[..., Any], chart: CurveChart) -> None:
    """Level lines, drawn with `axhline` or `axvline` of the axes."""
    for place, (name, value) in enumerate(chart.baselines.items()):
        line(
            value,
            color=LIGHT["muted"],
            linestyle=_BASELINE_DASHES[place % len(_BASELINE_DASHES)],
            linewidth=1.1,
            label=fitted(f"{name} ({value:.3f})", _CURVE_NAME_LENGTH),
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


def _draw_change(chart: ChangeChart) -> Any:
    """A row for each class, from the largest gain to the largest loss: two marks with a line."""
    classes = chart.classes
    names = [f"{fitted(one.name, _CHANGE_NAME_LENGTH, 2)} ({one.support})" for one in classes]
    has_long = any("\n" in name for name in names)
    figure, axes = new_figure(chart.title, 1.75 + (0.34 if has_long else 0.26) * len(classes))
    for row, one in enumerate(classes):
        _draw_class(axes, row, one)
    # Shown in the legend whatever there is to see, so that figures can be compared.
    for label, *look in (
        (chart.before, "o", LIGHT["muted"], LIGHT["paper"]),
        (f"{chart.after}, better", "o", _color(0), _color(0)),
        (f"{chart.after}, worse or the same", "s", _color(1), _color(1)),
    ):
        axes.plot([], [], **_face(*look), linestyle="none", label=label)
    axes.set_yticks(range(len(classes)), names, fontsize=7.5 if has_long else 8.5)
    axes.set(ylim=(len(classes) - 0.4, -0.6), xlim=(-0.03, 1.03), xlabel=chart.measure)
    add_grid(axes, "x")
    _add_legend(figure)
    return figure


def _draw_class(axes: Any, row: int, one: Change) -> None:
    better = one.after > one.before
    color = _color(0 if better else 1)
    axes.plot([one.before, one.after], [row, row], color=color, linewidth=1.6, zorder=2)
    before = _face("o", LIGHT["muted"], LIGHT["paper"])
    axes.plot([one.before], [row], **before, markersize=5.5, zorder=3, gid=f"before-{row}")
    after = _face("o" if better else "s", color, color)
    axes.plot([one.after], [row], **after, markersize=5.5, zorder=4, gid=f"after-{row}")


def _face(marker: str, color: str, face: str) -> dict[str, Any]:
    return {"marker": marker, "color": color, "markerfacecolor": face}


def _draw_grid(chart: GridChart) -> Any:
    """Every value as a coloured cell. The colours run from dark blue (0) to yellow (highest)."""
    rows, columns = len(chart.rows), len(chart.columns)
    width = max(WIDTH, min(9.0, 1.8 + 0.26 * columns))
    longest = max(map(len, chart.columns))
    # Inches that the names below the columns take.
    depth = 0.085 * min(_GRID_NAME_LENGTH, longest) if longest > 4 else 0.1
    figure, axes = new_figure(chart.title, 1.5 + 0.3 * rows + depth, width)
    known = (value for row in chart.values for value in row if value is not None)
    highest = 1.0 if chart.counts else max(known, default=0.0) or 1.0
    for row, values in enumerate(chart.values):
        for column, value in enumerate(values):
            if value is not None:
                share = min(1.0, max(0.0, value / highest))
                _draw_cell(axes, chart, (row, column), value, share)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(columns), [fitted(name, _GRID_NAME_LENGTH) for name in chart.columns])
    if longest > 4:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_yticks(range(rows), [fitted(name, _GRID_NAME_LENGTH, 2) for name in chart.rows])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set(xlabel=chart.column_title, ylabel=chart.row_title)
    return figure


def _draw_cell(
    axes: Any, chart: GridChart, place: tuple[int, int], value: float, share: float
) -> None:
    """A square with its value, or an empty one where nothing was counted."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    row, column = place
    count = chart.counts[row][column] if chart.counts else None
    patch = axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1))
    if count == 0:
        patch.set(facecolor="none", edgecolor=LIGHT["grid"], linewidth=0.6)
        return
    patch.set(facecolor=colormaps["cividis"](share), edgecolor=LIGHT["paper"], linewidth=1.2)
    patch.set_gid(f"cell-{row}-{column}")
    if len(chart.columns) > _MOST_WRITTEN:
        return
    text = f"{value:.2f}".removeprefix("0") if value < 1 else f"{value:.1f}"
    axes.text(
        column,
        row,
        text if count is None else str(count),
        ha="center",
        va="center",
        fontsize=7 if len(chart.columns) > 9 else 8,
        color="#ffffff" if share < 0.55 else "#000001",
    )


def draw_reliability(lines: Mapping[str, Sequence[ReliabilityBin]], title: str) -> Any:
    """Share of right answers over mean confidence, one line for each name, as a figure.

    Markers are as large as their bin has samples; on the dashed diagonal confidence is what it
    says. Raises UsageError without matplotlib.
    """
    need_matplotlib()
    with styled():
        figure, axes = new_figure(title, 4.6)
        axes.plot(
            [0, 1], [0, 1], color=LIGHT["muted"], linestyle=(0, (4, 3)), linewidth=1.1, zorder=1
        )
        for place, (name, bins) in enumerate(lines.items()):
            _draw_bins(axes, place, name, [one for one in bins if one.samples > 0])
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel="confidence (mean of a bin)", ylabel="share of right answers")
        add_grid(axes)
        _add_legend(figure, handlelength=3.2)
        return figure


def draw_certainty(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[ReliabilityBin]]],
    levels: Sequence[float],
    title: str,
) -> Any:
    """Chance of being right over confidence, one curve for each name, as a figure.

    curves: confidences, chances there, and shares of right answers, which are markers
    levels: chances that thresholds are for, as level lines

    Raises UsageError without matplotlib.
    """
    need_matplotlib()
    with styled():
        figure, axes = new_figure(title, 3.4 + 0.17 * len(curves))
        for level in levels:
            axes.axhline(level, color=LIGHT["muted"], linestyle=(0, (4, 3)), linewidth=0.8)
        for place, (name, (confidences, chances, bins)) in enumerate(curves.items()):
            axes.plot(
                confidences,
                chances,
                **_dashed(place),
                linewidth=1.6,
                label=fitted(name, _CURVE_NAME_LENGTH),
                gid=f"curve-{place}",
            )
            _scatter(axes, place, [one for one in bins if one.samples > 0], 0.6)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.set(xlabel="confidence", ylabel="chance of being right")
        add_grid(axes)
        _add_legend(figure, handlelength=3.2)
        return figure


def _draw_bins(axes: Any, place: int, name: str, bins: Sequence[ReliabilityBin]) -> None:
    axes.plot(
        [one.confidence for one in bins],
        [one.accuracy for one in bins],
        **_dashed(place) | _mark(place),
        linewidth=1.4,
        markersize=_SMALLEST,
        label=name,
        gid=f"curve-{place}",
    )
    _scatter(axes, place, bins, 0.75)


def _scatter(axes: Any, place: int, bins: Sequence[ReliabilityBin], alpha: float) -> None:
    """A marker for each bin, the larger the more samples it has."""
    most = max((one.samples for one in bins), default=1.0)
    sizes = [_SMALLEST + (_LARGEST - _SMALLEST) * (one.samples / most) ** 0.5 for one in bins]
    axes.scatter(
        [one.confidence for one in bins],
        [one.accuracy for one in bins],
        s=[size**2 for size in sizes],
        **_mark(place),
        linewidths=0,
        alpha=alpha,
    )

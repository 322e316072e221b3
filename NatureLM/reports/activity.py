"""Charts of when something was heard, and their drawings: hours × days, and bars over a time.

Everything is a rate: how often something was heard, divided by how much was listened to. `None`
stands where nothing was recorded, which is not the same as 0.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

from NatureLM.reports.figures import LIGHT, add_grid, fitted, need_matplotlib, new_figure, styled
from NatureLM.reports.tally import Cell, NameTally, Tally

HOURS = 24
MOST_COLUMNS = 93
"""Days of a chart; more become weeks, months, years."""
FEWEST_DAYS = 3
"""Days from which on they are drawn beside each other."""
MOST_PANELS = 6
LEVELS = 5
"""Shades of a rate above 0."""

_PANEL_HEIGHT, _ONLY_PANEL_HEIGHT = 1.25, 2.0  # inches
_TICK_STEPS = (0.5, 1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 120, 300, 600)
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]

Place = TypeVar("Place")
Rates: TypeAlias = tuple[tuple[float | None, ...], ...]
Block: TypeAlias = tuple[int, int, int, int]
"""Of cells with one shade: first column, first hour, columns, hours."""


@dataclass(frozen=True)
class Calendar:
    """The columns of a chart: days, weeks, months or years from the first to the last.

    first: ordinal of the first day
    """

    unit: str
    first: int
    count: int

    @classmethod
    def of(cls, days: Iterable[int]) -> Calendar | None:
        """The finest calendar in which all days have room; None without any day."""
        known = set(days)
        if not known:
            return None
        for unit in ("day", "week", "month", "year"):
            made = cls(unit, min(known), 0)
            count = made.column(max(known)) + 1
            if count <= MOST_COLUMNS or unit == "year":
                return cls(unit, min(known), count)
        raise AssertionError("the last unit always fits")

    def column(self, day: int) -> int:
        """The column of a day."""
        first, this = date.fromordinal(self.first), date.fromordinal(day)
        if self.unit == "day":
            return day - self.first
        if self.unit == "week":  # from Monday on
            return (day - 1) // 7 - (self.first - 1) // 7
        if self.unit == "month":
            return (this.year - first.year) * 12 + this.month - first.month
        return this.year - first.year

    def ticks(self, most: int = 6) -> dict[int, str]:
        """Names of some columns, evenly apart."""
        step = next(n for n in (1, 2, 3, 5, 7, 10, 14, 21, 28, 10**6) if self.count <= n * most)
        return {column: self._name(column) for column in range(0, self.count, step)}

    def _name(self, column: int) -> str:
        first = date.fromordinal(self.first)
        if self.unit == "year":
            return str(first.year + column)
        if self.unit == "month":
            years, month = divmod(first.month - 1 + column, 12)
            return f"{_MONTHS[month]} {first.year + years}"
        step = 7 if self.unit == "week" else 1
        start = self.first if step == 1 else self.first - (self.first - 1) % 7
        return day_text(start + step * column, has_year=False)


def day_text(day: int, *, has_year: bool = True) -> str:
    """A day as people write it: `3 May 2024`."""
    known = date.fromordinal(day)
    return f"{known.day} {_MONTHS[known.month - 1]}" + (f" {known.year}" if has_year else "")


@dataclass(frozen=True)
class Panel:
    """Rates by hour (rows) and column of the calendar; `name` is a site, or empty for all."""

    name: str
    rates: Rates


@dataclass(frozen=True)
class DayHourChart:
    """Hours of the day × days, one panel below the other.

    is_share: whether rates are shares of windows
    """

    key: str
    title: str
    measure: str
    calendar: Calendar
    panels: tuple[Panel, ...]
    is_share: bool

    @property
    def edges(self) -> tuple[float, ...]:
        """Upper ends of the shades, which all panels share."""
        rates = (rate for panel in self.panels for row in panel.rates for rate in row)
        highest = max((rate for rate in rates if rate is not None), default=0.0)
        return tuple(highest * (n + 1) / LEVELS for n in range(LEVELS))


@dataclass(frozen=True)
class BarChart:
    """Rates in bins of a time, of equal width.

    start, width: of the first bin, in units of the axis
    mark: what 0 is, such as sunset
    """

    key: str
    title: str
    measure: str
    x_title: str
    start: float
    width: float
    rates: tuple[float | None, ...]
    is_share: bool
    mark: str = ""


ActivityChart: TypeAlias = DayHourChart | BarChart


def rate_name(made: Tally) -> str:
    """What rates are."""
    return "events an hour of recordings" if made.is_events else "share of windows"


def effort_chart(made: Tally) -> DayHourChart | None:
    """How much was listened to; None where fewer than a few days are known."""
    calendar = calendar_of(made)
    if calendar is None:
        return None
    sites = [""] if len(made.effort.sites) < 2 else _largest(made.effort.sites)
    panels = tuple(
        Panel(site, _grid(_cells(made.effort.cells, calendar, site), calendar)) for site in sites
    )
    what = "hours of recordings" if made.is_events else "windows"
    return DayHourChart(
        "effort", f"How much was heard: {what}", what, calendar, panels, is_share=False
    )


def name_charts(made: Tally, one: NameTally, shown: str) -> list[ActivityChart]:
    """When one name was heard, as well as it is known; `shown` is the name in titles."""
    charts: list[ActivityChart] = []
    calendar = calendar_of(made)
    if calendar is not None:
        charts.append(_day_hour_chart(made, one, shown, calendar, [""], "hours-by-days"))
    heard, effort = one.spread, made.effort
    if effort.sun:
        chart = _bar_chart(made, shown, "night", heard.sun, effort.sun, 0.5, "hours after sunset")
        charts.append(replace(chart, mark="sunset"))
    if effort.hours and (calendar is None or not effort.sun):
        charts.append(
            _bar_chart(made, shown, "hours", heard.hours, effort.hours, 1, "hour of the day")
        )
    if not charts:
        unit, seconds = _time_unit(made.bin_seconds)
        x_title, width = f"{unit} from the beginning of a recording", made.bin_seconds / seconds
        chart = _bar_chart(
            made, shown, "positions", heard.positions, effort.positions, width, x_title
        )
        charts.append(replace(chart, title=f"{shown}: time within recordings"))
    return charts


def site_chart(made: Tally, one: NameTally, shown: str) -> DayHourChart | None:
    """Hours × days of one name at each of several sites, those with most of it first."""
    calendar = calendar_of(made)
    if calendar is None or len(made.effort.sites) < 2:
        return None
    heard = {site: one.spread.sites.get(site, 0) for site in made.effort.sites}
    return _day_hour_chart(made, one, shown, calendar, _largest(heard), "sites")


def calendar_of(made: Tally) -> Calendar | None:
    """The calendar of all that was heard; None where there are too few days to show any."""
    days = {day for _, day, _ in made.effort.cells}
    return Calendar.of(days) if len(days) >= FEWEST_DAYS else None


def _largest(numbers: Mapping[str, float]) -> list[str]:
    return sorted(numbers, key=lambda one: (-numbers[one], one))[:MOST_PANELS]


def _cells(cells: Mapping[Cell, float], calendar: Calendar, site: str) -> Counter[tuple[int, int]]:
    """Numbers by hour and column, at one site or (with an empty name) at all."""
    found: Counter[tuple[int, int]] = Counter()
    for (where, day, hour), number in cells.items():
        if not site or where == site:
            found[hour, calendar.column(day)] += number  # type: ignore[assignment]
    return found


def _grid(values: Mapping[tuple[int, int], float], calendar: Calendar) -> Rates:
    return tuple(
        tuple(values.get((hour, column)) for column in range(calendar.count))
        for hour in range(HOURS)
    )


def _rates(heard: Mapping[Place, float], effort: Mapping[Place, float]) -> dict[Place, float]:
    """How often something was heard for how much was listened, wherever that is something."""
    return {place: heard.get(place, 0) / much for place, much in effort.items() if much > 0}


def _day_hour_chart(
    made: Tally,
    one: NameTally,
    shown: str,
    calendar: Calendar,
    sites: Sequence[str],
    key: str,
) -> DayHourChart:
    panels = []
    for site in sites:
        heard = _cells(one.spread.cells, calendar, site)
        effort = _cells(made.effort.cells, calendar, site)
        panels.append(Panel(site, _grid(_rates(heard, effort), calendar)))
    measure = rate_name(made)
    title = f"{shown}: {measure}{' by site' if sites != [''] else ''}"
    return DayHourChart(
        f"{shown}-{key}",
        title,
        measure,
        calendar,
        tuple(panels),
        is_share=not made.is_events,
    )


def level(rate: float | None, edges: Sequence[float]) -> int:
    """The shade of a rate: -1 where nothing was recorded, 0 where nothing was heard, 1 and up."""
    if rate is None:
        return -1
    if rate <= 0 or not edges[-1]:
        return 0
    return min(LEVELS, math.ceil(rate / edges[-1] * LEVELS - 1e-9))


def _bar_chart(
    made: Tally,
    shown: str,
    key: str,
    heard: Mapping[int, float],
    effort: Mapping[int, float],
    width: float,
    x_title: str,
) -> BarChart:
    """Rates in all bins from the first to the last one with effort."""
    known = _rates(heard, effort)
    bins = range(min(known), max(known) + 1)
    return BarChart(
        f"{shown}-{key}",
        f"{shown}: {x_title}",
        rate_name(made),
        x_title,
        bins[0] * width,
        width,
        tuple(map(known.get, bins)),
        is_share=not made.is_events,
    )


def _time_unit(bin_seconds: int) -> tuple[str, int]:
    if bin_seconds < 60:
        return "seconds", 1
    return ("minutes", 60) if bin_seconds < 1800 else ("hours", 3600)


# Drawn by matplotlib, in the colours of all reports


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

    edges = chart.edges
    shades = [[level(rate, edges) for rate in row] for row in panel.rates]
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
    keys = [Patch(facecolor="none", label="not recorded", **look)]
    if chart.key != "effort":
        keys.append(Patch(facecolor=_shade(0), label="recorded, not heard", **look))
    keys += [
        Patch(facecolor=_shade(n + 1), label=f"to {rate_text(edge, chart.is_share)}", **look)
        for n, edge in enumerate(chart.edges)
        if edge
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

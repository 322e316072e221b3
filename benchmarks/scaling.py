"""Arithmetic from what was measured here to archives of a million recordings and of a petabyte.

    python benchmarks/scaling.py

Sizes, prices and assumptions stand in docs/explanation/performance/scaling.json, what was measured
in archive.json and archive_tables.json beside it. `python benchmarks/pages.py` puts the tables into
docs/explanation/scaling.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "performance"
HOUR = 3600.0


@dataclass(frozen=True)
class Archive:
    """Recordings of one length: how many, seconds of each, bytes of a second of sound."""

    name: str
    recordings: int
    seconds: float
    bytes_a_second: float

    @classmethod
    def of(cls, name: str, seconds: float, bytes_a_second: float, **size: float) -> Archive:
        """Its size is given as `recordings`, or as `bytes` in all."""
        count = size.get("recordings") or size["bytes"] / (seconds * bytes_a_second)
        return cls(name, round(count), seconds, bytes_a_second)

    @property
    def hours(self) -> float:
        """Of sound."""
        return self.recordings * self.seconds / HOUR

    @property
    def size(self) -> float:
        """In bytes."""
        return self.recordings * self.seconds * self.bytes_a_second

    def windows(self, window_seconds: float) -> int:
        """Windows that do not overlap."""
        return self.recordings * max(1, round(self.seconds / window_seconds))


@dataclass(frozen=True)
class Figures:
    """What the arithmetic is made of.

    row, csv: bytes of an answer, and of a recording in a manifest
    rows_a_second: that merge-runs joins; listing: seconds of a recording in `naturelm manifest`
    cards: name, windows a second, price of an hour, where that is from
    """

    row: float
    csv: float
    rows_a_second: float
    listing: float
    cards: Sequence[Mapping[str, Any]]
    archives: Sequence[Archive]
    assumed: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path = FIGURES) -> Figures:
        """From the committed runs."""
        scaling, archive, tables = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("scaling", "archive", "archive_tables")
        )
        asked = max(archive["runs"], key=lambda run: int(run["recordings"]))
        largest = tables["runs"][-1]
        return cls(
            row=asked["bytes"] / asked["answers"],
            csv=largest["bytes_of_a_line"]["csv"],
            rows_a_second=largest["merged"]["rows"] / largest["merged"]["seconds"],
            listing=archive["listing"],
            cards=scaling["cards"],
            archives=[Archive.of(**one) for one in scaling["archives"]],
            assumed=scaling["assumed"],
        )


def markdown(_: Mapping[str, Any] | None = None) -> str:
    """The tables of the page."""
    figures = Figures.read()
    parts = (_what_is_there(figures), _what_it_takes(figures), _where_from(figures))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _what_is_there(figures: Figures) -> list[str]:
    lines = [
        "| archive | recordings | hours | windows | sound | manifest, CSV | answers | listed in "
        "| joined in |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in figures.archives:
        windows = one.windows(figures.assumed["window_seconds"])
        cells = (
            one.name,
            _count(one.recordings),
            _count(one.hours),
            _count(windows),
            _bytes(one.size),
            _bytes(one.recordings * figures.csv),
            _bytes(windows * figures.row),
            _hours(one.recordings * figures.listing / HOUR),
            _hours(windows / figures.rows_a_second / HOUR),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def card_hours(archive: Archive, card: Mapping[str, Any], window_seconds: float) -> float:
    """Hours of one card for one question about each window."""
    return archive.windows(window_seconds) / float(card["windows_a_second"]) / HOUR


def _what_it_takes(figures: Figures) -> list[str]:
    assumed = figures.assumed
    lines = [
        "| archive | by | card hours | cards for a week | cost, USD | shards "
        "| cards that fail | work lost by that | broken recordings |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in figures.archives:
        for card in figures.cards:
            hours = card_hours(one, card, assumed["window_seconds"])
            failures = hours / assumed["card_hours_between_failures"]
            lost = failures * assumed["minutes_of_a_restart"] / 60
            cells = (
                one.name.partition(":")[0],
                card["name"],
                _count(hours),
                _count(hours / (7 * 24)),
                _count(hours * card["price"]),
                _count(max(1, one.recordings / assumed["recordings_of_a_shard"])),
                f"{failures:.2g}",
                _hours(lost),
                _count(one.recordings * assumed["share_of_broken_recordings"]),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _where_from(figures: Figures) -> list[str]:
    assumed = figures.assumed
    here = "measured: `benchmarks/archive.py`"
    tables = "measured: `benchmarks/archive_tables.py`"
    rows = [
        ("a window", f"{assumed['window_seconds']:g} s, one question", "the default"),
        ("bytes of a row of answers", f"{figures.row:.0f}", here),
        ("bytes of a recording in a manifest, CSV", f"{figures.csv:.0f}", tables),
        ("recordings listed in a second", f"{1 / figures.listing:,.0f}", here),
        ("rows joined in a second", f"{figures.rows_a_second:,.0f}", tables),
    ]
    for card in figures.cards:
        pace = f"{card['windows_a_second']:.1f}"
        rows.append((f"windows a second, {card['name']}", pace, card["source"]))
        rows.append((f"an hour of it, {card['name']}", f"{card['price']:.2f} USD", "assumed"))
    rows += [
        (name.replace("_", " "), f"{value:g}", "assumed")
        for name, value in assumed.items()
        if name != "window_seconds"
    ]
    return ["| figure | value | from |", "|---|--:|---|"] + [
        f"| {' | '.join(row)} |" for row in rows
    ]


def _count(number: float) -> str:
    """Two digits that count, or the whole number where it is small."""
    for least, unit in ((1e9, "billion"), (1e6, "million")):
        if number >= least:
            return f"{number / least:.3g} {unit}"
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _bytes(size: float) -> str:
    for least, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= 0.9995 * least:
            return f"{size / least:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.3g} days"
    return f"{hours:.2g} h" if hours >= 1 else f"{hours * 60:.2g} min"


if __name__ == "__main__":
    print(markdown())

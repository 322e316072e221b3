"""The engine beside the straightforward way: all rows of its table in one run, answers compared.

    python benchmarks/engine.py [--small] [--only NAME] [--rounds N] [--threads 2] [--json FILE]
    python benchmarks/engine.py --markdown FILE

The model is random (see model.py) and the straightforward way is baseline.py. Some baselines do a
part of the work, because the whole takes minutes and is in proportion; the table says which, and
`--whole` runs all of it. `--only` may be given several times. `--markdown` prints the table of an
earlier run's file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rows
import torch
from baseline import compare_decoding, quicker_decoding
from baseline import show as show_decoding
from measure import machine, options_for, use_threads, write_figures
from model import BenchmarkModel, build, waves
from rows import Row, Settings

NAMES = (
    "folder",
    "encoder",
    "windows-1",
    "windows-3",
    "sweep",
    "labels",
    "few-shot",
    "load",
    "start",
)


def measure(
    model: BenchmarkModel, settings: Settings, names: Sequence[str], folder: Path
) -> Iterator[Row]:
    """The rows as they are done."""
    works = dict(rows.works(model, folder, settings))
    for name in names:
        if name == "folder":
            yield from rows.folder_rows(model, folder, settings)
        elif name == "encoder":
            yield rows.encoder_row(model, settings)
        elif name == "load":
            yield from rows.load_rows(settings)
        elif name == "start":
            yield from rows.start_rows(settings)
        else:
            yield rows.work_row(works[name](), settings.rounds)


def line(row: dict[str, Any]) -> str:
    """A row for the terminal."""
    sign, detail = "<=" if row["at_most"] else ">=", row["detail"]
    verdict = "reached" if row["reached"] else "MISSED"
    text = (
        f"{row['name']:13s} {sign} {row['target']:5g} {row['unit']}  {row['measured']:7.2f} "
        f"{row['unit']}  {verdict:8s}"
    )
    if "engine" in detail:
        text += f" {detail['baseline']['seconds']:8.1f} {detail['engine']['seconds']:8.1f}"
        text += f" {detail['against_processor']:8.2f}"
    if "compared" in detail:
        text += f" {detail['against_cached']:8.2f} {detail['equal']:5d}/{detail['compared']}"
    return text


HEADER = (
    f"{'row':13s} {'target':>10s} {'measured':>9s}   {'':8s} {'plain s':>9s} {'engine s':>8s} "
    f"{'(cpu)':>8s} {'cached':>8s} {'equal':>6s}"
)


def markdown(report: dict[str, Any]) -> str:
    """The table for the pages, with what was measured in part below it."""
    lines = [
        "| work | target | measured | with every encoding remembered | the most possible "
        "| straightforward, s | engine, s | answers equal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        detail = row["detail"]
        unit = "×" if row["unit"] == "x" else f" {row['unit']}"
        sign = "≤" if row["at_most"] else "≥"
        cells = [row["title"], f"{sign} {row['target']:g}{unit}"]
        measured = f"{row['measured']:.2f}{unit}"
        cells.append(f"**{measured}**" if row["reached"] else f"{measured} (missed)")
        cells.append(f"{detail['against_cached']:.2f}×" if "against_cached" in detail else "")
        most = most_possible(row, report["rows"])
        cells.append(f"{most:.2f}×" if most is not None else "")
        if "engine" in detail:
            part = detail.get("share", 1.0)
            star = f" (from {part:.3g} of it)" if part < 1 else ""
            cells += [f"{detail['baseline']['seconds']:.1f}{star}"]
            cells += [f"{detail['engine']['seconds']:.1f}"]
        else:
            cells += ["", ""]
        both = (detail.get("equal"), detail.get("compared"))
        cells.append(f"{both[0]} of {both[1]}" if both[1] else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def most_possible(row: dict[str, Any], table: Sequence[dict[str, Any]]) -> float | None:
    """The gain if encoding every clip once cost its matrix products, and nothing else anything."""
    products = next((one["detail"] for one in table if one["name"] == "encoder"), None)
    if products is None or "clips" not in row["detail"]:
        return None
    least = row["detail"]["clips"] * products["product_seconds"]
    seconds: float = row["detail"]["baseline"]["seconds"]
    return seconds / least


def report_of(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is asked for; rows are printed and written as they come, so none is lost."""
    start = time.perf_counter()
    model = build(options.small)
    model.encode_audio(torch.stack(waves(1)))  # libraries fill their caches
    compared = compare_decoding(model, 1 if options.small else 2)
    show_decoding(compared)
    own = quicker_decoding(compared)
    settings = Settings(options.small, options.rounds, options.whole, own)
    names = options.only or NAMES
    found: list[dict[str, Any]] = []
    print(HEADER)
    report = {
        "machine": machine(),
        "small": options.small,
        "rounds": options.rounds,
        "parameters": sum(p.numel() for p in model.language_model.parameters()),
        "decoding": compared,
        "rows": found,
        "seconds": 0.0,
    }
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(model, settings, names, Path(folder)):
            found.append({**asdict(row), "reached": row.reached})
            report["seconds"] = time.perf_counter() - start
            print(line(found[-1]), flush=True)
            write_figures(options.json, report)
    return report


def main() -> None:
    """Run and print."""
    parser = options_for(__doc__, "small", "threads", "rounds", "json")
    parser.add_argument("--only", action="append", choices=NAMES, help="these rows")
    parser.add_argument("--whole", action="store_true", help="baselines do all of the work")
    parser.add_argument("--markdown", type=Path, default=None, help="print the table of a file")
    options = parser.parse_args()
    if options.markdown is not None:
        print(markdown(json.loads(options.markdown.read_text(encoding="utf-8"))))
        return
    use_threads(options.threads)
    report = report_of(options)
    print(f"{report['seconds']:.0f} s in all")


if __name__ == "__main__":
    main()

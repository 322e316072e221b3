"""Puts the figures of committed runs into the pages on performance, scaling and machines.

    python benchmarks/pages.py

Each table of docs/explanation/performance.md, scaling.md and docs/how-to/which-machine.md stands
between comments that name a file of docs/explanation/performance/; a file that is not there leaves
its table open.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation
import archive
import archive_tables
import eight_billion
import engine
import field_season
import fits
import gpu_check
import growth
import peers
import precision
import scaling
import serving

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "explanation"
PAGES = (
    FOLDER / "performance.md",
    FOLDER / "scaling.md",
    FOLDER.parent / "how-to" / "which-machine.md",
)
TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "engine": engine.markdown,
    "ablation": ablation.markdown,
    "growth": growth.markdown,
    "precision": precision.markdown,
    "eight_billion": eight_billion.markdown,
    "serving": serving.markdown,
    "season": field_season.markdown,
    "archive": archive.markdown,
    "archive_tables": archive_tables.markdown,
    "scaling": scaling.markdown,
    "gpu_check": gpu_check.markdown,
    "fits": fits.markdown,
    "peers": peers.markdown,
}
MADE_OF = {"scaling": ("archive", "archive_tables")}
OPEN = "*Not measured yet.*"


def table(name: str) -> str:
    """The table of a committed run, and what it was measured on."""
    path, *others = (
        FOLDER / "performance" / f"{one}.json" for one in (name, *MADE_OF.get(name, ()))
    )
    if not all(one.is_file() for one in (path, *others)):
        return OPEN
    report = json.loads(path.read_text(encoding="utf-8"))
    if "machine" not in report:  # it is made of others
        return TABLES[name](report)
    on = report["machine"]
    small = ", small model" if report.get("small") else ""
    where = f"{on['processor']}, {on['threads']} threads, torch {on['torch']}{small}"
    return f"{TABLES[name](report)}\n\n({where})"


def filled(text: str) -> str:
    """A page with the tables of the committed runs."""
    for name in TABLES:
        begin, end = f"<!-- table: {name} -->\n", "\n<!-- end of table -->"
        pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
        made = table(name)
        text = pattern.sub(lambda found, made=made: found[1] + made + found[2], text)
    return text


def main() -> None:
    """Write the pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What pages of reports are made of: texts, tables, folded parts, and the page around them.

A page is one HTML file that needs no other. Texts from answers are escaped wherever they stand, and
a content security policy lets no script but the page's own run and nothing be loaded.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from NatureLM.evaluation.bootstrap import Estimate
from NatureLM.progress import printable
from NatureLM.reports.charts import Table, cell_text
from NatureLM.reports.figures import inline_svg, png, style_sheet, svg
from NatureLM.util import digest, write_data, write_text


def escape(text: str, quote: bool = True) -> str:
    """Text for HTML, without what turns letters around or cannot be seen."""
    return html.escape(printable(text, lines=True), quote)


def html_page(
    title: str,
    body: Iterable[str],
    *,
    scripts: Sequence[str],
    data: Mapping[str, Any],
    has_media: bool = False,
) -> str:
    """A whole page.

    body: parts of HTML
    scripts: files among the assets that make up the page's one script
    data: what the script reads, by the id of the element that holds it as JSON
    has_media: whether pictures and sounds stand in the page
    """
    script = "\n".join(map(asset, scripts))
    checksum = base64.b64encode(digest(script)).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{checksum}'"
    if has_media:
        policy += "; img-src data:; media-src data:"
    parts = {
        "title": escape(title),
        "policy": escape(policy),
        "style": style_sheet() + asset("page.css"),
        "body": "\n".join(body),
        "data": "\n".join(
            f'<script type="application/json" id="{name}">{json_text(content)}</script>'
            for name, content in data.items()
        ),
        "script": script,
    }
    text = asset("page.html")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part, 1)
    return text


def header(
    title: str,
    facts: Mapping[str, str],
    remarks: Iterable[str],
    links: Iterable[tuple[str, str]],
) -> str:
    """The head of a page: facts by name, remarks, and links to parts (id and name) of the page."""
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    said = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in remarks)
    items = "".join(f'<a href="#{place}">{escape(name)}</a>' for place, name in links)
    return (
        f"<header><h1>{escape(title)}</h1><dl>{listed}</dl>{said}"
        f'<nav aria-label="Parts of the report">{items}</nav></header>'
    )


def json_text(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table_html(table: Table) -> str:
    head = "".join(
        f'<th scope="col" class="{"number" if number else "text"}">{escape(name)}</th>'
        for name, number in zip(table.columns, table.is_number, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = []
        for cell in row:
            value = cell.value if isinstance(cell, Estimate) else cell
            sort = f' data-value="{value!r}"' if isinstance(value, int | float) else ""
            kind = "text" if isinstance(cell, str) else "number"
            cells.append(f'<td class="{kind}"{sort}>{escape(cell_text(cell))}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table class="sortable" id="table-{table.key}">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def figure(
    key: str, title: str, drawn: Mapping[str, str], caption: str, *, is_tall: bool = False
) -> str:
    """A figure of the page, of the drawings by their keys; a tall one may stand beside two."""
    picture = inline_svg(drawn[key], key, escape(title))
    kind = ' class="tall"' if is_tall else ""
    return (
        f'<figure id="figure-{key}"{kind}><div class="picture">{picture}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def write_figure(drawing: Any, place: Path, *, is_placed: bool = False) -> tuple[str, list[Path]]:
    """A matplotlib figure as `place`.svg and .png: the SVG, and the files.

    is_placed: all has its place after the first drawing, and none is looked for again
    """
    text = svg(drawing)
    if is_placed:
        drawing.set_layout_engine("none")
    files = [write_text(Path(f"{place}.svg"), text), write_data(Path(f"{place}.png"), png(drawing))]
    return text, files


def asset(name: str) -> str:
    return resources.files("NatureLM.reports").joinpath(f"assets/{name}").read_text("utf-8")


def csv_parts(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of full precision; intervals have columns of their own."""
    columns: list[str] = []
    for name in table.columns:
        columns += [name, f"{name}_low", f"{name}_high"] if name in table.measured else [name]
    rows = []
    for cells in table.rows:
        row: list[Any] = []
        for name, cell in zip(table.columns, cells, strict=True):
            if isinstance(cell, Estimate):
                bounds = [None if math.isnan(one) else one for one in (cell.low, cell.high)]
                row += [cell.value, *bounds]
            else:
                row += [cell, None, None] if name in table.measured else [cell]
        rows.append(row)
    return columns, rows

"""Tables of a report, and what they are as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

LONG = 60
"""Rows from which on a table of LaTeX runs over pages."""


@dataclass(frozen=True)
class Measured:
    """A value with its interval: three columns in CSV, one text elsewhere."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


Cell: TypeAlias = str | int | float | Measured | None


@dataclass(frozen=True)
class Table:
    """Rows under columns.

    key: name of the table's files
    measured: columns whose cells are `Measured`
    """

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    measured: frozenset[str] = frozenset()

    @property
    def is_number(self) -> tuple[bool, ...]:
        """Whether a column holds numbers."""
        return tuple(
            all(isinstance(row[place], int | float | Measured | None) for row in self.rows)
            for place in range(len(self.columns))
        )


def csv_parts(table: Table) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of full precision; intervals have columns of their own."""
    columns: list[str] = []
    for name in table.columns:
        columns += [name, f"{name}_low", f"{name}_high"] if name in table.measured else [name]
    return columns, [[part for cell in row for part in _csv_cells(cell)] for row in table.rows]


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""
    lines = [
        _markdown_row(table.columns),
        "|" + "|".join("--:" if number else "---" for number in table.is_number) + "|",
        *(_markdown_row([cell_text(cell) for cell in row]) for row in table.rows),
    ]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table in LaTeX with booktabs; a long one as a longtable."""
    form = "".join("r" if number else "l" for number in table.is_number)
    head = _latex_row(table.columns)
    body = [_latex_row([cell_text(cell) for cell in row]) for row in table.rows]
    if len(body) > LONG:
        lines = [
            "% needs \\usepackage{booktabs,longtable}",
            f"\\begin{{longtable}}{{{form}}}",
            f"\\caption{{{latex_text(table.title)}}}\\\\",
            *("\\toprule", head, "\\midrule", "\\endhead", "\\bottomrule", "\\endfoot"),
            *body,
            "\\end{longtable}",
        ]
    else:
        lines = [
            "% needs \\usepackage{booktabs}",
            *("\\begin{table}", "\\centering", f"\\caption{{{latex_text(table.title)}}}"),
            f"\\begin{{tabular}}{{{form}}}",
            *("\\toprule", head, "\\midrule", *body, "\\bottomrule"),
            *("\\end{tabular}", "\\end{table}"),
        ]
    return "\n".join(lines) + "\n"


def cell_text(cell: Cell) -> str:
    """A cell as people read it: shares to three places."""
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedbl{}",
    "α": "$\\alpha$",
    "−": "$-$",
    "…": "\\dots{}",
}


def _csv_cells(cell: Cell) -> list[Any]:
    return [cell.value, cell.low, cell.high] if isinstance(cell, Measured) else [cell]


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (
        " ".join(cell.split())
        .replace("\\", "\\\\")
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("*", "\\*")
        .replace("_", "\\_")
        for cell in cells
    )
    return f"| {' | '.join(escaped)} |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + " \\\\"

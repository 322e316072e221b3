"""What all tables share: whole files, cells that harm no spreadsheet, names of recordings."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from NatureLM.audio.files import as_on_disk
from NatureLM.results.rows import whole_file
from NatureLM.species import kind_of
from NatureLM.util import csv_writer, library, write_text

CSV_ENCODING = "utf-8-sig"
"""Spreadsheets take a file without this mark for one in the encoding of the machine."""

# Spreadsheets run a cell that begins so as a formula; the last four are full-width forms. One with
# apostrophes in front gets one more, so that taking one away gives what it was.
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001

_ALTERNATIVE = re.compile(r"(.+?) (\d\.\d{3})(?:, |$)", re.DOTALL)


@contextmanager
def _table(target: Path, encoding: str) -> Iterator[TextIO]:
    """A text file that is there whole once the block has ended, or not at all."""
    with (
        whole_file(target) as unfinished,
        open(unfinished, "w", encoding=encoding, errors="backslashreplace", newline="") as file,
    ):
        yield file


def write_lines(target: Path, lines: Iterable[str]) -> int:
    """Write a text whole or not at all; lines bring their ends. How many. Raises OutputError."""
    count = 0
    with _table(target, "utf-8") as file:
        for count, line in enumerate(lines, start=1):  # noqa: B007
            file.write(line)
    return count


def write_rows(
    target: Path,
    header: Iterable[str],
    rows: Iterable[Iterable[Any]],
    *,
    encoding: str = "utf-8",
    **dialect: Any,
) -> int:
    """Write a CSV whole or not at all: a header and a line for each row; how many.

    dialect: of `csv_writer`; lines end with a line feed if it does not say

    Raises OutputError.
    """
    count = 0
    with _table(target, encoding) as file:
        writer = csv_writer(file, **dialect)
        writer.writerow(header)
        for count, row in enumerate(rows, start=1):  # noqa: B007
            writer.writerow(row)
    return count


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A table for people, UTF-8: texts are cells that no spreadsheet runs, numbers are in full.

    Raises UsageError where it cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv_writer(stream)
    for row in (columns, *rows):
        writer.writerow([without_formula(one) if isinstance(one, str) else one for one in row])
    return write_text(path, stream.getvalue())


def arrow_and_parquet() -> tuple[Any, Any]:
    """pyarrow and what of it reads and writes Parquet. Raises UsageError where it is missing."""
    absent = "Parquet needs pyarrow: pip install 'naturelm-audio[embed]'"
    return library("pyarrow", absent), library("pyarrow.parquet", absent)


def write_batches(
    target: Path,
    schema: Any,
    rows: Iterable[Sequence[Any]],
    *,
    at_a_time: int,
    array: Callable[[Any, Sequence[Any]], Any] = lambda kind, values: list(values),
) -> int:
    """Write rows as Parquet, whole or not at all; how many.

    at_a_time: rows that are held, and are a row group
    array: makes of values those of a column of a type

    Raises OutputError.
    """
    arrow, parquet = arrow_and_parquet()
    rows, count = iter(rows), 0
    with (
        whole_file(target) as unfinished,
        parquet.ParquetWriter(unfinished, schema, compression="zstd") as file,
    ):
        while some := list(islice(rows, at_a_time)):
            cells = zip(schema, zip(*some, strict=True), strict=True)
            columns = [array(field.type, values) for field, values in cells]
            file.write_batch(arrow.record_batch(columns, schema=schema))
            count += len(some)
    return count


def without_formula(text: str) -> str:
    """The text as a cell that no spreadsheet runs."""
    return f"'{text}" if _FORMULA.match(text) else text


def with_formula(cell: str) -> str:
    """The text that `without_formula` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def cell(value: str | float | None) -> str:
    """A value as a cell that no spreadsheet runs; nothing for None."""
    if isinstance(value, str):
        return without_formula(value)
    return "" if value is None else number(value)


def one_line(text: str) -> str:
    """Text without what would end a cell or a line where nothing is quoted."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text)).strip()


def number(value: float) -> str:
    """At most six decimals, and none that say nothing."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def share(value: float | None) -> str:
    """A confidence; nothing where there is none."""
    return "" if value is None else f"{value:.6f}"


def alternatives_text(alternatives: Iterable[tuple[str, float]]) -> str:
    """Other answers with their confidences: `Barn Owl 0.210, Dog 0.040`."""
    return ", ".join(f"{name} {share:.3f}" for name, share in alternatives)


def alternatives_of(cell: str) -> tuple[tuple[str, float], ...]:
    """Other answers, of `Barn Owl 0.210, Dog 0.040`."""
    return tuple((name, float(found)) for name, found in _ALTERNATIVE.findall(cell))


def both_names(label: str) -> tuple[str, str]:
    """Common and scientific name that a label is; one of them is empty."""
    return ("", label) if kind_of([label]) == "scientific" else (label, "")


def below_shared(paths: Iterable[str | Path]) -> list[Path]:
    """Paths from the folder on that all of them lie in; of several drives, without these."""
    listed = [Path(one) for one in paths]
    try:
        shared = os.path.commonpath([one.parent for one in listed])
        return [one.relative_to(shared) for one in listed]
    except ValueError:  # several drives, or no path
        return [Path(*one.parts[1:]) for one in listed]


def recording_of(table: Path, name: str) -> str:
    """The recording that a table names: a relative one is looked for from the table's folder on.

    One that is not there is called as the table does.
    """
    found = as_on_disk(table.parent / name, other_slashes=True)
    return str(found) if os.path.exists(found) else name

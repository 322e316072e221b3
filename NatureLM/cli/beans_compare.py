"""`beans compare`: two runs over the same samples, paired."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from NatureLM.cli.option_groups import expanded
from NatureLM.cli.scoring_options import ScoringOptions
from NatureLM.errors import UsageError

if TYPE_CHECKING:
    from NatureLM.beans.scoring.pairs import Comparisons


@expanded
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="File or folder of answers.")],
    b: Annotated[
        Path, typer.Argument(metavar="B", help="Other answers to the same samples; may be A again.")
    ],
    a_where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only the rows of A with this value, such as lora_scale=1.0. "
            "May be given several times.",
            show_default=False,
        ),
    ] = None,
    b_where: Annotated[
        list[str] | None, typer.Option(help="The same for B.", show_default=False)
    ] = None,
    protocol: Annotated[
        str, typer.Option(metavar="beans-zero|paper|mention|strict", help="How answers are read.")
    ] = "beans-zero",
    output_path: Annotated[
        Path | None, typer.Option(help="Folder for compare.json.", show_default=False)
    ] = None,
    scoring: ScoringOptions = ScoringOptions(),  # noqa: B008 (frozen)
) -> None:
    """Compare two runs sample by sample: differences with 95 % intervals, B less A."""
    from NatureLM.beans import scoring as library
    from NatureLM.beans.scoring.protocols import protocol as find
    from NatureLM.beans.scoring.writing import write_folder_json

    compared = library.compare(
        library.Side((a,), _where("--a-where", a_where)),
        library.Side((b,), _where("--b-where", b_where)),
        find(protocol),
        reading=scoring.reading(),
        evaluation=scoring.evaluation(),
        on_error=scoring.at_errors(),
    )
    _show(compared)
    _say_what_is_left_out(compared)
    if output_path is not None:
        typer.echo(f"\nWrote {write_folder_json(compared.records(), output_path, 'compare.json')}")


def _show(compared: Comparisons) -> None:
    from NatureLM.cli.tables import print_table

    rows = []
    for group in compared.groups:
        key = ["-" if value is None else str(value) for value in group.key]
        for name, one in group.metrics.items():
            low, high = one.interval or (float("nan"), float("nan"))
            change = f"{one.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            values = [name, f"{one.a:.3f}", f"{one.b:.3f}", change, f"{one.p:.3f}"]
            rows.append([*key, str(group.n), f"{group.differ:.1%}", *values])
    columns = ["dataset", *compared.by, "n", "differ", "metric", "A", "B", "B - A", "p"]
    print_table(columns, rows, right={"n", "differ", "A", "B", "p"})


def _say_what_is_left_out(compared: Comparisons) -> None:
    alone = sum(group.only_in_a + group.only_in_b for group in compared.groups)
    if alone:
        typer.echo(f"{alone} samples that only one side answered are left out.", err=True)
    if compared.unpaired:
        names = "; ".join(", ".join(map(str, key)) for key in compared.unpaired[:5])
        typer.echo(
            f"{len(compared.unpaired)} groups that only one side has are left out: {names}",
            err=True,
        )
    if compared.errors:
        typer.echo(f"{compared.errors} lines with errors are left out.", err=True)


def _where(option: str, texts: list[str] | None) -> dict[str, str]:
    where: dict[str, str] = {}
    for text in texts or ():
        column, equals, value = text.partition("=")
        if not (column.strip() and equals):
            raise UsageError(f"{option} {text}: write it as lora_scale=1.0")
        if where.setdefault(column.strip(), value.strip()) != value.strip():
            raise UsageError(f"{option}: {column.strip()} has two values")
    return where

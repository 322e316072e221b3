"""`naturelm report` and `beans report`: answers to a page with figures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from NatureLM.cli.option_groups import expanded
from NatureLM.cli.scoring_options import ScoringOptions
from NatureLM.errors import UsageError


@expanded
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Files of answers (.jsonl, .jsonl.gz), or folders with such files.",
            show_default=False,
        ),
    ],
    output_path: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("report"),
    protocol: Annotated[
        str, typer.Option(metavar="beans-zero|paper|mention|strict", help="How answers are read.")
    ] = "beans-zero",
    title: Annotated[
        str | None,
        typer.Option(help="Title of the page.", show_default="the names of what is reported"),
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(
            metavar="ALPHA,ALPHA",
            help="The two α whose classes are compared, such as 1.0,0.4.",
            show_default="1.0 and the best of each question",
        ),
    ] = None,
    answers: Annotated[int, typer.Option(min=0, help="Most single answers in the page.")] = 3000,
    scoring: ScoringOptions = ScoringOptions(),  # noqa: B008 (frozen)
) -> None:
    """Draw what answers show: one page that works offline, with its figures and tables as files.

    naturelm report answers.jsonl --output-path report
    """
    from NatureLM.beans.scoring.protocols import protocol as find
    from NatureLM.beans.scoring.scores import score
    from NatureLM.reports.figures import need_matplotlib

    need_matplotlib()
    evaluation = scoring.evaluation()
    pair = None if between is None else _pair(between)
    scores = score(
        runs,
        [find(protocol)],
        reading=scoring.reading(),
        evaluation=evaluation,
        on_error=scoring.at_errors(),
    )

    from NatureLM.reports import make_report, write_report

    sources = [_name(path) for path in runs]
    made = make_report(
        scores,
        title=title or ", ".join(sources),
        sources=sources,
        between=pair,
        most_answers=answers,
        evaluation=evaluation,
    )
    written = write_report(made, output_path)
    if len(scores.problems):
        lines = "line" if len(scores.problems) == 1 else "lines"
        typer.echo(f"{len(scores.problems)} {lines} with errors left out.", err=True)
    figures = sum(path.suffix == ".svg" for path in written)
    tables = sum(path.suffix == ".csv" for path in written)
    typer.echo(
        f"{scores.answers} answers, {figures} figures, {tables} tables. "
        f"Open {written[0]} in a browser."
    )


def _name(path: Path) -> str:
    """The last part of a path: a report is read on other machines."""
    return path.name or path.resolve().name


def _pair(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--between {text}: write two values of α, such as 1.0,0.4") from None
    if first == second:
        raise UsageError(f"--between {text}: the two values are the same")
    return first, second

"""`beans score`: files of answers to metrics, intervals and tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from NatureLM.cli.option_groups import expanded
from NatureLM.cli.scoring_options import ScoringOptions

if TYPE_CHECKING:
    from NatureLM.beans.scoring.scores import Scores

_SHOWN = {
    "classification": ("accuracy", "precision", "recall", "f1"),
    "detection": ("accuracy", "precision", "recall", "f1", "map"),
    "captioning": ("cider", "spice"),
}
_MOST_ERRORS_SHOWN = 10


@expanded
def score(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...",
            help="Files of answers (.jsonl, .jsonl.gz), or folders with such files.",
            show_default=False,
        ),
    ],
    output_path: Annotated[
        Path, typer.Option(help="Folder for metrics.json and the tables.", show_default=False)
    ],
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="beans-zero|paper|mention|strict",
            help="How answers are read. May be given several times.",
            show_default="beans-zero",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not show the scores.")] = False,
    scoring: ScoringOptions = ScoringOptions(),  # noqa: B008 (frozen)
) -> None:
    """Score answers, ours or anybody's, with 95 % intervals and baselines."""
    from NatureLM.beans.scoring.protocols import protocol as find
    from NatureLM.beans.scoring.scores import score as score_files
    from NatureLM.beans.scoring.writing import write_scores

    protocols = list(
        {(one := find(name)).name: one for name in protocol or ["beans-zero"]}.values()
    )
    scores = score_files(
        paths,
        protocols,
        reading=scoring.reading(),
        evaluation=scoring.evaluation(),
        on_error=scoring.at_errors(),
    )
    settings = {
        "paths": [str(path) for path in paths],
        "protocols": [one.name for one in protocols],
        "by": list(scores.by),
        "labels": scoring.labels and str(scoring.labels),
        "scientific_names": scoring.scientific_names and str(scoring.scientific_names),
        "names": list(scoring.names or ()),
        "on_error": scoring.on_error,
        "resamples": scoring.resamples,
        "seed": scoring.seed,
    }
    written = write_scores(scores, output_path, settings)
    if not quiet:
        show_scores(scores)
        typer.echo("")
    _report_errors(scores, output_path)
    for remark in scores.remarks:
        typer.echo(remark, err=True)
    typer.echo(
        f"{scores.answers} answers; wrote {', '.join(p.name for p in written)} to {output_path}"
    )


def show_scores(scores: Scores) -> None:
    """A table of the metrics with their intervals."""
    from NatureLM.cli.tables import print_table

    shown = list(dict.fromkeys(name for group in scores.groups for name in _SHOWN[group.task]))
    shown = [name for name in shown if any(name in g.metrics for g in scores.groups)]
    columns = ["dataset", *scores.by, "protocol", "n", *shown]
    rows = [
        [*map(_text, group.key), group.protocol, str(len(group.ids))]
        + [_with_interval(group.metrics.get(name), group.intervals.get(name)) for name in shown]
        for group in scores.groups
    ]
    print_table(columns, rows, right={"n"})


def _report_errors(scores: Scores, output_path: Path) -> None:
    problems = scores.problems
    if not len(problems):
        return
    for problem in problems.found[:_MOST_ERRORS_SHOWN]:
        typer.echo(str(problem), err=True)
    lines = (
        "1 line with an error was"
        if len(problems) == 1
        else f"{len(problems)} lines with errors were"
    )
    more = len(problems) - _MOST_ERRORS_SHOWN
    rest = f", {more} more of them" if more > 0 else ""
    kinds = ", ".join(f"{count} × {kind}" for kind, count in problems.kinds().items())
    typer.echo(
        f"{lines} left out ({kinds}); all{rest} are in {output_path / 'errors.csv'}",
        err=True,
    )


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _text(value: Any) -> str:
    return "-" if value is None else str(value)

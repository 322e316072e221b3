"""Files of answers: metrics (`beans score`), and two runs paired (`compare`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import printable, show

if TYPE_CHECKING:
    from NatureLM.evaluation.score import Comparison, Scores


_MOST_ERRORS_SHOWN = 10
_ANSWERS = "Files of answers (.jsonl, .jsonl.gz), or folders with such files."
_PROTOCOL = of.option("beans-zero", "How answers are read.", metavar=of.PROTOCOLS)


def score(
    *,
    paths: list[Path] = of.argument(..., _ANSWERS, "PATH..."),
    output_path: Path = of.option(..., "Folder for metrics.json and the tables."),
    protocol: list[str] | None = of.option(
        None,
        "How answers are read. May be given several times.",
        metavar=of.PROTOCOLS,
        show_default="beans-zero",
    ),
    quiet: bool = of.option(False, "Do not show the scores."),
    scoring: of.ScoringOptions,
) -> None:
    """Score answers, ours or anybody's, with 95 % intervals and baselines."""
    from NatureLM.evaluation.protocols import protocol as find
    from NatureLM.evaluation.score import score as score_files
    from NatureLM.evaluation.score import write_scores
    from NatureLM.util import check_place

    check_place(output_path, "--output-path", folder=True)
    protocols = list(
        {(one := find(name)).name: one for name in protocol or ["beans-zero"]}.values()
    )
    scores = score_files(paths, protocols, **scoring.arguments())
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
        show("")
    _report_errors(scores, output_path)
    for remark in scores.remarks:
        show(remark, err=True)
    show(f"{scores.answers} answers; wrote {', '.join(p.name for p in written)} to {output_path}")


def show_scores(scores: Scores) -> None:
    """A table of the metrics with their intervals."""
    from NatureLM.data.components import METRICS, METRICS_OF

    tasks = dict.fromkeys(group.task for group in scores.groups)
    named = dict.fromkeys(name for t in tasks for name in METRICS if name in METRICS_OF[t])
    shown = [name for name in named if any(name in g.metrics for g in scores.groups)]
    columns = ["dataset", *scores.by, "protocol", "n", *shown]
    rows = [
        [*map(_text, group.key), group.protocol, str(len(group.ids))]
        + [_text(group.estimate(name)) for name in shown]
        for group in scores.groups
    ]
    of.print_table(columns, rows, right={"n"})


def _report_errors(scores: Scores, output_path: Path) -> None:
    count, where = len(scores.problems), output_path / "errors.csv"
    if not count:
        return
    for problem in scores.problems[:_MOST_ERRORS_SHOWN]:
        show(printable(problem), err=True)
    lines = "1 line with an error was" if count == 1 else f"{count} lines with errors were"
    more = count - _MOST_ERRORS_SHOWN
    rest = f", {more} more of them" if more > 0 else ""
    kinds = ", ".join(f"{number} × {kind}" for kind, number in scores.problem_kinds().items())
    show(f"{lines} left out ({kinds}); all{rest} are in {where}", err=True)


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def compare(
    *,
    a: Path = of.argument(..., "File or folder of answers.", "A"),
    b: Path = of.argument(..., "Other answers to the same samples; may be A again.", "B"),
    a_where: list[str] | None = of.option(
        None,
        "Only the rows of A with this value, such as lora_scale=1.0. May be given several times.",
    ),
    b_where: list[str] | None = of.option(None, "The same for B."),
    protocol: str = _PROTOCOL,
    output_path: Path | None = of.option(None, "Folder for compare.json."),
    scoring: of.ScoringOptions,
) -> None:
    """Compare two runs sample by sample: differences with 95 % intervals, B less A."""
    from NatureLM.evaluation.protocols import protocol as find
    from NatureLM.evaluation.score import Side
    from NatureLM.evaluation.score import compare as compare_runs
    from NatureLM.util import check_place, write_json

    if output_path is not None:
        check_place(output_path, "--output-path", folder=True)
    sides = (Side((a,), _where("--a-where", a_where)), Side((b,), _where("--b-where", b_where)))
    compared = compare_runs(*sides, find(protocol), **scoring.arguments())
    _show(compared)
    _say_what_is_left_out(compared)
    if output_path is not None:
        show(f"\nWrote {write_json(output_path / 'compare.json', compared.records())}")


def _show(compared: Comparison) -> None:
    rows = []
    for group in compared.groups:
        key = [*map(_text, group.key)]
        for name, one in group.metrics.items():
            low, high = one.interval or (float("nan"), float("nan"))
            change = f"{one.difference:+.3f} [{low:+.3f}, {high:+.3f}]"
            values = [name, f"{one.a:.3f}", f"{one.b:.3f}", change, f"{one.p:.3f}"]
            rows.append([*key, str(group.n), f"{group.differ:.1%}", *values])
    columns = ["dataset", *compared.by, "n", "differ", "metric", "A", "B", "B - A", "p"]
    of.print_table(columns, rows, right={"n", "differ", "A", "B", "p"})


def _say_what_is_left_out(compared: Comparison) -> None:
    alone = sum(group.only_in_a + group.only_in_b for group in compared.groups)
    if alone:
        show(f"{alone} samples that only one side answered are left out.", err=True)
    if compared.unpaired:
        names = "; ".join(", ".join(map(str, key)) for key in compared.unpaired[:5])
        count = len(compared.unpaired)
        show(f"{count} groups that only one side has are left out: {names}", err=True)
    if compared.errors:
        show(f"{compared.errors} lines with errors are left out.", err=True)


def _where(option: str, texts: list[str] | None) -> dict[str, str]:
    where = of.pairs(option, texts, "write it as lora_scale=1.0", may_be_empty=True)
    for text in texts or ():
        column, _, value = text.partition("=")
        if where[column.strip()] != value.strip():
            raise UsageError(f"{option}: {column.strip()} has two values")
    return where

"""Files of answers: metrics (`beans score`), and two runs paired (`compare`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import printable, show

if TYPE_CHECKING:
    from NatureLM.evaluation.answers import ReadOptions
    from NatureLM.evaluation.bootstrap import BootstrapOptions
    from NatureLM.evaluation.score import Comparison, Scores


_MOST_ERRORS_SHOWN = 10
# Options of commands that know the right answers

KNOWN_ANSWERS = "Recordings with known answers"
COLUMN_FORM, WHERE_FORM = "write it as label=common_name", "write it as split=valid"

QUERY = of.option(None, "What to ask of every recording.", KNOWN_ANSWERS, "--query", "-q")
COLUMN = of.option(
    None,
    "Name of a column, such as label=common_name. May be given several times.",
    KNOWN_ANSWERS,
    metavar="OURS=THEIRS",
)
WHERE = of.option(
    None,
    "Only rows with this value, such as split=valid. May be given several times.",
    KNOWN_ANSWERS,
    metavar="COLUMN=VALUE",
)
PROTOCOL = of.option(
    "beans-zero", "How answers are read.", metavar="beans-zero|paper|mention|strict"
)
LABELS = of.option(
    None,
    "File of the labels that may be answered, one a line.",
    show_default="the labels that occur",
)
TASK = of.option(
    None,
    "Task of data sets that are no component of BEANS-Zero.",
    metavar="classification|detection|captioning",
    show_default="the rows' key task",
)
RESAMPLES = of.option(1000, "Resamples of the bootstrap.", min=1, max=1_000_000)
SEED = of.option(0, "Seed of the bootstrap and of random answers.", min=0, max=of.MAX_SEED)


@dataclass(frozen=True)
class ScoringOptions:
    """The options that `beans score`, `beans compare` and `report` share, in the order of the help.

    The methods raise UsageError for values that cannot be.
    """

    by: str | None = of.option(
        None,
        "Columns that make groups, besides the data set, set off by commas.",
        show_default="query,lora_scale, as far as rows have them",
    )
    labels: Path | None = LABELS
    scientific_names: Path | None = of.option(None, "JSON file from common to scientific name.")
    names: list[str] | None = of.option(
        None,
        "Names of labels where a column has a value: query=1:scientific (or :both, :common). "
        "May be given several times.",
    )
    task: str | None = TASK
    cluster: str | None = of.option(
        None,
        "Column of what intervals resample as a whole.",
        show_default="cluster, family or recording, as far as rows have them",
    )
    on_error: str = of.option(
        "fail", "At a line that cannot be scored: stop, or count it.", metavar="fail|skip"
    )
    resamples: int = RESAMPLES
    seed: int = SEED

    def reading(self) -> ReadOptions:
        """How rows are read."""
        from NatureLM.evaluation.answers import ReadOptions, parse_rules, read_labels, read_map

        rules = parse_rules(self.names or ())
        if self.scientific_names is None and any(rule.kind != "common" for rule in rules):
            raise UsageError("--names needs --scientific-names, a JSON file from common name to it")
        if self.scientific_names is not None and not rules:
            raise UsageError("--scientific-names needs --names, such as --names query=1:scientific")
        columns = None if self.by is None else _columns(self.by)
        for rule in rules:
            if columns is not None and rule.column not in (*columns, "dataset_name"):
                raise UsageError(
                    f"--names {rule}: {rule.column!r} is not among the columns of --by"
                )
        return ReadOptions(
            by=columns,
            labels=None if self.labels is None else read_labels(self.labels),
            rules=rules,
            scientific={} if self.scientific_names is None else read_map(self.scientific_names),
            cluster=self.cluster,
            task=of.one_of("--task", self.task, ("classification", "detection", "captioning")),
        )

    def evaluation(self) -> BootstrapOptions:
        """How intervals are made."""
        from NatureLM.evaluation.bootstrap import BootstrapOptions

        return BootstrapOptions(resamples=self.resamples, seed=self.seed)

    def arguments(self) -> dict[str, Any]:
        """All of them, as the functions of `NatureLM.evaluation` take them."""
        return {
            "options": self.reading(),
            "bootstrap": self.evaluation(),
            "on_error": of.one_of("--on-error", self.on_error, ("fail", "skip")),
        }


def _columns(by: str) -> tuple[str, ...]:
    """The columns of --by; the data set is one always."""
    columns = [column.strip() for column in by.split(",")]
    columns = [column for column in columns if column and column not in ("dataset", "dataset_name")]
    for column in columns:
        if columns.count(column) > 1:
            raise UsageError(f"--by {by}: {column!r} is named twice")
        if column in ("id", "prediction", "label"):
            raise UsageError(f"--by {by}: {column!r} cannot make groups")
    return tuple(columns)


def score(
    *,
    paths: list[Path] = of.argument(
        ..., "Files of answers (.jsonl, .jsonl.gz), or folders with such files.", "PATH..."
    ),
    output_path: Path = of.option(..., "Folder for metrics.json and the tables."),
    protocol: list[str] | None = of.but(
        PROTOCOL,
        default=None,
        help="How answers are read. May be given several times.",
        show_default="beans-zero",
    ),
    quiet: bool = of.option(False, "Do not show the scores."),
    scoring: ScoringOptions,
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
    protocol: str = PROTOCOL,
    output_path: Path | None = of.option(None, "Folder for compare.json."),
    scoring: ScoringOptions,
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

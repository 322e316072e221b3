"""Files of answers: metrics (`beans score`), two runs paired (`compare`), a page of what they show
(`report`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import printable, show

if TYPE_CHECKING:
    from NatureLM.evaluation.answers import ReadOptions
    from NatureLM.evaluation.metrics import BootstrapOptions
    from NatureLM.evaluation.score import Comparison, Scores
    from NatureLM.reports.tally import Least
    from NatureLM.results.detections import ResultFile

_MOST_ERRORS_SHOWN = 10
_MOST_ANSWERS = 3000
_MOST_CLIPS = 20

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
        from NatureLM.evaluation.metrics import BootstrapOptions

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


# A page of what answers show: of scored ones, or of those about recordings

_SCORED = "Answers to be scored"
_RECORDINGS = "Answers about recordings"


def report(
    *,
    runs: list[Path] = of.argument(
        ...,
        "Files of answers (.jsonl, .jsonl.gz), or folders with such files; of answers about "
        "recordings (of infer, survey or events) one file.",
        "RUN...",
    ),
    output_path: Path = of.option(Path("report"), "Folder for the report."),
    title: str | None = of.option(
        None, "Title of the page.", show_default="the names of what is reported"
    ),
    column: list[str] | None = of.option(
        None,
        "Question, or column of a questionnaire, that names what is heard. May be given several "
        "times.",
        _RECORDINGS,
        show_default="of a questionnaire its choices, else all",
    ),
    min_confidence: str = of.option(
        "0.0",
        "Answers that are less sure are left out: a number, or thresholds of each species.",
        _RECORDINGS,
        metavar="NUMBER|FILE|FILE:PROBABILITY",
    ),
    clips: int = of.option(
        3, "Clips of each name that are heard in the page.", _RECORDINGS, min=0, max=_MOST_CLIPS
    ),
    protocol: str = of.but(PROTOCOL, rich_help_panel=_SCORED),
    between: str | None = of.option(
        None,
        "The two α whose classes are compared, such as 1.0,0.4.",
        _SCORED,
        metavar="ALPHA,ALPHA",
        show_default="1.0 and the best of each question",
    ),
    answers: int = of.option(
        _MOST_ANSWERS, "Most single answers in the page.", _SCORED, min=0, max=1_000_000
    ),
    scoring: ScoringOptions,
) -> None:
    """Draw what answers show: one page that works offline, with its figures and tables as files.

    naturelm report answers.jsonl --output-path report

    Answers with labels are scored. Answers about recordings show what was heard when and where,
    with sound.
    """
    from NatureLM.reports.figures import need_matplotlib
    from NatureLM.util import check_place

    check_place(output_path, "--output-path", folder=True)
    need_matplotlib()
    about_recordings = [path for run in runs if (path := _about_recordings(run)) is not None]
    if not about_recordings:
        _refuse("answers about recordings", column=column, clips=clips != 3 or None)
        if min_confidence != "0.0":
            _refuse("answers about recordings", min_confidence=min_confidence)
        pair = None if between is None else _pair(between)
        _report_scores(runs, output_path, protocol, title, pair, answers, scoring)
        return
    _refuse(
        f"answers that are scored, and {about_recordings[0]} is about recordings",
        protocol=protocol if protocol != "beans-zero" else None,
        between=between,
        answers=answers if answers != _MOST_ANSWERS else None,
        **_given(scoring),
    )
    if len(runs) > 1:
        raise UsageError(
            f"{about_recordings[0]} is about recordings, and a report on recordings takes one "
            f"file; there are {', '.join(map(str, runs))}"
        )
    _report_recordings(about_recordings[0], output_path, title, column, min_confidence, clips)


def _refuse(what_for: str, **given: Any) -> None:
    for name, value in given.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} is for {what_for}")


def _given(scoring: ScoringOptions) -> dict[str, Any]:
    """The options of scoring that are not as they are by themselves."""
    default = ScoringOptions()
    return {
        one.name: True
        for one in fields(scoring)
        if getattr(scoring, one.name) not in (getattr(default, one.name), [])
    }


def _about_recordings(run: Path) -> Path | None:
    """The file of answers about recordings that is meant; None for anything else.

    Raises UsageError where a folder has several.
    """
    if not run.is_dir():
        return run if _is_about_recordings(run) else None
    found = [path for path in sorted(run.glob("*.jsonl")) if _is_about_recordings(path)]
    if len(found) > 1:
        raise UsageError(
            f"{run}: has several files of answers about recordings "
            f"({', '.join(path.name for path in found)}); name one of them"
        )
    return found[0] if found else None


def _is_about_recordings(path: Path) -> bool:
    """Whether the first line is a row of `naturelm infer`, `survey` or `events`."""
    from NatureLM.util import parse_json

    try:
        with open(path, "rb") as file:
            first = parse_json(file.readline(1 << 24))
    except (OSError, ValueError):
        return False
    is_row = isinstance(first, dict) and {"audio_path", "schema_version"} <= first.keys()
    return is_row and "label" not in first


def _report_recordings(
    path: Path,
    output_path: Path,
    title: str | None,
    columns: Sequence[str] | None,
    min_confidence: str,
    clips: int,
) -> None:
    from NatureLM.reports.field import make_field_report, open_answers
    from NatureLM.reports.page import write_field_report

    answers = open_answers(path, columns or None)
    least, told = _least(min_confidence, answers)
    made = make_field_report(answers, title=title or "", least=least, least_text=told, clips=clips)
    written = write_field_report(made, output_path)
    names, recordings = len(made.heard.rows), len(answers.recordings)
    show(
        f"{recordings} {'recording' if recordings == 1 else 'recordings'}, {names} "
        f"{'name' if names == 1 else 'names'} heard. Open {written[0]} in a browser."
    )


def _least(text: str, answers: ResultFile) -> tuple[Least | None, str]:
    """The least confidence of a name, and how readers are told of it."""
    from NatureLM.results.thresholds import least

    given = of.min_confidence(text)
    if isinstance(given, float | int):
        return (None, "") if given <= 0 else (lambda label, question: given, f"{given:g}")
    for note in given.check(answers.settings, answers.columns or answers.questions):
        show(f"Note: {note}", err=True)
    told = f"for each species, from {Path(given.path).name}"
    return (lambda label, question: least(given, label, question)), told


def _report_scores(
    runs: Sequence[Path],
    output_path: Path,
    protocol: str,
    title: str | None,
    between: tuple[float, float] | None,
    most_answers: int,
    scoring: ScoringOptions,
) -> None:
    from NatureLM.evaluation.protocols import protocol as find
    from NatureLM.evaluation.score import score as score_files
    from NatureLM.reports.page import write_report
    from NatureLM.reports.report import make_report

    scores = score_files(runs, [find(protocol)], **scoring.arguments())
    # The last parts of the paths: a report is read on other machines.
    sources = [path.name or path.resolve().name for path in runs]
    made = make_report(
        scores,
        title=title or ", ".join(sources),
        sources=sources,
        between=between,
        most_answers=most_answers,
        bootstrap=scoring.evaluation(),
    )
    written = write_report(made, output_path)
    if scores.problems:
        lines = "line" if len(scores.problems) == 1 else "lines"
        show(f"{len(scores.problems)} {lines} with errors left out.", err=True)
    figures = sum(path.suffix == ".svg" for path in written)
    tables = sum(path.suffix == ".csv" for path in written)
    show(
        f"{scores.answers} answers, {figures} figures, {tables} tables. "
        f"Open {written[0]} in a browser."
    )


def _pair(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--between {text}: write two values of α, such as 1.0,0.4") from None
    if first == second:
        raise UsageError(f"--between {text}: the two values are the same")
    return first, second

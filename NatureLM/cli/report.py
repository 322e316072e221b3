"""`report`: a page of what answers show, of scored ones or of those about recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.cli import options as of
from NatureLM.cli.score import PROTOCOL, ScoringOptions
from NatureLM.errors import UsageError
from NatureLM.progress import show

if TYPE_CHECKING:
    from NatureLM.reports.tally import Least
    from NatureLM.results.detections import ResultFile

_SCORED = "Answers to be scored"
_RECORDINGS = "Answers about recordings"
_MOST_ANSWERS = 3000
_MOST_CLIPS = 20


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
    from NatureLM.evaluation.score import score
    from NatureLM.reports.page import write_report
    from NatureLM.reports.report import make_report

    scores = score(runs, [find(protocol)], **scoring.arguments())
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

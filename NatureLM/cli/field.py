"""Answers as tables of other programs, and models as folders of theirs (`export`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from NatureLM.cli import options as of
from NatureLM.cli.models import ModelExport, export_model
from NatureLM.errors import UsageError
from NatureLM.progress import show

if TYPE_CHECKING:
    from NatureLM.formats import Written


def export(
    answers: Path = of.argument(
        ...,
        "What `naturelm infer` or `naturelm survey` wrote (.jsonl); with --to the folder to write.",
        "ANSWERS|OUT",
    ),
    *,
    format_name: str = of.option(
        "csv", "The program that the table is for.", None, "--format", metavar=of.format_names
    ),
    output_path: Path | None = of.option(
        None,
        "File to write; one that exists is replaced. With --per-recording: a folder.",
        show_default="the name of ANSWERS with the suffix of the format",
    ),
    per_recording: bool = of.option(
        False, "One file for each recording, in folders as the recordings are."
    ),
    column: list[str] | None = of.option(
        None,
        "Only the answers to this question, or in this column of a questionnaire, are detections. "
        "May be given several times.",
        None,
        "--column",
        metavar="QUESTION",
        show_default="all; of a questionnaire those that name species, if any do",
    ),
    model: ModelExport,
) -> None:
    """Turn answers into a table that another program opens, or a model into a folder that it loads.

    naturelm export inference_output.jsonl --format raven

    naturelm export --to vllm served --alpha 0.4,1.0
    """
    if model.to is not None:
        if per_recording or column or output_path or format_name != "csv":
            raise UsageError(
                "--to writes a model into the folder that is named, so --format, --output-path, "
                "--per-recording and --column have no meaning there; leave them out"
            )
        export_model(answers, model)
        return
    model.check_unused()
    write_tables(answers, [format_name], output_path, per_recording=per_recording, columns=column)


def write_tables(
    answers: Path,
    formats: Sequence[str],
    output_path: Path | None = None,
    *,
    per_recording: bool = False,
    columns: Sequence[str] | None = None,
) -> list[Written]:
    """Write a file of answers in other formats, beside it unless told where, and say so.

    All is checked first. Raises UsageError.
    """
    from NatureLM.formats import write
    from NatureLM.results.detections import ResultFile
    from NatureLM.results.parts import is_parts

    targets = check_tables(answers, formats, output_path, per_recording=per_recording)
    if not (answers.is_file() or is_parts(answers)):
        raise UsageError(f"{answers}: there is no such file of answers")
    read = ResultFile(answers, columns=columns)
    made = []
    for name, target in targets.items():
        made.append(write(name, read, target, per_recording))
        say_what_was_written(made[-1])
    return made


def check_tables(
    answers: Path,
    formats: Sequence[str],
    output_path: Path | None = None,
    *,
    per_recording: bool = False,
) -> dict[str, Path]:
    """Where the table of each format goes; before the work that makes the answers.

    Raises UsageError for a format that is not there, and a place that cannot be written to.
    """
    from NatureLM.formats import FORMATS, is_folder
    from NatureLM.util import check_place

    targets = {}
    for name in formats:
        of.check_choice("--format", name, FORMATS)
        target = output_path or beside(answers, name, per_recording)
        if target.resolve() == answers.resolve():
            raise UsageError(f"--format {name}: {target}: the answers themselves would be replaced")
        check_place(target, "--output-path", folder=per_recording or is_folder(name, target))
        targets[name] = target
    return targets


def beside(answers: Path, name: str, per_recording: bool = False) -> Path:
    """Where a table is written if nothing is said: `answers.csv`, or the folder `answers-csv`."""
    from NatureLM.formats import FORMATS

    suffix = f"-{name}" if per_recording else FORMATS[name].suffix
    return answers.with_name(answers.stem + suffix)


def say_what_was_written(written: Written) -> None:
    """How much is where, what goes with it, and what is not in it and why."""
    from NatureLM.generation.labels import NOTHING
    from NatureLM.util import is_special

    files = "" if written.files == 1 else f" in {written.files} files"
    # A pipe, such as /dev/stdout, holds the table alone.
    show(
        f"{written.lines} {written.format.unit}{files} in {written.path}",
        err=is_special(written.path),
    )
    for text in written.says:
        show(text)
    reasons = [
        f"answered with {NOTHING}: {count}" if why == NOTHING else f"{why}: {count}"
        for why, count in written.left_out.most_common()
    ]
    if written.unread:
        reasons.append(f"recordings that could not be read, or not to their end: {written.unread}")
    if reasons:
        show(f"Not in a table of detections: {', '.join(reasons)}", err=True)

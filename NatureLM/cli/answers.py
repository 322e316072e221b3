"""After the answers: `naturelm events` joins windows, `naturelm segments` cuts clips for review,
`naturelm export` makes tables of other programs (and, with --to, folders of models)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from NatureLM.cli import options as of
from NatureLM.cli.models import ModelExport, export_model
from NatureLM.cli.terminal import RESUMES, SOME_FAILED, Failures, stop_message
from NatureLM.errors import UsageError
from NatureLM.progress import ProgressBar, say, show

if TYPE_CHECKING:
    from NatureLM.formats import Written
    from NatureLM.results.detections import ResultFile
    from NatureLM.results.thresholds import MinConfidence
    from NatureLM.review.cutting import CutFolder
    from NatureLM.review.events import EventCounts

logger = logging.getLogger(__name__)
_MOST_NAMED = 10
_WHICH = "Which answers"
_ANSWERS = of.argument(..., "Answers of infer or survey, or events (.jsonl).", "ANSWERS")
_COLUMN = of.option(
    None,
    "A question, or a column of a questionnaire. May be given several times.",
    _WHICH,
    metavar="NAME",
    show_default="all; of a questionnaire those that name species, if any do",
)
_MIN_CONFIDENCE = of.option(
    "0.0",
    "Answers that are less sure are left out: a number, or thresholds of each species, at which "
    "they are right with probability 0.95 or another (`naturelm calibrate` makes them).",
    _WHICH,
    metavar="NUMBER|FILE|FILE:PROBABILITY",
)


def events(
    *,
    answers: Path = _ANSWERS,
    output_path: Path = of.option(
        Path("events.jsonl"), "File for the events; events that are there are replaced."
    ),
    gap: float = of.option(0.0, "Seconds that may lie between two windows of one event."),
    min_windows: int = of.option(1, "Events of fewer windows are left out.", min=1),
    min_confidence: str = _MIN_CONFIDENCE,
    max_per_window: int | None = of.option(
        None,
        "Of several answers about a window, so many at most count: the surest.",
        _WHICH,
        min=1,
        show_default="all",
    ),
    column: list[str] | None = _COLUMN,
) -> None:
    """Join neighbouring windows with the same answer into events.

    naturelm events inference_output.jsonl --gap 5 --output-path events.jsonl

    An event has the highest and the mean confidence of its windows, and their number. What takes
    answers takes events, too: export, report and segments.
    """
    from NatureLM.results.detections import ResultFile
    from NatureLM.results.thresholds import read_min_confidence
    from NatureLM.review.events import EventOptions, check_target, write_events
    from NatureLM.util import check_place

    options = EventOptions(
        gap=gap,
        min_windows=min_windows,
        min_confidence=read_min_confidence(min_confidence),
        max_per_window=max_per_window,
    )
    check_place(output_path, "--output-path")
    check_target(output_path, answers)
    source = ResultFile(answers, columns=column)
    check_thresholds(options.min_confidence, source)
    _note_what_lies_between(source, gap)
    if source.names_nothing:
        raise UsageError(f"{answers}: there is nothing to join: {source.names_nothing}")
    counts = write_events(source, output_path, options)
    _show_events(counts)
    say_what_has_none(counts.unknown)
    say(f"Events are in {output_path}")
    raise typer.Exit(SOME_FAILED if counts.failed else 0)


def check_thresholds(least: MinConfidence, source: ResultFile) -> None:
    """Refuse thresholds of other weights, and say what else may not fit."""
    if not least.is_by_species:
        return
    if not source.settings:
        logger.warning(
            "%s: its settings are lost, so it cannot be told whether the thresholds are of these "
            "weights",
            source.path,
        )
    for note in least.check(source.settings, source.columns or source.questions):
        logger.warning(note)


def say_what_has_none(unknown: Mapping[str, int]) -> None:
    """Name the species whose answers were left out because they have no threshold."""
    if not unknown:
        return
    named = [f"{name} ({count})" for name, count in Counter(unknown).most_common(_MOST_NAMED)]
    more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
    logger.warning(
        "species without a threshold, whose answers are left out: %s%s; a line for the species * "
        "in the file holds for all of them",
        ", ".join(named),
        more,
    )


def _note_what_lies_between(source: ResultFile, gap: float) -> None:
    """Say where no two windows can meet, because there is time between them that nobody heard."""
    settings = source.settings
    window, hop = settings.get("window_length_seconds"), settings.get("hop_length_seconds")
    if window is None or hop is None or "events" in settings:
        return
    between = (hop - window) / float(settings.get("time_expansion", 1.0))
    if between > gap:
        logger.warning(
            "%g s lie between the windows, so none are joined with --gap %g; --gap %g joins "
            "neighbours",
            *(between, gap, between),
        )


def _show_events(counts: EventCounts) -> None:
    names = sorted(counts.events, key=lambda name: (-counts.events[name], name))
    rows = [[name, str(counts.events[name]), f"{counts.seconds[name]:g}"] for name in names]
    if rows:
        of.print_table(["label", "events", "seconds"], rows, right={"events", "seconds"})
    show(
        f"Events: {counts.events.total()}, of {counts.answers} answers. Recordings: "
        f"{counts.recordings}, without events: {counts.without}, not read to the end: "
        f"{counts.failed}."
    )
    left = [f"{reason}: {count}" for reason, count in sorted(counts.left_out.items()) if count]
    if left:
        show(f"Left out: {', '.join(left)}.")


_CHOICE, _CLIPS = "Which clips", "Clips"


def segments(
    *,
    answers: Path = _ANSWERS,
    output_path: Path = of.option(
        Path("clips"), "Folder for the clips; one that was stopped goes on.", _CLIPS
    ),
    choose: str = of.option(
        "balanced",
        "As many from each bin of confidence, at random, the surest (confidence, or top), those "
        "that nearly had another answer, or of many recordings and times.",
        _CHOICE,
        *("--choose", "--select"),
        metavar="balanced|random|top|uncertain|diverse",
    ),
    per_species: int = of.option(50, "So many of each species at most.", _CHOICE, min=1),
    bins: int = of.option(
        5, "Bins of confidence, for balanced: of equal width, from the least to 1.", _CHOICE, min=1
    ),
    species: str | None = of.option(
        None,
        "Species that are wanted: a file, names separated by commas, or a preset.",
        _CHOICE,
        metavar="FILE|NAMES|PRESET",
        show_default="all",
    ),
    min_confidence: str = _MIN_CONFIDENCE,
    column: list[str] | None = _COLUMN,
    seed: int = of.option(0, "Another one chooses other clips.", _CHOICE, min=0, max=of.MAX_SEED),
    context_seconds: float = of.option(
        1.0, "Sound before and after, as far as the recording goes.", _CLIPS
    ),
    max_seconds: float = of.option(60.0, "Of longer events the beginning is cut.", _CLIPS),
) -> None:
    """Cut clips for review: what was answered, with the sound around it.

    naturelm segments inference_output.jsonl --per-species 50 --output-path clips

    `naturelm review clips` plays them, and `naturelm calibrate clips` makes thresholds of what
    reviewers say.
    """
    from NatureLM.results.detections import ResultFile
    from NatureLM.results.thresholds import read_min_confidence
    from NatureLM.review.cutting import CHOICES, ChoiceOptions, CutOptions, cut_clips
    from NatureLM.util import check_place

    of.check_choice("--choose", choose, CHOICES)
    options = CutOptions(
        choice=ChoiceOptions(
            choose=choose,  # type: ignore[arg-type]
            per_species=per_species,
            bins=bins,
            min_confidence=read_min_confidence(min_confidence),
            species=None if species is None else _species(species),
            seed=seed,
        ),
        context=context_seconds,
        longest=max_seconds,
    )
    check_place(output_path, "--output-path", folder=True)
    source = ResultFile(answers, columns=column)
    check_thresholds(options.choice.min_confidence, source)
    failures = Failures()
    with (
        stop_message(f"Stopped. Clips are in {output_path}; {RESUMES}"),
        ProgressBar("bar", "{task.completed}/{task.total} clips") as bar,
    ):
        made = cut_clips(
            source,
            output_path,
            options,
            failed=failures,
            done=lambda count, total: bar.update(count, total=total),
        )
    _show_clips(made, per_species, output_path)
    _say_how_it_plays(source)
    raise typer.Exit(failures.exit_code)


def clips_of_answers(answers: Path, select: str, per_species: int) -> Path:
    """Cut clips for review into a folder beside the answers, which is called after the choice.

    Raises UsageError where there are none.
    """
    from NatureLM.results.detections import ResultFile
    from NatureLM.review.cutting import CHOICES, ChoiceOptions, CutOptions, cut_clips

    of.check_choice("--select", select, CHOICES)
    choice = ChoiceOptions(choose=select, per_species=per_species)  # type: ignore[arg-type]
    folder = answers.with_name(f"{answers.stem}-{select}")
    made = cut_clips(
        ResultFile(answers),
        folder,
        CutOptions(choice=choice),
        failed=Failures(),
    )
    _show_clips(made, per_species, folder)
    return folder


def _species(given: str) -> tuple[str, ...]:
    from NatureLM.species import presets, read_species_list

    found = read_species_list(given, presets=presets())
    for text in found.notes:
        logger.warning(text)
    return found.names


def _show_clips(made: CutFolder, wanted: int, folder: Path) -> None:
    short = list(made.short(wanted))
    for one, clips, why in short[:_MOST_NAMED]:
        show(f"{one.label}: {clips} of {wanted} clips: {why}")
    if len(short) > _MOST_NAMED:
        more = len(short) - _MOST_NAMED
        show(f"and {more} more with fewer than {wanted}, see {folder / 'species.csv'}")
    if made.shortened:
        show(f"Of {made.shortened} longer events only the beginning was cut (--max-seconds).")
    before = f", {made.before} of them from before" if made.before else ""
    species = sum(len(one.taken) > made.unreadable[one.label] for one in made.chosen)
    show(f"{made.clips} clips of {species} species are in {folder}{before}.")


def _say_how_it_plays(source: ResultFile) -> None:
    expansion = float(source.settings.get("time_expansion", 1.0))
    if expansion != 1:
        logger.warning(
            "the model heard the sound %g times slower; clips have the speed and the rate of the "
            "recordings, and the page of `naturelm review` plays them as the model heard them",
            expansion,
        )


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

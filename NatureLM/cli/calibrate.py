"""`naturelm calibrate`: confidences that mean what they say, by known answers or reviewed clips."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.cli import options as of
from NatureLM.cli.score import COLUMN, COLUMN_FORM, KNOWN_ANSWERS, QUERY, WHERE, WHERE_FORM
from NatureLM.errors import UsageError
from NatureLM.progress import say, show

if TYPE_CHECKING:
    from NatureLM.data.sample import Sample
    from NatureLM.experiments.calibrate import Reliability, Scored
    from NatureLM.review.thresholds import Calibrated, SpeciesCurve

logger = logging.getLogger(__name__)
_SHOWN = 0.95
_MOST_REASONS = 20
_MOST_CURVES = 6
_BINS = 5


def calibrate(
    *,
    table: str = of.argument(
        ...,
        "A table with the columns path and label (.csv, .jsonl, .parquet), or a folder with one, "
        "or one of reviewed clips.",
    ),
    where: list[str] | None = WHERE,
    test_where: list[str] | None = of.option(
        None,
        "Rows to measure on, such as split=test; they should be others.",
        KNOWN_ANSWERS,
        metavar="COLUMN=VALUE",
        show_default="the rows that it is fitted to",
    ),
    column: list[str] | None = COLUMN,
    species_list: str | None = of.option(
        None,
        "The labels to choose from.",
        KNOWN_ANSWERS,
        metavar="FILE|NAMES|PRESET",
        show_default="the labels of the table",
    ),
    query: str | None = of.but(QUERY, show_default="the question for the name of the species"),
    normalize: str = of.option(
        "sum",
        "How labels are made comparable: by log-likelihood, by that of a token, or by what the "
        "sound adds.",
        of.MODEL,
        metavar="sum|mean|prior",
    ),
    weights: of.WeightsOptions,
    adapter: str | None = of.ADAPTER,
    merging_alpha: float = of.option(1.0, "Share of the adapter.", of.MODEL),
    on: of.PrecisionOptions,
    output_path: Path | None = of.option(
        None,
        "File for the calibration.",
        "Output",
        *("--output-path", "--output"),
        show_default="calibration.json in the folder of the model; thresholds.csv in that of "
        "reviewed clips",
    ),
    figure: Path | None = of.option(
        None, "File (.svg) for a reliability diagram; of reviewed clips for their curves.", "Output"
    ),
    min_clips: int = of.option(
        20, "Species with fewer judged clips have no threshold.", "Reviewed clips", min=4
    ),
) -> None:
    """Fit the temperature that makes the confidence in species mean what it says.

    naturelm calibrate clips.csv --where split=valid --test-where split=test

    `naturelm infer --species-list ...` then uses it wherever the model is used at this α.

    Of a folder of reviewed clips (`naturelm segments`, `naturelm review`): fit how the chance of
    being right grows with the confidence, and write thresholds, which --min-confidence reads.
    """
    if is_reviewed(table):
        given = {
            "--where": where,
            "--test-where": test_where,
            "--column": column,
            "--species-list": species_list,
            "--query": query,
            "--adapter": adapter,
        }
        calibrate_clips(Path(table), output_path, figure, min_clips, given)
        return
    from NatureLM.experiments.calibrate import fit_calibration, measure, score_samples
    from NatureLM.generation.labels import check_normalize
    from NatureLM.inference.calibration import write_calibration
    from NatureLM.reports.figures import draw_reliability, need_matplotlib, svg
    from NatureLM.util import check_place, write_text

    check_normalize(normalize)
    if query is not None and not query.strip():
        raise UsageError("--query is empty: give a question, or leave the option out")
    target = _target(output_path, "@".join(filter(None, (weights.name, weights.revision))))
    check_place(target, "--output-path")
    if figure is not None:
        if figure.suffix.lower() != ".svg":
            raise UsageError(f"--figure is {figure}, and its name must end in .svg")
        check_place(figure, "--figure")
        need_matplotlib()
    samples = _samples(table, column, where)
    others = _samples(table, column, test_where, is_read=True) if test_where else None
    names, asked = _question(samples, species_list, query)
    on.check_device()
    say(f"Loading {weights.name}")
    loaded = of.load_model(weights.name, adapter=adapter, **vars(on), **weights.pinned)
    how: Any = {"alpha": merging_alpha, "normalize": normalize}

    def score(of_samples: Sequence[Sample]) -> list[Scored]:
        say(f"Scoring {len(names)} labels on {len(of_samples)} recordings")
        return score_samples(loaded, of_samples, names, asked, **how)

    fitted = score(samples)
    tested = fitted if others is None else score(others)
    found = fit_calibration(loaded, fitted, asked, **how)
    before, after = measure(tested, 1.0), measure(tested, found.temperature)
    if found.is_at_the_edge:
        say(
            f"Note: the temperature is as far as it goes, {found.temperature:g}: "
            f"{found.samples} recordings do not say how sure the model should be. Take more, "
            "among them some that it gets wrong"
        )
    write_calibration(found, target)
    if figure is not None:
        lines = {"as scored": before.bins, f"temperature {after.temperature:.2f}": after.bins}
        write_text(figure, svg(draw_reliability(lines, f"{after.error.samples} recordings")))
    _show_reliability(before, after, fitted=len(fitted), on_others=others is not None)
    show(f"Calibration: {target}")


def _target(output_path: Path | None, model: str) -> Path:
    """Where the calibration goes: beside the model, unless that belongs to the package."""
    from NatureLM.inference.calibration import beside_model
    from NatureLM.models.registry import EMBEDDED

    target = output_path or beside_model(model)
    if target is None:
        raise UsageError(f"{model} is no folder on this machine: say where with --output-path")
    embedded = beside_model(EMBEDDED)
    if output_path is None and embedded is not None and target.resolve() == embedded.resolve():
        raise UsageError(
            f"{model} belongs to the installed package, whose files stay as they are: say where "
            "the calibration goes with --output-path"
        )
    return target


def _samples(
    table: str, columns: Sequence[str] | None, where: Sequence[str] | None, *, is_read: bool = False
) -> tuple[Sample, ...]:
    """Rows of a table; `is_read`: its notes were shown."""
    from NatureLM.config.schema import TableSource
    from NatureLM.data.sample import open_samples

    names = of.pairs("--column", columns, COLUMN_FORM)
    values: Any = of.pairs("--where", where, WHERE_FORM)
    found = open_samples(TableSource.named(table, columns=names, where=values))
    for note in () if is_read else found.notes:
        logger.warning("Note: %s", note)
    return found.samples


def _question(
    samples: Sequence[Sample], species_list: str | None, query: str | None
) -> tuple[tuple[str, ...], str]:
    """The labels to choose from, and what is asked."""
    from NatureLM.species import default_question, kind_of, presets, read_species_list

    if species_list is not None:
        found = read_species_list(species_list, presets=presets())
        for text in found.notes:
            logger.warning("Note: %s", text)
        names, kind = found.names, found.kind
    else:
        names = tuple(sorted({sample.label for sample in samples}))
        kind = kind_of(names)
    return names, query or default_question(names, kind)


def _show_reliability(
    before: Reliability, after: Reliability, *, fitted: int, on_others: bool
) -> None:
    rows = [
        [name, f"{one.temperature:.2f}", str(one.error), str(one.nll), str(one.accuracy)]
        for name, one in (("as scored", before), ("calibrated", after))
    ]
    columns = ["confidence", "temperature", "calibration error", "surprise (nats)", "accuracy"]
    of.print_table(columns, rows, right={"temperature"})
    which = "others than it was fitted to" if on_others else "those that it was fitted to"
    show(
        f"Fitted to {fitted} recordings; measured on {after.error.samples}, {which}, resampled by "
        f"{after.error.clusters} groups."
    )


# Of clips that were reviewed


def is_reviewed(place: str) -> bool:
    """Whether this is a folder of clips for review, in place of a table."""
    from NatureLM.review.folder import index_path

    return index_path(place).is_file()


def calibrate_clips(
    folder: Path,
    output_path: Path | None,
    figure: Path | None,
    min_clips: int,
    given: Mapping[str, Any],
) -> None:
    """Fit curves to reviewed clips, write and show their thresholds.

    given: options that mean nothing here, with their values

    Raises UsageError where one of them is given, or nothing was reviewed.
    """
    from NatureLM.review.thresholds import calibrate_folder
    from NatureLM.util import check_place, write_text

    in_vain = [name for name, value in given.items() if value]
    if in_vain:
        raise UsageError(
            f"{folder} holds reviewed clips, of which thresholds are made without a model; "
            f"{', '.join(in_vain)} is for tables of recordings with known answers"
        )
    if output_path is not None:
        check_place(output_path, "--output-path")
    target = figure or folder / "thresholds.svg"
    if target.suffix.lower() != ".svg":
        raise UsageError(f"--figure is {figure}, and its name must end in .svg")
    draws = of.can_draw(is_needed=figure is not None)
    made = calibrate_folder(folder, output_path=output_path, least_clips=min_clips)
    _show_thresholds(made)
    drawn = draws and any(one.curve is not None for one in made.curves)
    if drawn:
        from NatureLM.reports.figures import svg

        write_text(target, svg(_figure(made)))
    show(f"Thresholds: {made.path}" + (f", curves: {target}" if drawn else ""))


def _show_thresholds(made: Calibrated) -> None:
    """A table of what is known, then why the rest is not, then how far reviewers agree."""
    questions = {one.question for one in made.curves}
    rows = [_row(made, one, len(questions) > 1) for one in made.curves]
    columns = ["species", "clips", "right", f"threshold for {_SHOWN:g}", "95 % interval"]
    of.print_table(columns, rows, right={"clips", "right"})
    missing = [
        (one.species, line.why)
        for one in made.curves
        if (line := made.line(one, _SHOWN)).threshold is None
    ]
    for species, why in missing[:_MOST_REASONS]:
        show(f"{species}: no threshold for {_SHOWN:g}: {why}")
    if len(missing) > _MOST_REASONS:
        show(f"and {len(missing) - _MOST_REASONS} more without one; the table says why")
    review, agreed = made.review, made.review.agreement
    show(
        f"Judged: {len(review.judged)} of {len(review.segments)} clips; undecided: "
        f"{review.undecided}; reviewers: {agreed.reviewers}."
    )
    if review.unknown:
        show(f"Verdicts about clips that are not in the index do not count: {review.unknown}.")
    if agreed.share is not None:
        kappa = "" if agreed.kappa is None else f", kappa {agreed.kappa:.2f}"
        show(f"Of {agreed.clips} clips of several reviewers {agreed.share:.0%} agree{kappa}.")


def _row(made: Calibrated, one: SpeciesCurve, has_questions: bool) -> list[str]:
    line = made.line(one, _SHOWN)
    name = f"{one.species} ({one.question})" if has_questions else one.species
    value = "-" if line.threshold is None else f"{line.threshold:.3f}"
    interval = "-"
    if line.threshold is not None and line.low is not None and line.high is not None:
        interval = f"{line.low:.3f} to {line.high:.3f}"
    return [name, str(len(one.clips)), str(one.right), value, interval]


def _figure(made: Calibrated) -> Any:
    """Curves of the species with most clips."""
    import numpy as np

    from NatureLM.evaluation.metrics import reliability_bins
    from NatureLM.reports.figures import draw_certainty
    from NatureLM.review.thresholds import CHANCES

    known = [one for one in made.curves if one.curve is not None]
    known.sort(key=lambda one: (-len(one.clips), one.species))
    curves = {}
    for one in known[:_MOST_CURVES]:
        assert one.curve is not None
        sure = [clip.confidence or 0.0 for clip, _ in one.clips]
        right = [is_right for _, is_right in one.clips]
        places = np.linspace(min(sure), max(sure), 200)
        bins = reliability_bins(sure, np.array(right, dtype=np.float64), None, _BINS)
        name = f"{one.species}, {len(one.clips)} clips"
        curves[name] = (places.tolist(), one.curve.chance(places).tolist(), bins)
    title = f"Chance of being right, {len(made.review.judged)} reviewed clips"
    return draw_certainty(curves, CHANCES, title)

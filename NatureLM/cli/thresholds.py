"""`naturelm calibrate FOLDER`: thresholds of clips that were reviewed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from NatureLM.cli import options as of
from NatureLM.errors import UsageError
from NatureLM.progress import say, show

if TYPE_CHECKING:
    from NatureLM.review.thresholds import Calibrated, SpeciesCurve

_SHOWN = 0.95
_MOST_REASONS = 20
_MOST_CURVES = 6
_BINS = 5


def is_reviewed(place: str) -> bool:
    """Whether this is a folder of clips for review, in place of a table."""
    from NatureLM.review.segments import index_path

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
    draws = _draws(asked=figure is not None)
    made = calibrate_folder(folder, output_path=output_path, least_clips=min_clips)
    _show(made)
    drawn = draws and any(one.curve is not None for one in made.curves)
    if drawn:
        from NatureLM.reports.figures import svg

        write_text(target, svg(_figure(made)))
    show(f"Thresholds: {made.path}" + (f", curves: {target}" if drawn else ""))


def _draws(*, asked: bool) -> bool:
    """Whether figures can be drawn; raises UsageError where one was asked for and they cannot."""
    from NatureLM.reports.figures import need_matplotlib

    try:
        need_matplotlib()
    except UsageError as error:
        if asked:
            raise
        say(f"There will be no figure: {error}")
        return False
    return True


def _show(made: Calibrated) -> None:
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
